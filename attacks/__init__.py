"""The attack engine. Import it as `robust_nc.attacks`.

>>> from robust_nc.attacks.pgd import PGD
>>> PGD(steps=10).steps
10

`AutoAttack` is what a script that uses the package autoattack imports instead:

>>> import torch
>>> from robust_nc.attacks import AutoAttack
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
>>> AutoAttack(model, norm="L2", eps=0.5, verbose=False).attacks_to_run
['apgd-ce', 'apgd-t', 'fab-t', 'square']
"""

from typing import TYPE_CHECKING

if __name__ != "robust_nc.attacks":
    raise ImportError("import robust_nc.attacks, not attacks: its classes would exist twice")

if TYPE_CHECKING:
    from robust_nc.attacks.autoattack import AutoAttack

__all__ = ["AutoAttack"]


def __getattr__(name: str) -> object:
    if name not in __all__:  # the drop-in alone needs the evaluation, so it comes when asked for
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from robust_nc.attacks import autoattack

    value: object = getattr(autoattack, name)
    globals()[name] = value
    return value
