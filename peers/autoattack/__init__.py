"""The module `autoattack`, on the engine of robust_nc: what `robustbench.benchmark` imports."""

from robust_nc.attacks.autoattack import AutoAttack

__all__ = ["AutoAttack"]
