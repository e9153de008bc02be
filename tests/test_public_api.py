"""What users import: names that are there, light to import, documented, with examples that run."""

import doctest
import importlib
import pkgutil
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import torch

import robust_nc
import robust_nc.attacks
from robust_nc import registry
from robust_nc.exceptions import ConfigError, UnknownNameError
from robust_nc.registry import Registry

ROOT = Path(__file__).parent.parent
PROMISED = {
    "Ball",
    "Moments",
    "build_model",
    "evaluate",
    "leaderboard",
    "load_dataset",
    "measure_collapse",
    "measure_leaps",
    "train",
}


def test_all_names_what_is_there() -> None:
    assert set(robust_nc.__all__) >= PROMISED
    assert robust_nc.__all__ == sorted(robust_nc.__all__)
    assert dir(robust_nc) == sorted([*robust_nc.__all__, "__version__"])
    for name in robust_nc.__all__:
        assert getattr(robust_nc, name).__doc__
        assert util.find_spec(f"robust_nc.{name}") is None, "no module bears a function's name"


def test_the_import_is_light_and_attacks_has_one_name_only() -> None:
    """What is slow or optional is imported when it is used; no class is loaded twice."""
    code = """
import sys, torch, numpy
before = set(sys.modules)
import robust_nc
assert repr(robust_nc.Ball("Linf", numpy.float32(0.125)).eps) == "0.125"
print(*{name.split(".")[0] for name in set(sys.modules) - before})
robust_nc.plugins.find_attack, robust_nc.zoo, robust_nc.types.Attack, robust_nc.figures.story
try:
    robust_nc.nothing
except AttributeError as error:
    print(error)
import attacks
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    heavy = {"torchvision", "torchattacks", "robustbench", "seaborn", "matplotlib", "sklearn"}
    assert "robust_nc" in ran.stdout
    assert not heavy & set(ran.stdout.split())
    assert "module 'robust_nc' has no attribute 'nothing'" in ran.stdout
    assert "import robust_nc.attacks, not attacks" in ran.stderr


def test_the_examples_of_every_module_run() -> None:
    """They import installed names, as users do."""
    names = {"robust_nc"}
    for package in (robust_nc, robust_nc.attacks):
        found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        names |= {info.name for info in found}
    assert len(names) > 200
    failed = {}
    for name in sorted(names):
        torch.manual_seed(0)  # of networks that an example draws
        failed[name] = doctest.testmod(importlib.import_module(name)).failed
    assert {name: number for name, number in failed.items() if number} == {}


TABLES = [value for value in vars(registry).values() if isinstance(value, Registry)]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_every_registered_name_loads(table: Registry) -> None:
    assert table.names()
    for name in table.names():
        assert table.load(name) is not None


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown head 'liner'; did you mean 'linear'"):
        registry.HEADS.load("liner")


def test_a_taken_name_is_refused() -> None:
    table = Registry("part", "parts-of-a-test", {"a": "json:dumps"})
    with pytest.raises(ConfigError, match="registered already"):
        table.register("a", "json:loads")
    with pytest.raises(ConfigError, match="module:attribute"):
        table.register("b", "json.loads")
    table.register("b", "json:loads")
    assert table.names() == ("a", "b")
    assert table.load("b")("1") == 1
