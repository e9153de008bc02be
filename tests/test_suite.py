"""Suites: the grid and its names, and one sentence for whatever is wrong with one."""

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
        ("name = ", "is not TOML"),
        ('nmae = "x"', "did you mean 'name'"),
        ("[gird]\nseed = [0]", "did you mean 'grid'?"),
        ("[base.trian]\n", "unknown key 'trian' (did you mean 'train'?)"),
        ("[base.train]\nepoch = 3", "unknown key 'train.epoch' (did you mean 'epochs'?)"),
        ("[grid]\n'train.lrr' = [0.1]", "unknown key 'train.lrr' (did you mean 'lr'?)"),
        ("[grid]\nseed = []", "grid.seed must be a list"),
        ("[grid]\ntogether = ['etf']", "grid.together must list tables of dotted keys in quotes"),
        ("[grid]\ntogether = [{ 'model.haed' = 'etf' }]", "did you mean 'head'"),
        ("base = 3", "base and grid must be tables"),
        ('name = "a/b"', "name must be a plain word"),
        ("[base]\nseed = -1", "seed: input should be greater than or equal to 0"),
        ("[base.data]\ndataset = 'digit'", "unknown data set 'digit'; did you mean 'digits'?"),
        ("[base.data]\nhierarchy = 'cifar'", "'cifar'"),
        ("[base.data]\nnoise = {name='symmetric', rate=1.5}", "1.5"),
        ("[base.data]\nimbalance = 'exponental'", "did you mean 'exponential'"),
        ("[base.data]\nvalidation = 1.0", "data.validation: input should be less than 1"),
        ("[base.data]\ntrain_limit = 0", "data.train_limit: input should be greater than"),
        ("[base.data]\naugment = ['blur']", "should be 'crop' or 'flip'"),
        ("[base.model]\nbackbone = 'small_cn'", "did you mean 'small_cnn'?"),
        ("[base.model]\nbackbone = {name='small_cnn', widht=8}", "did you mean 'width'?"),
        ("[base.model]\nhead = 'eft'", "unknown head 'eft'; did you mean 'etf'"),
        ("[base.model]\nneck = 'transfrom'", "did you mean 'transform'"),
        ("[base.train]\nobjective = 'trade'", "did you mean 'trades'?"),
        ("[base.train]\nobjective = {name='pgd', stepz=3}", "has no option 'stepz'"),
        ("[base.train]\nobjective = {name='pgd', steps='3'}", "option 'steps'"),
        ("[base.train]\nloss = 'cs'", "unknown training loss 'cs'"),
        ("[base.train]\nschedule = 'cosin'", "did you mean 'cosine'?"),
        ("[base.train]\naveraging = 'emma'", "did you mean 'ema'"),
        ("[base.train]\nepochs = -1", "train.epochs: input should be greater than or equal to 0"),
        ("[base.train]\nepochs = true", "train.epochs: input should be a valid integer"),
        ("[base.train]\nlr = 0", "train.lr: input should be greater than 0"),
        ("[base.train]\nlr = nan", "train.lr: input should be a finite number"),
        ("[base.threat]\nnorm = 'linf'", "unknown norm 'linf'; did you mean 'Linf'"),
        ("[base.threat]\neps = -0.1", "eps must be finite and at least 0"),
        ("[base.threat]\neps = 8", "did you mean 8/255?"),
        ("[base.threat]\neps = nan", "threat.eps: input should be a finite number"),
        ("[base.threat]\neps = '8/0'", "eps must be a number or a fraction such as 8/255"),
        ("[base.threat]\neps = 'eight'", "eps must be a number or a fraction such as 8/255"),
        ("[base.threat]\neps = '-8/255'", "eps must be finite and at least 0"),
        ("[grid]\n'threat.eps' = [0.1, 2.0]", "did you mean 2/255?"),
        ("[base.evaluation]\nsweep = ['8/x']", "eps must be a number or a fraction such as 8/255"),
        ("[base.evaluation]\nprotocol = 'pdg'", "did you mean 'pgd'"),
        ("[base.evaluation]\nbeside = 'pgd_cee'", "did you mean 'pgd_ce'"),
        ("[base.measure]\ncorruptions = ['fogg']", "did you mean 'fog'"),
        ("[base.measure]\nseverities = [6]", "measure.severities"),
        ("[base.measure]\nseverities = []", "should have at least 1 item"),
    ],
)
def test_a_bad_suite_gets_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_suite(written(tmp_path, text))
    assert sentence in str(raised.value)
    assert "own.toml" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_eps_may_be_a_fraction(tmp_path: Path) -> None:
    text = "[base.threat]\neps = '8/255'\n[base.evaluation]\nsweep = [0, '2/255']"
    (cell,) = read_suite(written(tmp_path, text)).cells
    assert cell.config.threat.eps == 8 / 255
    assert cell.config.evaluation.sweep == (0, 2 / 255)


def test_a_long_name_of_a_model_is_cut_for_its_folder(tmp_path: Path) -> None:
    paths = [f"{'long' * 60}{end}.npz" for end in "ab"]
    grid = ", ".join(f"{{name = 'npz', path = '{path}'}}" for path in paths)
    cells = read_suite(written(tmp_path, f"[grid]\n'data.dataset' = [{grid}]\n")).cells
    assert len({cell.model for cell in cells}) == 2
    assert all(len(cell.model) <= 120 for cell in cells)
