"""A profile in shards: equal blocks give equal bits, other cuts the same measures to rounding."""

import dataclasses
import itertools
import pickle
from typing import Any

import pandas as pd
import pytest
import torch
from helpers_executor import Handle, PicklingExecutor
from helpers_geometry import clusters
from helpers_training import digits, small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robust_nc.config import MeasureConfig
from robust_nc.exceptions import InputError, StoppedError
from robust_nc.geometry.leaps import LeapMeter
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.nearest import NearestMeter
from robust_nc.geometry.portable import moved
from robust_nc.geometry.projection import Projection
from robust_nc.geometry.scatter import EXAMPLES_PER_DIM, TotalScatter
from robust_nc.models.classifier import Classifier
from robust_nc.models.taps import read_taps
from robust_nc.profiling import feature_cache as tapbank
from robust_nc.profiling import profile
from robust_nc.profiling.accumulators import Batch, Exact, Grouping, GroupPart, Part, ReferencePart
from robust_nc.profiling.conditions import TARGETS, Attacking
from robust_nc.profiling.corruption_rows import CorruptionSource, corrupted_rows
from robust_nc.profiling.make_conditions import attack_shard, conditions
from robust_nc.profiling.measurement import Examples, Subject
from robust_nc.profiling.shards import Crew, Sent, Shard, slices
from robust_nc.profiling.split_rows import Side, clean_bank
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


def subject_of(model: nn.Module, measure: MeasureConfig) -> Subject:
    return Subject(
        model=model,
        taps=("penultimate",),
        num_classes=10,
        ball=BALL,
        attacking=Attacking(1, 1, 1.0),
        settings=measure,
        seed=0,
        distances=None,
    )


