"""What all tests share: one small trained network; and shapes checked once for each kind of call.

The option `--jaxtyping-packages` wraps every function of some packages in a check of its types. A
check takes longer than the small operations of a test, and its outcome depends on the types and
shapes of a call alone, so a call whose kind was seen before is not checked again.
"""

import copy
import inspect
import os
import shutil
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

from robust_nc.runtime.waiting import wait_briefly

wait_briefly()  # as the command line does, before torch loads
os.environ.pop("COLUMNS", None)  # of the terminal that runs the tests: theirs is none
from torch import Tensor, nn  # noqa: E402

_jaxtyped: Any = jaxtyping.jaxtyped


def _kind(value: object) -> object:
    """What a check can tell of a value."""
    if isinstance(value, Tensor):
        return type(value), value.shape, value.dtype
    if isinstance(value, tuple | list):
        return type(value), *map(_kind, value)
    if isinstance(value, dict):
        return type(value), *map(_kind, value.values())
    return value if isinstance(value, str | bool) else type(value)


def _checked_once(target: Any, *, typechecker: Any) -> Any:
    """As jaxtyping's decorator, but for calls of a kind that passed before."""
    if not inspect.isfunction(target) or inspect.isgeneratorfunction(target):
        return _jaxtyped(target, typechecker=typechecker)
    checked: Any = None  # made at the first call: most functions are never called
    passed: dict[object, set[object]] = {}  # what came back from calls of a kind
    returned = threading.local()

    def echo(*args: object, **kwargs: object) -> object:
        return returned.value

    # In the function's place, among the names that its annotations may need.
    stand_in = types.FunctionType(echo.__code__, target.__globals__, closure=echo.__closure__)

    @wraps(target)
    def call(*args: object, **kwargs: object) -> object:
        nonlocal checked
        kind = (*map(_kind, args), *kwargs, *map(_kind, kwargs.values()))
        if kind not in passed:
            checked = checked or _jaxtyped(target, typechecker=typechecker)
            value = checked(*args, **kwargs)
            passed[kind] = {_kind(value)}
            return value
        value = target(*args, **kwargs)
        if _kind(value) not in passed[kind]:
            returned.value = value
            _jaxtyped(wraps(target)(stand_in), typechecker=typechecker)(*args, **kwargs)
            passed[kind].add(_kind(value))
        return value

    return call


jaxtyping.jaxtyped = lambda target=None, **options: (  # before a package is imported
    partial(_checked_once, **options) if target is None else _checked_once(target, **options)
)


@pytest.fixture(autouse=True)
def _kept_trace() -> Iterator[None]:
    """Put back what traces the lines: pyautoattack's checks take it away."""
    before = sys.gettrace()
    yield
    if sys.gettrace() is not before:
        sys.settrace(before)


@pytest.fixture(scope="session")
def _digits_network() -> nn.Module:
    from helpers_models import small_config, small_run

    return small_run(small_config(epochs=4, examples=250, train={"lr": 0.2})).last


@pytest.fixture(scope="module")
def digits_network(_digits_network: nn.Module) -> nn.Module:
    """A `Classifier` that was trained on 250 digits, of one module of tests."""
    return copy.deepcopy(_digits_network)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """Deep enough that keys two folders above a record are this test's alone."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="session")
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key of OpenSSH that signs receipts."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("there is no ssh-keygen here")
    key = tmp_path_factory.mktemp("key") / "key"
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tester", "-f", str(key)]
    subprocess.run(words, check=True)
    return key


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium here")
    from playwright.sync_api import sync_playwright

    flags = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    flags += " disable-component-update disable-sync"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=[f"--{flag}" for flag in flags.split()]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages in a Chromium: none may make errors, dialogs, or requests that leave."""
    contexts, faults = [], []

    def answer(dialog: Any) -> None:
        faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def told(message: Any) -> None:
        if message.type in {"error", "warning"}:
            faults.append(f"console: {message.text}")

    def requested(request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "http://127.0.0.1")):
            faults.append(f"request: {request.url}")

    def open_one(place: Path | str, *, width: int = 1200, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("dialog", answer)
        page.on("console", told)
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("request", requested)
        page.goto(place.as_uri() if isinstance(place, Path) else place)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(scope="session")
def own_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reference to a small network that was trained on digits, in a file as users have it."""
    from helpers_appraisal import write_model

    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def verdict(own_model: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The record of that network, without geometry, and its reference."""
    from helpers_appraisal import record_of

    return record_of(own_model, tmp_path_factory.mktemp("verdict") / "out"), own_model


@pytest.fixture
def verdict_copy(verdict: Any, tmp_path: Path) -> Any:
    """A copy of that record and what lies beside it, to be changed; and the reference."""
    from robust_nc.record import read_record

    stored, reference = verdict
    folder = shutil.copytree(stored.path.parent, tmp_path / "out")
    return read_record(folder / stored.path.name), reference
