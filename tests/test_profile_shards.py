"""A profile in shards: equal blocks give equal bits, other cuts the same measures to rounding."""

import dataclasses
import pickle
from collections.abc import Callable, Sequence
from inspect import isfunction
from typing import Any

import pandas as pd
import pytest
import torch
from helpers_geometry import clusters
from helpers_models import digits, small_model
from torch import Tensor, nn

from robust_nc.config import MeasureConfig
from robust_nc.exceptions import InputError, StoppedError
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.portable import moved
from robust_nc.geometry.scatter import EXAMPLES_PER_DIM, TotalScatter
from robust_nc.models.classifier import Classifier
from robust_nc.profiling import profile
from robust_nc.profiling.accumulators import VertexMeter
from robust_nc.profiling.conditions import TARGETS, attack_shard, split_conditions
from robust_nc.profiling.measurement import Examples, Measurement
from robust_nc.profiling.shards import ModelExecutor, Shard, SplitShards, slices
from robust_nc.profiling.split_rows import SplitRows
from robust_nc.profiling.sweeps import CorruptionSource, corrupted_rows
from robust_nc.record import tidy
from robust_nc.runtime import stopping
from robust_nc.runtime.executor import IN_PROCESS, Executor
from robust_nc.runtime.progress import Report, no_report
from robust_nc.threat import Ball

TRAIN, TEST, BATCH, BLOCK = 40, 24, 8, 15
BALL = Ball("Linf", 0.1)
DISTANCES = 2.0 - 2.0 * torch.eye(10)
EVERYTHING = MeasureConfig(
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


class Handle:
    """Stands for a value, and is nothing else: whoever takes it for the value fails."""

    __slots__ = ("stored",)

    def __init__(self, stored: bytes) -> None:
        self.stored = stored

    def __reduce__(self) -> str:
        raise TypeError("a handle was put inside of an argument; it must be one itself")


class PicklingExecutor:
    """As strict as many machines: calls in the opposite order, and pickles all on its way.

    `calls` are the names of the functions that were called (of a function that is handed to another
    to be called, its own name).
    """

    def __init__(self, width: int = 3) -> None:
        self.width = width
        self.calls: list[str] = []

    def keep(self, value: Any) -> Handle:
        return Handle(pickle.dumps(value))

    def map(
        self,
        call: Callable[..., Any],
        parts: Sequence[tuple[Any, ...]],
        *,
        report: Report = no_report,
    ) -> list[Handle]:
        known = pickle.loads(pickle.dumps(call))
        found = []
        for part in reversed(parts):
            given = [self._arrived(each) for each in part]
            found.append(self.keep(known(*given, report=report)))
            name = next((each.__name__ for each in given if isfunction(each)), call.__name__)
            self.calls.append(name)
        return found[::-1]

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        return [pickle.loads(handle.stored) for handle in handles]

    def _arrived(self, value: Any) -> Any:
        return pickle.loads((value if isinstance(value, Handle) else self.keep(value)).stored)


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
        some = dataclasses.replace(BARE, feature="flatten", targets=("nearest",), radii=(0.5,))
        assert_close(frame(model, some, executor), frame(model, some))
        assert executor.calls.count("attack_at") == 3

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


def dimmed(corruption: str, severity: int, examples: Examples) -> Tensor:
    """Darker by severity, and by id."""
    return examples.images * (1 - severity / 10 - 0.001 * (examples.ids % 7))[:, None, None, None]


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
    def test_all_tensors_move_and_what_is_there_stays(self) -> None:
        reference = Moments(3, 4)
        reference.update(*clusters([20, 20, 20], 4))
        meter = VertexMeter(reference, own=False, leaping=True)
        assert meter.on(torch.device("meta")) is not meter
        assert meter.on(torch.device("cpu")) is meter
        found = {"a": [reference], "b": (Examples("test", *digits("test", 3)), None)}
        assert moved(found, torch.device("cpu")) is found
        there = moved(found, torch.device("meta"))
        assert there["a"][0].device.type == there["b"][0].images.device.type == "meta"
        assert isinstance(there["b"][0], Examples)
        assert reference.device.type == "cpu"
