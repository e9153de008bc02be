"""Figures of the geometry in full: that what is drawn are the values of the rows."""

from collections.abc import Iterator
from pathlib import Path

import helpers_report_geometry as helpers
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from helpers_report_geometry import labels, line, means, note, rows_of
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from robust_nc.exceptions import InputError, UnknownNameError
from robust_nc.report.figures import (
    PLOTS,
    alignment_angles,
    collapse_against_eps,
    leap_matrices,
    leap_matrix,
    leap_rate_against_eps,
    leap_rate_by_target,
    nearest_vertex_accuracy,
    save_all,
    trajectory_in_plane,
    trajectory_on_edge,
)
from robust_nc.report.figures.axes import COLOURS
from robust_nc.report.figures.curves import GROUPINGS
from robust_nc.report.figures.geometry_plots import NETWORK
from robust_nc.report.figures.paths import MOST_PATHS
from robust_nc.report.figures.saving import draw_alone

NEW = [
    nearest_vertex_accuracy,
    trajectory_on_edge,
    trajectory_in_plane,
    leap_rate_by_target,
    leap_rate_against_eps,
    collapse_against_eps,
    alignment_angles,
]


@pytest.fixture(scope="module")
def one() -> pd.DataFrame:
    return helpers.frame_of(("standard",), heads=("linear",), geometry=True)


@pytest.fixture(scope="module")
def two() -> pd.DataFrame:
    return helpers.frame_of(("standard", "pgd"), heads=("linear",), geometry=True)


@pytest.fixture(autouse=True)
def no_global_state() -> Iterator[None]:
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def test_accuracies_of_the_nearest_vertex_are_drawn_beside_the_networks(one: pd.DataFrame) -> None:
    ax = nearest_vertex_accuracy(one)
    for measure, colour in (
        ("ncc_clean", "#0173b2"),
        ("ncc_transferred", "#cc78bc"),
        ("ncc_adaptive", "#d55e00"),
    ):
        expected = means(rows_of(one, measure=measure, attack="standard"), "depth")
        assert line(ax, colour) == pytest.approx(expected)
    (network,) = [drawn for drawn in ax.lines if drawn.get_label() == NETWORK]
    robust = rows_of(one, measure="robust_accuracy", attack="standard")["value"].mean()
    assert list(network.get_ydata()) == [pytest.approx(robust)] * 2
    assert labels(ax) == ["clean", "transferred", "adaptive", NETWORK]
    assert "protocol standard" in note(ax)
    assert "n = 200 test examples" in note(ax)


def test_a_protocol_of_its_own_is_drawn_where_it_is_alone(one: pd.DataFrame) -> None:
    chosen = one[one["attack"] == "pgd"]
    expected = means(rows_of(chosen, measure="ncc_transferred"), "depth")
    assert line(nearest_vertex_accuracy(chosen), "#cc78bc") == pytest.approx(expected)
    renamed = one.assign(attack=one["attack"].replace("standard", "fast"))
    with pytest.raises(InputError, match="choose one attack"):
        nearest_vertex_accuracy(renamed)


def test_without_the_networks_accuracy_there_is_no_line_for_it(one: pd.DataFrame) -> None:
    assert NETWORK not in labels(nearest_vertex_accuracy(one[one["tap"] != "output"]))


def test_a_leap_matrix_is_of_the_tap_that_is_named(one: pd.DataFrame) -> None:
    ax = leap_matrix(one, tap="stage1")
    chosen = rows_of(one, measure="leap_matrix", tap="stage1")
    counts = chosen.groupby(["i", "j"])["value"].sum().unstack().to_numpy()
    drawn = np.asarray(ax.collections[0].get_array()).reshape(counts.shape)
    np.testing.assert_allclose(drawn, counts / counts.sum(1, keepdims=True))
    assert "layer stage1" in note(ax)
    with pytest.raises(UnknownNameError, match="unknown tap 'stage9'; did you mean 'stage"):
        leap_matrix(one, tap="stage9")


