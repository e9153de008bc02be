"""The appraisal of a finished model: one record with evidence, and what is refused."""

import dataclasses
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from helpers_appraisal import judge
from PIL import Image

from robust_nc.config import plain, read
from robust_nc.data.base import first_examples
from robust_nc.data.load import fingerprint, load_dataset, read_split
from robust_nc.exceptions import (
    ConfigError,
    DataError,
    InputError,
    RecordError,
    StorageError,
    UnknownNameError,
)
from robust_nc.exchange.submission import check_names
from robust_nc.io.files import alone, sha256_of
from robust_nc.pipeline import appraise as appraising
from robust_nc.pipeline.appraise import Appraised, Event
from robust_nc.pipeline.finished_model import (
    SUITE,
    AppraisalConfig,
    appraisal_id,
    named_dataset,
    read_model_data,
)
from robust_nc.record import Card, Stored, read_record, unpack_flags
from robust_nc.record.folder import read_all
from robust_nc.record.schema import broken_seals, data_name, same_record
from robust_nc.report.board.gather import gather_rows
from robust_nc.threat import Ball
from robust_nc.verification.consistency import inconsistencies
from robust_nc.verification.originals import examples_of
from robust_nc.verification.pictures import adversarial_pictures

_COLOUR = """
import torch
from torch import nn


class Mean(nn.Module):
    def forward(self, images):
        return images.mean(1, keepdim=True)


def make():
    torch.manual_seed(0)
    return nn.Sequential(Mean(), nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.fixture(scope="module")
def measured(own_model: str, tmp_path_factory: pytest.TempPathFactory) -> Appraised:
    out = tmp_path_factory.mktemp("measured") / "out"
    return judge(own_model, out, geometry=True, attack="fgsm")


@pytest.fixture(scope="module")
def plain_one(own_model: str, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return judge(own_model, tmp_path_factory.mktemp("plain") / "out").stored


@pytest.fixture
def copy(plain_one: Stored, tmp_path: Path) -> Stored:
    """A finished appraisal, which a test may damage."""
    shutil.copytree(plain_one.path.parent, tmp_path / "out")
    return read_record(tmp_path / "out" / plain_one.path.name)


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


class TestTheRecord:
    def test_a_folder_holds_one_that_says_what_was_judged(self, measured, own_model):
        out, record = measured.stored.path.parent, measured.stored.record
        assert [path.name for path in out.rglob("*.json")] == [measured.stored.path.name]
        assert read_all(out) == [measured.stored]
        assert measured.made
        settings = read(AppraisalConfig, record.config)
        assert record.cell == appraisal_id(settings) == measured.stored.path.stem
        assert record.suite == SUITE
        assert settings.model.reference == own_model
        assert (settings.threat.norm, settings.threat.eps) == ("Linf", 0.1)
        assert settings.data.examples == record.data.examples == 40
        judged = first_examples(read_split("digits", "test"), 40)
        assert record.data.fingerprint == fingerprint(judged)
        assert record.config["evaluation"]["attack"]["name"] == "fgsm"
        assert [use.name for use in record.attacks] == ["pgd-ce", "pgd-margin", "fgsm"]

    def test_scores_are_those_of_the_flags(self, measured):
        record = measured.stored.record
        flags = {"clean": record.verdict.clean_correct, "robust": record.verdict.robust}
        for name, packed in flags.items():
            assert record.scores[name].value == unpack_flags(packed).mean()
            assert record.scores[name].n == 40
        assert 0 < record.scores["robust"].value < record.scores["clean"].value
        rows = measured.stored.rows()
        told = rows[(rows["measure"] == "verdict") & (rows["condition"] == "attacked")]
        assert told["value"].tolist() == pytest.approx([record.scores["robust"].value])

    def test_headline_measures_come_from_the_rows(self, measured):
        found, rows = measured.stored.record.summary, measured.stored.rows()
        assert found["nc1_clean"] is not None
        assert 0 < found["leap_rate"] <= 1
        at = (rows["tap"] == "penultimate") & (rows["split"] == "test")
        (radius,) = rows[at & (rows["measure"] == "collapse_radius")]["value"]
        assert found["collapse_radius"] == pytest.approx(radius, rel=1e-6)
        assert found["collapse_radius_beyond"] is None
        layers = rows[(rows["measure"] == "leap_layer") & (rows["condition"] == "attacked")]
        layers = layers[(layers["split"] == "train") & (layers["tap"] != "none")]
        most = layers[layers["depth"] == found["leap_layer"]]["value"]
        assert most.item() == layers["value"].max() > 0
        assert (rows["measure"] == "severity").any(), "the tree of the classes gives it"


class TestAgain:
    def test_a_finished_one_is_shown_as_it_is(self, copy, own_model):
        before = files(copy.path.parent)
        again = judge(own_model, copy.path.parent)
        assert not again.made
        assert again.stored == copy
        assert files(copy.path.parent) == before

    def test_a_card_can_be_added_later(self, copy, own_model):
        card = Card(name="Ours (2026)", authors="A. U. Thor")
        again = judge(own_model, copy.path.parent, card=card)
        assert not again.made
        stored = read_record(copy.path)
        assert stored == again.stored
        assert (stored.record.card, stored.record.model) == (card, "Ours-2026")
        assert broken_seals(plain(stored.record)) == ()
        kept = dataclasses.replace(stored.record, card=None, model=copy.record.model, seals={})
        assert kept == dataclasses.replace(copy.record, seals={})

    def test_another_one_in_the_folder_is_left_alone(self, copy, own_model):
        before = files(copy.path.parent)
        with pytest.raises(ConfigError, match=rf"holds {copy.path.name} \(.* --out") as raised:
            judge(own_model, copy.path.parent, ball=Ball("Linf", 0.2))
        assert str(raised.value).count("\n") == 0
        assert files(copy.path.parent) == before

    @pytest.mark.parametrize("ending", [".parquet", ".evidence"])
    def test_what_is_damaged_is_made_anew(self, copy, own_model, ending):
        copy.path.with_suffix(ending).write_bytes(b"torn")
        again = judge(own_model, copy.path.parent)
        assert again.made
        assert again.stored.record.verdict == copy.record.verdict
        assert again.stored.record.rows == copy.record.rows
        assert again.stored.record.evidence == copy.record.evidence

    def test_killed_it_goes_on_from_its_log(self, own_model, tmp_path):
        def stop(event: Event) -> None:
            if event.task == "evidence":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            judge(own_model, tmp_path / "out", report=stop)
        (log,) = (tmp_path / "out" / "cache").iterdir()
        assert read_all(tmp_path / "out") == []
        later = judge(own_model, tmp_path / "out").stored.record
        whole = judge(own_model, tmp_path / "undisturbed").stored.record
        assert (later.verdict, later.passes) == (whole.verdict, whole.passes)
        assert later.evidence == whole.evidence
        assert not log.exists()

    def test_two_at_once_and_a_file_in_place_of_the_folder_are_refused(self, own_model, tmp_path):
        with alone(tmp_path), pytest.raises(StorageError, match="another run is writing"):
            judge(own_model, tmp_path)
        (tmp_path / "out").write_text("")
        with pytest.raises(ConfigError, match="is a file"):
            judge(own_model, tmp_path / "out")


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("changed", "error", "words"),
        [
            ({"dataset": "digitz"}, UnknownNameError, "did you mean 'digits'.*npz, or a folder"),
            ({"dataset": "no.npz"}, DataError, r"no\.npz is not there"),
            ({"dataset": "digits?sise=3"}, ConfigError, "no option 'sise'"),
            ({"n": 361}, InputError, r"--n must be in 1\.\.360.*found 361"),
            ({"n": 0}, InputError, "found 0"),
            ({"protocol": "standart"}, UnknownNameError, "did you mean 'standard'"),
            ({"attack": "pdg"}, UnknownNameError, "did you mean 'pgd'"),
            ({"taps": ("1",)}, ConfigError, "leave out --no-geometry"),
            ({"taps": ("penultimat",), "geometry": True}, UnknownNameError, "'penultimate'"),
            ({"batch_size": 0}, ConfigError, "--batch-size"),
            ({"seed": -1}, ConfigError, "--seed"),
            ({"model": ":larger"}, InputError, "larger.*2x64 and 100x24"),
            ({"model": ":few"}, InputError, "few tells 4 classes apart.*10"),
        ],
    )
    def test_a_mistake_leaves_nothing_behind(self, own_model, tmp_path, changed, error, words):
        model = own_model.replace(":make", changed.pop("model", ":make"))
        with pytest.raises(error, match=words):
            judge(model, tmp_path / "out", **changed)
        assert not (tmp_path / "out").exists()

    def test_layers_that_cannot_be_read_are_named_before_the_attack(self, own_model, tmp_path):
        twice, seen = own_model.replace(":make", ":Twice"), []
        with pytest.raises(InputError, match=r"which layer gives the logits.*--no-geometry"):
            judge(twice, tmp_path / "out", geometry=True, report=seen.append)
        assert not seen
        assert judge(twice, tmp_path / "out").made


def test_more_classes_than_the_data_have_are_a_warning(own_model, tmp_path):
    found = judge(own_model.replace(":make", ":many"), tmp_path, protocol="clean")
    names = [one.name for one in found.stored.record.warnings]
    assert names == ["spare-classes", "chance-accuracy"]


def test_chosen_layers_alone_are_measured(own_model, tmp_path):
    found = judge(own_model, tmp_path, geometry=True, taps=("2",), protocol="clean", n=20)
    rows = found.stored.rows()
    assert set(rows[rows["measure"] == "nc1"]["tap"]) == {"2"}
    assert found.stored.record.config["measure"]["taps"] == ["2"]


class TestDataOfOnesOwn:
    @pytest.mark.parametrize("names", [("x_test", "y_test"), ("images", "labels")])
    def test_test_images_alone_leave_the_geometry_out(self, own_model, tmp_path, names):
        arrays, path = load_dataset("digits", split="test", limit=30), str(tmp_path / "mine.npz")
        np.savez(path, **{name: array.numpy() for name, array in zip(names, arrays, strict=True)})
        said: list[str] = []
        found = judge(own_model, tmp_path / "out", dataset=path, n=None, geometry=True, said=said)
        assert any("geometry is left out" in line for line in said)
        record = found.stored.record
        assert record.config["measure"] is None
        assert set(found.stored.rows()["measure"]) == {"verdict"}
        assert set(record.summary.values()) == {None}
        assert (record.data.dataset, record.data.examples) == ("npz", 30)
        assert (data_name(record), record.data.class_names) == ("mine.npz", None)
        whole = judge(own_model, tmp_path / "digits", n=30).stored.record
        assert record.verdict == whole.verdict
        by_number = judge(own_model, tmp_path / "out", dataset=path, n=30, geometry=True)
        assert not by_number.made, "all images by number are all images"

    def test_a_folder_of_images_is_read_in_the_asked_size(self, tmp_path):
        for split, name in ((s, c) for s in ("train", "test") for c in ("ant", "bee")):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (12, 9), (9, 9, 9)).save(tmp_path / split / name / "0.png")
        found = read_model_data(f"{tmp_path}?size=8", n=1, root=None, train=True)
        assert found.shape.image_shape == (3, 8, 8)
        assert (len(found.test.labels), found.examples, len(found.train.labels)) == (1, 1, 2)
        shutil.rmtree(tmp_path / "train")
        found = read_model_data(f"{tmp_path}?size=8", n=None, root=None, train=True)
        assert (found.shape.class_names, found.train) == (("ant", "bee"), None)

    def test_a_folder_says_what_is_no_image_and_what_its_classes_are(self, own_model, tmp_path):
        images, labels = load_dataset("digits", split="test", limit=60)
        base = tmp_path / "seen"
        for place, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = base / "test" / f"digit {label:.0f}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * image[0]).byte().numpy()).save(folder / f"{place}.png")
        for name in ("a.txt", "b.pdf", "c.md", "d.py"):
            (folder / name).write_text("no image")
        said: list[str] = []
        data = f"{base}?size=8"
        read = read_model_data(data, n=None, root=None, train=False)
        assert read.left_out == "left out 4 files: a.txt, b.pdf, c.md, ..."
        (tmp_path / "colour.py").write_text(_COLOUR)
        model = f"{tmp_path / 'colour.py'}:make"
        found = judge(model, tmp_path / "out", dataset=data, n=None, geometry=True, said=said)
        assert any("left out 4 files: a.txt" in line for line in said)
        record = found.stored.record
        assert record.data.class_names == tuple(f"digit {digit}" for digit in range(10))
        assert (data_name(record), record.config["data"]["dataset"]["name"]) == ("seen", "folder")
        frame = gather_rows([found.stored])
        assert frame.attrs["class_names"] == {"folder": [f"digit {digit}" for digit in range(10)]}
        shown = adversarial_pictures(found.stored, tmp_path / "pictures")
        assert all(one.title.startswith("digit ") for one in shown)

    def test_first_images_of_few_classes_are_told_and_shuffled(self, own_model, tmp_path):
        images, labels = load_dataset("digits", split="test")
        order = labels.argsort(stable=True)
        path = str(tmp_path / "sorted.npz")
        np.savez(path, x_test=images[order].numpy(), y_test=labels[order].numpy())
        said: list[str] = []
        found = judge(own_model, tmp_path / "out", dataset=path, n=25, said=said)
        words = "25 images of 1 class out of 10: use --shuffle"
        assert any(words in line for line in said)
        assert [one.message for one in found.stored.record.warnings if "class" in one.name] == [
            words
        ]
        mixed = judge(own_model, tmp_path / "mixed", dataset=path, n=25, shuffle=True)
        record = mixed.stored.record
        assert not [one for one in record.warnings if one.name == "few-judged-classes"]
        assert record.config["data"]["dataset"]["options"]["shuffle"] is True
        assert not inconsistencies(mixed.stored)
        assert len(examples_of(record, None).labels) == 25
        with pytest.raises(ConfigError, match="--shuffle is for files of your own"):
            judge(own_model, tmp_path / "no", dataset="digits", shuffle=True)

    def test_a_registered_name_goes_before_a_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "digits").mkdir()
        assert named_dataset("digits").name == "digits"
        assert named_dataset("./digits").options == {"path": "./digits"}
        with pytest.raises(ConfigError, match=r"npz names no \.npz file; give its path"):
            named_dataset("npz")


_BUDGET = 10.0  # PGD breaks most of these digits at once


@pytest.fixture(scope="module")
def limited(own_model: str, tmp_path_factory: pytest.TempPathFactory) -> Appraised:
    out = tmp_path_factory.mktemp("limited") / "out"
    return judge(own_model, out, geometry=True, geometry_budget=_BUDGET)


class TestTheBudgetOfTheGeometry:
    def test_it_costs_no_more_passes_than_that(self, own_model, limited, tmp_path):
        said: list[str] = []
        found = limited
        record = found.stored.record
        use, attacked = record.geometry, record.passes.forward + record.passes.backward
        assert use.allowed == 10 * attacked
        assert 0.5 * use.allowed < use.passes <= use.allowed
        rows = found.stored.rows()
        assert not (rows["measure"] == "collapse_radius").any()
        clean = rows[(rows["measure"] == "nc1") & (rows["condition"] == "clean")]
        assert set(clean[clean["split"] == "train"]["n"]) == {use.train_examples}
        assert not inconsistencies(found.stored)
        again = judge(own_model, found.stored.path.parent, geometry=True, geometry_budget=_BUDGET)
        assert (again.made, again.stored.record) == (False, record)
        asked = {"geometry": True, "geometry_budget": 1.0, "said": said}
        least = judge(own_model, tmp_path / "least", **asked)
        assert said[-1].startswith("of the geometry, left out to cost no more than 1 times")
        assert least.stored.record.geometry.left_out == ("everything",)
        assert set(least.stored.rows()["measure"]) == {"verdict"}

    def test_a_larger_one_measures_the_rest_and_attacks_no_more(self, own_model, limited, tmp_path):
        events: list[Event] = []
        first = limited.stored.record
        shutil.copytree(limited.stored.path.parent, tmp_path / "out")
        found = judge(own_model, tmp_path / "out", geometry=True, report=events.append)
        assert found.made
        assert {event.task for event in events} == {"geometry"}
        record = found.stored.record
        assert record.geometry.left_out == ()
        assert (record.verdict, record.evidence) == (first.verdict, first.evidence)
        whole = judge(own_model, tmp_path / "whole", geometry=True).stored
        assert same_record(whole.record, record)
        assert whole.rows().equals(found.stored.rows())

    @pytest.mark.parametrize(
        "dies", ["measure_layers", "write_rows", "write_record", "remove_file"]
    )
    @pytest.mark.parametrize("after", range(4))
    def test_whenever_it_is_killed_the_record_holds(
        self, own_model, limited, tmp_path, monkeypatch, dies, after
    ):
        out = tmp_path / "out"
        shutil.copytree(limited.stored.path.parent, out)
        first, rows = limited.stored.record.verdict, limited.stored.rows()
        layers = rows[rows["measure"] != "verdict"]
        monkeypatch.setattr(appraising, "measure_layers", lambda *_, **__: layers)
        real, calls = getattr(appraising, dies), 0

        def killed(*given, **more):
            nonlocal calls
            calls += 1
            if calls == after // 2 + 1 and after % 2 == 0:
                raise KeyboardInterrupt
            done = real(*given, **more)
            if calls == after // 2 + 1:
                raise KeyboardInterrupt
            return done

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(appraising, dies, killed)
            judge(own_model, out, geometry=True)
        (path,) = out.glob("*.json")
        assert not inconsistencies(read_record(path))
        events: list[Event] = []
        found = judge(own_model, out, geometry=True, report=events.append)
        assert not events
        assert found.stored.record.geometry.left_out == ()
        assert found.stored.record.verdict == first
        kept = sorted(one.name.partition(".")[2] for one in out.glob("[0-9a-f]*") if one.is_file())
        assert kept == ["evidence", "json", "parquet"]

    def test_the_verdict_stands_before_the_geometry(self, own_model, tmp_path, monkeypatch):
        out, seen = tmp_path / "out", []

        def stop(*_, **__):
            (path,) = out.glob("*.json")
            seen.append(read_record(path))
            raise KeyboardInterrupt

        monkeypatch.setattr(appraising, "measure_layers", stop)
        with pytest.raises(KeyboardInterrupt):
            judge(own_model, out, geometry=True)
        (stored,) = seen
        assert not inconsistencies(stored)
        assert set(stored.rows()["measure"]) == {"verdict"}
        assert stored.record.geometry.left_out == ("everything, until now",)
        assert stored.record.evidence.sha256 == sha256_of(stored.path.with_suffix(".evidence"))
        with pytest.raises(RecordError, match=r"geometry of .* is not measured yet"):
            check_names(stored)

    def test_a_budget_of_nothing_is_refused(self, own_model, tmp_path):
        with pytest.raises(ConfigError, match="--geometry-budget must be above 0, found 0"):
            judge(own_model, tmp_path, geometry=True, geometry_budget=0.0)
