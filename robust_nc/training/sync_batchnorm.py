"""What a model learns from a whole batch when several processes share it: batch norm, heads.

Inside `synced`, batch norm in train mode takes the statistics of the rows of all processes, and a
head that observes sees the features of all; alone, nothing is changed.

>>> norm = nn.BatchNorm1d(2)
>>> with synced(Group(), norm):
...     type(norm).__name__
'BatchNorm1d'
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from robust_nc.exceptions import ConfigError
from robust_nc.models.heads import Head
from robust_nc.training.data_parallel import Group, Several, present, within
from robust_nc.types import Features, Labels


class _Shared(_BatchNorm):
    """Batch norm whose batch is that of the present group; in eval mode it is the plain one."""

    normalised: ClassVar[Callable[..., Tensor]]

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise, and move the running statistics, alike in all processes."""
        group = present()
        if not self.training or group.size == 1:
            plain: Tensor = super().forward(inputs)
            return plain
        return self.normalised(self, inputs, group)


class _Shared1d(_Shared, nn.BatchNorm1d):
    pass


class _Shared2d(_Shared, nn.BatchNorm2d):
    pass


class _Shared3d(_Shared, nn.BatchNorm3d):
    pass


_SHARED: dict[type, type] = {
    nn.BatchNorm1d: _Shared1d,
    nn.BatchNorm2d: _Shared2d,
    nn.BatchNorm3d: _Shared3d,
}
_PLAIN = {shared: plain for plain, shared in _SHARED.items()}


@contextlib.contextmanager
def synced(group: Group, *models: nn.Module) -> Iterator[None]:
    """Let models learn from whole batches in this block, from the first process's values on.

    The models stay the same objects, with the same parameters and buffers. Raises `ConfigError`
    for batch norm of a kind that cannot be shared.
    """
    if not isinstance(group, Several):
        yield
        return
    norms = [norm for model in models for norm in _norms(model)]
    heads = [part for model in models for part in model.modules() if _observes(part)]
    kinds = [type(norm) for norm in norms]
    # An exchange between processes is nothing to compile. Said here: it loads the whole compiler.
    _Shared.normalised = staticmethod(torch.compiler.disable(_normalised))  # type: ignore[no-untyped-call]
    try:
        for norm, kind in zip(norms, kinds, strict=True):
            norm.__class__ = _SHARED[kind]
        for head in heads:
            head.observe = _of_all(head, group)
        for model in models:
            group.copy(list(model.state_dict().values()))
        yield
    finally:
        for norm, kind in zip(norms, kinds, strict=True):
            norm.__class__ = kind
        for head in heads:
            vars(head).pop("observe", None)


def lone_copy(model: nn.Module) -> nn.Module:
    """Copy a model, which then asks no other process anything."""
    found = copy.deepcopy(model)
    for part in found.modules():
        vars(part).pop("observe", None)
        part.__class__ = _PLAIN.get(type(part), type(part))
    return found


@contextlib.contextmanager
def unshared() -> Iterator[None]:
    """Ask a model something in this process alone, in this block."""
    with within(Group()):
        yield


def _norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the parts that are batch norm, or refuse those that cannot be shared."""
    found = []
    for name, part in model.named_modules():
        if not isinstance(part, _BatchNorm):
            continue
        if type(part) not in _SHARED or part.running_mean is None:
            kind = type(part).__name__
            why = "keeps no running statistics" if type(part) in _SHARED else "is not torch's own"
            raise ConfigError(
                f"the layer {name!r} is a {kind} that {why}, so several processes cannot share its "
                "batches; train this model without torchrun"
            )
        found.append(part)
    return found


def _observes(part: nn.Module) -> bool:
    return isinstance(part, Head) and part.observes


def _of_all(head: nn.Module, group: Group) -> Any:
    """Return an `observe` that shows a head the rows of all processes, in the batch's order."""
    assert isinstance(head, Head)
    plain = head.observe

    def observe(features: Features, labels: Labels) -> None:
        if present().size == 1:
            plain(features, labels)
        else:
            plain(group.whole(features), group.whole(labels))

    return observe


def _normalised(norm: _BatchNorm, inputs: Tensor, group: Group) -> Tensor:
    norm._check_input_dim(inputs)  # type: ignore[no-untyped-call]
    outputs, mean, variance, count = _Normalise.apply(  # type: ignore[no-untyped-call]
        inputs, norm.weight, norm.bias, norm.eps, group
    )
    _follow(norm, mean, variance, count)
    result: Tensor = outputs
    return result


@torch.no_grad()
def _follow(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Move the running statistics as torch does: the variance with count - 1."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = norm.momentum
    if share is None:
        share = 1.0 / float(norm.num_batches_tracked)
    unbiased = variance * (count / (count - 1).clamp_min(1)).to(variance.dtype)
    norm.running_mean.mul_(1 - share).add_(mean, alpha=share)
    norm.running_var.mul_(1 - share).add_(unbiased, alpha=share)


class _Normalise(torch.autograd.Function):
    """Batch norm over the rows of all processes; a ghost's rows are normalised and not counted.

    With x^ = (x - m) / s and g the gradient by the output, that by the input is
    w / s (g - mean(g) - x^ mean(g x^)), where the means are over all rows; so one exchange forward
    (count, mean and variance of each process) and one backward (sums of g and g x^).
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the outputs, and mean, variance and number of values per channel."""
        mean, variance, count = _statistics(inputs, group)
        mean, variance = mean.to(_wide(inputs)), variance.to(_wide(inputs))
        ctx.save_for_backward(inputs, weight, mean, variance, count)
        ctx.eps, ctx.group, ctx.ghost = eps, group, group.ghost
        ctx.mark_non_differentiable(mean, variance, count)
        outputs = F.batch_norm(inputs, mean, variance, weight, bias, False, 0.0, eps)
        return outputs, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Return the gradients by inputs, weight and bias; the latter two of own rows."""
        inputs, weight, mean, variance, count = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        straight, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], inputs, scale, mean, variance, None, None, False, ctx.eps, [True] * 3
        )
        sums = torch.stack([by_weight, by_bias]).double()
        means = ctx.group.summed(torch.zeros_like(sums) if ctx.ghost else sums) / count
        if not ctx.ghost:
            factor = scale.double() * (variance.double() + ctx.eps).rsqrt()
            first, second = (factor * means).to(mean.dtype)
            straight -= F.batch_norm(inputs, mean, variance, first, second, False, 0.0, ctx.eps)
        return straight, weight if weight is None else by_weight, by_bias, None, None


def _statistics(inputs: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Mean `(C,)`, variance `(C,)` (by the count) and count of each channel, of all processes.

    Combined in float64 from each one's own: sums of squares would drown a small variance.
    """
    wide = inputs.detach().to(_wide(inputs))
    over = [axis for axis in range(inputs.ndim) if axis != 1]
    variance, mean = torch.var_mean(wide, over, correction=0)
    own = 0 if group.ghost else inputs.numel() // inputs.shape[1]
    row = torch.cat([mean.double(), variance.double(), mean.new_tensor([own]).double()])
    rows = group.gathered(row)
    channels = len(mean)
    means, variances, counts = rows[:, :channels], rows[:, channels:-1], rows[:, -1:]
    count = counts.sum()
    middle = (counts * means).sum(0) / count
    spread = (counts * (variances + (means - middle).square())).sum(0) / count
    return middle, spread, count


def _wide(inputs: Tensor) -> torch.dtype:
    return torch.promote_types(inputs.dtype, torch.float32)
