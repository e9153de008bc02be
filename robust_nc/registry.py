"""All tables of names: what a suite or the command line may say, and which code answers.

Entries are lazy `"module:attribute"` strings, so that importing the package imports no part of it.
Another package adds its own through entry points, e.g. `[project.entry-points."robust_nc.heads"]`.

>>> NECKS.names()
('transform',)
"""

import importlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from robust_nc.exceptions import ConfigError, UnknownNameError, unknown_name
from robust_nc.io.user_code import is_allowed, lacks, load_code, split_code


class Registry:
    """One table of names of one kind of part; refuses duplicates, explains unknown names.

    `entries` by name, or the "module:attribute" where there is a mapping from names to the parts.
    """

    def __init__(self, kind: str, group: str, entries: Mapping[str, str] | str) -> None:
        self.kind = kind
        self.group = f"robust_nc.{group}"
        self._table = entries
        self._entries: dict[str, Any] = {}
        self._scanned = False

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._all()))

    def register(self, name: str, target: object) -> None:
        """Add `name` for `"module:attribute"`, or for a class or function, in this process.

        A name that is taken is refused. Other processes know what is named as "module:attribute".
        """
        if name in self._all():
            raise ConfigError(f"{self.kind} {name!r} is registered already, as {self._all()[name]}")
        if not callable(target) and (not isinstance(target, str) or target.count(":") != 1):
            raise ConfigError(
                f"{self.kind} {name!r} needs 'module:attribute', a class or a function, found "
                f"{target!r}"
            )
        self._entries[name] = target

    def load(self, name: str) -> Any:
        """Import and return what `name` stands for.

        Beside the names of the table that is code which the user named (`user_code.allow`), by
        `file.py:Name` or `module:Name`: what a stranger's record or checkpoint names is not run.
        """
        entries, code = self._all(), split_code(name)
        if name in entries:
            found = entries[name]
            return _imported(found) if isinstance(found, str) else found
        if code is None:
            raise unknown_name(self.kind, name, entries)
        if not is_allowed(name):
            unknown = unknown_name(self.kind, name, entries)
            raise UnknownNameError(f"{unknown}; code is run where you name it in a suite of yours")
        own = load_code(code)
        if not callable(own):
            raise lacks(code)
        return own

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def _all(self) -> dict[str, Any]:
        if not self._scanned:
            self._scanned = True
            known = self._table
            self._entries = dict(_imported(known) if isinstance(known, str) else known)
            for point in metadata.entry_points(group=self.group):
                self.register(point.name, point.value)
        return self._entries


def _imported(target: str) -> Any:
    module, attribute = target.split(":")
    return getattr(importlib.import_module(module), attribute)


DATASETS = Registry(
    "data set",
    "datasets",
    {
        "cifar10": "robust_nc.data.cifar:Cifar10",
        "cifar100": "robust_nc.data.cifar:Cifar100",
        "digits": "robust_nc.data.digits:Digits",
        "fashion_mnist": "robust_nc.data.fashion_mnist:FashionMnist",
        "folder": "robust_nc.data.folder:Folder",
        "imagenette": "robust_nc.data.imagenette:ImageNette",
        "mnist": "robust_nc.data.mnist:Mnist",
        "npz": "robust_nc.data.npz:Npz",
        "svhn": "robust_nc.data.svhn:Svhn",
        "synthetic": "robust_nc.data.synthetic:Synthetic",
    },
)

BACKBONES = Registry(
    "backbone",
    "backbones",
    {
        "deep_rfm": "robust_nc.models.deep_rfm_backbone:DeepRfmBackbone",
        "mlp": "robust_nc.models.backbones:Mlp",
        "preact_resnet18": "robust_nc.models.backbones:PreActResNet18",
        "small_cnn": "robust_nc.models.backbones:SmallCnn",
        "timm": "robust_nc.models.timm_backbone:TimmBackbone",
        "vgg11_bn": "robust_nc.models.backbones:Vgg11Bn",
        "vit": "robust_nc.models.vit:Vit",
        "wide_resnet": "robust_nc.models.backbones:WideResNet",
    },
)

NECKS = Registry("neck", "necks", {"transform": "robust_nc.models.necks:Transform"})

HEADS = Registry(
    "head",
    "heads",
    {
        "etf": "robust_nc.models.heads:EtfHead",
        "haframe": "robust_nc.models.heads:HaFrameHead",
        "linear": "robust_nc.models.heads:LinearHead",
        "nearest_etf": "robust_nc.models.heads:NearestEtfHead",
        "orthogonal": "robust_nc.models.heads:OrthogonalHead",
        "prototype": "robust_nc.models.heads:PrototypeHead",
    },
)

