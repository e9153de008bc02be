"""One training shared by several processes: who takes which rows of a batch, and what they share.

Every process holds the whole model and steps it alike, with the gradient of the whole batch; see
docs/adr/0012-data-parallel.md. Alone, a process takes all rows, and nothing is exchanged:

>>> import torch
>>> batch = Batch(torch.rand(5, 1, 2, 2), torch.arange(5), torch.arange(5))
>>> present().share(batch) is batch, present().agree(True)
(True, True)
>>> [part.stop - part.start for part in parts(5, 3)]
[1, 2, 2]
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from robust_nc.data.batches import Batch
from robust_nc.exceptions import ConfigError
from robust_nc.geometry.moments import Moments
from robust_nc.types import Loss

T = TypeVar("T")

_BUCKET = 2**23  # values that are summed over the processes at a time


class Group:
    """The group of one process: it takes all, and costs nothing."""

    rank = 0
    size = 1

    def share(self, batch: Batch) -> Batch:
        """Return the rows of a training batch that this process takes.

        What follows, up to the next call, is about this batch.
        """
        return batch

    def part(self, batch: Batch) -> Batch:
        """Return the rows of a batch that this process measures, perhaps none."""
        return batch

    def backward(self, loss: Loss, model: nn.Module) -> dict[str, Tensor]:
        """Give the parameters the gradient of the whole batch, and return the logs of it."""
        loss.value.backward()  # type: ignore[no-untyped-call]
        return loss.logs

    def slopes(self, value: Tensor, weights: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradient of the whole batch's mean `value` by each of the weights."""
        return list(torch.autograd.grad(value, list(weights), allow_unused=True))

    def whole(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes `(N, ...)`, from those of this one; no gradient."""
        return rows

    def gathered(self, row: Tensor) -> Tensor:
        """Return one row `(C,)` of each process, `(size, C)`; no gradient."""
        return row[None]

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum over the processes; no gradient."""
        return values

    def total(self, *counts: int) -> list[int]:
        """Sum counts over the processes."""
        return list(counts)

    def moments(self, found: Moments) -> Moments:
        """Merge what the processes have measured; in place."""
        return found

    def agree(self, flag: bool) -> bool:
        """Whether any process says so."""
        return flag

    def lead(self, call: Callable[[], T]) -> T:
        """Call in the first process alone; every one gets its result, or raises its error."""
        return call()

    @property
    def ghost(self) -> bool:
        """Whether this process has no rows of its own in the batch, and stands by with another's.

        A row that stands by takes every step of the others, counts nowhere and moves nothing.
        """
        return False

    @property
    def stream(self) -> tuple[int, ...]:
        """What keys draws that differ between the processes: nothing in the first."""
        return ()


class Several(Group):
    """All processes of torch.distributed, which take consecutive rows of each batch.

    The same calls must be made by all of them, in the same order.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._rows = [slice(0, 1)] * self.size
        self._count = self.size

    @property
    def ghost(self) -> bool:
        """Whether the batch has fewer rows than there are processes, and none for this one."""
        mine = self._rows[self.rank]
        return mine.stop == mine.start

    @property
    def stream(self) -> tuple[int, ...]:
        """The rank, from 1 on."""
        return (self.rank,) if self.rank else ()

    @property
    def _weight(self) -> float:
        mine = self._rows[self.rank]
        return (mine.stop - mine.start) / self._count

    def share(self, batch: Batch) -> Batch:
        """Return consecutive rows, the same number in all processes up to one.

        Where there is none for this process it gets the first, as a ghost.
        """
        self._count = len(batch.labels)
        self._rows = parts(self._count, self.size)
        mine = slice(0, 1) if self.ghost else self._rows[self.rank]
        return Batch(*(values[mine] for values in batch))

    def part(self, batch: Batch) -> Batch:
        """Return consecutive rows, perhaps none."""
        mine = parts(len(batch.labels), self.size)[self.rank]
        return Batch(*(values[mine] for values in batch))

    def backward(self, loss: Loss, model: nn.Module) -> dict[str, Tensor]:
        """Weigh the loss by its rows, so that a sum over the processes is the whole batch's.

        By its rows, not by the process: the last batch of an epoch may be uneven.
        """
        (loss.value * self._weight).backward()  # type: ignore[no-untyped-call]
        self._sum([p.grad for p in model.parameters() if p.grad is not None])
        names = sorted(loss.logs)
        logs = torch.stack([loss.logs[name].detach().double() for name in names])
        # Not a product: a ghost's loss may be anything.
        whole = self.summed(torch.zeros_like(logs) if self.ghost else logs * self._weight)
        return dict(zip(names, whole.unbind(), strict=True))

    def slopes(self, value: Tensor, weights: Sequence[Tensor]) -> list[Tensor | None]:
        """Weigh the value by its rows, and sum over the processes."""
        found = torch.autograd.grad(value * self._weight, list(weights), allow_unused=True)
        self._sum([slope for slope in found if slope is not None])
        return list(found)

    def whole(self, rows: Tensor) -> Tensor:
        """Gather the rows of the batch that `share` cut, in its order."""
        longest = max(part.stop - part.start for part in self._rows)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        found = self._all(padded)
        sizes = [part.stop - part.start for part in self._rows]
        return torch.cat([each[:size] for each, size in zip(found, sizes, strict=True)])

    def gathered(self, row: Tensor) -> Tensor:
        """Gather one row of each process."""
        return torch.stack(self._all(row.detach()))

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum over the processes."""
        found = values.detach().clone()
        dist.all_reduce(found)
        return found

    def total(self, *counts: int) -> list[int]:
        """Sum counts over the processes."""
        found: list[int] = self.summed(torch.tensor(counts)).tolist()
        return found

    def moments(self, found: Moments) -> Moments:
        """Merge what the processes have measured; in place."""
        return found.all_reduce()

    def agree(self, flag: bool) -> bool:
        """Whether any process says so; a few bytes between the CPUs."""
        return self.total(int(flag))[0] > 0

    def lead(self, call: Callable[[], T]) -> T:
        """Call in the first process alone, and tell the others what came of it."""
        told: list[Any] = [None, None]
        if self.rank == 0:
            try:
                told[0] = call()
            except Exception as error:  # whatever it is, it is everybody's
                told[1] = error
        dist.broadcast_object_list(told)
        if told[1] is not None:
            raise told[1]
        result: T = told[0]
        return result

    def copy(self, tensors: Sequence[Tensor]) -> None:
        """Put the first process's values into these tensors everywhere."""
        self._in_buckets(tensors, lambda flat: dist.broadcast(flat, 0))

    def _sum(self, tensors: Sequence[Tensor]) -> None:
        self._in_buckets(tensors, dist.all_reduce)

    def _in_buckets(self, tensors: Sequence[Tensor], exchange: Callable[[Tensor], Any]) -> None:
        """Exchange tensors in place, many at a time: each exchange costs as much as a large one."""
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in bucket])
            exchange(flat)
            sizes = [tensor.numel() for tensor in bucket]
            with torch.no_grad():
                for tensor, values in zip(bucket, torch.split(flat, sizes), strict=True):
                    tensor.copy_(values.view(tensor.shape))

    def _all(self, tensor: Tensor) -> list[Tensor]:
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor.contiguous())
        return found


