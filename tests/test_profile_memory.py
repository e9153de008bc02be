"""What one part of the grid holds at its peak, in a process of its own."""

import subprocess
import sys

import pytest

from robust_nc.profiling.accumulators import part_bytes

GROUPS, DIM, EXAMPLES = 256, 16_384, 512
CODE = """
import torch
from robust_nc.benchmarks.races.memory import held_bytes, peak_bytes
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.projection import Projection
from robust_nc.profiling.accumulators import ExactMeter, FeatureBatch, GroupMeter, VertexMeter
from robust_nc.profiling.rows import group_rows, vertex_rows

def group(name):
    meter = GroupMeter(reference, grouping=name)
    meter.update(batch)
    own = meter.moments if name == "true" else None
    exact = ExactMeter(reference, grouping=name, onto=Projection(meter.moments), own=own)
    exact.update(batch)
    group_rows(meter, exact.projection, reference.means, weight=None, frame=None, seed=0)

def vertices():
    meter = VertexMeter(reference, own=False, leaping=True)
    meter.update(batch)
    vertex_rows(meter, meter.leaps(), reference.means)

torch.set_num_threads(1)
labels = torch.arange({examples}) % {groups}
source = torch.Generator().manual_seed(0)
features = torch.randn({groups}, {dim}, generator=source)[labels]
features += 0.3 * torch.randn({examples}, {dim}, generator=source)
reference = Moments({groups}, {dim})
reference.update(features, labels)
batch = FeatureBatch(features, features + 0.1, None, labels, labels, labels, None)
before = held_bytes()
{part}
print(peak_bytes(torch.device("cpu")) - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    ["group('landed')", "group('true')", "vertices()"],
)
def test_a_part_holds_no_more_than_it_is_planned_for(part: str) -> None:
    """Rounds are cut by `part_bytes`."""
    code = CODE.format(groups=GROUPS, dim=DIM, examples=EXAMPLES, part=part)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 8 * GROUPS * DIM < int(ran.stdout) <= part_bytes(GROUPS, DIM)
