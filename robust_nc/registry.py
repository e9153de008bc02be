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
        "deep_rfm": "robust_nc.models.deep_rfm_backbone:DeepRfmBackbone",
        "mlp": "robust_nc.models.backbones:Mlp",
        "preact_resnet18": "robust_nc.models.convnets:PreActResNet18",
        "small_cnn": "robust_nc.models.backbones:SmallCnn",
        "timm": "robust_nc.models.timm_backbone:TimmBackbone",
        "vgg11_bn": "robust_nc.models.convnets:Vgg11Bn",
        "vit": "robust_nc.models.vit:Vit",
        "wide_resnet": "robust_nc.models.convnets:WideResNet",
    },
)

NECKS = Registry("neck", "necks", {"transform": "robust_nc.models.necks:Transform"})

HEADS = Registry(
    "head",
    "heads",
    {
        "etf": "robust_nc.models.fixed_heads:EtfHead",
        "haframe": "robust_nc.models.fixed_heads:HaFrameHead",
        "linear": "robust_nc.models.heads:LinearHead",
        "nearest_etf": "robust_nc.models.nearest_etf:NearestEtfHead",
        "orthogonal": "robust_nc.models.fixed_heads:OrthogonalHead",
        "prototype": "robust_nc.models.heads:PrototypeHead",
    },
)

OBJECTIVES = Registry(
    "objective",
    "objectives",
    {
        "awp": "robust_nc.training.awp:Awp",
        "deep_rfm": "robust_nc.training.deep_rfm:DeepRfm",
        "fgsm": "robust_nc.training.defenses:Fgsm",
        "mart": "robust_nc.training.defenses:Mart",
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
        "haframe": "robust_nc.training.losses:haframe",
        "label_relaxation": "robust_nc.training.losses:label_relaxation",
        "label_smoothing": "robust_nc.training.losses:label_smoothing",
        "margin": "robust_nc.training.losses:margin",
        "mse": "robust_nc.training.losses:squared_error",
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
        "sign": "robust_nc.attacks.noise:SignNoise",
        "square": "robust_nc.attacks.square:Square",
    },
)

# Attacks of other libraries, as `library:Name`.
ADAPTERS = Registry(
    "library of attacks",
    "adapters",
    {
        "adv_lib": "robust_nc.attacks.external_advlib:make",
        "autoattack": "robust_nc.attacks.external_autoattack:make",
        "foolbox": "robust_nc.attacks.external_foolbox:make",
        "pyautoattack": "robust_nc.attacks.external_autoattack:make",
        "torchattacks": "robust_nc.attacks.external_torchattacks:make",
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
        "standard": "robust_nc.attacks.protocols:STANDARD",
    },
)