class TestTheWholeProfile:
    def test_equal_blocks_give_equal_measures_to_the_bit(self, model):
        """The last block of train has 10 examples, that of test 9; no block ends with a batch."""
        blocks = dataclasses.replace(EVERYTHING, block=BLOCK)
        executor = PicklingExecutor()
        far = frame(model, blocks, executor)
        pd.testing.assert_frame_equal(far, frame(model, blocks), check_exact=True)
        assert executor.calls.count("vertices_of") == 2 * 3
        assert set(executor.calls) == {
            *("count_classes", "calibrate", "vertices_of", "attack_shard", "noise_shard"),
            *("swept_once", "swept_twice", "sweep_shard", "cheap_shard", "follow"),
            *("judge_network", "compare_taps", "judge_tap", "gradients"),
        }

    def test_without_blocks_an_executor_gives_the_measures_of_one_process(self, model):
        executor = PicklingExecutor(width=3)
        some = dataclasses.replace(EVERYTHING, feature="flatten", targets=("nearest",))
        assert_close(frame(model, some, executor), frame(model, some))
        assert executor.calls.count("cheap_shard") == 2 * 3

    def test_attacked_images_stay_where_they_were_made(self, model):
        executor = PicklingExecutor()
        frame(model, CUT, executor)
        images = sum(executor.sizes["attack_shard"]) + sum(executor.sizes["noise_shard"])
        sums = sum(
            sum(executor.sizes[name]) for name in ("vertices_of", "swept_once", "swept_twice")
        )
        small = sum(sum(executor.sizes[name]) for name in ("count_classes", "calibrate"))
        assert images > 0
        assert executor.fetched == sums + small

    def test_the_model_the_examples_and_the_vertices_go_over_once(self, model):
        executor = PicklingExecutor()
        frame(model, dataclasses.replace(CUT, radii=(0.5, 1.0)), executor)
        assert sum(isinstance(value, Sent) for value in executor.kept) == 1
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
        crew, subject = Crew(model, executor), subject_of(model, measure)
        side = Side(subject, examples, "gap", None, crew)
        made = conditions(subject, examples, side.reference, crew, nothing)
        return tidy([row for each in made for row in side.measure(each)])

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
        subject = subject_of(model, BARE)._replace(distances=DISTANCES)
        test = Examples("test", *digits("test", TEST))
        reference = {"penultimate": Moments(10, model.head.dim)}
        reference["penultimate"].update(*clusters([3] * 10, model.head.dim))
        whole, *parts = (
            attack_shard(Sent(model), subject, Shard(each), reference, kind, report=nothing)
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
        examples, subject = Examples("test", *digits("test", TEST)), subject_of(model, measure)
        executor = PicklingExecutor()
        frames = []
        for each in (executor, IN_PROCESS):
            crew = Crew(model, each)
            known = {"gap": Side(subject, examples, "gap", None, crew).reference}
            source = CorruptionSource("dimmed", dimmed)
            found = corrupted_rows(subject, examples, known, nothing, source=source, crew=crew)
            frames.append(tidy(found))
        assert_close(*frames)
        assert executor.calls.count("corrupt_shard") == 3 * 4

    def test_in_one_process_the_features_of_every_block_are_computed_once(self, model, monkeypatch):
        """Blocks of 15 and 9 are four batches; clean, attacked, both noises, noise on top."""
        read = []

        def counted(model: nn.Module, images: Tensor, taps: Any, feature: str) -> Any:
            read.append(len(images))
            return read_taps(model, images, taps, feature=feature)

        monkeypatch.setattr(tapbank, "read_taps", counted)
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
        examples, subject = Examples("test", *digits("test", TEST)), subject_of(model, CUT)
        shard = Shard(examples.part(slice(0, BLOCK)), among=3)
        for _ in clean_bank(subject, shard, "gap").batches("clean"):
            pass
        assert clean_bank(subject, shard, "gap") is clean_bank(subject, shard, "gap")
        arrived = pickle.loads(pickle.dumps(shard))
        assert arrived.among == 3
        assert torch.equal(arrived.examples.images, shard.examples.images)
        assert len(pickle.dumps(shard)) < 2 * shard.examples.images.nbytes + 4096

    def test_a_subject_leaves_its_model_behind(self, model):
        subject = subject_of(model, BARE)
        arrived = pickle.loads(pickle.dumps(subject))
        assert not list(arrived.model.parameters())
        assert arrived.of(model) == subject

    def test_a_handle_inside_of_an_argument_is_found_out(self):
        with pytest.raises(TypeError, match="inside of an argument"):
            PicklingExecutor().map(len, [([Handle(b"")],)])


def batches(count: int, dim: int = 4, classes: int = 3) -> tuple[Moments, Batch]:
    """Vertices of clean examples, and a batch that some of them leap in."""
    sizes = [count - 2 * (count // 3), count // 3, count // 3][:classes]
    clean, labels = clusters(sizes, dim)
    here, _ = clusters(sizes, dim, seed=1)
    reference = Moments(classes, dim)
    reference.update(clean, labels)
    noisy = here.flip(0)
    other = (labels + 1) % classes
    return reference, Batch(clean, here, noisy, labels, labels, here.argmax(1) % classes, other)


def rows_of(batch: Batch, rows: slice) -> Batch:
    return Batch(*(each if each is None else each[rows] for each in batch))


GROUPINGS = ("true", "predicted", "landed", "target")
PARTS = [*GROUPINGS, "reference", "own"]


def made(kind: str, reference: Moments) -> Part:
    if kind in GROUPINGS:
        return GroupPart(kind, reference, None, seed=0)
    return ReferencePart(reference, own=kind == "own", leaping=kind != "own")


class TestPartsMergeExactly:
    @pytest.mark.parametrize("kind", PARTS)
    @settings(max_examples=8, deadline=None)
    @given(cuts=st.lists(st.integers(1, 59), max_size=3, unique=True))
    def test_what_is_merged_is_what_one_part_sees(self, kind: str, cuts: list[int]) -> None:
        reference, batch = batches(60)
        whole = made(kind, reference)
        whole.first(batch)
        whole.second(batch)
        ends = [0, *sorted(cuts), 60]
        shards = [slice(*pair) for pair in itertools.pairwise(ends)]
        parts = []
        for rows in shards:
            part = made(kind, reference)
            part.first(rows_of(batch, rows))
            parts.append(pickle.loads(pickle.dumps(part.bare())))
        merged = parts[0]
        for part in parts[1:]:
            merged.merge(part)
        merged.beside(reference, None)
        exact = merged.exact()
        if exact is not None:
            for rows in shards:
                mine = pickle.loads(pickle.dumps(exact.fresh()))
                Exact(Grouping.by(kind, reference), mine).second(rows_of(batch, rows))
                exact.merge(pickle.loads(pickle.dumps(mine.bare())))
        assert_close(tidy(merged.rows()), tidy(whole.rows()))
        if kind == "reference":
            assert torch.equal(merged.noisy(), whole.noisy())
            assert torch.equal(merged.leaps().destination, whole.leaps().destination)
            torch.testing.assert_close(merged.leaps().t, whole.leaps().t, rtol=1e-12, atol=0)

    def test_bare_sums_are_lean(self):
        reference, batch = batches(60, dim=1_000)
        part = made("reference", reference)
        part.first(batch)
        assert len(pickle.dumps(part.bare())) < reference.nbytes
        assert len(pickle.dumps(Projection(reference).bare())) < reference.nbytes / 4

    def test_what_is_bare_is_merged_and_read_only(self):
        reference, batch = batches(60)
        meters = (LeapMeter(reference.means), NearestMeter(reference, leave_one_out=False))
        leaps, nearest = (meter.bare() for meter in meters)
        with pytest.raises(InputError, match="bare"):
            leaps.update(batch.clean, batch.here, batch.labels)
        with pytest.raises(InputError, match="bare"):
            nearest.update(batch.here, batch.labels)
        with pytest.raises(InputError, match="bare"):
            Projection(reference).bare().update(batch.here, batch.labels)

    def test_bare_sums_of_other_vertices_are_refused(self):
        reference, _ = batches(60)
        other = Moments(3, 4)
        other.update(*clusters([20, 20, 20], 4, seed=5))
        with pytest.raises(InputError, match="different vertices"):
            LeapMeter(reference.means).bare().merge(LeapMeter(other.means).bare())
        smaller = Moments(3, 4)
        smaller.update(*clusters([20, 20], 4))
        with pytest.raises(InputError, match="different class means"):
            Projection(reference).bare().merge(Projection(smaller).bare())


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
        part = made("reference", reference)
        part.first(batch)
        elsewhere = part.on(torch.device("meta"))
        assert elsewhere is not part
        assert part.on(torch.device("cpu")) is part
        found = {"a": [reference], "b": (batch, None)}
        assert moved(found, torch.device("cpu")) is found
        there = moved(found, torch.device("meta"))
        assert there["a"][0].device.type == there["b"][0].here.device.type == "meta"
        assert isinstance(there["b"][0], Batch)
        assert reference.device.type == "cpu"
