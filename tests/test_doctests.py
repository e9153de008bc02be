"""The examples in the docstrings run. They import installed names, as users do."""

import doctest
import importlib
import pkgutil

import torch

import robust_nc
import robust_nc.attacks


def test_the_examples_of_every_module_run() -> None:
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
