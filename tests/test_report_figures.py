"""Figures: what they draw, taken from their artists, and what they refuse to mix."""

from collections.abc import Iterator
from pathlib import Path

import helpers_report as helpers
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from helpers_report_geometry import frame_of
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from robust_nc.exceptions import InputError
from robust_nc.report.figures import (
    PLOTS,
    accuracy_against_eps,
    collapse_over_epochs,
    collapse_per_layer,
    landing_fraction,
    leap_layers,
    leap_matrix,
    leap_rate_per_layer,
    panels,
    save_all,
    save_each,
    story,
)
from robust_nc.report.figures.axes import COLOURS
from robust_nc.report.figures.selection import RowFilter, select

# Plots of rows that records had before the geometry in full, and have still.
FIRST = {
    "collapse_per_layer",
    "leap_rate_per_layer",
    "leap_matrix",
    "landing_fraction",
    "leap_layers",
    "collapse_over_epochs",
    "accuracy_against_eps",
}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return frame_of()


@pytest.fixture(scope="module")
def one(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["model"] == "linear-standard"]


@pytest.fixture(scope="module")
def whole() -> pd.DataFrame:
    return frame_of(("standard",), heads=("linear",), geometry=True)


@pytest.fixture(autouse=True)
def no_global_state() -> Iterator[None]:
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def lines(ax: Axes) -> dict[str, list[float]]:
    """Heights of the drawn lines by their colour (legend entries are empty lines)."""
    drawn = [line for line in ax.lines if len(line.get_xdata())]
    return {to_hex(line.get_color()): [float(y) for y in line.get_ydata()] for line in drawn}


def contents(ax: Axes) -> list[object]:
    """Everything that is drawn from data, as plain values."""
    return [
        [(line.get_color(), np.asarray(line.get_xydata()).tolist()) for line in ax.lines],
        [patch.get_bbox().bounds for patch in ax.patches if hasattr(patch, "get_bbox")],
        [
            [path.vertices.tolist() for path in collection.get_paths()]
            + [np.ma.asarray(collection.get_array()).tolist()]
            for collection in ax.collections
        ],
        [text.get_text() for text in ax.texts],
    ]


def mean_of(rows: pd.DataFrame, **where: object) -> list[float]:
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows.groupby("depth")["value"].mean().tolist()


def test_collapse_per_layer_draws_means_over_seeds(one: pd.DataFrame) -> None:
    ax = collapse_per_layer(one)
    drawn = lines(ax)
    for condition in ("clean", "attacked"):
        expected = mean_of(one, measure="nc1", condition=condition, grouping="true")
        assert drawn[COLOURS[condition]] == pytest.approx(expected)
    null = mean_of(one, measure="nc1_leap_null", condition="attacked")
    assert drawn[COLOURS["leap null"]] == pytest.approx(null)
    assert len(drawn) == 4
    assert ax.get_yscale() == "log"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list(helpers.TAPS)
    note = " ".join(ax.texts[0].get_text().split())
    assert "n = 200 train examples" in note
    assert "mean of 2 seeds" in note
    assert len(ax.collections) >= 4  # the bands over seeds


def test_leap_rate_per_layer_draws_attack_and_noise(one: pd.DataFrame) -> None:
    drawn = lines(leap_rate_per_layer(one))
    expected = mean_of(one, measure="leap_rate", condition="attacked")
    assert drawn[COLOURS["attacked"]] == pytest.approx(expected)
    assert set(drawn) == {COLOURS["attacked"], COLOURS["gaussian noise"]}


def test_leap_matrix_rows_are_shares(one: pd.DataFrame) -> None:
    ax = leap_matrix(one)
    chosen = one[(one["measure"] == "leap_matrix") & (one["condition"] == "attacked")]
    counts = chosen.groupby(["i", "j"])["value"].sum().unstack().to_numpy()
    drawn = np.asarray(ax.collections[0].get_array()).reshape(counts.shape)
    np.testing.assert_allclose(drawn, counts / counts.sum(1, keepdims=True))


