"""What workers tell the driver while they work: progress, and their state so far.

The mailbox is an actor without resources. Should it be lost, it starts another life, empty; who
hears of another life than before sends again what may have lain in it.

>>> mailbox = Mailbox()
>>> mailbox.put(Letter("cell", 1, None, None)).stop, [letter.task for letter in mailbox.drain()]
(False, ['cell'])
>>> mailbox.drain()
[]
"""

import uuid
from typing import NamedTuple

from robust_nc.engines.ray.files import Parcel
from robust_nc.pipeline.stages import CellEvent


class Letter(NamedTuple):
    """From the `attempt`-th try of a task: an event to show, the files that changed, or both.

    `life` is that in which the files before these were sent; None where these are all.
    """

    task: str
    attempt: int
    event: CellEvent | None
    parcel: Parcel | None
    life: str | None = None


class Reply(NamedTuple):
    """Whether the work shall stop, and in which life of the mailbox this was said."""

    stop: bool
    life: str


class Mailbox:
    """Keeps letters until the driver fetches them; `stop` is told to whoever writes."""

    def __init__(self) -> None:
        self._letters: list[Letter] = []
        self._reply = Reply(False, uuid.uuid4().hex)

    def put(self, letter: Letter) -> Reply:
        """Take a letter, but not files that build upon some that may have been lost."""
        if letter.life in (None, self._reply.life):
            self._letters.append(letter)
        return self._reply

    def drain(self) -> list[Letter]:
        """Hand over all letters, oldest first."""
        letters, self._letters = self._letters, []
        return letters

    def stop(self) -> None:
        """Ask all work to save its state and stop."""
        self._reply = self._reply._replace(stop=True)
