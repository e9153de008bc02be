"""What workers tell the driver while they work: progress, and their state so far.

Messages wait in an actor without resources. Should it be lost, it starts another life, empty; who
hears of another life than before sends again what may have lain in it.

>>> queue = MessageQueue()
>>> queue.put(Message("cell", 1, None, None)).stop, [message.task for message in queue.drain()]
(False, ['cell'])
>>> queue.drain()
[]
"""

import uuid
from typing import NamedTuple

from robust_nc.engines.ray.files import FileBundle
from robust_nc.runtime.progress import Event


class Message(NamedTuple):
    """From the `attempt`-th try of a task: an event to show, the files that changed, or both.

    `life` is that in which the files before these were sent; None where these are all.
    """

    task: str
    attempt: int
    event: Event | None
    bundle: FileBundle | None
    life: str | None = None


class Reply(NamedTuple):
    """Whether the work shall stop, and in which life of the queue this was said."""

    stop: bool
    life: str


class MessageQueue:
    """Keeps messages until the driver fetches them; `stop` is told to whoever writes."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._reply = Reply(False, uuid.uuid4().hex)

    def put(self, message: Message) -> Reply:
        """Take a message, but not files that build upon some that may have been lost."""
        if message.life in (None, self._reply.life):
            self._messages.append(message)
        return self._reply

    def drain(self) -> list[Message]:
        """Hand over all messages, oldest first."""
        messages, self._messages = self._messages, []
        return messages

    def stop(self) -> None:
        """Ask all work to save its state and stop."""
        self._reply = self._reply._replace(stop=True)
