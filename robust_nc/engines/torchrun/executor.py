"""The processes of a run as an executor: the first one tells, the others do their share.

Who drives calls `keep`, `map`, `train` and `forget`; who follows calls `follow`.
Values travel as bytes between CPUs, so that it does not matter who has which GPU.

>>> unpacked(packed(Outcome(torch.ones(2), None))).value.tolist()
[1.0, 1.0]
"""

import contextlib
import datetime
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed as dist

from robust_nc.engines.local import failed
from robust_nc.exceptions import ClusterError
from robust_nc.runtime.progress import Report, no_report, sub_report
from robust_nc.training.data_parallel import together

T = TypeVar("T")

_STAGE = datetime.timedelta(days=7)  # the longest that the others wait while the first works alone
_ENDING = datetime.timedelta(seconds=60)  # ... that one that failed waits for the others to fail
_LOST = (
    "a process of this run ended or could not be reached any more, so all ended; what was saved is "
    "kept, and the same command goes on from there"
)
_LOSSES = ("connection closed", "connection reset", "broken pipe", "gloo", "nccl", "timed out")


class Outcome(NamedTuple):
    """What a part came to: a value, or an error."""

    value: Any
    error: Exception | None


class _Ref(NamedTuple):
    """Stands, on its way to the others, for a value that they keep."""

    number: int


class _Held(NamedTuple):
    """A value of the first process; `number` is its name where the others keep it too."""

    value: Any
    number: int | None = None


class _Keep(NamedTuple):
    number: int
    value: Any


class _Map(NamedTuple):
    call: Callable[..., Any]
    parts: list[tuple[Any, ...]]


class _Train(NamedTuple):
    call: Callable[..., Any]
    arguments: tuple[Any, ...]


class _Forget(NamedTuple):
    """Let go what is kept."""


class _End(NamedTuple):
    """Nothing more is to do."""


