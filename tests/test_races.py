"""The races run, and compare what they say they compare. No test looks at a time."""

import pytest
import torch

from robust_nc.benchmarks.races import geometry, training
from robust_nc.benchmarks.races.timing import Timing, conditions, markdown, race, ratio, table
from robust_nc.config import Component
from robust_nc.data.base import numbered
from robust_nc.geometry.collapse import measure_collapse
from robust_nc.models.classifier import Classifier

TINY = training.Case(
    Component(name="small_cnn", options={"width": 4}), (1, 8, 8), batch_size=4, steps=2, calls=2
)


def test_a_race_takes_turns():
    seen: list[str] = []
    contestants = {name: lambda name=name: seen.append(name) for name in "abc"}
    timings = race(contestants, repeats=3, warmups=1)
    assert seen == [*"abc", *"abc", *"bca", *"cab"]
    assert [timing.name for timing in timings] == [*"abc"]
    assert all(len(timing.seconds) == 3 and min(timing.seconds) >= 0 for timing in timings)


def test_ratios_are_of_medians_with_quartiles_within_rounds():
    base = Timing("base", (1.0, 2.0, 4.0, 2.0, 2.0))
    slow = Timing("slow", (2.0, 3.0, 4.0, 3.0, 3.0))
    assert base.spread == (2.0, 2.0, 2.0)
    assert ratio(slow, base) == (1.5, 1.5, 1.5)
    assert ratio(Timing("x", (3.0,)), Timing("y", (2.0,))) == (1.5, 1.5, 1.5)
    shown = table([base, slow], base=base, items=10)
    assert "1.500 (1.500 to 1.500)" in shown
    assert shown.splitlines()[-1].endswith("|")
    assert len({len(line) for line in shown.splitlines()}) == 1


def test_tables_are_markdown():
    assert markdown([["a", "bb"], ["ccc", "d"]]) == "| a   | bb |\n|-----|----|\n| ccc | d  |"


def test_conditions_name_versions_and_threads():
    text = conditions()
    assert f"torch {torch.__version__}" in text
    assert f"{torch.get_num_threads()} threads" in text


def test_the_training_race_has_three_contestants():
    timings = training.contest(TINY, device=torch.device("cpu"), repeats=2)
    assert [timing.name for timing in timings] == ["floor", "step", "loop"]
    assert {len(timing.seconds) for timing in timings} == {2}


def test_floor_and_step_do_the_same_passes(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[bool, bool, tuple[int, ...]]] = []
    forward = Classifier.forward

    def counted(model: Classifier, images: torch.Tensor) -> torch.Tensor:
        learns = any(parameter.requires_grad for parameter in model.parameters())
        seen.append((model.training, learns, tuple(images.shape)))
        return forward(model, images)

    monkeypatch.setattr(Classifier, "forward", counted)
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    attack, outer = (False, False, (4, 1, 8, 8)), (True, True, (4, 1, 8, 8))
    for make in (training._floor, training._step):
        seen.clear()
        make(TINY, images, labels)()
        assert seen == [attack, attack, outer]


@pytest.mark.parametrize("name", training.CASES)
def test_the_cases_can_be_built(name: str):
    case = training.CASES[name]
    logits = training._model(case).eval()(torch.rand(1, *case.image_shape))
    assert logits.shape == (1, 10)


def _small() -> Classifier:
    torch.manual_seed(0)
    return geometry.make_model("small_cnn")


def test_the_geometry_race_measures_every_tap():
    model = _small()
    images, labels = torch.rand(30, 3, 32, 32), torch.arange(30) % 10
    pairs = [(images[:20], labels[:20]), (images[20:], labels[20:])]
    for feature in ("gap", "flatten"):
        found = geometry.measure_all(model, pairs, feature=feature)
        assert tuple(found) == model.taps
        features = model.tapped(images, feature=feature).features
        for tap, measured in found.items():
            whole = measure_collapse(features[tap].detach(), labels)
            assert measured.nc1_trace == pytest.approx(whole.nc1_trace, rel=1e-6)
            assert measured.num_examples == 30
    timings = geometry.contest(model, numbered(images, labels), batch_size=8, repeats=2)
    assert [timing.name for timing in timings] == ["forward", "measured"]


def test_peak_memory_is_that_of_a_fresh_process():
    ballast = torch.ones(2**27)  # 512 MiB that the other process must not count
    found = geometry.peak("gap", 4, batch_size=2, backbone="small_cnn")
    assert ballast.numel()
    assert 0 < found < 800


def test_images_are_random_where_the_data_set_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUST_NC_DATA", str(tmp_path))
    split, what = geometry.read_images(7)
    assert split.images.shape == (7, 3, 32, 32)
    assert "random" in what


def test_the_scripts_print_their_tables(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(training.CASES, "tiny", TINY)
    monkeypatch.setenv("ROBUST_NC_DATA", str(tmp_path))
    training.main(repeats=1, cases=("tiny",))
    geometry.taps(examples=4, repeats=1, batch_size=2, backbones=("small_cnn",), classes=(10, 3))
    geometry.memory(examples=(4,), processes=1, batch_size=2, backbone="small_cnn")
    shown = capsys.readouterr().out
    for word in ("floor", "step", "loop", "forward", "measured", "random images", "flatten"):
        assert word in shown
    assert "random images of 3 classes" in shown
