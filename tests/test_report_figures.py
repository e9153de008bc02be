"""Figures: that what is drawn are the values of the rows, and what is refused."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from helpers_report import CLASSES, EXAMPLES, TAPS, frame_of
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from robust_nc.exceptions import InputError, UnknownNameError
from robust_nc.report.figures import (
    PLOTS,
    accuracy_against_eps,
    alignment_angles,
    collapse_against_eps,
    collapse_over_epochs,
    collapse_per_layer,
    landing_fraction,
    leap_layers,
    leap_matrices,
    leap_matrix,
    leap_rate_against_eps,
    leap_rate_by_target,
    leap_rate_per_layer,
    nearest_vertex_accuracy,
    panels,
    save_all,
    save_each,
    story,
    trajectory_in_plane,
    trajectory_on_edge,
)
from robust_nc.report.figures.axes import COLOURS
from robust_nc.report.figures.curves import GROUPINGS, MOST_PATHS
from robust_nc.report.figures.plots import NETWORK
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


@pytest.fixture(scope="module")
def two() -> pd.DataFrame:
    return frame_of(("standard", "pgd"), heads=("linear",), geometry=True)


@pytest.fixture(autouse=True)
def no_global_state() -> Iterator[None]:
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def rows_of(frame: pd.DataFrame, **where: object) -> pd.DataFrame:
    """Rows with these values, of averaged features unless others are asked for."""
    rows = frame if "feature" in where else frame[frame["feature"] != "flatten"]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    assert len(rows)
    return rows


def means(rows: pd.DataFrame, by: str = "depth") -> list[float]:
    return rows.groupby(by)["value"].mean().tolist()


def ticks(ax: Axes) -> list[str]:
    return [tick.get_text() for tick in ax.get_xticklabels()]


def assert_shares(ax: Axes, rows: pd.DataFrame) -> None:
    """A drawn leap matrix has the shares of each class."""
    counts = rows.groupby(["i", "j"])["value"].sum().unstack().to_numpy()
    drawn = np.asarray(ax.collections[0].get_array()).reshape(counts.shape)
    np.testing.assert_allclose(drawn, counts / counts.sum(1, keepdims=True))


def line(ax: Axes, colour: str) -> list[float]:
    """Heights of the one line of a colour that has more than two points."""
    (found,) = [
        drawn
        for drawn in ax.lines
        if len(drawn.get_xdata()) > 2 and drawn.get_linestyle() != "None"
        if to_hex(drawn.get_color()) == colour
    ]
    return [float(y) for y in found.get_ydata()]


def note(ax: Axes) -> str:
    return " ".join(ax.texts[-1].get_text().split())


def labels(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


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


def test_collapse_per_layer_draws_means_over_seeds(one: pd.DataFrame) -> None:
    ax = collapse_per_layer(one)
    drawn = lines(ax)
    for condition in ("clean", "attacked"):
        expected = means(rows_of(one, measure="nc1", condition=condition, grouping="true"))
        assert drawn[COLOURS[condition]] == pytest.approx(expected)
    null = means(rows_of(one, measure="nc1_leap_null", condition="attacked"))
    assert drawn[COLOURS["leap null"]] == pytest.approx(null)
    assert len(drawn) == 4
    assert ax.get_yscale() == "log"
    assert ticks(ax) == list(TAPS)
    assert "n = 200 train examples" in note(ax)
    assert "mean of 2 seeds" in note(ax)
    assert len(ax.collections) >= 4  # the bands over seeds


def test_leap_rate_per_layer_draws_attack_and_noise(one: pd.DataFrame) -> None:
    drawn = lines(leap_rate_per_layer(one))
    expected = means(rows_of(one, measure="leap_rate", condition="attacked"))
    assert drawn[COLOURS["attacked"]] == pytest.approx(expected)
    assert set(drawn) == {COLOURS["attacked"], COLOURS["gaussian noise"]}


def test_leap_matrix_rows_are_shares(one: pd.DataFrame) -> None:
    assert_shares(leap_matrix(one), rows_of(one, measure="leap_matrix", condition="attacked"))


def test_an_empty_row_of_the_leap_matrix_stays_empty(one: pd.DataFrame) -> None:
    rows = one.copy()
    rows.loc[(rows["measure"] == "leap_matrix") & (rows["i"] == 0), "value"] = 0.0
    drawn = np.ma.asarray(leap_matrix(rows).collections[0].get_array()).reshape(4, 4)
    assert np.ma.getmaskarray(drawn)[0].all()
    assert not np.ma.getmaskarray(drawn)[1:].any()


def test_landing_fraction_draws_shares_of_each_condition(one: pd.DataFrame) -> None:
    ax = landing_fraction(one)
    chosen = rows_of(one, measure="landing_histogram", condition="attacked")
    shares = chosen.groupby("i")["value"].sum() / chosen["value"].sum()
    tops = [
        max(path.vertices[:, 1].max() for path in collection.get_paths())
        for collection in ax.collections
    ]
    assert len(tops) == 2
    assert any(top == pytest.approx(shares.max()) for top in tops)


def test_leap_layers_draws_shares_of_all_counted(one: pd.DataFrame) -> None:
    ax = leap_layers(one)
    heights = [patch.get_height() for container in ax.containers for patch in container]
    attacked = rows_of(one, measure="leap_layer", condition="attacked")
    expected = means(attacked[attacked["tap"] != "none"])
    assert heights[:4] == pytest.approx([value / EXAMPLES for value in expected])
    assert ticks(ax) == list(TAPS)


def test_curves_have_one_line_per_model(frame: pd.DataFrame) -> None:
    for draw in (collapse_over_epochs, accuracy_against_eps):
        ax = draw(frame)
        assert len([line for line in ax.lines if len(line.get_xdata())]) == 6
    assert collapse_over_epochs(frame).get_yscale() == "log"


def test_curves_draw_the_values(one: pd.DataFrame) -> None:
    (curve,) = [line for line in accuracy_against_eps(one).lines if len(line.get_xdata())]
    assert list(curve.get_xdata()) == [0.0, 0.05, 0.1, 0.15, 0.2]
    expected = means(rows_of(one, measure="accuracy", epoch=-1, feature=""), "eps")
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


@pytest.mark.parametrize(
    "draw",
    [
        alignment_angles,
        collapse_against_eps,
        landing_fraction,
        leap_layers,
        leap_matrix,
        nearest_vertex_accuracy,
        trajectory_in_plane,
    ],
)
def test_plots_of_one_model_refuse_several(draw: object, two: pd.DataFrame) -> None:
    assert callable(draw)
    with pytest.raises(InputError, match="choose one of linear-pgd, linear-standard"):
        draw(two)


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
    rows = rows_of(whole, feature="flatten", measure="leap_rate", condition="attacked")
    assert drawn == pytest.approx(means(rows))
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


def test_all_figures_are_written(one: pd.DataFrame, tmp_path: Path) -> None:
    paths = save_all(one, tmp_path / "figures")
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


def test_accuracies_of_the_nearest_vertex_are_drawn_beside_the_networks(
    whole: pd.DataFrame,
) -> None:
    ax = nearest_vertex_accuracy(whole)
    colours = {"clean": "#0173b2", "transferred": "#cc78bc", "adaptive": "#d55e00"}
    for name, colour in colours.items():
        measure = f"ncc_{name}"
        expected = means(rows_of(whole, measure=measure, attack="standard"))
        assert line(ax, colour) == pytest.approx(expected)
    (network,) = [drawn for drawn in ax.lines if drawn.get_label() == NETWORK]
    robust = rows_of(whole, measure="robust_accuracy", attack="standard")["value"].mean()
    assert list(network.get_ydata()) == [pytest.approx(robust)] * 2
    assert labels(ax) == ["clean", "transferred", "adaptive", NETWORK]
    assert "protocol standard" in note(ax)
    assert "n = 200 test examples" in note(ax)


def test_a_protocol_of_its_own_is_drawn_where_it_is_alone(whole: pd.DataFrame) -> None:
    chosen = whole[whole["attack"] == "pgd"]
    expected = means(rows_of(chosen, measure="ncc_transferred"))
    assert line(nearest_vertex_accuracy(chosen), "#cc78bc") == pytest.approx(expected)
    renamed = whole.assign(attack=whole["attack"].replace("standard", "fast"))
    with pytest.raises(InputError, match="choose one attack"):
        nearest_vertex_accuracy(renamed)


def test_without_the_networks_accuracy_there_is_no_line_for_it(whole: pd.DataFrame) -> None:
    assert NETWORK not in labels(nearest_vertex_accuracy(whole[whole["tap"] != "output"]))


def test_a_leap_matrix_is_of_the_tap_that_is_named(whole: pd.DataFrame) -> None:
    ax = leap_matrix(whole, tap="stage1")
    assert_shares(ax, rows_of(whole, measure="leap_matrix", tap="stage1"))
    assert "layer stage1" in note(ax)
    with pytest.raises(UnknownNameError, match="unknown tap 'stage9'; did you mean 'stage"):
        leap_matrix(whole, tap="stage9")


def test_cells_without_room_for_a_number_have_a_scale(whole: pd.DataFrame) -> None:
    matrix = whole[(whole["measure"] == "leap_matrix") & (whole["feature"] == "gap")]
    many = pd.concat(
        [matrix.assign(i=matrix["i"] + 4 * k, j=matrix["j"] + 4 * k) for k in range(9)]
    )
    ax = leap_matrix(many)
    assert len(ax.texts) == 1
    assert len(ax.figure.axes) == 2
    ticks = [tick.get_text() for tick in ax.get_yticklabels()]
    assert ticks == [str(i) for i in range(0, 36, 4)]
    alone = leap_matrix(many, bar=False)
    assert len(alone.figure.axes) == 1
    assert "from light (0 %) to dark (100 %)" in note(alone)


def test_leap_matrices_have_a_panel_per_layer_and_a_row_per_model(
    whole: pd.DataFrame, two: pd.DataFrame
) -> None:
    assert [ax.get_title() for ax in leap_matrices(whole).axes] == list(TAPS)
    axes = leap_matrices(two).axes
    assert [ax.get_title() for ax in axes] == [*TAPS, *[""] * 4]
    assert [ax.get_ylabel().split()[:1] for ax in axes[::4]] == [
        ["linear-pgd"],
        ["linear-standard"],
    ]
    model = "linear-standard"
    assert_shares(axes[6], rows_of(two, measure="leap_matrix", tap="stage2", model=model))
    with pytest.raises(InputError, match="of one layer"):
        leap_matrices(whole[whole["tap"] == "stage1"])


def test_the_way_along_the_edge_has_a_line_per_layer(whole: pd.DataFrame) -> None:
    ax = trajectory_on_edge(whole)
    assert labels(ax) == list(TAPS)
    for tap, drawn in zip(TAPS, ax.lines, strict=False):
        expected = means(rows_of(whole, measure="trajectory_t", tap=tap), "i")
        assert list(drawn.get_ydata()) == pytest.approx(expected)
    (band,) = ax.collections
    heights = np.unique(band.get_paths()[0].vertices[:, 1].round(9))
    for end in ("low", "high"):
        rows = rows_of(whole, measure=f"trajectory_t_{end}", tap="penultimate")
        assert np.isin(np.round(means(rows, "i"), 9), heights).all()
    assert "band (penultimate): middle half" in note(ax)


def test_few_lines_keep_their_bands_and_models_have_one_each(two: pd.DataFrame) -> None:
    ax = trajectory_on_edge(two)
    assert labels(ax) == ["linear-pgd", "linear-standard"]
    for name, drawn, band in zip(labels(ax), ax.lines, ax.collections, strict=False):
        rows = rows_of(two, tap="penultimate", model=name, measure="trajectory_t")
        assert list(drawn.get_ydata()) == pytest.approx(means(rows, "i"))
        top = rows_of(two, tap="penultimate", model=name, measure="trajectory_t_high")
        assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(means(top, "i")[-1])
    assert len(ax.collections) == 2
    no_quartiles = two[~two["measure"].isin(["trajectory_t_low", "trajectory_t_high"])]
    assert not trajectory_on_edge(no_quartiles).collections


def test_paths_begin_and_end_where_their_rows_say(whole: pd.DataFrame) -> None:
    ax = trajectory_in_plane(whole)
    first = whole[whole["seed"] == 0]
    x, y = (
        rows_of(first, measure=f"trajectory_{axis}").pivot(index="j", columns="i", values="value")
        for axis in "xy"
    )
    edges, pieces = [item for item in ax.collections if isinstance(item, LineCollection)]
    assert len(edges.get_segments()) == CLASSES * (CLASSES - 1) / 2
    segments = np.array(pieces.get_segments()).reshape(len(x), -1, 2, 2)
    np.testing.assert_allclose(segments[:, :, 0, 0], x.to_numpy()[:, :-1])
    np.testing.assert_allclose(segments[:, :, 1, 1], y.to_numpy()[:, 1:])
    assert np.asarray(pieces.get_array()).reshape(len(x), -1)[0].tolist() == x.columns[1:].tolist()
    dots = [item.get_offsets() for item in ax.collections if len(item.get_offsets()) == len(x)]
    np.testing.assert_allclose(dots[0], np.stack([x.iloc[:, -1], y.iloc[:, -1]], 1))
    assert ax.get_aspect() == 1.0
    assert f"n = {len(x)} train examples; seed 0 of 2" in note(ax)


def test_vertices_are_marked_by_their_class_where_they_are(whole: pd.DataFrame) -> None:
    rows = whole[~((whole["measure"].isin(["vertex_x", "vertex_y"])) & (whole["i"] == 2))]
    marked = {text.get_text(): text.get_position() for text in trajectory_in_plane(rows).texts[:-1]}
    assert set(marked) == {"0", "1", "3"}
    first = rows_of(whole, measure="vertex_x", seed=0, tap="penultimate", i=3)["value"].item()
    assert marked["3"][0] == pytest.approx(first)


def test_of_many_paths_the_first_are_drawn(whole: pd.DataFrame) -> None:
    paths = whole[whole["measure"].isin(["trajectory_x", "trajectory_y"])]
    more = pd.concat([whole, *(paths.assign(j=paths["j"] + 100 * k) for k in range(1, 6))])
    assert f"n = {MOST_PATHS} train" in note(trajectory_in_plane(more))


def test_bars_by_target_are_the_rates(whole: pd.DataFrame) -> None:
    ax = leap_rate_by_target(whole)
    names = ticks(ax)
    assert names == ["untargeted", "cyclic", "random", "nearest", "farthest"]
    heights = [[patch.get_height() for patch in container] for container in ax.containers]
    for measure, drawn in zip(("leap_rate", "landed"), heights, strict=False):
        deep = rows_of(whole, measure=measure, tap="penultimate", split="train")
        expected = [
            deep[deep["condition"] == condition]["value"].mean()
            for condition in ("attacked", "cyclic", "random", "nearest", "farthest")
        ]
        assert drawn == pytest.approx(expected)
    untargeted = whole[whole["condition"].isin(["clean", "attacked", "gaussian"])]
    with pytest.raises(InputError, match="under a targeted attack"):
        leap_rate_by_target(untargeted)


def test_the_leap_rate_against_eps_marks_the_collapse_radius(two: pd.DataFrame) -> None:
    ax = leap_rate_against_eps(two)
    marks = [container for container in ax.containers if container.has_xerr]
    assert len(marks) == 2
    for model, colour in (("linear-standard", "#0173b2"), ("linear-pgd", "#de8f05")):
        deep = {"model": model, "tap": "penultimate", "condition": "sweep"}
        expected = means(rows_of(two, measure="leap_rate", **deep), "eps")
        assert line(ax, colour) == pytest.approx(expected)
        (mark,) = [item for item in marks if to_hex(item.lines[0].get_color()) == colour]
        radius = rows_of(two, measure="collapse_radius", **deep)["value"].mean()
        assert mark.lines[0].get_xydata().tolist() == [pytest.approx([radius, 0.1])]
        ends = mark.lines[2][0].get_segments()[0][:, 0]
        low = rows_of(two, measure="collapse_radius_low", **deep)["value"].min()
        high = rows_of(two, measure="collapse_radius_high", **deep)["value"].max()
        assert ends.tolist() == pytest.approx([low, high])
    assert any(set(drawn.get_ydata()) == {0.1} for drawn in ax.lines)
    assert ax.get_xlabel() == "eps, Linf radius in pixels of [0, 1]"
    assert "collapse radius" in note(ax)


def test_a_radius_that_a_seed_never_reaches_is_not_marked(two: pd.DataFrame) -> None:
    robust = (two["model"] == "linear-pgd") & (two["seed"] == 1)
    never = two["measure"].eq("collapse_radius") & robust
    ax = leap_rate_against_eps(two.assign(value=two["value"].mask(never)))
    assert len([container for container in ax.containers if container.has_xerr]) == 1
    none = two[~two["measure"].str.startswith("collapse_radius")]
    assert "collapse radius" not in note(leap_rate_against_eps(none))


def test_collapse_against_eps_has_both_groupings_and_the_radius(whole: pd.DataFrame) -> None:
    ax = collapse_against_eps(whole)
    deep = {"measure": "nc1_trace", "condition": "sweep", "tap": "penultimate"}
    for grouping, colour in zip(("true", "landed"), GROUPINGS.values(), strict=True):
        expected = means(rows_of(whole, grouping=grouping, **deep), "eps")
        assert line(ax, colour) == pytest.approx(expected)
    assert ax.get_yscale() == "log"
    radius = rows_of(whole, measure="collapse_radius", tap="penultimate")["value"].mean()
    assert any(list(drawn.get_xdata()) == [pytest.approx(radius)] * 2 for drawn in ax.lines)
    assert "upright: collapse radius" in note(ax)


def test_an_open_interval_of_the_radius_ends_with_the_sweep(whole: pd.DataFrame) -> None:
    opened = whole["measure"].eq("collapse_radius_high") & whole["seed"].eq(0)
    ax = collapse_against_eps(whole.assign(value=whole["value"].mask(opened)))
    low = rows_of(whole, measure="collapse_radius_low", tap="penultimate")["value"].min()
    (band,) = ax.patches
    assert band.get_extents().transformed(ax.transData.inverted()).x1 == pytest.approx(0.3)
    assert band.get_extents().transformed(ax.transData.inverted()).x0 == pytest.approx(low)


def test_angles_are_drawn_per_class_and_on_average(whole: pd.DataFrame) -> None:
    ax = alignment_angles(whole)
    for condition, name in (("attacked", "attacked"), ("gaussian", "gaussian noise")):
        rows = rows_of(whole, measure="alignment_angle", condition=condition)
        assert line(ax, COLOURS[name]) == pytest.approx(means(rows))
    dots = [drawn for drawn in ax.lines if drawn.get_linestyle() == "None" and drawn.get_alpha()]
    for place, (tap, drawn) in enumerate(zip(TAPS, dots, strict=True)):
        rows = rows_of(whole, measure="alignment_angle_class", condition="attacked", tap=tap)
        assert sorted(drawn.get_ydata()) == pytest.approx(sorted(rows["value"]))
        assert set(drawn.get_xdata()) == {place}
    assert ticks(ax) == list(TAPS)
    assert "degrees" in ax.get_ylabel()
    assert ax.get_ylim()[0] <= 0


def test_many_classes_become_boxes(whole: pd.DataFrame) -> None:
    each = whole[whole["measure"] == "alignment_angle_class"]
    more = pd.concat([whole, *(each.assign(i=each["i"] + 4 * k) for k in range(1, 6))])
    ax = alignment_angles(more)
    assert "boxes: classes" in note(ax)
    assert ticks(ax) == list(TAPS)
    assert line(ax, COLOURS["gaussian noise"]) == pytest.approx(
        means(rows_of(whole, measure="alignment_angle", condition="gaussian"))
    )


@pytest.mark.parametrize("name", sorted(PLOTS.keys() - FIRST))
def test_seeds_and_features_are_told(name: str, whole: pd.DataFrame) -> None:
    told = note(PLOTS[name](whole))
    assert "features: gap" in told
    assert "2" in told.replace("200", "")
    assert "one seed" in note(PLOTS[name](whole[whole["seed"] == 1]))


@pytest.mark.parametrize(
    ("limits", "shown"), [((0.15, 0.65), ["0.2", "0.3", "0.4", "0.6"]), ((1e-4, 1e4), [])]
)
def test_an_axis_of_few_decades_is_labelled_between_them(
    whole: pd.DataFrame, limits: tuple[float, float], shown: list[str]
) -> None:
    ax = collapse_against_eps(whole)
    ax.set_ylim(*limits)
    ticks = [tick.get_text() for tick in ax.get_yticklabels(minor=True)]
    assert [text for text in ticks if text] == shown


def test_every_figure_is_written(whole: pd.DataFrame, tmp_path: Path) -> None:
    names = {path.stem for path in save_all(whole, tmp_path)}
    assert names == {"story", "leap_matrices", *PLOTS}


def test_models_stand_side_by_side(two: pd.DataFrame, tmp_path: Path) -> None:
    kept = two["measure"].str.contains("trajectory|vertex|ncc|alignment|collapse_radius|nc1_trace")
    names = {path.stem for path in save_all(two[kept & two["epoch"].eq(-1)], tmp_path)}
    assert names == {
        "nearest_vertex_accuracy",
        "trajectory_on_edge",
        "trajectory_in_plane",
        "collapse_against_eps",
        "alignment_angles",
    }


def test_a_legend_of_long_names_stays_within_the_figure(two: pd.DataFrame, tmp_path: Path) -> None:
    long = two.assign(objective=two["objective"] + ", a name longer than a third of a column")
    rows = long[long["condition"] == "sweep"]
    figure = panels(rows, leap_rate_against_eps)
    (legend,) = figure.legends
    assert legend.get_window_extent().width <= figure.bbox.width
    assert [text.get_text() for text in legend.get_texts()] == sorted(set(rows["objective"]))
