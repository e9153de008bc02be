"""Where the parts of a piece of work are done: in this process, or on many machines.

Work is cut into parts by example; what each part leaves is merged by whoever cut it, in the order
of the parts, so that it does not matter who did which.

>>> def total(rows: slice, values: list[int], *, report: Report) -> int:
...     return sum(values[rows])
>>> shared = IN_PROCESS.keep([1, 2, 3, 4, 5])
>>> found = IN_PROCESS.map(total, [(rows, shared) for rows in cut_rows(5, block=2)])
>>> IN_PROCESS.get(found)
[3, 7, 5]
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from robust_nc.runtime.progress import Report, no_report, sub_report

PartCall = Callable[..., Any]
Parts = Sequence[tuple[Any, ...]]  # arguments of a call, one tuple a part


class Executor(Protocol):
    """Does the parts of a piece of work; `width` is how many it can do at a time.

    `keep` hands over a value that many calls take (a model), and `map` calls a function of a module
    with each tuple of arguments and `report=`: both return handles. A handle among the arguments
    of `map` (not inside of them) arrives as the value that it stands for; `get` fetches values.
    Functions must not change what they are given and must depend on their arguments alone: a part
    whose machine was lost is done again.
    """

    @property
    def width(self) -> int:
        """Parts that can be done at a time."""

    def keep(self, value: Any) -> Any:
        """Hand over a value once; returns its handle."""

    def map(self, call: PartCall, parts: Parts, *, report: Report = no_report) -> list[Any]:
        """Call `call(*part, report=...)` for every part; returns handles, in order."""

    def get(self, handles: Sequence[Any]) -> list[Any]:
        """Return the values of handles, in order."""


class LocalExecutor:
    """The executor of one process: everything is done here, in order; handles are the values."""

    width = 1

    def keep(self, value: Any) -> Any:
        """Return the value itself."""
        return value

    def map(self, call: PartCall, parts: Parts, *, report: Report = no_report) -> list[Any]:
        """Call with one part after another."""
        return [
            call(*part, report=sub_report(report, done, len(parts)))
            for done, part in enumerate(parts)
        ]

    def get(self, handles: Sequence[Any]) -> list[Any]:
        """Return them as a list."""
        return list(handles)


IN_PROCESS = LocalExecutor()


def cut_rows(count: int, *, block: int | None = None, width: int = 1) -> list[slice]:
    """Cut `count` rows into blocks, or, without `block`, into at most `width` parts of one size.

    >>> cut_rows(5, width=2), cut_rows(0)
    ([slice(0, 3, None), slice(3, 5, None)], [slice(0, 0, None)])
    """
    size = block or max(1, -(-count // max(width, 1)))
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]
