"""Models that a user's own code makes: a factory, a class, or a module that is there already.

What that code may do to us, and for how long, is bounded by `strangers_code`.

>>> from robust_nc.io.user_code import split_code
>>> from_code(split_code("torch.nn:Identity"))
Identity()
>>> with strangers_code("mine.py:net"):
...     raise SystemExit(3)
Traceback (most recent call last):
...
robust_nc.exceptions.ConfigError: mine.py:net failed: SystemExit: 3
"""

import contextlib
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from robust_nc.exceptions import ConfigError, RobustNCError
from robust_nc.io.user_code import Code, findable, lacks, load_code, told

Tell = Callable[[str], None]

NOTICE_SECONDS = 30.0  # until the user is told that something is waited for
LIMIT_SECONDS = 600.0  # until it is given up
_VALID = "a module that can be imported here, or path/to/file.py"


def from_code(
    code: Code, *, options: Mapping[str, Any] | None = None, tell: Tell | None = None
) -> nn.Module:
    """Run the code that its user named and return the model that it makes, on the CPU.

    A class or a function is called without arguments; with `options`, with those of them that it
    takes by name (and, where it takes a `config`, with all of them as that). Raises `ConfigError`
    in one sentence where there is no such code, where it fails, hangs, or makes no `nn.Module`.
    """
    reference = f"{code.place}:{code.name}"
    with strangers_code(reference, tell), findable(code):
        found = load_code(code, valid=_VALID)
        if isinstance(found, nn.Module):
            return found.cpu()
        if not callable(found):
            raise lacks(code)
        arguments = _arguments(reference, found, options, tell)
        made = found(**arguments)
        if isinstance(made, nn.Module):
            return made.cpu()
        raise ConfigError(_no_model(reference, made))


def _arguments(
    reference: str, factory: Any, options: Mapping[str, Any] | None, tell: Tell | None
) -> dict[str, Any]:
    """Choose what a factory is called with; `ConfigError` where that is not enough."""
    parameters = _parameters(factory)
    chosen = _chosen(parameters, options or {})
    left = [key for key in options or {} if key not in chosen and "config" not in chosen]
    if left and tell is not None:
        tell(f"{reference} takes no {', '.join(left)} of config.json; left out")
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in chosen
    ]
    if needed and options is None:
        raise ConfigError(
            f"{reference} is called without arguments, but needs {', '.join(needed)}; give it "
            "defaults, or name a function that calls it"
        )
    if needed:
        raise ConfigError(
            f"{reference} needs {', '.join(needed)}, which config.json lacks; it holds "
            f"{', '.join(map(str, options or {}))[:200] or 'nothing'}"
        )
    return chosen


def _parameters(factory: Any) -> dict[str, inspect.Parameter]:
    """Return what a function or the constructor of a class takes."""
    if getattr(factory, "__init__", None) is nn.Module.__init__:  # takes anything, to refuse it
        return {}
    try:
        signature = inspect.signature(factory.__init__ if inspect.isclass(factory) else factory)
    except (TypeError, ValueError):  # of code that is not in Python
        return {}
    parameters = dict(signature.parameters)
    if inspect.isclass(factory):
        parameters.pop(next(iter(parameters), ""), None)  # self
    return parameters


def _chosen(
    parameters: Mapping[str, inspect.Parameter], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options that parameters take, as huggingface_hub's mixin chooses them."""
    kinds = {parameter.kind for parameter in parameters.values()}
    takes_all = inspect.Parameter.VAR_KEYWORD in kinds
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = [name for name, found in parameters.items() if found.kind not in variable]
    chosen = {key: value for key, value in options.items() if takes_all or key in named}
    if options and "config" in named and "config" not in chosen:
        chosen["config"] = dict(options)
    return chosen


def _no_model(reference: str, made: object) -> str:
    said = f"{reference} must return a torch.nn.Module, found "
    if isinstance(made, tuple | list) and any(isinstance(part, nn.Module) for part in made):
        return f"{said}a {type(made).__name__} with one in it; return the model alone"
    if isinstance(made, type):
        return f"{said}the class {made.__name__}; return an instance of it"
    if isinstance(made, dict):
        return f"{said}a dict; build the model, load these weights into it, and return it"
    return f"{said}{type(made).__name__}"


class _TimeUp(BaseException):
    """Not an Exception, so that a stranger's code does not catch it by accident."""


@contextlib.contextmanager
def strangers_code(what: str, tell: Tell | None = None) -> Iterator[None]:
    """Run a stranger's code: whatever it raises becomes a `ConfigError` that names `what`.

    An exit too; Ctrl-C passes. What it prints goes to stderr. Its draws are seeded, and the
    generator, the argument list, the working folder and torch's defaults are as before afterwards.
    In the main thread, `tell` is called after `NOTICE_SECONDS`, and after `LIMIT_SECONDS` it is
    given up.
    """
    try:
        with _time_limit(what, tell), to_stderr(), _as_before():
            yield
    except _TimeUp:
        raise ConfigError(
            f"{what} was not done after {LIMIT_SECONDS:g} s and was given up; build the model "
            "without training it or waiting for anything"
        ) from None
    except RobustNCError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        raise ConfigError(f"{what} failed: {told(error)}") from error


@contextlib.contextmanager
def to_stderr() -> Iterator[None]:
    """Send all that is printed to stderr, also what libraries and child processes print."""
    with contextlib.redirect_stdout(sys.stderr):
        saved = _aimed_at_stderr()
        try:
            yield
        finally:
            if saved is not None:
                os.dup2(saved, 1)
                os.close(saved)


def _aimed_at_stderr() -> int | None:
    """Aim file descriptor 1 at stderr and return a copy of the old one; None without either."""
    try:
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()  # what was printed before is no part of it
        saved = os.dup(1)
    except (OSError, ValueError):
        return None
    try:
        os.dup2(2, 1)
    except OSError:
        os.close(saved)
        return None
    return saved


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Seed the draws, hide our own arguments, and put back what code may have changed."""
    arguments, folder = sys.argv, Path.cwd()
    dtype, device, grad = torch.get_default_dtype(), _device(), torch.is_grad_enabled()
    sys.argv = arguments[:1]  # a file that parses arguments would answer ours with an exit
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            yield
    finally:
        sys.argv = arguments
        os.chdir(folder)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if _device() != device:
            torch.set_default_device(None if device == "cpu" else device)


def _device() -> str:
    return str(torch.get_default_device())


@contextlib.contextmanager
def _time_limit(what: str, tell: Tell | None) -> Iterator[None]:
    """Raise `_TimeUp` in the code inside when its time is up."""
    if (
        threading.current_thread() is not threading.main_thread()
        or not hasattr(signal, "setitimer")
        or signal.getitimer(signal.ITIMER_REAL)[0] > 0  # someone else holds the only timer
    ):
        yield
        return
    rang = 0

    def ring(_number: int, _frame: FrameType | None) -> None:
        nonlocal rang
        rang += 1
        if rang > 1:
            raise _TimeUp
        # Afterwards again and again, as the code may swallow the first.
        signal.setitimer(signal.ITIMER_REAL, max(LIMIT_SECONDS - NOTICE_SECONDS, 1e-3), 1.0)
        if tell is not None:
            tell(
                f"{what} has been running for {NOTICE_SECONDS:g} s; it is given up after "
                f"{LIMIT_SECONDS:g} s"
            )

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, NOTICE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if previous is None else previous)
