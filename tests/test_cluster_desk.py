"""The driver's desk: states of the try that counts, whatever comes late or is lost on its way."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from helpers_cluster import nodes
from helpers_runner import wait_for

from robust_nc.engines.ray.files import Parcel
from robust_nc.engines.ray.inbox import Desk
from robust_nc.engines.ray.mailbox import Letter, Reply
from robust_nc.pipeline.stages import CellEvent

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def joined() -> Iterator[None]:
    with nodes(0) as found:
        ray.init(address=found.address, log_to_driver=False, configure_logging=False)
        yield


@pytest.fixture
def told() -> list[CellEvent]:
    return []


@pytest.fixture
def desk(joined: None, tmp_path: Path, told: list[CellEvent]) -> Desk:
    return Desk(tmp_path, told.append)


def post(desk: Desk, attempt: int, content: bytes | None, event: CellEvent | None = None) -> Reply:
    parcel = None if content is None else Parcel({"cache/state": content})
    reply: Reply = ray.get(desk.mailbox.put.remote(Letter("task", attempt, event, parcel)))
    return reply


def kept(desk: Desk, out: Path) -> bytes:
    desk.collect()
    return (out / "cache" / "state").read_bytes()


def test_what_an_older_try_still_had_on_its_way_is_refused(desk, told, tmp_path):
    first, second = desk.open("task"), desk.open("task")
    post(desk, second, b"new", CellEvent("cell", 0.5, "new"))
    post(desk, first, b"old", CellEvent("cell", 0.1, "old"))
    assert kept(desk, tmp_path) == b"new"
    assert [event.status for event in told] == ["new"]


def test_only_a_state_is_an_advance(desk, tmp_path):
    attempt = desk.open("task")
    post(desk, attempt, None)
    desk.collect()
    assert not desk.advanced("task")
    post(desk, attempt, b"1")
    assert kept(desk, tmp_path) == b"1"
    assert desk.advanced("task")
    desk.open("task")
    assert not desk.advanced("task")


def test_nothing_comes_after_the_end_of_a_task(desk, tmp_path):
    attempt = desk.open("task")
    desk.close("task", Parcel({"cache/state": b"end"}))
    post(desk, attempt, b"late")
    assert kept(desk, tmp_path) == b"end"


def test_events_of_parts_are_told_whatever_their_number(desk, told):
    post(desk, 0, None, CellEvent("cell", 0.5, "part"))
    desk.collect()
    assert [event.status for event in told] == ["part"]


def test_a_mailbox_that_was_killed_starts_another_life(desk, tmp_path):
    attempt = desk.open("task")
    before = post(desk, attempt, None).life
    ray.kill(desk.mailbox, no_restart=False)

    def again() -> bool:
        desk.collect()
        try:
            return post(desk, attempt, b"2").life != before
        except ray.exceptions.RayActorError:
            return False

    wait_for(again)
    assert kept(desk, tmp_path) == b"2"
