"""The verdict: attack a model, trust no attack, keep the worst point of every example."""

from robust_nc.evaluation.evaluate_model import CLEAN, Outcome, evaluate

__all__ = ["CLEAN", "Outcome", "evaluate"]
