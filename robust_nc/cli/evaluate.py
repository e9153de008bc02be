"""`robust-nc evaluate`: someone's model, judged, with the verdict on stdout."""

import contextlib
import shlex
import sys
from functools import partial
from pathlib import Path

from rich.console import Console

from robust_nc.cli.stopping import heeding, typed
from robust_nc.cli.verdict_text import verdict_text
from robust_nc.pipeline.appraise import appraise
from robust_nc.pipeline.request import Request
from robust_nc.record.schema import Stored
from robust_nc.runtime.progress import Event
from robust_nc.runtime.screen import Screen


def evaluate_command(request: Request, stderr: Console) -> int:
    """Judge a model, show the verdict, and return the exit code."""
    say = partial(stderr.print, markup=False, highlight=False, soft_wrap=True)

    def judge() -> int:
        # The code of a model may print; stdout is for the verdict.
        with contextlib.redirect_stdout(sys.stderr), Screen(stderr) as screen:
            found = appraise(request, tell=screen.line, report=screen.event)
            if not found.made:
                screen.line(
                    f"{found.stored.path} is there already and is shown as it is; to judge the "
                    "model anew, choose another --out"
                )
            page = _page(found.stored, screen)
        print(verdict_text(found.stored, page=page, root=request.root))
        return 0

    return heeding(judge, typed(), say)


def _page(stored: Stored, screen: "Screen") -> Path | None:
    """Write the report page, where what draws it is installed."""
    try:
        from robust_nc.report.site.write import write_site
    except ImportError as error:
        screen.line(
            f"no page: {error.name} is not installed; pip install 'robust_nc[report]', then "
            f"robust-nc board {shlex.quote(str(stored.path.parent))} --format html"
        )
        return None
    screen.event(Event("page", 0.0, "draw the report"))
    return write_site([stored], stored.path.parent)
