"""An attack on a smooth stand-in of a model: the same forward pass, with a way back through it.

Rounding, signs, casts to whole numbers and comparisons have no gradient that helps, a detached
tensor has none, and a one-hot answer hides the logits that it was made from. In the stand-in the
first keep their values and pass gradients straight through (Athalye et al., ICML 2018, section
4.1); a detached tensor stays in the graph; and a one-hot answer becomes the softmax of what it was
the argmax of, whose largest entry is the same. Points that break it are judged by the model itself.

>>> import torch
>>> class Brightest(torch.nn.Module):
...     def forward(self, images):
...         return torch.nn.functional.one_hot(images.flatten(1).argmax(1), 4).float()
>>> model, images = Brightest(), torch.rand(2, 1, 2, 2, requires_grad=True)
>>> model(images).requires_grad, StandIn(model)(images).requires_grad
(False, True)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from robust_nc.attacks.base import AttackInputs, BaseRefereedAttack
from robust_nc.attacks.pgd import PGD
from robust_nc.exceptions import NoGradientError
from robust_nc.runtime import ran_out
from robust_nc.types import Attacked, Referee, RemoteModel

_ROUNDING = {
    *(torch.round, torch.floor, torch.ceil, torch.trunc, torch.fix),
    *(Tensor.round, Tensor.floor, Tensor.ceil, Tensor.trunc, Tensor.fix),
}
_CASTS = {Tensor.int, Tensor.long, Tensor.short, Tensor.byte, Tensor.char, Tensor.to, Tensor.type}
_SIGNS = {torch.sign, torch.sgn, Tensor.sign, Tensor.sgn}
_ABOVE = {torch.gt, torch.ge, Tensor.gt, Tensor.ge, Tensor.__gt__, Tensor.__ge__}
_BELOW = {torch.lt, torch.le, Tensor.lt, Tensor.le, Tensor.__lt__, Tensor.__le__}
_DETACHING = {torch.detach, Tensor.detach, Tensor.detach_}
_ARGMAX = {torch.argmax, Tensor.argmax}
_MAX = {torch.max, Tensor.max}
_ONE_HOT = {F.one_hot, torch.scatter, Tensor.scatter, Tensor.scatter_}
_SLOPE = 10.0  # of the sigmoid in the place of a comparison, and of a sign


def _straight(hard: Tensor, soft: Tensor) -> Tensor:
    """Return the values of one, with the gradient of the other."""
    return hard.detach() + (soft - soft.detach())


def _rounded(func: Any, values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _straight(func(values.detach(), *args, **kwargs), values)


def _cast(func: Any, values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    found: Tensor = func(values, *args, **kwargs)
    return found if found.is_floating_point() else _straight(found.to(values.dtype), values)


def _sign(func: Any, values: Tensor) -> Tensor:
    return _straight(func(values.detach()), torch.tanh(_SLOPE * values))


def _comparison(func: Any, values: Tensor, other: Any) -> Tensor:
    hard = func(values.detach(), other).to(values.dtype)
    gap = values - other if func in _ABOVE else other - values
    return _straight(hard, torch.sigmoid(_SLOPE * gap))


def _choice(func: Any, condition: Tensor, one: Any, other: Any) -> Tensor:
    """Choose by a comparison that stood in for one of truth values."""
    chosen: Tensor = condition * one + (1 - condition) * other
    return chosen


_STAND_INS: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys(_ROUNDING, _rounded),
    **dict.fromkeys(_CASTS, _cast),
    **dict.fromkeys(_SIGNS, _sign),
    **dict.fromkeys(_ABOVE | _BELOW, _comparison),
    torch.where: _choice,
}


class _WayBack(TorchFunctionMode):
    """Puts what has a way back in the place of functions of torch that have none."""

    def __init__(self) -> None:
        super().__init__()
        self._sources: Any = WeakTensorKeyDictionary()  # by indices: what they are the argmax of

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, or what stands in for it."""
        kwargs, first = kwargs or {}, args[0] if args else None
        if not isinstance(first, Tensor):
            return func(*args, **kwargs)
        if func in _DETACHING:
            return first
        known = (self._sources.get(one) for one in args if isinstance(one, Tensor))
        source = next((one for one in known if one is not None), None)
        if source is not None and func in _ONE_HOT:
            return F.softmax(source, 1)
        if first.requires_grad and func in _STAND_INS:
            return _STAND_INS[func](func, *args, **kwargs)
        found = func(*args, **kwargs)
        if func in _ARGMAX | _MAX and first.requires_grad:
            source = first
        indices = getattr(found, "indices", None) if func in _MAX else found
        if source is not None and isinstance(indices, Tensor):  # also other views of them
            self._sources[indices] = source
        return found


@contextmanager
def _gradients_stay_on() -> Iterator[None]:
    """Make `no_grad` and `inference_mode` do nothing in this block."""
    kinds: tuple[Any, ...] = (torch.no_grad, torch.inference_mode)
    kept = [(kind.__enter__, kind.__exit__) for kind in kinds]
    try:
        for kind in kinds:
            kind.__enter__ = kind.__exit__ = _nothing
        yield
    finally:
        for kind, (enter, leave) in zip(kinds, kept, strict=True):
            kind.__enter__, kind.__exit__ = enter, leave


@contextmanager
def _stood_in() -> Iterator[None]:
    with _gradients_stay_on(), _WayBack():
        yield


def _nothing(self: object, *error: object) -> None:
    """Neither enter nor leave."""


class StandIn(nn.Module):
    """A model with a way back from its logits `(N, K)` to its images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        remote = (part for part in model.modules() if isinstance(part, RemoteModel))
        self._remote = next(remote, None)  # where it runs, it is stood in for

    def forward(self, images: Tensor) -> Tensor:
        """Return logits; without gradients, the model's own."""
        if not torch.is_grad_enabled():
            own: Tensor = self.model(images)
            return own
        with _stood_in() if self._remote is None else self._remote.smoothed():
            logits: Tensor = self.model(images)
        return logits


@dataclass(frozen=True, kw_only=True)
class Smooth(BaseRefereedAttack):
    """PGD on the margin of the stand-in.

    Passes per example: those of PGD; one more there and back on the first, not counted, shows
    whether there is a stand-in. Raises `NoGradientError` where there is none.
    """

    steps: int = 50
    restarts: int = 2

    def compute_under(self, referee: Referee | None, inputs: AttackInputs) -> Attacked:
        """Attack the stand-in; a referee judges by the model itself."""
        model = self.stand_in(inputs.model)
        if len(inputs.images):
            _check(model, inputs.images[:1])
        return self._attack().compute_under(referee, inputs._replace(model=model))

    def cost(self, num_classes: int) -> int:
        """Passes of an example that nothing breaks, about: for the time left."""
        return self._attack().cost(num_classes)

    @staticmethod
    def stand_in(model: nn.Module) -> StandIn:
        """Return what is attacked in a model's place."""
        return StandIn(model)

    def _attack(self) -> PGD:
        return PGD(steps=self.steps, restarts=self.restarts, loss="margin")


def _check(model: StandIn, images: Tensor) -> None:
    """Raise `NoGradientError` unless a stand-in can be differentiated at these images."""
    leaf = images.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(model(leaf).sum(), leaf, allow_unused=True)
    except Exception as error:  # what a stranger's model does with numbers that are not whole
        if ran_out(error):
            raise
        raise NoGradientError(f"the model has no smooth stand-in: {error}") from error
    if gradient is None:
        raise NoGradientError("the model has no smooth stand-in: nothing leads back to its images")
