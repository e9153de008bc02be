"""An executor of one process, as strict as many machines: all is pickled on its way."""

import pickle
from collections.abc import Callable, Sequence
from inspect import isfunction
from typing import Any

from robust_nc.runtime.progress import Report, no_report


class Handle:
    """Stands for a value, and is nothing else: whoever takes it for the value fails."""

    __slots__ = ("_stored",)

    def __init__(self, stored: bytes) -> None:
        self._stored = stored

    def __reduce__(self) -> str:
        raise TypeError("a handle was put inside of an argument; it must be one itself")


class PicklingExecutor:
    """Calls functions in the opposite order, with pickled arguments, and pickles the results.

    `calls` are the names of the functions that were called (of a function that is handed to another
    to be called, its own name), `sizes` the bytes of each result, `fetched` the bytes of all values
    that were asked for.
    """

    def __init__(self, width: int = 3) -> None:
        self.width = width
        self.calls: list[str] = []
        self.sizes: dict[str, list[int]] = {}
        self.kept: list[Any] = []
        self.fetched = 0

    def keep(self, value: Any) -> Handle:
        self.kept.append(value)
        return Handle(pickle.dumps(value))

    def map(
        self,
        call: Callable[..., Any],
        parts: Sequence[tuple[Any, ...]],
        *,
        report: Report = no_report,
    ) -> list[Handle]:
        known = pickle.loads(pickle.dumps(call))
        found: dict[int, Handle] = {}
        for place in reversed(range(len(parts))):
            given = [_arrived(each) for each in parts[place]]
            stored = pickle.dumps(known(*given, report=report))
            name = next((each.__name__ for each in given if isfunction(each)), call.__name__)
            self.calls.append(name)
            self.sizes.setdefault(name, []).append(len(stored))
            found[place] = Handle(stored)
        return [found[place] for place in range(len(parts))]

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        self.fetched += sum(len(handle._stored) for handle in handles)
        return [pickle.loads(handle._stored) for handle in handles]


def _arrived(value: Any) -> Any:
    return pickle.loads(value._stored if isinstance(value, Handle) else pickle.dumps(value))
