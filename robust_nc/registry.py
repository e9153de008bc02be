"""All tables of names: what a suite or the command line may say, and which code answers.

Entries are lazy `"module:attribute"` strings, so that importing the package imports no part of it.
Another package adds its own through entry points, e.g. `[project.entry-points."robust_nc.heads"]`.

>>> HEADS.names()
('etf', 'linear')
"""

import importlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from robust_nc.exceptions import ConfigError, unknown_name


class Registry:
    """One table of names of one kind of part; refuses duplicates, explains unknown names."""

    def __init__(self, kind: str, group: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = f"robust_nc.{group}"
        self._entries = dict(entries)
        self._scanned = False

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._all()))

    def register(self, name: str, target: str) -> None:
        """Add `name` for `"module:attribute"`; a name that is taken is refused."""
        if name in self._all():
            raise ConfigError(f"{self.kind} {name!r} is registered already, as {self._all()[name]}")
        if target.count(":") != 1:
            raise ConfigError(f"{self.kind} {name!r} needs 'module:attribute', found {target!r}")
        self._entries[name] = target

    def load(self, name: str) -> Any:
        """Import and return what `name` stands for."""
        entries = self._all()
        if name not in entries:
            raise unknown_name(self.kind, name, entries)
        module, attribute = entries[name].split(":")
        return getattr(importlib.import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def _all(self) -> dict[str, str]:
        if not self._scanned:
            self._scanned = True
            for point in metadata.entry_points(group=self.group):
                self.register(point.name, point.value)
        return self._entries


DATASETS = Registry(
    "data set",
    "datasets",
    {
        "cifar10": "robust_nc.data.cifar:Cifar10",
        "cifar100": "robust_nc.data.cifar:Cifar100",
        "digits": "robust_nc.data.digits:Digits",
        "fashion_mnist": "robust_nc.data.fashion_mnist:FashionMnist",
        "folder": "robust_nc.data.folder:Folder",
        "npz": "robust_nc.data.npz:Npz",
        "synthetic": "robust_nc.data.synthetic:Synthetic",
    },
)

BACKBONES = Registry(
    "backbone",
    "backbones",
    {
        "mlp": "robust_nc.models.backbones:Mlp",
        "preact_resnet18": "robust_nc.models.resnet:PreActResNet18",
        "small_cnn": "robust_nc.models.backbones:SmallCnn",
        "vgg11_bn": "robust_nc.models.backbones:Vgg11Bn",
    },
)

HEADS = Registry(
    "head",
    "heads",
    {
        "etf": "robust_nc.models.heads:EtfHead",
        "linear": "robust_nc.models.heads:LinearHead",
    },
)

OBJECTIVES = Registry(
    "objective",
    "objectives",
    {
        "pgd": "robust_nc.training.objectives:Pgd",
        "standard": "robust_nc.training.objectives:Standard",
        "trades": "robust_nc.training.objectives:Trades",
    },
)

LOSSES = Registry(
    "training loss",
    "losses",
    {
        "ce": "robust_nc.training.losses:cross_entropy",
        "mse": "robust_nc.training.losses:squared_error",
    },
)

SCHEDULES = Registry(
    "schedule",
    "schedules",
    {
        "constant": "robust_nc.training.schedule:Constant",
        "cosine": "robust_nc.training.schedule:Cosine",
        "one_cycle": "robust_nc.training.schedule:OneCycle",
        "piecewise": "robust_nc.training.schedule:Piecewise",
    },
)

ATTACKS = Registry(
    "attack",
    "attacks",
    {
        "fgsm": "robust_nc.attacks.pgd:FGSM",
        "gaussian": "robust_nc.attacks.noise:GaussianNoise",
        "pgd": "robust_nc.attacks.pgd:PGD",
        "sign": "robust_nc.attacks.noise:SignNoise",
    },
)

PROTOCOLS = Registry(
    "protocol",
    "protocols",
    {
        "clean": "robust_nc.attacks.protocols:CLEAN",
        "fgsm": "robust_nc.attacks.protocols:FGSM_ONLY",
        "pgd": "robust_nc.attacks.protocols:PGD_WORST",
    },
)

METRICS = Registry("measure", "metrics", {})