METRICS = Registry(
    "measure",
    "metrics",
    {
        "agop_eigenvalue": "robust_nc.geometry.measures:AGOP_EIGENVALUE",
        "agop_trace": "robust_nc.geometry.measures:AGOP_TRACE",
        "agreement": "robust_nc.geometry.measures:AGREEMENT",
        "alignment_angle": "robust_nc.geometry.measures:ALIGNMENT_ANGLE",
        "alignment_angle_class": "robust_nc.geometry.measures:ALIGNMENT_ANGLE_CLASS",
        "alignment_distance": "robust_nc.geometry.measures:ALIGNMENT_DISTANCE",
        "cdnv": "robust_nc.geometry.measures:CDNV",
        "collapse_radius": "robust_nc.geometry.measures:COLLAPSE_RADIUS",
        "collapse_radius_high": "robust_nc.geometry.measures:COLLAPSE_RADIUS_HIGH",
        "collapse_radius_low": "robust_nc.geometry.measures:COLLAPSE_RADIUS_LOW",
        "corruption_accuracy": "robust_nc.geometry.measures:CORRUPTION_ACCURACY",
        "corruption_bias": "robust_nc.geometry.measures:CORRUPTION_BIAS",
        "dilation": "robust_nc.geometry.measures:DILATION",
        "displacement": "robust_nc.geometry.measures:DISPLACEMENT",
        "etf_distance": "robust_nc.geometry.measures:ETF_DISTANCE",
        "hd_1": "robust_nc.geometry.measures:HD_1",
        "hd_20": "robust_nc.geometry.measures:HD_20",
        "hd_5": "robust_nc.geometry.measures:HD_5",
        "hier_ndcg": "robust_nc.geometry.measures:HIER_NDCG",
        "induced_severity": "robust_nc.geometry.measures:INDUCED_SEVERITY",
        "landed": "robust_nc.geometry.measures:LANDED",
        "landing_fraction": "robust_nc.geometry.measures:LANDING_FRACTION",
        "landing_median": "robust_nc.geometry.measures:LANDING_MEDIAN",
        "leap_rate": "robust_nc.geometry.measures:LEAP_RATE",
        "leap_rate_class": "robust_nc.geometry.measures:LEAP_RATE_CLASS",
        "leap_rate_memorised": "robust_nc.geometry.measures:LEAP_RATE_MEMORISED",
        "leap_rate_right": "robust_nc.geometry.measures:LEAP_RATE_RIGHT",
        "leap_rate_wrong": "robust_nc.geometry.measures:LEAP_RATE_WRONG",
        "mce": "robust_nc.geometry.measures:MCE",
        "mean_row_entropy": "robust_nc.geometry.measures:MEAN_ROW_ENTROPY",
        "memorised": "robust_nc.geometry.measures:MEMORISED",
        "memorised_off_edge": "robust_nc.geometry.measures:MEMORISED_OFF_EDGE",
        "memorised_way": "robust_nc.geometry.measures:MEMORISED_WAY",
        "memorization": "robust_nc.geometry.measures:MEMORIZATION",
        "memorization_relative": "robust_nc.geometry.measures:MEMORIZATION_RELATIVE",
        "mistake_severity": "robust_nc.geometry.measures:MISTAKE_SEVERITY",
        "nc1": "robust_nc.geometry.measures:NC1",
        "nc1_class": "robust_nc.geometry.measures:NC1_CLASS",
        "nc1_cleanref": "robust_nc.geometry.measures:NC1_CLEANREF",
        "nc1_landed": "robust_nc.geometry.measures:NC1_LANDED",
        "nc1_landed_null": "robust_nc.geometry.measures:NC1_LANDED_NULL",
        "nc1_leap_null": "robust_nc.geometry.measures:NC1_LEAP_NULL",
        "nc1_trace": "robust_nc.geometry.measures:NC1_TRACE",
        "nc1_trace_debiased": "robust_nc.geometry.measures:NC1_TRACE_DEBIASED",
        "nc1_trace_landed": "robust_nc.geometry.measures:NC1_TRACE_LANDED",
        "nc1_trace_landed_null": "robust_nc.geometry.measures:NC1_TRACE_LANDED_NULL",
        "nc1_trace_leap_null": "robust_nc.geometry.measures:NC1_TRACE_LEAP_NULL",
        "nc1_unscaled": "robust_nc.geometry.measures:NC1_UNSCALED",
        "nc2_angle": "robust_nc.geometry.measures:NC2_ANGLE",
        "nc2_angle_head": "robust_nc.geometry.measures:NC2_ANGLE_HEAD",
        "nc2_angle_w": "robust_nc.geometry.measures:NC2_ANGLE_W",
        "nc2_gram": "robust_nc.geometry.measures:NC2_GRAM",
        "nc2_gram_head": "robust_nc.geometry.measures:NC2_GRAM_HEAD",
        "nc2_gram_w": "robust_nc.geometry.measures:NC2_GRAM_W",
        "nc2_norm": "robust_nc.geometry.measures:NC2_NORM",
        "nc2_norm_head": "robust_nc.geometry.measures:NC2_NORM_HEAD",
        "nc2_norm_w": "robust_nc.geometry.measures:NC2_NORM_W",
        "nc2_target": "robust_nc.geometry.measures:NC2_TARGET",
        "nc2_target_raw": "robust_nc.geometry.measures:NC2_TARGET_RAW",
        "nc3": "robust_nc.geometry.measures:NC3",
        "nc3_raw": "robust_nc.geometry.measures:NC3_RAW",
        "nc3_w": "robust_nc.geometry.measures:NC3_W",
        "nc4": "robust_nc.geometry.measures:NC4",
        "ncc": "robust_nc.geometry.measures:NCC",
        "ncc_adaptive": "robust_nc.geometry.measures:NCC_ADAPTIVE",
        "ncc_clean": "robust_nc.geometry.measures:NCC_CLEAN",
        "ncc_transferred": "robust_nc.geometry.measures:NCC_TRANSFERRED",
        "nearest_share": "robust_nc.geometry.measures:NEAREST_SHARE",
        "nfm_agop": "robust_nc.geometry.measures:NFM_AGOP",
        "nfm_agop_centred": "robust_nc.geometry.measures:NFM_AGOP_CENTRED",
        "nfm_agop_root": "robust_nc.geometry.measures:NFM_AGOP_ROOT",
        "nfm_agop_root_centred": "robust_nc.geometry.measures:NFM_AGOP_ROOT_CENTRED",
        "off_edge": "robust_nc.geometry.measures:OFF_EDGE",
        "procrustes": "robust_nc.geometry.measures:PROCRUSTES",
        "return_rate": "robust_nc.geometry.measures:RETURN_RATE",
        "robust_accuracy": "robust_nc.geometry.measures:ROBUST_ACCURACY",
        "severity": "robust_nc.geometry.measures:SEVERITY",
        "severity_null": "robust_nc.geometry.measures:SEVERITY_NULL",
        "svd_nc1_activation": "robust_nc.geometry.measures:SVD_NC1_ACTIVATION",
        "svd_nc1_features": "robust_nc.geometry.measures:SVD_NC1_FEATURES",
        "svd_nc1_linear": "robust_nc.geometry.measures:SVD_NC1_LINEAR",
        "t_selected": "robust_nc.geometry.measures:T_SELECTED",
        "trajectory_off": "robust_nc.geometry.measures:TRAJECTORY_OFF",
        "trajectory_t": "robust_nc.geometry.measures:TRAJECTORY_T",
        "vci": "robust_nc.geometry.measures:VCI",
        "vulnerability_correlation": "robust_nc.geometry.measures:VULNERABILITY_CORRELATION",
    },
)