_ALONE = Group()
_present: list[Group] = []


def present() -> Group:
    """Return the group that the training of this process belongs to."""
    return _present[-1] if _present else _ALONE


@contextlib.contextmanager
def within(group: Group) -> Iterator[Group]:
    """Make a group the present one, for this block."""
    _present.append(group)
    try:
        yield group
    finally:
        _present.pop()


@contextlib.contextmanager
def together() -> Iterator[Group]:
    """Train in this block with all processes of torch.distributed, if there are several.

    All of them must enter it and train the same configuration; the first alone needs checkpoints.
    """
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    with within(Several() if several else _ALONE) as group:
        yield group


def check_objective(objective: object, group: Group) -> None:
    """Raise `ConfigError` for an objective that does not say that its rows may be shared out."""
    if group.size > 1 and not getattr(objective, "in_parts", False):
        raise ConfigError(
            f"the objective {type(objective).__name__} does not say `in_parts = True` (that its "
            "loss is a mean over examples, whose gradient it leaves to the training), so several "
            "processes cannot train one model with it; run it without torchrun"
        )


def check_alone(parts: Mapping[str, bool], group: Group) -> None:
    """Raise `ConfigError` for the first part that is in use and does not pass between processes."""
    used = [name for name, in_use in parts.items() if in_use]
    if group.size > 1 and used:
        raise ConfigError(
            f"{used[0]} sees the rows of one process only, so several cannot train one model with "
            "it; leave it out, or run without torchrun"
        )


def parts(count: int, size: int) -> list[slice]:
    """Cut `count` rows into `size` parts of one size, up to one row.

    >>> parts(2, 3)
    [slice(0, 0, None), slice(0, 1, None), slice(1, 2, None)]
    """
    ends = [rank * count // size for rank in range(size + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Put tensors of one type together, up to a size; the same in every process."""
    kinds = list(dict.fromkeys((tensor.dtype, tensor.device) for tensor in tensors))
    for kind in kinds:
        bucket: list[Tensor] = []
        for tensor in tensors:
            if (tensor.dtype, tensor.device) != kind:
                continue
            if bucket and sum(map(Tensor.numel, bucket)) + tensor.numel() > _BUCKET:
                yield bucket
                bucket = []
            bucket.append(tensor)
        if bucket:
            yield bucket
