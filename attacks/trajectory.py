"""The path of an attack: its points after every step, for figures of a leap on its way.

>>> import torch
>>> from robust_nc.threat import Ball
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
>>> images, labels = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
>>> path = trajectory(
...     model, images, labels, Ball("L2", 0.5), steps=4, seed=0, ids=torch.arange(5)
... )
>>> path.shape, bool((path[0] == images).all())
(torch.Size([5, 5, 1, 8, 8]), True)
"""

import torch
from torch import Tensor, nn

from robust_nc.attacks.base import checked_inputs
from robust_nc.attacks.items import lay_out
from robust_nc.attacks.losses import LOSSES, NEEDS_REFERENCE
from robust_nc.attacks.model_calls import Oracle
from robust_nc.attacks.pgd import PGD
from robust_nc.exceptions import InputError
from robust_nc.runtime import untouched
from robust_nc.threat import Ball


def trajectory(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    *,
    steps: int = 20,
    scale: float = 1.0,
    loss: str = "ce",
    targets: Tensor | None = None,
    seed: int,
    ids: Tensor,
    batch_size: int = 256,
) -> Tensor:
    """Return the points of PGD from the clean images, `(steps + 1, N, C, H, W)`.

    Entry 0 is the images `(N, C, H, W)`, entry s the points after s steps of 2.5 eps / steps up
    `loss` of logits over `scale`, each in the ball; towards `targets` (N,) where they are given.
    The measured attack begins at a random point of the ball; this one at the image, so that the
    path of an example begins where the example is. It is for figures, not for a verdict. Nothing
    is drawn, so that `seed` and `ids` change nothing.

    Passes per example: `steps` forward and backward. Memory is that of the result. Raises
    `InputError` for inputs or logits that cannot be used, and for a loss without a slope at the
    image.
    """
    inputs = checked_inputs(model, images, labels, ball, "maximise", targets, seed, ids)
    _check_path(targets, loss, batch_size)
    attack = PGD(steps=steps, loss=loss, scale=scale, initial="none", keep_best=False)
    oracle = Oracle(model, inputs.classes)
    work = lay_out(oracle, inputs, targets=inputs.target_columns, restarts=1)
    path = images.new_empty(steps + 1, *images.shape)
    with untouched(model):
        for items in torch.split(work.queue, batch_size) if len(images) else ():
            slots = work.slots(items)
            state = attack.start(slots)
            path[0, items] = state.points
            for step in range(1, steps + 1):
                state = attack.step(slots, state)
                path[step, items] = state.points
        oracle.check()
    return path


def _check_path(targets: Tensor | None, loss: str, batch_size: int) -> None:
    if targets is not None and targets.ndim != 1:
        raise InputError(
            f"a path has one target per image, of shape (N,), found {tuple(targets.shape)}"
        )
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, found {batch_size}")
    if loss in NEEDS_REFERENCE:
        valid = ", ".join(sorted(set(LOSSES) - NEEDS_REFERENCE))
        raise InputError(f"the loss {loss!r} has no slope at the clean image; use one of {valid}")
