"""Attacks of other libraries as attacks of ours: checked, seeded, without a trace, in the ball.

An adapter per library says how one of its attacks is called; the rest stands here, once. Libraries
are imported when an attack is made, never before.

>>> def library_attack(model, images, labels, eps=0.3, steps=10): ...
>>> arguments("demo:pgd", library_attack, {"eps": 0.1, "norm": "L2"}, {"steps": 40})
{'eps': 0.1, 'steps': 40}
>>> arguments("demo:pgd", library_attack, {}, {"size": 40})
Traceback (most recent call last):
...
robust_nc.exceptions.UnknownNameError: unknown option of demo:pgd 'size'. Valid: eps, steps
"""

import contextlib
import inspect
import random
import sys
import unicodedata
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from robust_nc.attacks.base import AttackInputs, BaseAttack
from robust_nc.attacks.model_calls import Oracle
from robust_nc.exceptions import ConfigError, InputError, unknown_name
from robust_nc.runtime import private_draws, stream_key, untouched
from robust_nc.runtime.third_party import version_of
from robust_nc.threat import NORMS, Ball
from robust_nc.types import Images, Warned

# What the adapter itself hands over, under any name that a library gives it: no options.
OURS = frozenset(
    {"callback", "device", "image", "images", "inputs", "is_tf_model", "labels", "log_path"}
    | {"logger", "model", "predict", "return_targets", "return_unsuccessful", "self", "targeted"}
)


class KnownDefectWarning(UserWarning):
    """Says what is known to be wrong with an attack that is in use."""


