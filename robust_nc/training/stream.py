"""Collapse of the features that training itself saw, from its own passes.

The features come from the steps of a whole epoch, of weights that move, in the mode that training
has them in: after the inner attack where there is one. Measured anew on weights that stand still
they would be other numbers.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from robust_nc.exceptions import ConfigError
from robust_nc.geometry.collapse import collapse
from robust_nc.geometry.moments import Moments
from robust_nc.models.classifier import Classifier
from robust_nc.runtime.torch_state import device_of
from robust_nc.types import Labels

STREAMED = ("nc1_trace", "nc2_norm_w", "nc2_angle_w", "nc3_w_head_raw")


class Stream:
    """Class moments of what the head read last in each step of an epoch.

    Raises `ConfigError` for a model that is none of ours.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, Classifier):
            raise ConfigError("train.stream reads what the head reads, of a robust_nc.Classifier")
        self.head = model.head
        self._device = device_of(model)
        self._last: Tensor | None = None
        self.begin()

    def begin(self) -> None:
        """Forget the epoch that has ended."""
        self.moments = Moments(self.head.num_classes, self.head.dim, device=self._device)

    @contextlib.contextmanager
    def step(self, labels: Labels) -> Iterator[None]:
        """Add the features that the head reads last within: those of the step itself."""
        handle = self.head.register_forward_pre_hook(self._see)
        try:
            yield
        finally:
            handle.remove()
        seen, self._last = self._last, None
        if seen is None or len(seen) != len(labels):
            found = "nothing" if seen is None else f"{len(seen)} rows"
            raise ConfigError(
                f"train.stream reads what the head reads last in a step: {found}, for "
                f"{len(labels)} images; leave it out with this objective"
            )
        self.moments.update(seen.float(), labels)

    def _see(self, _head: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._last = inputs[0].detach()

    def measures(self) -> dict[str, float | None]:
        """Return the measures of the epoch, each named `stream_...`; None where undefined."""
        weight = self.head.vertices().detach()
        found = collapse(self.moments, weight=weight).measures()
        return {f"stream_{name}": found[name] for name in STREAMED}
