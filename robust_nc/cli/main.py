"""The command line: `robust-nc evaluate | verify | run | board | ...`.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 some cells failed or
are missing or the output cannot be written, 2 bad input, 130 interrupted, 143 ended by SIGTERM or
after --minutes.
"""

import contextlib
import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from types import FrameType
from typing import Any, NamedTuple

import tyro
from rich.console import Console

from robust_nc.cli.board import BoardOptions
from robust_nc.cli.names import look_up
from robust_nc.cli.options import (
    ChallengeOptions,
    CompareOptions,
    DataOptions,
    DoctorOptions,
    SubmitOptions,
    SuitesOptions,
)
from robust_nc.cli.stopping import INTERRUPTED, TERMINATED
from robust_nc.engines.options import RunOptions
from robust_nc.exceptions import RobustNCError, unknown_name
from robust_nc.pipeline.request import Request
from robust_nc.runtime.waiting import wait_briefly
from robust_nc.verification.options import CheckOptions

FAILED, BAD_INPUT = 1, 2
_COMPLETION, _SHELLS = ("--completion", "--tyro-print-completion"), ("bash", "zsh")

# A reference such as net.py:three is no emoji.
_stderr = Console(stderr=True, highlight=False, emoji=False)


class _Verb(NamedTuple):
    """What a verb may be asked, and two examples of it."""

    kind: Callable[..., Any]
    first: str
    second: str


# `robust_nc.cli.<verb>` answers it, and is imported only then.
_VERBS = {
    "evaluate": _Verb(
        Request,
        "evaluate net.py:make --dataset cifar10 --eps 8/255 --n 1000",
        "evaluate checkpoints/mine --dataset images/ --norm L2 --eps 0.5",
    ),
    "verify": _Verb(
        CheckOptions,
        "verify results/evaluated",
        "verify out/mine --model net.py:make --reproduce",
    ),
    "challenge": _Verb(
        ChallengeOptions,
        "challenge RECORD --evidence points.npz --model net.py:make",
        "challenge RECORD --evidence mine.evidence --model net.py:make --out apart",
    ),
    "compare": _Verb(
        CompareOptions,
        "compare first.json second.json",
        "compare out/quickstart/small_cnn-etf-pgd out/quickstart/small_cnn-linear-pgd",
    ),
    "submit": _Verb(SubmitOptions, "submit RECORD --to results", "submit RECORD --hub OWNER/NAME"),
    "run": _Verb(
        RunOptions,
        "run quickstart --set train.epochs=5 --set model.backbone.width=32",
        "run cifar10-linf --plan --price 2.5",
    ),
    "suites": _Verb(SuitesOptions, "suites list", "suites show quickstart > mine.toml"),
    "board": _Verb(
        BoardOptions,
        "board results --format html --out site",
        "board results --figures story leap_matrix --out paper",
    ),
    "data": _Verb(DataOptions, "data list", "data fetch cifar10"),
    "doctor": _Verb(DoctorOptions, "doctor", "doctor > environment.txt"),
}


def main() -> None:
    """Entry point: errors that a user can cause become one sentence and an exit code."""
    given = sys.argv[1:]
    if given in ([], ["-h"], ["--help"], ["--version"]):
        print(f"robust-nc {version('robust_nc')}" if given == ["--version"] else _overview())
        sys.exit(0)
    signal.signal(signal.SIGTERM, _interrupt)
    wait_briefly()  # no verb has loaded torch yet
    try:
        kinds = {name: verb.kind for name, verb in _VERBS.items()}
        if given[0] in _COMPLETION:
            print(_completion(kinds, given[1] if len(given) > 1 else ""))
            sys.exit(0)
        options = _read(kinds, given[0])
        look_up(options)
        (verb,) = (name for name, kind in kinds.items() if kind is type(options))
        command = getattr(importlib.import_module(f"robust_nc.cli.{verb}"), f"{verb}_command")
        code = command(options, _stderr)
        sys.stdout.flush()
    except RobustNCError as error:
        code = _say(str(error), BAD_INPUT)
    except KeyboardInterrupt as error:
        code = _say("interrupted", TERMINATED if error.args == (signal.SIGTERM,) else INTERRUPTED)
    except BrokenPipeError:  # who reads the output has seen enough, as in `robust-nc board | head`
        code = _give_up_output()
    except OSError as error:
        code = _say(f"cannot go on: {error}", _give_up_output())
    sys.exit(code)


def _read(kinds: dict[str, Callable[..., Any]], verb: str) -> Any:
    """Read what was asked; --help ends with examples."""
    try:
        return tyro.extras.subcommand_cli_from_dict(kinds, prog="robust-nc")
    except SystemExit as end:
        if not end.code and verb in _VERBS:
            print(f"examples:\n  robust-nc {_VERBS[verb].first}\n  robust-nc {_VERBS[verb].second}")
        raise


def _completion(kinds: dict[str, Callable[..., Any]], shell: str) -> str:
    """Return the script that completes verbs and options in a shell."""
    if shell not in _SHELLS:
        raise unknown_name("shell", shell, _SHELLS)
    with contextlib.redirect_stdout(io.StringIO()) as script, contextlib.suppress(SystemExit):
        args = ["--tyro-print-completion", shell]
        tyro.extras.subcommand_cli_from_dict(kinds, prog="robust-nc", args=args)
    # Each line that the script prints is a completion: what an option means must have one.
    return re.sub(
        r"^COMPLETION_SPEC = .*$",
        lambda found: found[0].replace(r"\n", " "),
        script.getvalue(),
        flags=re.MULTILINE,
    )


def _overview() -> str:
    """Tell each verb in a sentence, with an example."""
    lines = [
        "usage: robust-nc VERB [OPTIONS]; robust-nc VERB --help tells the options",
        "       robust-nc --completion bash|zsh prints the script that completes them",
    ]
    for name, verb in _VERBS.items():
        told = (verb.kind.__doc__ or "").partition("\n")[0]
        lines += ["", f"{name:<10} {told}", f"{'':<10} $ robust-nc {verb.first}"]
    return "\n".join(lines)


def _say(sentence: str, code: int) -> int:
    _stderr.print(f"robust-nc: {sentence}", style="red", markup=False, soft_wrap=True)
    return code


def _give_up_output() -> int:
    """Send what stdout does not take nowhere, or the interpreter tries again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)
