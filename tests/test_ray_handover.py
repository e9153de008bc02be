"""What a worker hands over survives a lost queue: never half of what belongs together."""

import time
from pathlib import Path

from helpers_runner import wait_for

from robust_nc.engines.ray.files import FileBundle, write_bundle
from robust_nc.engines.ray.messages import Message, MessageQueue
from robust_nc.engines.ray.worker import _handing_over
from robust_nc.io.files import write_bytes


class Posted:
    """A queue that can be lost, written to as a worker does; `lives` are all that it had."""

    def __init__(self) -> None:
        self.lives = [MessageQueue()]
        self.sent = 0

    def state(self, bundle: FileBundle | None, life: str | None = None) -> str | None:
        reply = self.lives[-1].put(Message("cell", 1, None, bundle, life))
        self.sent += bundle is not None
        return reply.life


def received(box: MessageQueue, out: Path) -> set[str]:
    """Unpack what lies in a queue; return the names of all files so far."""
    for message in box.drain():
        if message.bundle is not None:
            write_bundle(message.bundle, out)
            names = {path.name for path in out.rglob("*") if path.is_file()}
            for named in (out / "checkpoints" / "c" / "last.json").read_text().split():
                assert named in names, "a checkpoint came without a file that it names"
    return {path.name for path in out.rglob("*") if path.is_file()}


def test_a_lost_mailbox_costs_no_file_of_a_checkpoint(tmp_path: Path) -> None:
    """The first state is lost with the queue, and the second builds upon it."""
    there, here, posted = tmp_path / "there", tmp_path / "here", Posted()
    folder = there / "checkpoints" / "c"
    with _handing_over(there, posted, {}, 0.05):
        write_bytes(folder / "best", b"1")
        write_bytes(folder / "last.json", b"best")
        wait_for(lambda: posted.sent == 1)
        posted.lives.append(MessageQueue())
        write_bytes(folder / "last", b"2")
        write_bytes(folder / "last.json", b"best last")
        wait_for(lambda: posted.sent >= 3)
        time.sleep(0.1)
    assert received(posted.lives[-1], here) == {"best", "last", "last.json"}
