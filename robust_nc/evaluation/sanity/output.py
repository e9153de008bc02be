"""Warnings that one more pass over a few probes can raise.

The probes pass once more, in another batch composition than before; the logits are compared, and
the same pass is watched for gradients in the forward and for what the first layer reads.

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
>>> probes = torch.rand(8, 1, 2, 2)
>>> output_warnings(model, probes, model(probes).detach(), seed=0)
()
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robust_nc.evaluation.sanity.meanings import named_warning
from robust_nc.runtime.torch_state import full_precision, private_draws, stream_key
from robust_nc.types import RemoteModel, Warned

_TOLERANCE = 1e-3  # of the range of the logits: far above what another batch size rounds
_ROUNDING = 1e-6  # of the largest logit, for logits with a large offset
_REPEATS = 3  # a random output may by chance be the same once
_SUM = 5e-3  # how far from 1 a softmax in half precision may sum to

# One normalisation multiplies pixels by 1 / std: 2 (to [-1, 1]), 2.7 (digits), 2.8 (Fashion-MNIST),
# 3.2 (MNIST), 4 to 5 (CIFAR, ImageNet, SVHN). Two multiply by its square: 7.1, 8, 10.5, 16 to 25.
_TWICE = (6.0, 30.0)  # above are models that read 0..255
# Dark data may have one std as small; but after one normalisation with it, the std is about 1.
_SPREAD = 1.75
# The pixel that becomes 0: mean (1 + std) after two normalisations, 0 where pixels are only scaled.
_CENTRE = (0.05, 1.0)
_AFFINE = 0.999  # correlation of the pixels and of what the first layer reads

_BACKWARD: tuple[Callable[..., Any], ...] = (
    torch.autograd.grad,
    torch.autograd.backward,
    Tensor.backward,
)


@torch.no_grad()
def output_warnings(
    model: nn.Module, images: Tensor, logits: Tensor, *, seed: int
) -> tuple[Warned, ...]:
    """Return the warnings about how a model answers; costs one forward per probe if there is none.

    `images` (P, C, H, W) are a few probes, `logits` (P, K) what the model, in eval mode as now,
    answered on them before in one larger batch. Up to three more passes over half of the probes
    tell random from batch-dependent output. Log-probabilities give none: all losses of the
    attacks are blind to the shift that makes them. Whatever the model raises passes through.
    """
    if not len(images):
        return ()
    with full_precision(), private_draws(stream_key(seed, "doubts"), images.device):
        halves = images.flip(0).tensor_split(2) if len(images) > 1 else (images,)
        with watched(model) as seen:
            answers = [model(half).float() for half in halves]
        found = [*_of_change(model, halves[0], answers, logits)]
    found += _of_probabilities(logits)
    found += _of_gradients(seen)
    found += _of_scaling(images, halves[0], seen.first_input)
    return tuple(found)


def _of_change(
    model: nn.Module, half: Tensor, answers: list[Tensor], logits: Tensor
) -> Iterator[Warned]:
    """Compare answers in the new order with the old; ask the same half again to name a cause."""
    now, before = torch.cat(answers).flip(0), logits.float()
    if not _differ(now, before):
        return
    changed = int((now.argmax(1) != before.argmax(1)).sum())
    moved = f"logits moved by up to {_move(now, before):.1%} of their range"
    seen = f"{moved} and {changed} of {len(now)} predictions changed"
    for _ in range(_REPEATS):
        if _differ(model(half).float(), answers[0]):
            yield named_warning("random-output", f"{seen} when the model was asked again")
            return
    yield named_warning("batch-dependent-output", f"{seen} in batches of {len(half)}")


def _differ(one: Tensor, other: Tensor) -> bool:
    """Whether a logit moved by more than the tolerance, or a clear prediction changed."""
    limit = _TOLERANCE * (other.max() - other.min()) + _ROUNDING * other.abs().max()
    moved = ((one - other).abs() > limit).any()
    top = other.topk(2, dim=1).values
    clear = (top[:, 0] - top[:, 1] > limit) & (one.argmax(1) != other.argmax(1))
    return bool(moved | clear.any())


def _move(one: Tensor, other: Tensor) -> float:
    spread = (other.max() - other.min()).clamp_min(torch.finfo(other.dtype).tiny)
    return float((one - other).abs().max() / spread)


def _of_probabilities(logits: Tensor) -> Iterator[Warned]:
    rows = logits.float()
    inside = ((rows >= -_ROUNDING) & (rows <= 1 + _ROUNDING)).all()
    if bool(inside & ((rows.sum(1) - 1).abs() <= _SUM).all()):
        seen = f"all outputs on {len(rows)} probes lie in [0, 1] and every row sums to 1"
        yield named_warning("probability-output", seen)


class WatchedPass(TorchFunctionMode):
    """What a forward pass did: gradients turned on, backward passes, input of the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients_on = False
        self.backwards = 0
        self.first_input: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Look, and let the function through."""
        self.gradients_on |= torch.is_grad_enabled()
        self.backwards += func in _BACKWARD
        return func(*args, **(kwargs or {}))

    def note(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keep the first input that a layer with weights reads (a forward pre-hook)."""
        if self.first_input is None and inputs and isinstance(inputs[0], Tensor):
            self.first_input = inputs[0].detach().clone()


@contextlib.contextmanager
def watched(model: nn.Module) -> Iterator[WatchedPass]:
    """Watch the forward passes within; a model under `torch.compile` would be compiled again."""
    seen = WatchedPass()
    with contextlib.ExitStack() as stack:
        if isinstance(model, RemoteModel):
            stack.enter_context(model.watched(seen))
        elif not any("_orig_mod" in part._modules for part in model.modules()):
            for layer in model.modules():
                if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
                    stack.callback(layer.register_forward_pre_hook(seen.note).remove)
            stack.enter_context(seen)
        yield seen


def _of_gradients(seen: WatchedPass) -> Iterator[Warned]:
    if seen.backwards or seen.gradients_on:
        text = "the forward pass turned gradients on"
        if seen.backwards:
            text += f" and went backward {seen.backwards} times for two batches of probes"
        yield named_warning("optimisation-in-forward", text)


def _of_scaling(images: Tensor, half: Tensor, first_input: Tensor | None) -> Iterator[Warned]:
    """Compare what the first layer read of the first half with the plain pixels."""
    if first_input is None or first_input.numel() != half.numel() or len(first_input) != len(half):
        return  # patches, other sizes, transforms: nothing to compare pixel by pixel
    # The affine map from pixels to what the first layer reads, per channel.
    axes, pixels, read = (0, 2, 3), half.double(), first_input.double().reshape(half.shape)
    x_mean, y_mean = pixels.mean(axes), read.mean(axes)
    x, y = pixels - x_mean[:, None, None], read - y_mean[:, None, None]
    x_size, y_size, both = x.square().sum(axes), y.square().sum(axes), (x * y).sum(axes)
    gain = both / x_size  # NaN for images of one colour, which then give no warning
    centre = x_mean - y_mean / gain
    spread = images.double().std(axes) * gain
    twice = (gain > _TWICE[0]) & (gain < _TWICE[1])
    centred = (centre > _CENTRE[0]) & (centre < _CENTRE[1])
    affine = both / (x_size * y_size).sqrt() > _AFFINE
    if bool((twice & centred & affine & (spread > _SPREAD)).all()):
        seen = f"the first layer reads pixels times {float(gain.mean()):.1f}, of standard deviation"
        seen = f"{seen} {float(spread.mean()):.1f}, as if normalised twice"
        yield named_warning("double-normalisation", seen)