class Call(NamedTuple):
    """What one call asks of a library; `seed` in 0..2^31-1, for attacks that take one."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    targets: Tensor | None
    ball: Ball
    seed: int
    num_classes: int

    @property
    def aims(self) -> Tensor:
        """What libraries take in the place of labels: the targets where there are some."""
        return self.labels if self.targets is None else self.targets


@dataclass(frozen=True, kw_only=True)
class ExternalAttack(BaseAttack):
    """An attack of another library under our protocol; its repr names it in records.

    `options` go to the library under its own names; eps, norm, number of classes and seed come
    from the call wherever its signature has them, unless an option says otherwise. A library
    draws for a whole batch, so draws depend on all ids of the call, and the result on its batch.
    `goal` changes nothing: libraries know none.
    """

    library: str
    version: str
    name: str
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How it is named in a suite."""
        return f"{self.library}:{self.name}"

    @abstractmethod
    def target(self) -> Any:
        """The class or function of the library."""

    @abstractmethod
    def norms(self) -> tuple[str, ...]:
        """Norms that the attack is made for; empty where none is known."""

    @abstractmethod
    def can_target(self) -> bool:
        """Whether it takes one target per image."""

    @abstractmethod
    def perturb(self, call: Call) -> Tensor:
        """Run the library's attack; its points may lie anywhere."""

    def filled(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Arguments for `target`; see `arguments`."""
        return arguments(self.label, self.target(), given, self.options)

    def defects(self, ball: Ball) -> tuple[Warned, ...]:
        """What is known to be wrong with it in a ball: named warnings, for a record."""
        if _ball_norms(self.norms()):
            return ()
        told = f"{self.label} is made for {' and '.join(self.norms()) or 'no norm'}"
        return (
            Warned("other-norm", f"{told}; its points are projected into the {ball.norm} ball"),
        )

    def points(self, inputs: AttackInputs) -> Tensor:
        """Return perturbed images in the ball, `(N, C, H, W)`.

        Raises `InputError` for a norm or for targets that the attack does not serve.
        """
        model, images, labels, ball, _, targets, seed, ids = inputs
        self._check(ball, targets)
        for defect in self.defects(ball):
            warnings.warn(defect.message, KnownDefectWarning, stacklevel=3)
        if not len(images) or not ball.eps:
            return images.clone()
        images, key = images.detach(), stream_key(seed, self.label, *ids.tolist()) & (2**31 - 1)
        with untouched(model), _grads_kept(model), own_randomness(key, images.device):
            call = Call(
                model=model,
                images=images.clone(),
                labels=labels.clone(),
                targets=None if targets is None else targets.clone(),
                ball=ball,
                seed=key,
                num_classes=Oracle(model).logits(images[:1]).shape[1],
            )
            try:
                # What they print is no result.
                with torch.enable_grad(), contextlib.redirect_stdout(sys.stderr):
                    points = self.perturb(call)
            except Exception as error:
                error.add_note(f"raised while {self.label} of {self.library} {self.version} ran")
                raise
        return _inside(self.label, points, images, ball)

    def _check(self, ball: Ball, targets: Tensor | None) -> None:
        served = _ball_norms(self.norms())
        if served and ball.norm not in served:
            raise InputError(
                f"{self.label} serves {' and '.join(served)}, found a ball in {ball.norm}"
            )
        if targets is None:
            return
        if targets.ndim != 1:
            raise InputError(f"{self.label} takes one target per image, found {targets.shape}")
        if not self.can_target():
            raise InputError(f"{self.label} cannot be aimed at targets; call it without them")


Adapter = TypeVar("Adapter", bound=ExternalAttack)


def make_attack(
    kind: type[Adapter],
    name: str,
    options: Mapping[str, object],
    *,
    library: str,
    names: Iterable[str],
    refused: Mapping[str, str] = MappingProxyType({}),
    distribution: str | None = None,
    given: Mapping[str, object] = MappingProxyType({}),
) -> Adapter:
    """Make the attack `name` of a library, or say which name or option does not exist.

    `given` are the parameters, with any value, that a call will hand over and no default stands
    for.
    """
    if name in refused:
        raise ConfigError(f"{library}:{name} cannot be used by name: {refused[name]}")
    names = set(names) - set(refused)
    if name not in names:
        raise unknown_name(f"attack of {library}", name, names)
    version = version_of(distribution or library)
    attack = kind(library=library, version=version, name=name, options=dict(options))
    attack.filled(given)
    return attack


def arguments(
    label: str,
    target: Callable[..., Any],
    given: Mapping[str, object],
    options: Mapping[str, object],
    *,
    ours: frozenset[str] = OURS,
) -> dict[str, Any]:
    """Arguments for `target`: what is given and in its signature, overridden by the options.

    Greek names of parameters may be written in Latin letters (`alpha_init`). `ConfigError` for an
    option that it has not or that is `ours`, and for a parameter that lacks a value.
    """
    parameters = {
        key: value
        for key, value in inspect.signature(target).parameters.items()
        if value.kind not in (value.VAR_KEYWORD, value.VAR_POSITIONAL)
    }
    names = {ascii_name(key): key for key in parameters if key not in ours}
    names |= {key: key for key in names.values()}
    for option in options:
        if option not in names:
            raise unknown_name(f"option of {label}", option, {ascii_name(key) for key in names})
    filled = {key: value for key, value in given.items() if key in parameters}
    filled |= {names[option]: value for option, value in options.items()}
    for key in sorted(set(names.values()) - set(filled)):
        if parameters[key].default is inspect.Parameter.empty:
            raise ConfigError(f"{label} needs the option {ascii_name(key)!r}")
    return filled


def check_colours(call: Call, label: str, colour_only: Iterable[str]) -> None:
    """Raise `InputError` for images without three channels, where an attack needs them."""
    channels = call.images.shape[1]
    if channels != 3 and label.split(":")[1] in colour_only:
        raise InputError(f"{label} needs images of 3 channels, found {channels}")


def ascii_name(name: str) -> str:
    """Write the Greek letters of a parameter out.

    >>> ascii_name(chr(0x3B1) + "_init")
    'alpha_init'
    """
    return "".join(
        letter if letter.isascii() else unicodedata.name(letter).split()[-1].lower()
        for letter in name
    )


@contextlib.contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed every global generator inside, and give the caller's states back after."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (libraries use it)
    try:
        with private_draws(seed, device):
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextlib.contextmanager
def _grads_kept(model: nn.Module) -> Iterator[None]:
    """Give every parameter its gradient back: libraries clear and fill them."""
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in kept:
            parameter.grad = None  # past which nothing can be added in place
        yield
    finally:
        for parameter, grad in kept:
            parameter.grad = grad


def _ball_norms(norms: Iterable[str]) -> tuple[str, ...]:
    return tuple(norm for norm in norms if norm in NORMS)


def _inside(label: str, points: object, images: Images, ball: Ball) -> Images:
    """Bring what a library returned into the ball; what is not a number becomes the image."""
    if not isinstance(points, Tensor) or points.shape != images.shape:
        found = getattr(points, "shape", type(points).__name__)
        raise InputError(f"{label} returned {found} for images {tuple(images.shape)}")
    points = points.detach().to(images)
    return ball.project(torch.where(points.isfinite(), points, images), images)
