"""What a cell is made of, counted before it runs: passes through the model, and pieces of work.

A piece is so many calls on a batch of so many images, each of which takes what a `Probe` was timed
at. Passes are of images:

>>> one = Passes(forwards=2, gradients=10, trained=1)
>>> one.times(3).plus(Passes(forwards=1)).forwards
7.0
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from robust_nc.config import Component, RunConfig

STAGES = ("train", "attack", "evidence", "measure")


class Passes(NamedTuple):
    """Images passed: forward alone, with a gradient by the image, and with one by the weights.

    `steps` are steps of the training's optimizer.
    """

    forwards: float = 0.0
    gradients: float = 0.0
    trained: float = 0.0
    steps: float = 0.0

    def plus(self, other: "Passes") -> "Passes":
        """Return the sum of both."""
        return Passes(*(one + two for one, two in zip(self, other, strict=True)))

    def times(self, factor: float) -> "Passes":
        """Return so many of these."""
        return Passes(*(factor * float(value) for value in self))

    @property
    def total(self) -> float:
        """Passes as records count them: a gradient is one forward and one backward."""
        return self.forwards + 2 * (self.gradients + self.trained)


class Probe(NamedTuple):
    """What has to be timed: its kind, the key it is stored by, and what it takes to time it.

    Two probes of one key are one. `config` is of a cell that needs it; `about` is the attack, the
    objective or what else is timed.
    """

    kind: str
    key: str
    config: RunConfig
    about: Any = None


class Piece(NamedTuple):
    """`calls` of what `probe` times, each on `batch` images, in one stage of a cell."""

    stage: str
    probe: Probe
    calls: float
    batch: float
    passes: Passes = Passes()


def total(pieces: Iterable[Piece]) -> Passes:
    """Sum the passes of some pieces."""
    found = Passes()
    for piece in pieces:
        found = found.plus(piece.passes)
    return found


def named(part: Component, *, without: tuple[str, ...] = ()) -> str:
    """Write a part of a configuration with those options that its speed depends on.

    >>> named(Component(name="pgd", options={"steps": 5, "bn_mode": "train"}), without=("steps",))
    'pgd(bn_mode=train)'
    """
    options = [
        f"{name}={value}"
        for name, value in sorted(part.options.items())
        if name not in without and not isinstance(value, dict | list)
    ]
    return part.name + (f"({', '.join(options)})" if options else "")


def model_key(config: RunConfig, shape: tuple[int, int, int], classes: int) -> str:
    """Name the body of a model: backbone, neck, image shape, classes.

    >>> model_key(RunConfig(), (1, 8, 8), 10)
    'small_cnn 1x8x8, 10 classes'
    """
    neck = config.model.neck
    body = named(config.model.backbone) + (f"+{named(neck)}" if neck is not None else "")
    return f"{body} {'x'.join(map(str, shape))}, {classes} classes"