OBJECTIVES = Registry(
    "objective",
    "objectives",
    {
        "awp": "robust_nc.training.objectives:Awp",
        "deep_rfm": "robust_nc.training.deep_rfm:DeepRfm",
        "fgsm": "robust_nc.training.objectives:Fgsm",
        "mart": "robust_nc.training.objectives:Mart",
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
        "dot_regression": "robust_nc.training.losses:dot_regression",
        "haframe": "robust_nc.training.losses:haframe_loss",
        "label_relaxation": "robust_nc.training.losses:label_relaxation",
        "label_smoothing": "robust_nc.training.losses:label_smoothing",
        "margin": "robust_nc.training.losses:margin_loss",
        "mse": "robust_nc.training.losses:squared_error",
        "soft_labels": "robust_nc.training.losses:soft_labels",
    },
)

AVERAGINGS = Registry(
    "averaging of weights",
    "averagings",
    {
        "ema": "robust_nc.training.averaging:Ema",
        "swa": "robust_nc.training.averaging:Swa",
    },
)

LABEL_NOISES = Registry(
    "label noise",
    "label_noises",
    {
        "pair": "robust_nc.data.noise:Pair",
        "per_class": "robust_nc.data.noise:PerClass",
        "symmetric": "robust_nc.data.noise:Symmetric",
    },
)

IMBALANCES = Registry(
    "imbalance",
    "imbalances",
    {
        "exponential": "robust_nc.data.imbalance:Exponential",
        "step": "robust_nc.data.imbalance:Step",
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

# What is told of every epoch of a training: `robust-nc run --log NAME`.
CALLBACKS = Registry(
    "log",
    "callbacks",
    {
        "csv": "robust_nc.training.callbacks:CsvLog",
        "mlflow": "robust_nc.training.callbacks:MlflowLog",
        "tensorboard": "robust_nc.training.callbacks:TensorBoardLog",
        "wandb": "robust_nc.training.callbacks:WandbLog",
    },
)

ATTACKS = Registry(
    "attack",
    "attacks",
    {
        "apgd": "robust_nc.attacks.apgd:APGD",
        "fab": "robust_nc.attacks.fab:FAB",
        "fgsm": "robust_nc.attacks.pgd:FGSM",
        "gaussian": "robust_nc.attacks.noise:GaussianNoise",
        "geometry": "robust_nc.attacks.ensemble:geometry_attack",
        "pgd": "robust_nc.attacks.pgd:PGD",
        "rays": "robust_nc.attacks.rays:RayS",
        "sign": "robust_nc.attacks.noise:SignNoise",
        "smooth": "robust_nc.attacks.smooth:Smooth",
        "square": "robust_nc.attacks.square:Square",
    },
)

# Attacks of other libraries, as `library:Name`.
ADAPTERS = Registry(
    "library of attacks",
    "adapters",
    {
        "adv_lib": "robust_nc.attacks.external_advlib:advlib_attack",
        "autoattack": "robust_nc.attacks.external_autoattack:autoattack_part",
        "foolbox": "robust_nc.attacks.external_foolbox:foolbox_attack",
        "pyautoattack": "robust_nc.attacks.external_autoattack:autoattack_part",
        "torchattacks": "robust_nc.attacks.external_torchattacks:torchattacks_attack",
    },
)

# What attacks are scaled by, and what they are compared with.
CONTROLS = Registry(
    "control",
    "controls",
    {
        "logit_scale": "robust_nc.attacks.ensemble:logit_scale",
        "matched_noise": "robust_nc.attacks.noise:matched_noise",
        "severest": "robust_nc.attacks.severest:Severest",
        "trajectory": "robust_nc.attacks.trajectory:trajectory",
    },
)

PROTOCOLS = Registry(
    "protocol",
    "protocols",
    {
        "clean": "robust_nc.attacks.protocols:CLEAN",
        "fast": "robust_nc.attacks.protocols:FAST",
        "fgsm": "robust_nc.attacks.protocols:FGSM_ONLY",
        "pgd": "robust_nc.attacks.protocols:PGD_WORST",
        "pgd_ce": "robust_nc.attacks.protocols:PGD_CE",
        "plus": "robust_nc.attacks.protocols:PLUS",
        "rand": "robust_nc.attacks.protocols:RAND",
        "second": "robust_nc.attacks.protocols:SECOND",
        "standard": "robust_nc.attacks.protocols:STANDARD",
    },
)

METRICS = Registry("measure", "metrics", "robust_nc.geometry.measures:MEASURES")
