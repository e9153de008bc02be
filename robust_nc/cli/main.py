"""The command line: `robust-nc evaluate | verify | run | board | ...`.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 some cells failed or
are missing or the output cannot be written, 2 bad input, 130 interrupted, 143 ended by SIGTERM or
after --minutes.
"""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import tyro
from rich.console import Console

from robust_nc.cli.board import BoardOptions
from robust_nc.cli.options import (
    ChallengeOptions,
    CompareOptions,
    DataOptions,
    DoctorOptions,
    SubmitOptions,
)
from robust_nc.cli.stopping import INTERRUPTED, TERMINATED
from robust_nc.engines.options import RunOptions
from robust_nc.exceptions import RobustNCError
from robust_nc.pipeline.request import Request
from robust_nc.runtime.waiting import wait_briefly
from robust_nc.verification.options import CheckOptions

FAILED, BAD_INPUT = 1, 2

# A reference such as net.py:three is no emoji.
_stderr = Console(stderr=True, highlight=False, emoji=False)


# By verb: what it may be asked. `robust_nc.cli.<verb>` answers it, and is imported only then.
_VERBS: dict[str, Callable[..., Any]] = {
    "evaluate": Request,
    "verify": CheckOptions,
    "challenge": ChallengeOptions,
    "compare": CompareOptions,
    "submit": SubmitOptions,
    "run": RunOptions,
    "board": BoardOptions,
    "data": DataOptions,
    "doctor": DoctorOptions,
}


def main() -> None:
    """Entry point: errors that a user can cause become one sentence and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    wait_briefly()  # no verb has loaded torch yet
    try:
        options = tyro.extras.subcommand_cli_from_dict(_VERBS, prog="robust-nc")
        (verb,) = (name for name, kind in _VERBS.items() if kind is type(options))
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
