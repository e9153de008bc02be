"""A real Chromium for tests of pages, and pages of many rows."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from robust_nc.report.site.pages import Pages
from robust_nc.report.site.tables import with_pages
from robust_nc.report.site.write import write_index

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE, NARROW = 1200, 420


class Opened(NamedTuple):
    """A page, and what it did that it should not have: errors, dialogs, requests that left."""

    page: Any
    faults: list[str]

    def go(self, path: Path, fragment: str = "") -> Any:
        self.page.goto(f"{path.as_uri()}{fragment}")
        return self.page


@contextmanager
def chromium() -> Iterator[Any]:
    """Start Debian's Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=ARGUMENTS
        )
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, *, width: int = WIDE, dark: bool = False) -> Iterator[Opened]:
    """Open an empty page that writes down its faults."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
    )
    page, faults = context.new_page(), []

    def answer(dialog: Any) -> None:
        faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def told(message: Any) -> None:
        if message.type in {"error", "warning"}:
            faults.append(f"console: {message.text}")

    def requested(request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "http://127.0.0.1")):
            faults.append(f"request: {request.url}")

    page.on("dialog", answer)
    page.on("console", told)
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on("request", requested)
    yield Opened(page, faults)
    context.close()


def many_rows(count: int) -> pd.DataFrame:
    """A leaderboard of one table, with every column filled in."""
    heads, objectives = ("linear", "etf", "nearest_etf", "haframe"), ("standard", "pgd", "trades")
    rows = []
    for i in range(count):
        robust = 0.7 - 0.0005 * i
        rows.append(
            {
                "rank": float(1 + i // 5) if i % 7 else float("nan"),
                "unranked": "" if i % 7 else "random output",
                "model": f"resnet18-{heads[i % 4]}-{objectives[i % 3]}-{i:04d}",
                "backbone": "resnet18(width=64)",
                "head": heads[i % 4],
                "objective": objectives[i % 3],
                "suite": "many",
                "dataset": "cifar10",
                "ball": "Linf 8/255",
                "norm": "Linf",
                "eps": 8 / 255,
                "protocol": "standard",
                "seeds": 3,
                "examples": 10_000,
                "clean": robust + 0.3,
                "clean_low": robust + 0.29,
                "clean_high": robust + 0.31,
                "robust": robust,
                "robust_low": robust - 0.01,
                "robust_high": robust + 0.01,
                "interval": "t95",
                "beside": "fast",
                "robust_beside": robust + 0.01,
                "gap": 0.01,
                "robust_last": robust - 0.04,
                "leap_rate": 0.3 + 0.0003 * i,
                "landed": 0.5,
                "nc1_clean": 0.01 * (1 + (i * 37) % 100),
                "nc1_attacked": 1 + 0.01 * i,
                "nc1_leap_null": 2.5,
                "nc1_landed": 0.4,
                "nc1_landed_null": 1.2,
                "nc2_angle_clean": 0.08,
                "collapse_radius": 0.01 + 0.00001 * i,
                "leap_layer": float(i % 5),
                "parameters": 11_173_962,
                "passes_per_example": 4900.0,
                "warnings": "",
                "badge": ("", "schema ok", "upper bound proven", "audited 300")[i % 4],
                "challenged": 0,
                "images": "f" * 64,
                "recipe": f"{i:064x}",
            }
        )
    return pd.DataFrame(rows)


def write_many(out: Path, count: int = 1000) -> Path:
    """Write the page of a board of so many rows, without pages of its models."""
    return write_index(Pages(out, "many models"), with_pages(many_rows(count)))
