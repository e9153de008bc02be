from pathlib import Path

import pytest

from robust_nc.exceptions import ConfigError
from robust_nc.pipeline.suite import read_suite, suite_names


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_of_the_package_can_be_read(name: str) -> None:
    suite = read_suite(name)
    assert suite.name == name
    assert suite.description
    assert len({cell.id for cell in suite.cells}) == len(suite.cells)


def test_quickstart_is_the_grid_that_the_readme_shows() -> None:
    cells = read_suite("quickstart").cells
    assert len(cells) == 12
    assert {cell.config.train.objective.name for cell in cells} == {"standard", "pgd", "trades"}
    assert {cell.config.model.head.name for cell in cells} == {"linear", "etf"}
    assert {cell.config.seed for cell in cells} == {0, 1}
    assert len({cell.model for cell in cells}) == 6


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "own.toml"
    path.write_text(text)
    return str(path)


def test_the_grid_overrides_the_base_and_names_stay_apart(tmp_path: Path) -> None:
    text = """
    name = "own"
    [base.train]
    epochs = 3
    objective = "pgd"
    [grid]
    "train.objective" = [{ name = "pgd", steps = 3 }, { name = "pgd", steps = 4 }]
    "train.epochs" = [5]
    seed = [0, 1]
    """
    cells = read_suite(written(tmp_path, text)).cells
    assert [cell.config.train.objective.options["steps"] for cell in cells] == [3, 3, 4, 4]
    assert {cell.config.train.epochs for cell in cells} == {5}
    assert cells[0].model == cells[1].model == "small_cnn-linear-pgd-steps=3-epochs=5"
    assert cells[2].model == cells[3].model == "small_cnn-linear-pgd-steps=4-epochs=5"


def test_keys_may_change_together(tmp_path: Path) -> None:
    text = """
    name = "own"
    [grid]
    together = [
      { "model.head" = "linear" },
      { "model.head" = "etf", "train.loss" = "mse", "model.normalise_features" = true },
    ]
    seed = [0, 1]
    """
    cells = read_suite(written(tmp_path, text)).cells
    plain, fixed = cells[0], cells[2]
    assert [cell.config.seed for cell in cells] == [0, 1, 0, 1]
    assert (plain.config.model.head.name, plain.config.train.loss.name) == ("linear", "ce")
    assert (fixed.config.model.head.name, fixed.config.train.loss.name) == ("etf", "mse")
    assert plain.model == "small_cnn-linear-standard-ce-normalise_features=False"
    assert fixed.model == "small_cnn-etf-standard-mse-normalise_features=True"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[grid]\ntogether = ['etf']", "grid.together must list tables of dotted keys in quotes"),
        ("[grid]\ntogether = [{ 'model.haed' = 'etf' }]", "did you mean 'head'"),
        ("[base.data]\nhierarchy = 'cifar'", "'cifar'"),
        ("[base.data]\nnoise = {name='symmetric', rate=1.5}", "1.5"),
        ("[base.data]\nimbalance = 'exponental'", "did you mean 'exponential'"),
        ("[base.train]\naveraging = 'emma'", "did you mean 'ema'"),
        ("[base.model]\nneck = 'transfrom'", "did you mean 'transform'"),
        ("[base.measure]\ncorruptions = ['fogg']", "did you mean 'fog'"),
        ("[base.measure]\nseverities = [6]", "measure.severities"),
        ("[base.evaluation]\nbeside = 'pgd_cee'", "did you mean 'pgd_ce'"),
        ("name = ", "is not TOML"),
        ('nmae = "x"', "did you mean 'name'"),
        ("[base.trian]\n", "unknown key 'trian' (did you mean 'train'?)"),
        ("[base.model]\nhead = 'eft'", "unknown head 'eft'; did you mean 'etf'"),
        ("[base.train]\nobjective = {name='pgd', stepz=3}", "has no option 'stepz'"),
        ("[base.train]\nobjective = {name='pgd', steps='3'}", "option 'steps'"),
        ("[base.data]\ndataset = 'digit'", "did you mean 'digits'"),
        ("[base.evaluation]\nprotocol = 'pdg'", "did you mean 'pgd'"),
        ("[base.threat]\nnorm = 'linf'", "unknown norm 'linf'; did you mean 'Linf'"),
        ("[base.threat]\neps = -0.1", "eps must be finite and at least 0"),
        ("[base.threat]\neps = 8", "did you mean 8/255"),
        ("[grid]\nseed = 3", "grid.seed must be a list"),
        ("[grid]\nseed = []", "grid.seed must be a list"),
        ("base = 3", "base and grid must be tables"),
        ('name = "a/b"', "name must be a plain word"),
    ],
)
def test_a_bad_suite_gets_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_suite(written(tmp_path, text))
    assert sentence in str(raised.value)
    assert "own.toml" in str(raised.value)


def test_an_unknown_suite_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown suite 'quikstart'; did you mean 'quickstart'"):
        read_suite("quikstart")
    with pytest.raises(ConfigError, match=r"missing\.toml cannot be read"):
        read_suite("missing.toml")
