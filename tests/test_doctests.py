"""The examples in the docstrings run. They import installed names, as users do."""

import doctest
import importlib
import pkgutil

import pytest

import robust_nc
import robust_nc.attacks


def modules() -> list[str]:
    names = ["robust_nc"]
    for package in (robust_nc, robust_nc.attacks):
        found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        names += [info.name for info in found]
    return sorted(set(names))


@pytest.mark.parametrize("name", modules())
def test_the_examples_of_a_module_run(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, "a module opens with what it is for"
    assert doctest.testmod(module).failed == 0