class Ranks:
    """The processes of a run, as the executor of the first one; `width` is how many there are.

    Of the parts that are mapped, process r does number r, r + width, and so on, and the first gets
    the results. What an error ends in one of them ends the call in the first, once all are through.
    """

    def __init__(self, store: Any) -> None:
        self.rank = dist.get_rank()
        self.width = dist.get_world_size()
        self.busy = False  # whether the others wait for this process amid something
        self._store = store
        self._kept = 0
        self._trainings = 0
        # The first may work alone for long, for which no training would wait.
        self._orders = dist.new_group(backend="gloo", timeout=_STAGE)

    def keep(self, value: Any) -> Any:
        """Hand a value to all processes; its tensors arrive on the CPU."""
        self._kept += 1
        self._tell(_Keep(self._kept, value))
        return _Held(value, self._kept)

    def map(
        self,
        call: Callable[..., Any],
        parts: Sequence[tuple[Any, ...]],
        *,
        report: Report = no_report,
    ) -> list[Any]:
        """Call `call(*part, report=...)` for every part, and wait for all; progress is our own."""
        self._tell(_Map(call, [tuple(map(_sent, part)) for part in parts]))
        found = self._mapped(call, [tuple(map(_value, part)) for part in parts], report)
        every = [found[index % self.width][index // self.width] for index in range(len(parts))]
        for outcome in every:
            if outcome.error is not None:
                raise outcome.error
        return [_Held(outcome.value) for outcome in every]

    def get(self, handles: Sequence[Any]) -> list[Any]:
        """Return the values of handles."""
        return [_value(handle) for handle in handles]

    def train(
        self, call: Callable[[], T], others: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> T:
        """Train one model: the first process calls `call()`, the others `others(*arguments)`.

        An error that all of them meet is raised. What ends one alone leaves the others amid an
        exchange: then `busy` stays true, and the run has to end.
        """
        self._tell(_Train(others, arguments))
        return self._together(call)

    def forget(self) -> None:
        """Let the others forget what they keep."""
        self._tell(_Forget())

    def follow(self) -> int:
        """Do what the first process tells, until it says that all is done; returns 0."""
        kept: dict[int, Any] = {}
        while True:
            order = self._heard()
            if isinstance(order, _Keep):
                kept[order.number] = order.value
            elif isinstance(order, _Map):
                parts = [
                    tuple(
                        kept[value.number] if isinstance(value, _Ref) else value for value in part
                    )
                    for part in order.parts
                ]
                self._mapped(order.call, parts, no_report)
            elif isinstance(order, _Train):
                self._follow_training(order)
            elif isinstance(order, _Forget):
                kept.clear()
            else:
                return 0

    def end(self) -> None:
        """Tell the others that all is done."""
        self._tell(_End())

    def speaks(self) -> bool:
        """Whether this process is the first to end the run, and so has to say why."""
        try:
            return bool(self._store.add("told", 1) == 1)
        except Exception:  # who kept the store has gone
            return True

    def _follow_training(self, order: _Train) -> None:
        try:
            self._together(lambda: order.call(*order.arguments))
        except Exception:  # the first process met it too, and says so
            if self.busy:
                raise

    def _together(self, call: Callable[[], T]) -> T:
        self._trainings += 1
        self.busy = True
        keys = [f"ended-{self._trainings}-{rank}" for rank in range(self.width)]
        try:
            with together():
                found = call()
        except Exception as error:
            if _is_loss(error):
                raise ClusterError(_LOST) from error
            self._store.set(keys[self.rank], "")
            with contextlib.suppress(dist.DistError, RuntimeError):
                self._store.wait(keys, _ENDING)
                self.busy = False
            raise
        self._store.set(keys[self.rank], "")
        self.busy = False
        return found

    def _mapped(
        self, call: Callable[..., Any], parts: Sequence[tuple[Any, ...]], report: Report
    ) -> list[list[Outcome]]:
        """Do the parts of this process; the first gets the outcomes of all, by rank."""
        self.busy = True
        own = parts[self.rank :: self.width]
        outcomes = []
        for done, part in enumerate(own):
            try:
                told = sub_report(report, done, len(own))
                outcomes.append(Outcome(call(*part, report=told), None))
            except Exception as error:  # it is told once all are through
                outcomes.append(Outcome(None, error))
        sent = [] if self.rank == 0 else [_packed_outcome(outcome) for outcome in outcomes]
        found: list[Any] | None = [None] * self.width if self.rank == 0 else None
        self._exchange(lambda: dist.gather_object(sent, found, group=self._orders))
        self.busy = False
        return [outcomes, *([unpacked(each) for each in row] for row in (found or [])[1:])]

    def _tell(self, order: Any) -> None:
        content = [packed(order)]
        self._exchange(lambda: dist.broadcast_object_list(content, group=self._orders))

    def _heard(self) -> Any:
        content: list[Any] = [None]
        self._exchange(lambda: dist.broadcast_object_list(content, group=self._orders))
        return unpacked(content[0])

    def _exchange(self, call: Callable[[], None]) -> None:
        try:
            call()
        except (dist.DistError, RuntimeError) as error:
            self.busy = True
            raise ClusterError(_LOST) from error


def _sent(value: Any) -> Any:
    """Replace a handle by its name, or by its value where the others do not keep it."""
    if isinstance(value, _Held):
        return value.value if value.number is None else _Ref(value.number)
    return value


def _value(value: Any) -> Any:
    return value.value if isinstance(value, _Held) else value


def packed(value: Any) -> bytes:
    """Pack a value for another process of this run."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _packed_outcome(outcome: Outcome) -> bytes:
    try:
        return packed(outcome)
    except Exception as error:  # whatever a result holds that cannot travel
        told = failed("", outcome.error or error).error
        return packed(Outcome(None, ClusterError(told)))


def unpacked(content: bytes) -> Any:
    """Unpack what another process of this run packed; tensors come to the CPU."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)


def _is_loss(error: Exception) -> bool:
    """Whether an error comes from an exchange with a process that has gone."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in _LOSSES)
    )