def test_an_empty_row_of_the_leap_matrix_stays_empty(one: pd.DataFrame) -> None:
    rows = one.copy()
    rows.loc[(rows["measure"] == "leap_matrix") & (rows["i"] == 0), "value"] = 0.0
    drawn = np.ma.asarray(leap_matrix(rows).collections[0].get_array()).reshape(4, 4)
    assert np.ma.getmaskarray(drawn)[0].all()
    assert not np.ma.getmaskarray(drawn)[1:].any()


def test_landing_fraction_draws_shares_of_each_condition(one: pd.DataFrame) -> None:
    ax = landing_fraction(one)
    chosen = one[(one["measure"] == "landing_histogram") & (one["condition"] == "attacked")]
    shares = chosen.groupby("i")["value"].sum() / chosen["value"].sum()
    tops = []
    for collection in ax.collections:
        vertices = np.concatenate([path.vertices for path in collection.get_paths()])
        tops.append(vertices[:, 1].max())
    assert len(tops) == 2
    assert any(top == pytest.approx(shares.max()) for top in tops)


def test_leap_layers_draws_shares_of_all_counted(one: pd.DataFrame) -> None:
    ax = leap_layers(one)
    heights = [patch.get_height() for container in ax.containers for patch in container]
    attacked = one[(one["measure"] == "leap_layer") & (one["condition"] == "attacked")]
    expected = mean_of(attacked[attacked["tap"] != "none"])
    assert heights[:4] == pytest.approx([value / helpers.EXAMPLES for value in expected])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list(helpers.TAPS)


def test_curves_have_one_line_per_model(frame: pd.DataFrame) -> None:
    for draw in (collapse_over_epochs, accuracy_against_eps):
        ax = draw(frame)
        assert len([line for line in ax.lines if len(line.get_xdata())]) == 6
    assert collapse_over_epochs(frame).get_yscale() == "log"


def test_curves_draw_the_values(one: pd.DataFrame) -> None:
    (curve,) = [line for line in accuracy_against_eps(one).lines if len(line.get_xdata())]
    assert list(curve.get_xdata()) == [0.0, 0.05, 0.1, 0.15, 0.2]
    finished = (one["measure"] == "accuracy") & (one["epoch"] == -1)
    accuracy = one[finished & (one["feature"] == "")]
    expected = accuracy.groupby("eps")["value"].mean().tolist()
    assert list(curve.get_ydata()) == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(PLOTS))
def test_a_plot_draws_on_given_axes(name: str, whole: pd.DataFrame) -> None:
    ax = Figure().subplots()
    assert PLOTS[name](whole, ax=ax) is ax
    assert ax.has_data()
    assert "n = " in ax.texts[-1].get_text()
    assert ax.get_title(loc="left")


@pytest.mark.parametrize("name", sorted(FIRST))
def test_rows_of_more_geometry_do_not_disturb_a_plot(
    name: str, one: pd.DataFrame, whole: pd.DataFrame
) -> None:
    before, after = PLOTS[name](one), PLOTS[name](whole)
    assert contents(before) == contents(after)


@pytest.mark.parametrize("name", sorted(PLOTS))
def test_a_plot_without_rows_says_so(name: str, one: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="no rows of"):
        PLOTS[name](one[:0])


def test_missing_values_are_not_drawn_and_their_note_is_told(one: pd.DataFrame) -> None:
    rows = one[one["measure"] == "leap_rate"].assign(value=np.nan, note="too few examples")
    with pytest.raises(InputError, match="too few examples"):
        leap_rate_per_layer(rows)


@pytest.mark.parametrize("draw", [leap_matrix, landing_fraction, leap_layers])
def test_plots_of_one_model_refuse_several(draw: object, frame: pd.DataFrame) -> None:
    assert callable(draw)
    with pytest.raises(InputError, match="choose one of etf-pgd"):
        draw(frame)


