"""A profile in shards: equal blocks give equal bits, other cuts the same measures to rounding."""

import dataclasses
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from helpers_executor import Handle, PicklingExecutor
from helpers_geometry import clusters
from helpers_models import digits, small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robust_nc.config import MeasureConfig
from robust_nc.exceptions import InputError, StoppedError
from robust_nc.geometry.leaps import LeapMeter
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.nearest import NearestMeter
from robust_nc.geometry.portable import bare, moved
from robust_nc.geometry.projection import Projection
from robust_nc.geometry.scatter import EXAMPLES_PER_DIM, TotalScatter
from robust_nc.models.classifier import Classifier
from robust_nc.models.taps import read_taps
from robust_nc.profiling import feature_cache, profile
from robust_nc.profiling.accumulators import (
    Accumulator,
    ExactMeter,
    FeatureBatch,
    GroupMeter,
    OnePassMeter,
    VertexMeter,
)
from robust_nc.profiling.conditions import TARGETS, attack_shard, split_conditions
from robust_nc.profiling.measurement import Examples, Measurement
from robust_nc.profiling.rows import Row, group_rows, vertex_rows
from robust_nc.profiling.shards import ModelExecutor, PortableModel, Shard, SplitShards, slices
from robust_nc.profiling.split_rows import SplitRows
from robust_nc.profiling.sweeps import CorruptionSource, corrupted_rows
from robust_nc.record import tidy
from robust_nc.runtime import stopping
from robust_nc.runtime.executor import IN_PROCESS, Executor
from robust_nc.threat import Ball

TRAIN, TEST, BATCH, BLOCK = 40, 24, 8, 15
BALL = Ball("Linf", 0.1)
DISTANCES = 2.0 - 2.0 * torch.eye(10)
EVERYTHING = MeasureConfig(
    feature="both",
    taps=("block2", "penultimate"),
    steps=1,
    batch_size=BATCH,
    targets=("nearest", "severest"),
    radii=(0.5,),
    trajectories=2,
    adaptive="fgsm",
    adaptive_examples=2,
    agop_examples=2,
)
BARE = MeasureConfig(
    taps=("penultimate",), steps=1, batch_size=BATCH, targets=(), radii=(), trajectories=0
)
CUT = dataclasses.replace(BARE, block=BLOCK)


def nothing(share: float, text: str) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def model() -> Classifier:
    return small_model().eval()


def frame(
    model: Classifier, measure: MeasureConfig, executor: Executor = IN_PROCESS, report: Any = None
) -> pd.DataFrame:
    sets = {}
    for name, count in (("train", TRAIN), ("test", TEST)):
        split = digits(name, count)
        sets[name] = [(split.images, split.labels)]
    initial = small_model(seed=1)
    found = profile(
        model,
        sets,
        BALL,
        measure=measure,
        distances=DISTANCES,
        initial=initial,
        executor=executor,
        report=report,
    )
    return found.frame


