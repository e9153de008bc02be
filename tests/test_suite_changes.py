"""Suites without copying files: listed, shown with every default, changed by --set."""

import re
from pathlib import Path

import pytest
from helpers_runner import cli, records, tiny, write_suite

from robust_nc.config import RunConfig, cell_id
from robust_nc.exceptions import ConfigError
from robust_nc.pipeline.changes import changed_name, read_changes
from robust_nc.pipeline.suite import read_suite, suite_names

OWN = """
name = "own"
description = "Quotes \\" and umlauts: Ä \\u007f."
[base.data]
noise = { name = "symmetric", rate = 0.2 }
[base.model]
backbone = "small_cnn"
[base.threat]
eps = "8/255"
[base.evaluation]
attack = { name = "pgd", steps = 3 }
[grid]
together = [
  { "model.head" = "linear", "train.loss" = { name = "label_smoothing", alpha = 0.1 } },
  { "model.head" = "haframe", "train.loss" = "haframe", "data.noise.rate" = 0.4 },
]
"model.backbone.width" = [4, 8]
"measure.targets" = [[], ["cyclic", "random"]]
"""


@pytest.mark.parametrize("name", [*suite_names(), "own.toml"])
def test_a_suite_that_is_shown_reads_back_as_the_same_cells(tmp_path: Path, name: str) -> None:
    if name == "own.toml":
        name = str(tmp_path / name)
        Path(name).write_text(OWN)
    ran = cli("suites", "show", name)
    assert ran.code == 0, ran.err
    copy = tmp_path / "copy.toml"
    copy.write_text(ran.out)
    assert read_suite(str(copy)) == read_suite(name)


def test_what_is_shown_names_every_setting_and_the_defaults_of_parts() -> None:
    text = cli("suites", "show", "quickstart").out
    for table in ("data", "model", "train", "threat", "evaluation", "measure"):
        section = text.split(f"[base.{table}]")[1].split("\n[")[0]
        for name in getattr(RunConfig(), table).__dataclass_fields__:
            assert re.search(rf"^(# )?{name} (=|is not set)", section, re.M), name
    assert '"linear",  # bias = true, normalise_weight = false, scale = not set' in text


def test_the_list_tells_every_suite_and_how_many_cells_it_has() -> None:
    ran = cli("suites")
    assert ran.out == cli("suites", "list").out
    for name in suite_names():
        assert re.search(rf"^ {name} +{len(read_suite(name).cells)} ", ran.out, re.M)
    assert re.search(r"^ claims +\d+ ", ran.out, re.M)


def changed(tmp_path: Path, *texts: str, grid: str = "") -> list[RunConfig]:
    suite = read_suite(str(write_suite(tmp_path, grid)), read_changes(texts))
    assert [cell.id for cell in suite.cells] == [cell_id(cell.config) for cell in suite.cells]
    return [cell.config for cell in suite.cells]


def test_values_are_read_as_toml_or_as_bare_text(tmp_path: Path) -> None:
    (config,) = changed(
        tmp_path,
        "train.epochs=5",
        "model.backbone.width=32",
        "threat.eps=8/255",
        "train.objective=pgd",
        "train.objective.steps = 3",
        'data.noise={ name = "symmetric", rate = 0.1 }',
        'measure.targets=["cyclic"]',
        "data.test_limit=",
        "train.nesterov=true",
    )
    assert (config.train.epochs, config.threat.eps, config.train.nesterov) == (5, 8 / 255, True)
    assert config.model.backbone.options == {"width": 32}
    assert (config.train.objective.name, config.train.objective.options) == ("pgd", {"steps": 3})
    assert config.data.noise is not None
    assert config.measure.targets == ("cyclic",)
    assert (config.data.test_limit, config.data.train_limit) == (None, 120)


def test_a_list_is_a_grid_where_the_key_takes_none(tmp_path: Path) -> None:
    grid = '[grid]\n"train.epochs" = [1, 2]\n"model.head" = ["linear", "etf"]'
    found = changed(tmp_path, "seed=[0,1]", "train.epochs=3", grid=grid)
    told = [(each.model.head.name, each.seed, each.train.epochs) for each in found]
    assert told == [("linear", 0, 3), ("linear", 1, 3), ("etf", 0, 3), ("etf", 1, 3)]
    lists = changed(tmp_path, 'measure.targets=[["cyclic"], []]', "model.backbone.width=[4, 8]")
    assert [each.measure.targets for each in lists] == [("cyclic",), ("cyclic",), (), ()]
    assert [each.model.backbone.options["width"] for each in lists] == [4, 8, 4, 8]
    suite = read_suite(str(write_suite(tmp_path, "")), {"train.lr": [0.1, 0.2]})
    assert {cell.model for cell in suite.cells} == {
        "small_cnn-linear-standard-lr=0.1",
        "small_cnn-linear-standard-lr=0.2",
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train.epochs", "--set takes KEY=VALUE, such as train.epochs=5, found 'train.epochs'"),
        ("=5", "--set takes KEY=VALUE"),
        ("train..epochs=5", "--set takes KEY=VALUE"),
        ("train.epoch=5", "--set: unknown key 'train.epoch' (did you mean 'epochs'?); valid: "),
        ("epochs=5", "unknown key 'epochs' (did you mean train.epochs?)"),
        ("trian.epochs=5", "unknown key 'trian' (did you mean 'train'?)"),
        ("train.epochs=five", 'train.epochs: input should be a valid integer, found "five"'),
        ("train.epochs=[1, 2.5]", "train.epochs: input should be a valid integer, found 2.5"),
        ("train.epochs.x=5", "train.epochs: input should be a valid integer"),
        ("train=5", "train: input should be an object"),
        ("train.epochs=", "train.epochs: input should be a valid integer, found null"),
        ("seed=[]", "--set seed: found an empty list"),
        ("train.objective=pdg", "unknown objective 'pdg'; did you mean 'pgd'?"),
        ("model.backbone.widht=8", "has no option 'widht' (did you mean 'width'?)"),
        ("data.noise.rate=0.1", "--set data.noise.rate: no noise is set; name one first"),
        ("threat.eps=8", "did you mean 8/255?"),
        ('measure.targets=["cyclc"]', "measure.targets.0: input should be 'cyclic'"),
    ],
)
def test_what_cannot_be_set_is_said_in_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        changed(tmp_path, text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_changed_suite_has_a_name_and_a_folder_of_its_own(tmp_path: Path, monkeypatch) -> None:
    """Seeds alone are no other suite: more of them join those that are there."""
    whole = tiny(tmp_path, "")
    assert changed_name("tiny", {"seed": [0, 1]}) == "tiny"
    assert len(changed_name("tiny", {"data.hierarchy": "x" * 500})) == 120
    monkeypatch.chdir(tmp_path)
    short = ("--set", "train.epochs=1", "--set", "evaluation.sweep=[]", "--workers", 1)
    ran = cli("run", "tiny.toml", *short)
    assert ran.code == 0, ran.err
    out = tmp_path / "out" / "tiny-evaluation.sweep=_-train.epochs=1"
    (record,) = records(out).values()
    assert record.suite == out.name
    assert record.config["train"]["epochs"] == 1
    assert record.cell != whole.cells[0].id
    assert ", 0 kept" in ran.err
    again = cli("run", "tiny.toml", *short)
    assert "0 cells made, 1 kept" in again.err
    assert cli("run", "claims", "--set", "seed=1").code == 2
