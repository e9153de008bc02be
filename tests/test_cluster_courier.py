"""What a worker hands over survives a lost mailbox: never half of what belongs together."""

import time
from pathlib import Path

from helpers_runner import wait_for

from robust_nc.engines.ray.files import Parcel, unpack
from robust_nc.engines.ray.mailbox import Letter, Mailbox
from robust_nc.engines.ray.worker import _courier
from robust_nc.io.files import write_bytes


class Posted:
    """A mailbox that can be lost, written to as a worker does; `lives` are all that it had."""

    def __init__(self) -> None:
        self.lives = [Mailbox()]
        self.sent = 0

    def state(self, parcel: Parcel | None, life: str | None = None) -> str | None:
        reply = self.lives[-1].put(Letter("cell", 1, None, parcel, life))
        self.sent += parcel is not None
        return reply.life


def received(box: Mailbox, out: Path) -> set[str]:
    """Unpack what lies in a mailbox; return the names of all files so far."""
    for letter in box.drain():
        if letter.parcel is not None:
            unpack(letter.parcel, out)
            names = {path.name for path in out.rglob("*") if path.is_file()}
            for named in (out / "checkpoints" / "c" / "last.json").read_text().split():
                assert named in names, "a checkpoint came without a file that it names"
    return {path.name for path in out.rglob("*") if path.is_file()}


def test_a_lost_mailbox_costs_no_file_of_a_checkpoint(tmp_path: Path) -> None:
    """The first state is lost with the mailbox, and the second builds upon it."""
    there, here, posted = tmp_path / "there", tmp_path / "here", Posted()
    folder = there / "checkpoints" / "c"
    with _courier(there, posted, {}, 0.05):
        write_bytes(folder / "best", b"1")
        write_bytes(folder / "last.json", b"best")
        wait_for(lambda: posted.sent == 1)
        posted.lives.append(Mailbox())
        write_bytes(folder / "last", b"2")
        write_bytes(folder / "last.json", b"best last")
        wait_for(lambda: posted.sent >= 3)
        time.sleep(0.1)
    assert received(posted.lives[-1], here) == {"best", "last", "last.json"}