def test_what_cannot_be_compared_is_refused(one: pd.DataFrame) -> None:
    mixed = pd.concat([one.assign(dataset="digits"), one.assign(dataset="cifar10", model="b")])
    with pytest.raises(InputError, match="across dataset: cifar10, digits"):
        collapse_per_layer(mixed)
    with pytest.raises(InputError, match="several times"):
        collapse_per_layer(pd.concat([one, one]))


def test_of_several_radii_the_largest_is_drawn(one: pd.DataFrame) -> None:
    wanted = RowFilter("leap_rate", ("attacked",), split="train")
    small = one.assign(eps=one["eps"] / 2, value=0.0)
    chosen = select(pd.concat([one, small]), wanted)
    assert set(chosen["eps"]) == {0.15}
    assert len(chosen) == len(select(one, wanted))


def test_averaged_features_are_drawn_unless_others_are_asked_for(whole: pd.DataFrame) -> None:
    wanted = RowFilter("leap_rate", ("attacked",), split="train")
    assert set(select(whole, wanted)["feature"]) == {"gap"}
    flat = whole[whole["feature"] == "flatten"]
    drawn = lines(leap_rate_per_layer(flat))[COLOURS["attacked"]]
    assert drawn == pytest.approx(mean_of(flat, measure="leap_rate", condition="attacked"))
    # A model without averaged features cannot stand beside one that has them.
    other = flat.assign(model="other")
    with pytest.raises(InputError, match="across feature: flatten, gap"):
        select(pd.concat([whole, other]), wanted)


def test_story_has_two_rows_of_objectives(frame: pd.DataFrame) -> None:
    figure = story(frame)
    axes = figure.axes
    assert len(axes) == 6
    assert [ax.get_title() for ax in axes[:3]] == ["standard", "pgd", "trades"]
    assert axes[0].get_yscale() == "log"
    assert all(ax.has_data() for ax in axes)
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"clean", "attacked", "gaussian noise", "etf", "linear"} <= labels


def test_models_of_one_name_become_panels_of_their_own(one: pd.DataFrame) -> None:
    two = pd.concat([one, one.assign(model="wider")])
    figure = panels(two, collapse_per_layer)
    assert [ax.get_title() for ax in figure.axes] == ["linear-standard", "wider"]


def test_all_figures_are_written(frame: pd.DataFrame, tmp_path: Path) -> None:
    paths = save_all(frame[frame["objective"] == "pgd"], tmp_path / "figures")
    assert [path.stem for path in paths] == ["story", *(name for name in PLOTS if name in FIRST)]
    assert sorted(paths) == sorted((tmp_path / "figures").iterdir())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_figures_without_rows_are_left_out_with_the_reason(
    one: pd.DataFrame, tmp_path: Path
) -> None:
    saved = save_each(one[one["measure"] == "leap_rate"], tmp_path)
    reasons = {figure.name: figure.skipped for figure in saved if figure.path is None}
    assert reasons["leap_matrix"] == reasons["leap_matrices"] == "no rows of leap_matrix"
    assert reasons["leap_rate_against_eps"] == "no rows of leap_rate under sweep"
    assert reasons["nearest_vertex_accuracy"] == "no rows of ncc_adaptive"
    assert {path.stem for path in tmp_path.iterdir()} == {"story", "leap_rate_per_layer"}


def test_data_sets_have_figures_of_their_own(one: pd.DataFrame, tmp_path: Path) -> None:
    rows = one[one["measure"] == "leap_rate"]
    mixed = pd.concat([rows.assign(dataset="a/../b"), rows.assign(dataset="a_b")])
    paths = save_all(mixed, tmp_path)
    assert sorted(tmp_path.rglob("*")) == sorted(paths)
    assert len(set(paths)) == 4


def test_names_are_not_read_as_mathematics(one: pd.DataFrame, tmp_path: Path) -> None:
    rows = one[one["measure"] == "leap_rate"]
    odd = rows.assign(model="$\\frac$", objective="$x$", tap=rows["tap"] + "$_{$")
    assert save_all(odd, tmp_path)
