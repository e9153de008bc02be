"""Who measures: an executor that got a model once, and the shards of the examples of a split.

>>> from robust_nc.config import MeasureConfig
>>> slices(1_000, MeasureConfig(batch_size=100), width=3)
[slice(0, 400, None), slice(400, 800, None), slice(800, 1000, None)]
>>> slices(5, MeasureConfig(block=3), width=1)
[slice(0, 3, None), slice(3, 5, None)]
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from robust_nc.config import MeasureConfig
from robust_nc.profiling.feature_cache import TapBank
from robust_nc.profiling.measurement import Examples, Subject
from robust_nc.runtime.executor import IN_PROCESS, Executor, cut_rows
from robust_nc.runtime.progress import Report, no_report, sub_report
from robust_nc.runtime.torch_state import default_device, device_of, full_precision, untouched


class Sent:
    """A model on its way: pickled on the CPU, it arrives on the default device of where it goes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __getstate__(self) -> dict[str, nn.Module]:
        """Return the model, as a copy where it is not on the CPU."""
        here = device_of(self.model).type == "cpu"
        return {"model": self.model if here else copy.deepcopy(self.model).cpu()}

    def __setstate__(self, state: dict[str, nn.Module]) -> None:
        """Move the model to where it can work."""
        self.model = state["model"].to(default_device())


@contextlib.contextmanager
def at_work(sent: Sent) -> Iterator[None]:
    """Let the model work in this block: float32 proper, gradients allowed, left as it was found."""
    with torch.inference_mode(False), untouched(sent.model), full_precision():
        yield


class Shard:
    """Some examples of a split, and in this process what is kept of their features.

    `among` is how many shards there are: they share the memory for features.
    """

    def __init__(self, examples: Examples, *, among: int = 1) -> None:
        self.examples = examples
        self.among = among
        self._banks: dict[str, TapBank] = {}

    def bank(self, feature: str, make: Callable[[], TapBank]) -> TapBank:
        """Return the bank of one way to make rows of features; made when first asked for."""
        if feature not in self._banks:
            self._banks[feature] = make()
        return self._banks[feature]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the features behind: elsewhere they are computed again."""
        return vars(self) | {"_banks": {}}


def slices(count: int, settings: MeasureConfig, *, width: int) -> list[slice]:
    """Cut examples into blocks, or without these into at most `width` parts of whole batches.

    A network answers by its batch, in the last bits, so that the batches are those of one process.
    """
    size = settings.block
    if size is None and width > 1:
        size = settings.batch_size * -(-count // (width * settings.batch_size))
    return cut_rows(count, block=size or None)


class Crew:
    """An executor that works on one model; whatever it is given goes over once."""

    def __init__(self, model: nn.Module, executor: Executor = IN_PROCESS) -> None:
        self._executor = executor
        self._sent = executor.keep(Sent(model))
        self._kept: dict[int, tuple[Any, Any]] = {}
        self._examples: Examples | None = None
        self._shards: list[Any] = []

    def keep(self, value: Any) -> Any:
        """Hand over a value for as long as this crew works; returns its handle."""
        if id(value) not in self._kept:
            self._kept[id(value)] = (value, self._executor.keep(value))
        return self._kept[id(value)][1]

    def lend(self, value: Any) -> Any:
        """Hand over a value for as long as its handle is held."""
        return self._executor.keep(value)

    def shards(self, subject: Subject, examples: Examples) -> list[Any]:
        """Handles of the shards of a split; those of the split before are let go."""
        if self._examples is not examples:
            rows = slices(len(examples.labels), subject.settings, width=self._executor.width)
            self._shards = []  # not both at a time
            self._shards = [
                self._executor.keep(Shard(examples.part(each), among=len(rows))) for each in rows
            ]
            self._examples = examples
        return self._shards

    def map(
        self,
        call: Callable[..., Any],
        parts: Sequence[tuple[Any, ...]],
        *,
        report: Report = no_report,
    ) -> list[Any]:
        """Call `call(sent, *part, report=...)` for every part; returns handles, in order."""
        return self._executor.map(call, [(self._sent, *part) for part in parts], report=report)

    def each(
        self,
        call: Callable[..., Any],
        parts: Sequence[tuple[Any, ...]],
        *,
        report: Report = no_report,
    ) -> Iterator[Any]:
        """Yield the values of all parts, in order; as many are held as are made at a time."""
        step = max(1, self._executor.width)
        for start in range(0, len(parts), step):
            wave = parts[start : start + step]
            told = sub_report(report, start, len(parts), size=len(wave))
            handles = self.map(call, wave, report=told)
            while handles:
                yield self._executor.get([handles.pop(0)])[0]

    def ask(self, call: Callable[..., Any], *given: Any, report: Report = no_report) -> Any:
        """Return the value of one call `call(sent, *given, report=...)`."""
        return next(self.each(call, [given], report=report))
