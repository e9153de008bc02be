"""The driver's inbox: states of the try that counts, whatever comes late or is lost on its way."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from helpers_cluster import nodes
from helpers_runner import wait_for

from robust_nc.engines.ray.files import FileBundle
from robust_nc.engines.ray.inbox import Inbox
from robust_nc.engines.ray.messages import Message, Reply
from robust_nc.runtime.progress import Event

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def joined() -> Iterator[None]:
    with nodes(0) as found:
        ray.init(address=found.address, log_to_driver=False, configure_logging=False)
        yield


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def inbox(joined: None, tmp_path: Path, told: list[Event]) -> Inbox:
    return Inbox(tmp_path, told.append)


def post(inbox: Inbox, attempt: int, content: bytes | None, event: Event | None = None) -> Reply:
    bundle = None if content is None else FileBundle({"cache/state": content})
    reply: Reply = ray.get(inbox.queue.put.remote(Message("task", attempt, event, bundle)))
    return reply


def kept(inbox: Inbox, out: Path) -> bytes:
    inbox.collect()
    return (out / "cache" / "state").read_bytes()


def test_what_an_older_try_still_had_on_its_way_is_refused(inbox, told, tmp_path):
    first, second = inbox.open("task"), inbox.open("task")
    post(inbox, second, b"new", Event("cell", 0.5, "new"))
    post(inbox, first, b"old", Event("cell", 0.1, "old"))
    assert kept(inbox, tmp_path) == b"new"
    assert [event.status for event in told] == ["new"]


def test_only_a_state_is_an_advance(inbox, tmp_path):
    attempt = inbox.open("task")
    post(inbox, attempt, None)
    inbox.collect()
    assert not inbox.advanced("task")
    post(inbox, attempt, b"1")
    assert kept(inbox, tmp_path) == b"1"
    assert inbox.advanced("task")
    inbox.open("task")
    assert not inbox.advanced("task")


def test_nothing_comes_after_the_end_of_a_task(inbox, tmp_path):
    attempt = inbox.open("task")
    inbox.close("task", FileBundle({"cache/state": b"end"}))
    post(inbox, attempt, b"late")
    assert kept(inbox, tmp_path) == b"end"


def test_events_of_parts_are_told_whatever_their_number(inbox, told):
    post(inbox, 0, None, Event("cell", 0.5, "part"))
    inbox.collect()
    assert [event.status for event in told] == ["part"]


def test_a_mailbox_that_was_killed_starts_another_life(inbox, tmp_path):
    attempt = inbox.open("task")
    before = post(inbox, attempt, None).life
    ray.kill(inbox.queue, no_restart=False)

    def again() -> bool:
        inbox.collect()
        try:
            return post(inbox, attempt, b"2").life != before
        except ray.exceptions.RayActorError:
            return False

    wait_for(again)
    assert kept(inbox, tmp_path) == b"2"
