"""Warnings about examples that survived every attack: do gradients lead anywhere near them?

>>> import torch
>>> model = torch.nn.Flatten()  # the brightest of three pixels
>>> images = torch.rand(8, 1, 1, 3)
>>> labels = model(images).argmax(1)
>>> survivor_warnings(model, images, labels, Ball("Linf", 0.01), seed=0)
()
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nc.evaluation.sanity.meanings import named_warning
from robust_nc.evaluation.scoring import margins
from robust_nc.exceptions import InputError
from robust_nc.registry import ATTACKS
from robust_nc.runtime.torch_state import full_precision, private_draws, stream_key, usable_gradient
from robust_nc.threat import Ball
from robust_nc.types import Warned

MOST = 8  # survivors that are looked at

_FLAT = 1e-3  # a gradient is zero if moving all pixels by their whole range does so little
_STEPS = (1 / 64, 1 / 8, 1.0)  # of eps, along the gradient
_TRIES = len(_STEPS) + 1  # and one step along the plain gradient; noise gets as many
_GROWTH = 0.1  # of what the gradient promises
_ROUNDING = 1e-5  # of the largest logit: gains below say nothing
_FAR_STEPS = 20


class _Slopes(NamedTuple):
    """Margins `(P,)`, the largest logit, and the gradients of margin and cross-entropy.

    The cross-entropy is that of logits divided by the margin, so that it is blind to their scale.
    """

    margins: Tensor
    largest: Tensor
    by_margin: Tensor
    by_entropy: Tensor


def survivor_warnings(
    model: nn.Module, images: Tensor, labels: Tensor, ball: Ball, *, seed: int
) -> tuple[Warned, ...]:
    """Return the warnings about survivors: images (P, C, H, W), labels (P,), the first 8 of them.

    The model is in eval mode and classifies them correctly. Costs per survivor 9 forwards and 2
    gradients to look at the gradients, and at most 44 forwards and 40 gradients for an attack
    without limits, which most survivors leave early.
    """
    images, labels = images[:MOST], labels[:MOST]
    if not len(images):
        return ()
    with full_precision(), private_draws(stream_key(seed, "survivors"), images.device):
        slopes = _slopes(model, images, labels)
        if slopes is None:
            seen = f"the logits of {len(images)} survivors have no gradient by the image"
            return (named_warning("no-gradient", seen),)
        found = [*_of_zeros(slopes, ball)]
        found += _of_masking(model, images, labels, ball, slopes, seed)
        found += _of_far(model, images, labels, ball, slopes, seed)
    return tuple(found)


def _slopes(model: nn.Module, images: Tensor, labels: Tensor) -> _Slopes | None:
    """Differentiate margin and cross-entropy by the images; None where that cannot be done."""
    leaf = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf).float()
        if not logits.requires_grad:
            return None
        found = margins(logits, labels)
        unit = found.detach().abs().clamp_min(torch.finfo(logits.dtype).tiny)
        entropies = F.cross_entropy(logits / unit[:, None], labels, reduction="sum")
        (first,) = torch.autograd.grad(found.sum(), leaf, retain_graph=True, allow_unused=True)
        (second,) = torch.autograd.grad(entropies, leaf, allow_unused=True)
    if first is None or second is None:
        return None
    largest = logits.detach().abs().amax(1)
    return _Slopes(
        found.detach(), largest, *(usable_gradient(one, leaf) for one in (first, second))
    )


def _of_zeros(slopes: _Slopes, ball: Ball) -> Iterator[Warned]:
    """Both gradients, times the whole range of every pixel, are nothing beside the margin."""
    span = ball.bounds[1] - ball.bounds[0]
    reach = span * slopes.by_margin.abs().flatten(1).sum(1)
    reach_of_entropy = span * slopes.by_entropy.abs().flatten(1).sum(1)
    flat = (reach <= _FLAT * slopes.margins.abs()) & (reach_of_entropy <= _FLAT)
    if bool(flat.any()):
        share = f"{int(flat.sum())} of {len(flat)} survivors"
        yield named_warning(
            "zero-gradients", f"the gradients of cross-entropy and margin vanish at {share}"
        )


@torch.no_grad()
def _of_masking(
    model: nn.Module, images: Tensor, labels: Tensor, ball: Ball, slopes: _Slopes, seed: int
) -> Iterator[Warned]:
    """Compare steps along the gradient with what it promises, and with noise of the same size."""
    if ball.eps == 0:
        return
    count, tiny = len(images), _ROUNDING * slopes.largest
    climbed = _climbed(images, ball, slopes.by_margin)
    blown = [_noise(images, ball, seed, draw) for draw in range(_TRIES)]
    scored = [margins(model(points).float(), labels) for points in (*climbed, *blown)]
    gains = torch.stack(scored) - slopes.margins
    steep = torch.stack([(slopes.by_margin * (p - images)).flatten(1).sum(1) for p in climbed])
    told = steep > tiny  # promises that are no rounding
    broken = (gains[:_TRIES] < _GROWTH * steep) | ~told
    stuck = int((told.any(0) & broken.all(0)).sum())
    by_step, by_noise = gains[:_TRIES].amax(0), gains[_TRIES:].amax(0)
    behind = int((by_noise > by_step + tiny).sum())
    flips = [int((slopes.margins + gain > 0).sum()) for gain in (by_step, by_noise)]
    if 2 * stuck > count:
        seen = f"the margin of {stuck} of {count} survivors does not grow along its gradient"
    elif 2 * behind > count:
        seen = f"noise moves the margin of {behind} of {count} survivors further than the gradient"
    elif flips[1] > flips[0]:
        seen = f"noise breaks {flips[1]} of {count} survivors, a gradient step {flips[0]}"
    else:
        return
    yield named_warning("masked-gradients", f"{seen} (at most eps)")


def _climbed(images: Tensor, ball: Ball, gradient: Tensor) -> list[Tensor]:
    """Step along the gradient of the pixels that are not at their bound already.

    In L1 the steepest step is one pixel, which soon overshoots; the plain gradient moves all.
    """
    low, high = ball.bounds
    stuck = ((gradient > 0) & (images >= high)) | ((gradient < 0) & (images <= low))
    free = gradient.masked_fill(stuck, 0.0)
    steps = [part * ball.eps * ball.steepest(free) for part in _STEPS]
    return [ball.project(images + step, images) for step in (*steps, _to_surface(free, ball))]


def _noise(images: Tensor, ball: Ball, seed: int, draw: int) -> Tensor:
    """Draw uniformly in the ball, and move the point out to the surface."""
    ids = torch.arange(len(images), device=images.device)
    free = Ball(ball.norm, ball.eps, (-torch.inf, torch.inf))
    delta = free.sample(torch.zeros_like(images), seed=seed, ids=ids, stream=f"doubt/{draw}")
    return ball.project(images + _to_surface(delta, ball), images)


def _to_surface(delta: Tensor, ball: Ball) -> Tensor:
    """Scale each row to the length eps, in float64 (a row of zeros stays)."""
    size = ball.distance(delta, torch.zeros_like(delta)).clamp_min(torch.finfo(torch.float64).tiny)
    return (delta * (ball.eps / size)[:, None, None, None]).to(delta.dtype)


def _of_far(
    model: nn.Module, images: Tensor, labels: Tensor, ball: Ball, slopes: _Slopes, seed: int
) -> Iterator[Warned]:
    """Attack within the whole range of the pixels: nothing should stand."""
    if ball.bounds[1] - ball.bounds[0] > 1:
        return  # pixels in other units: a ball that covers them all is refused as a slip
    ends = [torch.full_like(images[:1], bound) for bound in ball.bounds]
    everything = Ball(ball.norm, float(ball.distance(*ends)), ball.bounds)
    scale = float(slopes.margins.abs().median().clamp(1e-12, 1e12))
    standing = torch.arange(len(images), device=images.device)
    for loss, initial in (("margin", "none"), ("ce", "uniform")):
        attack = ATTACKS.load("pgd")(
            steps=_FAR_STEPS, loss=loss, initial=initial, scale=scale if loss == "ce" else 1.0
        )
        given = (model, images[standing], labels[standing], everything)
        try:
            points = attack(*given, seed=seed, ids=standing)
        except InputError as error:
            seen = f"the attack that may change every pixel at will cannot be run ({error})"
            yield named_warning("eps-no-zero", seen)
            return
        with torch.no_grad():
            standing = standing[model(points).argmax(1) == labels[standing]]
        if not len(standing):
            return
    share = f"{len(standing)} of {len(images)} survivors withstand {everything}"
    yield named_warning("eps-no-zero", f"{share}, which covers the whole range of the pixels")
