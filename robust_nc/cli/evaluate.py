"""`robust-nc evaluate`: someone's model, judged, with the verdict on stdout.

>>> Asked(model="net.py:make", dataset="digits", norm="Linf", eps="8/255").protocol
'standard'
"""

import contextlib
import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from robust_nc.cli.progress_bars import Screen
from robust_nc.cli.stopping import heeding
from robust_nc.cli.verdict_text import verdict_text
from robust_nc.pipeline.appraise import Event, Request, appraise
from robust_nc.pipeline.card import read_card
from robust_nc.record.schema import Stored
from robust_nc.threat import Ball, parse_eps


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was typed, as `robust_nc.cli.evaluate` says."""

    model: str
    dataset: str
    norm: str
    eps: str
    protocol: str = "standard"
    n: int | None = None
    out: Path | None = None
    taps: tuple[str, ...] | None = None
    geometry: bool = True
    attack: str | None = None
    card: Path | None = None
    seed: int = 0
    batch_size: int | None = None
    root: Path | None = None


def evaluate_command(asked: Asked, stderr: Console) -> int:
    """Judge a model, show the verdict, and return the exit code."""
    say = partial(stderr.print, markup=False, highlight=False, soft_wrap=True)
    request = _request(asked)

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
        print(verdict_text(found.stored, page=page, root=asked.root))
        return 0

    return heeding(judge, _command(asked), say)


def _request(asked: Asked) -> Request:
    return Request(
        model=asked.model,
        dataset=asked.dataset,
        ball=Ball(asked.norm, parse_eps(asked.eps)),
        protocol=asked.protocol,
        n=asked.n,
        out=asked.out,
        taps=asked.taps,
        geometry=asked.geometry,
        attack=asked.attack,
        card=None if asked.card is None else read_card(asked.card),
        seed=asked.seed,
        batch_size=asked.batch_size,
        root=asked.root,
    )


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


def _command(asked: Asked) -> str:
    """Say what to type to go on."""
    words = ["robust-nc", "evaluate", asked.model, "--dataset", asked.dataset]
    words += ["--norm", asked.norm, "--eps", asked.eps, "--protocol", asked.protocol]
    options = {
        "--n": asked.n,
        "--out": asked.out,
        "--attack": asked.attack,
        "--card": asked.card,
        "--seed": asked.seed or None,
        "--batch-size": asked.batch_size,
        "--root": asked.root,
    }
    words += [str(part) for pair in options.items() if pair[1] is not None for part in pair]
    words += [] if asked.taps is None else ["--taps", *asked.taps]
    return shlex.join(words if asked.geometry else [*words, "--no-geometry"])
