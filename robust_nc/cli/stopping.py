"""How long commands end before their end: Ctrl-C at once, SIGTERM at the next safe point.

Ctrl-C is for somebody who waits: what came after the last save is lost. SIGTERM is what a scheduler
sends before it kills: the state is saved first.

>>> heeding(lambda: 0, "robust-nc run quickstart", print)
0
"""

import shlex
import sys
from collections.abc import Callable

from robust_nc.engines.options import under_torchrun
from robust_nc.exceptions import StoppedError
from robust_nc.runtime import stopping

INTERRUPTED, TERMINATED = 130, 143


def typed(*, without: str | None = None) -> str:
    """Return what was typed on the command line, to be typed again, `without` an option."""
    words, kept = iter(sys.argv[1:]), []
    for word in words:
        if word == without:
            next(words, None)  # its value
        elif without is None or not word.startswith(f"{without}="):
            kept.append(word)
    program = "torchrun ... -m robust_nc" if under_torchrun() else "robust-nc"
    return f"{program} {shlex.join(kept)}"


def heeding(
    command: Callable[[], int],
    again: str,
    say: Callable[[str], None],
    *,
    seconds: float | None = None,
) -> int:
    """Call `command`, which heeds `stopping`, and return its exit code or that of its ending.

    `again` is what to type to go on, as `say` tells; after `seconds` it is asked to stop as by
    SIGTERM.
    """
    with stopping.on_sigterm(seconds=seconds):
        try:
            return command()
        except StoppedError as error:
            say(f"{error}: {again}")
            return TERMINATED
        except KeyboardInterrupt:
            say(f"interrupted; nothing finished is lost. Go on with: {again}")
            return TERMINATED if stopping.wished() else INTERRUPTED
