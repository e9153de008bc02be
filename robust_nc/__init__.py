"""Adversarial robustness and the simplex geometry of neural collapse, measured together.

>>> import robust_nc
>>> robust_nc.Ball("Linf", 8 / 255).norm
'Linf'
"""

import importlib
import importlib.util
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robust_nc.config import (
        Component,
        DataConfig,
        EvaluationConfig,
        MeasureConfig,
        ModelConfig,
        RunConfig,
        ThreatConfig,
        TrainConfig,
    )
    from robust_nc.data.load import load_dataset
    from robust_nc.engines.driver import run
    from robust_nc.evaluation.evaluate_model import Outcome, evaluate
    from robust_nc.geometry.collapse import Collapse, measure_collapse
    from robust_nc.geometry.leaps import Leaps, measure_leaps
    from robust_nc.geometry.moments import Moments
    from robust_nc.models.build import build_model
    from robust_nc.models.classifier import Classifier
    from robust_nc.pipeline.appraise import appraise
    from robust_nc.pipeline.request import Request
    from robust_nc.profiling.profile_model import Profile, profile
    from robust_nc.record.schema import Record, read_record
    from robust_nc.report.board.comparing import compare
    from robust_nc.report.board.table import leaderboard
    from robust_nc.threat import Ball
    from robust_nc.training.run import train

_HOMES = {
    "Ball": "threat",
    "Classifier": "models.classifier",
    "Collapse": "geometry.collapse",
    "Component": "config",
    "DataConfig": "config",
    "EvaluationConfig": "config",
    "Leaps": "geometry.leaps",
    "MeasureConfig": "config",
    "ModelConfig": "config",
    "Moments": "geometry.moments",
    "Outcome": "evaluation.evaluate_model",
    "Profile": "profiling.profile_model",
    "Record": "record.schema",
    "Request": "pipeline.request",
    "RunConfig": "config",
    "ThreatConfig": "config",
    "TrainConfig": "config",
    "appraise": "pipeline.appraise",
    "build_model": "models.build",
    "compare": "report.board.comparing",
    "evaluate": "evaluation.evaluate_model",
    "leaderboard": "report.board.table",
    "load_dataset": "data.load",
    "measure_collapse": "geometry.collapse",
    "measure_leaps": "geometry.leaps",
    "profile": "profiling.profile_model",
    "read_record": "record.schema",
    "run": "engines.driver",
    "train": "training.run",
}

# Under another name than that of their room.
_MODULES = {"callbacks": "training.callbacks", "figures": "report.figures"}

__all__ = [
    "Ball",
    "Classifier",
    "Collapse",
    "Component",
    "DataConfig",
    "EvaluationConfig",
    "Leaps",
    "MeasureConfig",
    "ModelConfig",
    "Moments",
    "Outcome",
    "Profile",
    "Record",
    "Request",
    "RunConfig",
    "ThreatConfig",
    "TrainConfig",
    "appraise",
    "build_model",
    "compare",
    "evaluate",
    "leaderboard",
    "load_dataset",
    "measure_collapse",
    "measure_leaps",
    "profile",
    "read_record",
    "run",
    "train",
]
__version__ = _version("robust_nc")


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"robust_nc.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    home = f"robust_nc.{_MODULES.get(name, name)}"
    if name.startswith("_") or importlib.util.find_spec(home) is None:
        raise AttributeError(f"module 'robust_nc' has no attribute {name!r}")
    return importlib.import_module(home)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