def assert_close(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """Counts and notes are equal, values to 1e-9 of their size."""
    columns = [name for name in wanted.columns if name != "value"]
    pd.testing.assert_frame_equal(found[columns], wanted[columns], check_exact=True)
    pd.testing.assert_series_equal(found["value"], wanted["value"], rtol=1e-9, atol=1e-12)


def how(model: nn.Module, measure: MeasureConfig) -> Measurement:
    return Measurement.of(model, measure, BALL, num_classes=10, scale=1.0, distances=DISTANCES)


class TestTheWholeProfile:
    def test_equal_blocks_give_equal_measures_to_the_bit(self, model):
        """The last block of train has 10 examples, that of test 9; no block ends with a batch."""
        blocks = dataclasses.replace(EVERYTHING, block=BLOCK)
        executor = PicklingExecutor()
        far = frame(model, blocks, executor)
        pd.testing.assert_frame_equal(far, frame(model, blocks), check_exact=True)
        assert executor.calls.count("noise_shard") == 2 * (3 + 2)
        assert set(executor.calls) == {
            *("count_classes", "calibrate", "sweep_shard", "attack_shard", "noise_shard"),
            *("attack_at", "trajectory_rows", "gradients"),
            *("attack_network", "compare_taps", "attack_one_tap"),
        }

    def test_without_blocks_an_executor_gives_the_measures_of_one_process(self, model):
        executor = PicklingExecutor(width=3)
        some = dataclasses.replace(EVERYTHING, feature="flatten", targets=("nearest",))
        assert_close(frame(model, some, executor), frame(model, some))
        assert executor.calls.count("attack_at") == 3

    def test_attacked_images_stay_where_they_were_made(self, model):
        executor = PicklingExecutor()
        frame(model, CUT, executor)
        images = sum(executor.sizes["attack_shard"]) + sum(executor.sizes["noise_shard"])
        fetched = ("count_classes", "calibrate", "sweep_shard")
        assert images > 0
        assert executor.fetched == sum(sum(executor.sizes[name]) for name in fetched)

    def test_the_model_the_examples_and_the_vertices_go_over_once(self, model):
        executor = PicklingExecutor()
        frame(model, dataclasses.replace(CUT, radii=(0.5, 1.0)), executor)
        assert sum(isinstance(value, PortableModel) for value in executor.kept) == 1
        assert sum(isinstance(value, Shard) for value in executor.kept) == 3 + 2
        assert sum(isinstance(value, dict) for value in executor.kept) == 1

    def test_progress_is_told_in_one_process_and_in_an_executor(self, model):
        for executor in (IN_PROCESS, PicklingExecutor()):
            told: list[tuple[float, str]] = []
            frame(model, CUT, executor, report=lambda *line: told.append(line))  # noqa: B023
            assert all(0 <= share <= 1 for share, _ in told)
            assert {text for _, text in told} >= {
                "geometry, train: attack",
                "geometry, test: measure gaussian",
            }

    def test_a_wish_to_stop_is_heeded_between_conditions(self, model):
        def report(share: float, text: str) -> None:
            if text == "geometry, train: measure attacked":
                stopping.wish()

        executor = PicklingExecutor()
        try:
            with pytest.raises(StoppedError):
                frame(model, CUT, executor, report=report)
        finally:
            stopping.clear()
        assert "noise_shard" not in executor.calls


class TestOneSplit:
    def rows(
        self, model: nn.Module, examples: Examples, measure: MeasureConfig, executor: Executor
    ) -> pd.DataFrame:
        split = SplitShards(ModelExecutor(model, executor), how(model, measure), examples)
        view = SplitRows(split, "gap")
        made = split_conditions(split, view.vertices, nothing)
        return tidy([row for each in made for row in view.measure(each)])

    def test_shards_need_not_have_all_classes(self, model):
        train = digits("train", TRAIN)
        examples = Examples("train", *train.at(train.labels.argsort(stable=True)))
        for rows in slices(TRAIN, CUT, width=1):
            assert len(examples.part(rows).labels.unique()) <= 5
        even = dataclasses.replace(BARE, block=2 * BATCH)
        far, near = (
            self.rows(model, examples, even, each) for each in (PicklingExecutor(), IN_PROCESS)
        )
        pd.testing.assert_frame_equal(far, near, check_exact=True)
        assert_close(near, self.rows(model, examples, BARE, IN_PROCESS))

    @pytest.mark.parametrize("kind", ["attacked", *TARGETS])
    def test_targets_and_noise_do_not_depend_on_the_shard(self, model, kind):
        measurement = how(model, BARE)
        test = Examples("test", *digits("test", TEST))
        reference = {"penultimate": Moments(10, model.head.dim)}
        reference["penultimate"].update(*clusters([3] * 10, model.head.dim))
        whole, *parts = (
            attack_shard(model, measurement, Shard(each), reference, kind, report=nothing)
            for each in (test, test.part(slice(0, 8)), test.part(slice(8, 24)))
        )
        assert torch.equal(torch.cat([each.images for each in parts]), whole.images)
        assert torch.equal(torch.cat([each.noisy for each in parts]), whole.noisy)
        if kind != "attacked":
            assert torch.equal(torch.cat([each.targets for each in parts]), whole.targets)
            assert not (whole.targets == test.labels).any()

    def test_labels_that_training_saw_go_along(self, model):
        train = digits("train", TRAIN)
        examples = Examples("train", *train, given=(train.labels + train.ids % 2) % 10)
        far = self.rows(model, examples, BARE, PicklingExecutor())
        assert_close(far, self.rows(model, examples, BARE, IN_PROCESS))
        assert "leap_rate_memorised" in set(far["measure"])

    def test_corruptions_are_made_where_the_shards_are(self, model):
        measure = dataclasses.replace(BARE, corruptions=("contrast", "fog"), severities=(2, 4))
        examples = Examples("test", *digits("test", TEST))
        executor = PicklingExecutor()
        frames = []
        for each in (executor, IN_PROCESS):
            split = SplitShards(ModelExecutor(model, each), how(model, measure), examples)
            known = {"gap": SplitRows(split, "gap").vertices}
            source = CorruptionSource("dimmed", dimmed)
            frames.append(tidy(corrupted_rows(split, known, nothing, source=source)))
        assert_close(*frames)
        assert executor.calls.count("corrupt_shard") == 3 * 4

    def test_in_one_process_the_features_of_every_block_are_computed_once(self, model, monkeypatch):
        """Blocks of 15 and 9 are four batches; clean, attacked, both noises, noise on top."""
        read = []

        def counted(model: nn.Module, images: Tensor, taps: Any, feature: str) -> Any:
            read.append(len(images))
            return read_taps(model, images, taps, feature=feature)

        monkeypatch.setattr(feature_cache, "read_taps", counted)
        self.rows(model, Examples("test", *digits("test", TEST)), CUT, IN_PROCESS)
        assert sorted(read) == sorted(5 * [8, 7, 8, 1])


def dimmed(corruption: str, severity: int, examples: Examples) -> Tensor:
    """Darker by severity, and by id."""
    return examples.images * (1 - severity / 10 - 0.001 * (examples.ids % 7))[:, None, None, None]


class TestShards:
    def test_parts_are_whole_batches_and_blocks_are_what_was_asked(self):
        for count in (1, 8, 9, 50):
            for width in (1, 3, 9):
                parts = slices(count, BARE, width=width)
                assert len(parts) <= width
                assert [part.start for part in parts] == [
                    0, *(part.stop for part in parts[:-1])
                ]  # fmt: skip
                assert parts[-1].stop == count
                assert all(part.start % BATCH == 0 for part in parts)
        assert slices(50, CUT, width=9) == slices(50, CUT, width=1)

    def test_features_are_left_behind_and_memory_is_shared(self, model):
        examples, known = Examples("test", *digits("test", TEST)), (model, how(model, CUT), "gap")
        shard = Shard(examples.part(slice(0, BLOCK)), among=3)
        assert sum(len(batch.predicted) for batch in shard.bank(*known).batches("clean")) == BLOCK
        assert shard.bank(*known) is shard.bank(*known)
        arrived = pickle.loads(pickle.dumps(shard))
        assert arrived.among == 3
        assert torch.equal(arrived.examples.images, shard.examples.images)
        assert len(pickle.dumps(shard)) < 2 * shard.examples.images.nbytes + 4096

    def test_a_handle_inside_of_an_argument_is_found_out(self):
        with pytest.raises(TypeError, match="inside of an argument"):
            PicklingExecutor().map(len, [([Handle(b"")],)])


def batches(count: int, dim: int = 4, classes: int = 3) -> tuple[Moments, FeatureBatch]:
    """Vertices of clean examples, and a batch that some of them leap in."""
    sizes = [count - 2 * (count // 3), count // 3, count // 3][:classes]
    clean, labels = clusters(sizes, dim)
    here, _ = clusters(sizes, dim, seed=1)
    reference = Moments(classes, dim)
    reference.update(clean, labels)
    other, predicted = (labels + 1) % classes, here.argmax(1) % classes
    return reference, FeatureBatch(clean, here, here.flip(0), labels, labels, predicted, other)


def rows_of(batch: FeatureBatch, rows: slice) -> FeatureBatch:
    return FeatureBatch(*(each if each is None else each[rows] for each in batch))


def sent(meter: Accumulator) -> Accumulator:
    """The meter as it comes back from another machine."""
    found: Accumulator = pickle.loads(pickle.dumps(bare(meter)))
    return found


def swept(make: Callable[[], Accumulator], batch: FeatureBatch, shards: list[slice]) -> Accumulator:
    """The merged meters of all shards."""
    meters = []
    for rows in shards:
        meters.append(make())
        meters[-1].update(rows_of(batch, rows))
    whole, *others = map(sent, meters)
    for meter in others:
        whole.merge(meter)
    return whole


GROUPINGS = ("true", "predicted", "landed", "target")


class TestMetersMergeExactly:
    @settings(max_examples=8, deadline=None)
    @given(cuts=st.lists(st.integers(1, 59), max_size=3, unique=True))
    @pytest.mark.parametrize("kind", [*GROUPINGS, "vertices", "own"])
    def test_what_is_merged_is_what_one_meter_sees(self, kind: str, cuts: list[int]) -> None:
        reference, batch = batches(60)
        vertices = reference.means
        shards = [slice(*pair) for pair in itertools.pairwise([0, *sorted(cuts), 60])]

        def rows(parts: list[slice]) -> list[Row]:
            if kind in GROUPINGS:
                meter = swept(lambda: GroupMeter(reference, grouping=kind), batch, parts)
                onto = Projection(meter.moments)
                exact = swept(lambda: ExactMeter(reference, grouping=kind, onto=onto), batch, parts)
                return group_rows(meter, exact.projection, None, vertices, seed=0)
            own = kind == "own"
            meter = swept(lambda: VertexMeter(reference, own=own, leaping=not own), batch, parts)
            leaps = meter.leaps()
            seen.append((leaps, meter.noisy()))
            return vertex_rows(meter, leaps, vertices)

        seen: list[Any] = []
        assert_close(tidy(rows(shards)), tidy(rows([slice(0, 60)])))
        if kind == "vertices":
            (merged, noisy), (whole, wanted) = seen
            assert torch.equal(noisy, wanted)
            assert torch.equal(merged.destination, whole.destination)
            torch.testing.assert_close(merged.t, whole.t, rtol=1e-12, atol=0)

    def test_bare_sums_are_lean(self):
        reference, batch = batches(60, dim=1_000)
        meter = VertexMeter(reference, own=False, leaping=True)
        meter.update(batch)
        assert len(pickle.dumps(bare(meter))) < reference.nbytes
        assert len(pickle.dumps(bare(OnePassMeter(reference).leaps))) < reference.nbytes
        assert len(pickle.dumps(bare(Projection(reference)))) < reference.nbytes / 4

    def test_what_is_bare_is_merged_and_read_only(self):
        reference, batch = batches(60)
        meters = (LeapMeter(reference.means), NearestMeter(reference, leave_one_out=False))
        leaps, nearest = bare(meters)
        with pytest.raises(InputError, match="bare"):
            leaps.update(batch.clean, batch.here, batch.labels)
        with pytest.raises(InputError, match="bare"):
            nearest.update(batch.here, batch.labels)
        with pytest.raises(InputError, match="bare"):
            bare(Projection(reference)).update(batch.here, batch.labels)

    def test_bare_sums_of_other_vertices_are_refused(self):
        reference, _ = batches(60)
        other = Moments(3, 4)
        other.update(*clusters([20, 20, 20], 4, seed=5))
        with pytest.raises(InputError, match="different vertices"):
            bare(LeapMeter(reference.means)).merge(bare(LeapMeter(other.means)))
        smaller = Moments(3, 4)
        smaller.update(*clusters([20, 20], 4))
        with pytest.raises(InputError, match="different class means"):
            bare(Projection(reference)).merge(bare(Projection(smaller)))


class TestScatter:
    @pytest.mark.parametrize("count", [3 * EXAMPLES_PER_DIM - 1, 3 * EXAMPLES_PER_DIM])
    def test_too_few_examples_are_only_counted(self, count):
        features, _ = clusters([count], 3)
        told, untold = TotalScatter(3, expected=count), TotalScatter(3)
        for scatter in (told, untold):
            scatter.update(features[:5])
            other = TotalScatter(3, expected=count if scatter is told else None)
            other.update(features[5:])
            scatter.merge(other)
        assert told.count == count
        assert told.reason == untold.reason
        assert (told.reason is None) == (count == 3 * EXAMPLES_PER_DIM)
        with pytest.raises(InputError, match="only counts"):
            TotalScatter(3, expected=1).merge(untold)


class TestSumsOnTheirWay:
    def test_all_tensors_move_and_what_is_there_stays(self):
        reference, batch = batches(60)
        meter = VertexMeter(reference, own=False, leaping=True)
        meter.update(batch)
        elsewhere = meter.on(torch.device("meta"))
        assert elsewhere is not meter
        assert meter.on(torch.device("cpu")) is meter
        found = {"a": [reference], "b": (batch, None)}
        assert moved(found, torch.device("cpu")) is found
        there = moved(found, torch.device("meta"))
        assert there["a"][0].device.type == there["b"][0].here.device.type == "meta"
        assert isinstance(there["b"][0], FeatureBatch)
        assert reference.device.type == "cpu"
