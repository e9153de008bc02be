"""Measures by the names and conventions of a paper: which row of ours it is, and the factor.

`papers.csv` has one line a measure; `python -m robust_nc.report.board.papers` prints it as the
table of `docs/measures.md`.

>>> [one.ours for one in PAPERS["su2023"][:2]], PAPERS["beaglehole2024"][0].scale(10)
(['nc1_unscaled', 'nc2_norm_w'], 0.1)
"""

import csv
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from robust_nc.exceptions import RecordError, unknown_name
from robust_nc.record.schema import Stored
from robust_nc.report.board.gather import gather_rows, read_results

SOURCES = {
    "su2023": "Su, Zhang, Tsilivis, Kempe, arXiv 2311.07444",
    "liang2023": "Liang, Davis, arXiv 2303.05689",
    "beaglehole2024": "Beaglehole, Sukenik, Mondelli, Belkin, arXiv 2402.13728",
    "nguyen2022": "Nguyen, Levie, Lienen, Kutyniok, Huellermeier, arXiv 2206.05530",
}
_CONDITIONS = {"yes": ("clean", "attacked"), "only": ("attacked",)}


class PaperMeasure(NamedTuple):
    """A measure of a paper: `theirs` is `factor` times the row `ours`.

    An empty `tap` or `grouping` takes any. `attacked` says whether the paper has it clean and
    attacked ("yes"), or attacked only. `factor` is "1", "1/K" or "pi/180".
    """

    theirs: str
    ours: str
    tap: str
    split: str
    grouping: str
    attacked: str
    factor: str
    note: str

    def scale(self, num_classes: int) -> float:
        """Return the factor for data of so many classes."""
        named = {"1": 1.0, "1/K": 1 / num_classes, "pi/180": math.pi / 180}
        return named[self.factor]

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of a frame that hold it, of finished weights and averaged features."""
        chosen = (frame["measure"] == self.ours) & (frame["split"] == self.split)
        chosen &= frame["condition"].isin(_CONDITIONS[self.attacked]) & (frame["epoch"] < 0)
        chosen &= frame["vertices"].isin(("", "same", "none")) & frame["feature"].isin(("", "gap"))
        for column in ("tap", "grouping"):
            if wanted := getattr(self, column):
                chosen &= frame[column] == wanted
        return frame[chosen]


def _read() -> dict[str, list[PaperMeasure]]:
    text = resources.files(__package__).joinpath("papers.csv").read_text("utf-8")
    found: dict[str, list[PaperMeasure]] = {name: [] for name in SOURCES}
    for row in csv.DictReader(text.splitlines()):
        found[row.pop("paper")].append(PaperMeasure(**row))
    return found


PAPERS = _read()


def like_paper(results: str | Path | Sequence[Stored], paper: str) -> pd.DataFrame:
    """Return what a paper would have measured: a row per model and measure, means over seeds.

    `results` is a folder, a file or records; columns `dataset`, `ball`, `model`, `seeds`, `tap`,
    `measure` (the paper's name), `clean`, `attacked` (our attack of the geometry), NaN where there
    is no value. Raises `UnknownNameError` for a paper, `RecordError` where no record holds any.
    """
    if paper not in PAPERS:
        raise unknown_name("paper", paper, tuple(PAPERS))
    records = read_results(results)
    classes = {
        (one.record.suite, one.record.data.dataset): one.record.data.num_classes for one in records
    }
    frame = gather_rows(records)
    parts = []
    for measure in PAPERS[paper]:
        rows = measure.rows(frame)
        factors = [
            measure.scale(classes[place])
            for place in zip(rows["suite"], rows["dataset"], strict=True)
        ]
        parts.append(rows.assign(value=rows["value"] * factors, measure=measure.theirs))
    found = pd.concat(parts)
    if found.empty:
        names = ", ".join(one.ours for one in PAPERS[paper])
        raise RecordError(f"no record has rows that {paper} measured: {names}")
    by = ["dataset", "ball", "model", "tap", "measure"]
    seeds = found.groupby(by, sort=False)["seed"].nunique()
    means = found.pivot_table("value", by, "condition", sort=False)
    for condition in ("clean", "attacked"):
        if condition not in means:
            means[condition] = math.nan
    means = means[["clean", "attacked"]].join(seeds.rename("seeds")).reset_index()
    means = means.sort_values(["dataset", "ball", "model"], kind="stable", ignore_index=True)
    return means[["dataset", "ball", "model", "seeds", "tap", "measure", "clean", "attacked"]]


def papers_table() -> str:
    """Return the table of the documentation."""
    lines = ["| paper | its measure | our row | times | |", "|---|---|---|---|---|"]
    for paper, measures in PAPERS.items():
        for one in measures:
            lines.append(f"| {paper} | {one.theirs} | `{one.ours}` | {one.factor} | {one.note} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(papers_table())