def test_cells_without_room_for_a_number_have_a_scale(one: pd.DataFrame) -> None:
    matrix = one[(one["measure"] == "leap_matrix") & (one["feature"] == "gap")]
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
    one: pd.DataFrame, two: pd.DataFrame
) -> None:
    assert [ax.get_title() for ax in leap_matrices(one).axes] == list(helpers.TAPS)
    axes = leap_matrices(two).axes
    assert [ax.get_title() for ax in axes] == [*helpers.TAPS, *[""] * 4]
    assert [ax.get_ylabel().split()[:1] for ax in axes[::4]] == [
        ["linear-pgd"],
        ["linear-standard"],
    ]
    chosen = rows_of(two, measure="leap_matrix", tap="stage2", model="linear-standard")
    counts = chosen.groupby(["i", "j"])["value"].sum().unstack().to_numpy()
    drawn = np.asarray(axes[6].collections[0].get_array()).reshape(counts.shape)
    np.testing.assert_allclose(drawn, counts / counts.sum(1, keepdims=True))
    with pytest.raises(InputError, match="of one layer"):
        leap_matrices(one[one["tap"] == "stage1"])


def test_the_way_along_the_edge_has_a_line_per_layer(one: pd.DataFrame) -> None:
    ax = trajectory_on_edge(one)
    assert labels(ax) == list(helpers.TAPS)
    for tap, drawn in zip(helpers.TAPS, ax.lines, strict=False):
        expected = means(rows_of(one, measure="trajectory_t", tap=tap), "i")
        assert list(drawn.get_ydata()) == pytest.approx(expected)
    (band,) = ax.collections
    heights = np.unique(band.get_paths()[0].vertices[:, 1].round(9))
    for end in ("low", "high"):
        rows = rows_of(one, measure=f"trajectory_t_{end}", tap="penultimate")
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


def test_paths_begin_and_end_where_their_rows_say(one: pd.DataFrame) -> None:
    ax = trajectory_in_plane(one)
    first = one[one["seed"] == 0]
    x, y = (
        rows_of(first, measure=f"trajectory_{axis}").pivot(index="j", columns="i", values="value")
        for axis in "xy"
    )
    edges, pieces = [item for item in ax.collections if isinstance(item, LineCollection)]
    assert len(edges.get_segments()) == helpers.CLASSES * (helpers.CLASSES - 1) / 2
    segments = np.array(pieces.get_segments()).reshape(len(x), -1, 2, 2)
    np.testing.assert_allclose(segments[:, :, 0, 0], x.to_numpy()[:, :-1])
    np.testing.assert_allclose(segments[:, :, 1, 1], y.to_numpy()[:, 1:])
    assert np.asarray(pieces.get_array()).reshape(len(x), -1)[0].tolist() == x.columns[1:].tolist()
    dots = [item.get_offsets() for item in ax.collections if len(item.get_offsets()) == len(x)]
    np.testing.assert_allclose(dots[0], np.stack([x.iloc[:, -1], y.iloc[:, -1]], 1))
    assert ax.get_aspect() == 1.0
    assert f"n = {len(x)} train examples; seed 0 of 2" in note(ax)


def test_vertices_are_marked_by_their_class_where_they_are(one: pd.DataFrame) -> None:
    rows = one[~((one["measure"].isin(["vertex_x", "vertex_y"])) & (one["i"] == 2))]
    marked = {text.get_text(): text.get_position() for text in trajectory_in_plane(rows).texts[:-1]}
    assert set(marked) == {"0", "1", "3"}
    first = rows_of(one, measure="vertex_x", seed=0, tap="penultimate", i=3)["value"].item()
    assert marked["3"][0] == pytest.approx(first)


def test_of_many_paths_the_first_are_drawn(one: pd.DataFrame) -> None:
    paths = one[one["measure"].isin(["trajectory_x", "trajectory_y"])]
    more = pd.concat([one, *(paths.assign(j=paths["j"] + 100 * k) for k in range(1, 6))])
    assert f"n = {MOST_PATHS} train" in note(trajectory_in_plane(more))


def test_bars_by_target_are_the_rates(one: pd.DataFrame) -> None:
    ax = leap_rate_by_target(one)
    names = [tick.get_text() for tick in ax.get_xticklabels()]
    assert names == ["untargeted", "cyclic", "random", "nearest", "farthest"]
    heights = [[patch.get_height() for patch in container] for container in ax.containers]
    for measure, drawn in zip(("leap_rate", "landed"), heights, strict=False):
        deep = rows_of(one, measure=measure, tap="penultimate", split="train")
        expected = [
            deep[deep["condition"] == condition]["value"].mean()
            for condition in ("attacked", "cyclic", "random", "nearest", "farthest")
        ]
        assert drawn == pytest.approx(expected)
    untargeted = one[one["condition"].isin(["clean", "attacked", "gaussian"])]
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


