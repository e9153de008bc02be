"""What one training shares among processes: rows, refusals, and nothing where it is alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from robust_nc.data.batches import Batch
from robust_nc.exceptions import ConfigError
from robust_nc.training.data_parallel import (
    Group,
    Several,
    check_objective,
    parts,
    present,
    together,
)
from robust_nc.training.losses import cross_entropy
from robust_nc.training.objectives import Standard
from robust_nc.training.sync_batchnorm import synced
from robust_nc.types import Loss


class Two(Several):
    """The first of two processes, without the other."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 2
        self._rows, self._count = [slice(0, 1)] * 2, 2


@given(count=st.integers(0, 40), size=st.integers(1, 9))
def test_parts_are_consecutive_and_of_one_size(count: int, size: int) -> None:
    found = parts(count, size)
    rows = [row for part in found for row in range(count)[part]]
    lengths = {part.stop - part.start for part in found}
    assert rows == list(range(count))
    assert len(found) == size
    assert max(lengths) - min(lengths) <= 1


def test_alone_a_training_takes_the_plain_backward_pass() -> None:
    with together() as group:
        assert type(group) is Group
        assert present() is group
        weight = torch.tensor([2.0], requires_grad=True)
        logs = {"loss": torch.tensor(1.0)}
        assert group.backward(Loss((3 * weight).sum(), logs), nn.Module()) is logs
        assert weight.grad is not None
        assert weight.grad.tolist() == [3]


def test_a_process_without_rows_stands_by_with_the_first() -> None:
    group = Two()
    batch = Batch(torch.rand(1, 1, 2, 2), torch.tensor([4]), torch.tensor([9]))
    own = group.share(batch)
    assert group.ghost
    assert own.ids.tolist() == [9]
    assert len(group.part(batch).labels) == 0


def test_an_objective_that_says_nothing_of_its_rows_is_refused_by_several() -> None:
    class Coupled:
        pass

    check_objective(Coupled(), Group())
    check_objective(Standard(cross_entropy), Two())
    with pytest.raises(ConfigError, match="Coupled does not say `in_parts = True`"):
        check_objective(Coupled(), Two())


class Own(nn.BatchNorm2d):
    """Batch norm of somebody else."""


@pytest.mark.parametrize(
    ("norm", "told"),
    [
        (Own(2), "'0' is a Own that is not torch's own"),
        (nn.SyncBatchNorm(2), "'0' is a SyncBatchNorm"),
        (nn.BatchNorm2d(2, track_running_stats=False), "keeps no running statistics"),
    ],
)
def test_batch_norm_that_cannot_be_shared_is_refused_by_name(norm: nn.Module, told: str) -> None:
    model = nn.Sequential(norm)
    with synced(Group(), model):
        pass
    with pytest.raises(ConfigError, match=told), synced(Two(), model):
        pass
