"""What workers tell the driver while they work: progress, and their state so far.

The mailbox is an actor without resources; should it be lost, it starts again empty, and only what
lay in it is told later than it could have been.

>>> mailbox = Mailbox()
>>> mailbox.put(Letter("cell", 1, None, None)), [letter.task for letter in mailbox.drain()]
(False, ['cell'])
>>> mailbox.drain()
[]
"""

from typing import NamedTuple

from robust_nc.cluster.parcels import Parcel
from robust_nc.stages import CellEvent


class Letter(NamedTuple):
    """From the `attempt`-th try of a task: an event to show, the files that changed, or both."""

    task: str
    attempt: int
    event: CellEvent | None
    parcel: Parcel | None


class Mailbox:
    """Keeps letters until the driver fetches them; `stop` is told to whoever writes."""

    def __init__(self) -> None:
        self._letters: list[Letter] = []
        self._stop = False

    def put(self, letter: Letter) -> bool:
        """Take a letter; returns whether the work shall stop."""
        self._letters.append(letter)
        return self._stop

    def drain(self) -> list[Letter]:
        """Hand over all letters, oldest first."""
        letters, self._letters = self._letters, []
        return letters

    def stop(self) -> None:
        """Ask all work to save its state and stop."""
        self._stop = True