def test_collapse_against_eps_has_both_groupings_and_the_radius(one: pd.DataFrame) -> None:
    ax = collapse_against_eps(one)
    deep = {"measure": "nc1_trace", "condition": "sweep", "tap": "penultimate"}
    for grouping, colour in zip(("true", "landed"), GROUPINGS.values(), strict=True):
        expected = means(rows_of(one, grouping=grouping, **deep), "eps")
        assert line(ax, colour) == pytest.approx(expected)
    assert ax.get_yscale() == "log"
    radius = rows_of(one, measure="collapse_radius", tap="penultimate")["value"].mean()
    assert any(list(drawn.get_xdata()) == [pytest.approx(radius)] * 2 for drawn in ax.lines)
    assert "upright: collapse radius" in note(ax)


def test_an_open_interval_of_the_radius_ends_with_the_sweep(one: pd.DataFrame) -> None:
    opened = one["measure"].eq("collapse_radius_high") & one["seed"].eq(0)
    ax = collapse_against_eps(one.assign(value=one["value"].mask(opened)))
    low = rows_of(one, measure="collapse_radius_low", tap="penultimate")["value"].min()
    (band,) = ax.patches
    assert band.get_extents().transformed(ax.transData.inverted()).x1 == pytest.approx(0.3)
    assert band.get_extents().transformed(ax.transData.inverted()).x0 == pytest.approx(low)


def test_angles_are_drawn_per_class_and_on_average(one: pd.DataFrame) -> None:
    ax = alignment_angles(one)
    for condition, name in (("attacked", "attacked"), ("gaussian", "gaussian noise")):
        rows = rows_of(one, measure="alignment_angle", condition=condition)
        assert line(ax, COLOURS[name]) == pytest.approx(means(rows, "depth"))
    dots = [drawn for drawn in ax.lines if drawn.get_linestyle() == "None" and drawn.get_alpha()]
    for place, (tap, drawn) in enumerate(zip(helpers.TAPS, dots, strict=True)):
        rows = rows_of(one, measure="alignment_angle_class", condition="attacked", tap=tap)
        assert sorted(drawn.get_ydata()) == pytest.approx(sorted(rows["value"]))
        assert set(drawn.get_xdata()) == {place}
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list(helpers.TAPS)
    assert "degrees" in ax.get_ylabel()
    assert ax.get_ylim()[0] <= 0


def test_many_classes_become_boxes(one: pd.DataFrame) -> None:
    each = one[one["measure"] == "alignment_angle_class"]
    more = pd.concat([one, *(each.assign(i=each["i"] + 4 * k) for k in range(1, 6))])
    ax = alignment_angles(more)
    assert "boxes: classes" in note(ax)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list(helpers.TAPS)
    assert line(ax, COLOURS["gaussian noise"]) == pytest.approx(
        means(rows_of(one, measure="alignment_angle", condition="gaussian"), "depth")
    )


@pytest.mark.parametrize("draw", NEW)
def test_seeds_and_features_are_told(draw: object, one: pd.DataFrame) -> None:
    assert callable(draw)
    told = note(draw(one))
    assert "features: gap" in told
    assert "2" in told.replace("200", "")
    assert "one seed" in note(draw(one[one["seed"] == 1]))


@pytest.mark.parametrize(
    "draw", [nearest_vertex_accuracy, trajectory_in_plane, collapse_against_eps, alignment_angles]
)
def test_plots_of_one_model_refuse_several(draw: object, two: pd.DataFrame) -> None:
    assert callable(draw)
    with pytest.raises(InputError, match="choose one of linear-pgd, linear-standard"):
        draw(two)


@pytest.mark.parametrize(
    ("limits", "shown"), [((0.15, 0.65), ["0.2", "0.3", "0.4", "0.6"]), ((1e-4, 1e4), [])]
)
def test_an_axis_of_few_decades_is_labelled_between_them(
    one: pd.DataFrame, limits: tuple[float, float], shown: list[str]
) -> None:
    ax = collapse_against_eps(one)
    ax.set_ylim(*limits)
    ticks = [tick.get_text() for tick in ax.get_yticklabels(minor=True)]
    assert [text for text in ticks if text] == shown


def test_every_figure_is_written(one: pd.DataFrame, tmp_path: Path) -> None:
    names = {path.stem for path in save_all(one, tmp_path)}
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
    figure = draw_alone("leap_rate_against_eps", rows).figure
    (legend,) = figure.legends
    assert legend.get_window_extent().width <= figure.bbox.width
    assert [text.get_text() for text in legend.get_texts()] == sorted(set(rows["objective"]))
