"""Figures: that what is drawn are the values of the rows, and what is refused."""

import io
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
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image
from scipy import ndimage, signal

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
from robust_nc.report.figures.axes import COLOURS, DrawnFigure, Width
from robust_nc.report.figures.curves import GROUPINGS
from robust_nc.report.figures.plots import NETWORK
from robust_nc.statistics.intervals import mean_interval


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
    (found,) = lines_of(ax, colour)
    return found


def lines_of(ax: Axes, colour: str) -> list[list[float]]:
    """Heights of all lines of a colour that have more than two points."""
    drawn = [one for one in ax.lines if len(one.get_xdata()) > 2 and one.get_linestyle() != "None"]
    return [list(map(float, one.get_ydata())) for one in drawn if to_hex(one.get_color()) == colour]


def note(ax: Axes) -> str:
    return " ".join(ax.texts[-1].get_text().split())


def labels(ax: Axes) -> list[str]:
    (legend,) = ax.figure.legends
    return [text.get_text() for text in legend.get_texts()]


def lines(ax: Axes) -> dict[str, list[float]]:
    """Heights of the drawn lines by their colour (legend entries are empty lines)."""
    drawn = [line for line in ax.lines if len(line.get_xdata())]
    return {to_hex(line.get_color()): [float(y) for y in line.get_ydata()] for line in drawn}


def test_collapse_per_layer_draws_means_over_seeds(whole: pd.DataFrame) -> None:
    ax = collapse_per_layer(whole)
    drawn = lines(ax)
    for condition in ("clean", "attacked"):
        expected = means(rows_of(whole, measure="nc1", condition=condition, grouping="true"))
        assert drawn[COLOURS[condition]] == pytest.approx(expected)
    null = means(rows_of(whole, measure="nc1_leap_null", condition="attacked"))
    assert drawn[COLOURS["leap null"]] == pytest.approx(null)
    assert len(drawn) == 4
    assert ax.get_yscale() == "log"
    assert ticks(ax) == list(TAPS)
    assert "n = 200 train examples" in note(ax)
    assert "mean of 2 seeds" in note(ax)
    assert len(ax.collections) >= 4  # the bands over seeds


def test_landing_fraction_draws_shares_of_each_condition(whole: pd.DataFrame) -> None:
    ax = landing_fraction(whole)
    chosen = rows_of(whole, measure="landing_histogram", condition="attacked")
    shares = chosen.groupby("i")["value"].sum() / chosen["value"].sum()
    tops = [
        max(path.vertices[:, 1].max() for path in collection.get_paths())
        for collection in ax.collections
    ]
    assert len(tops) == 2
    assert any(top == pytest.approx(shares.max()) for top in tops)


def test_leap_layers_draws_shares_of_all_counted(whole: pd.DataFrame) -> None:
    ax = leap_layers(whole)
    heights = [patch.get_height() for container in ax.containers for patch in container]
    attacked = rows_of(whole, measure="leap_layer", condition="attacked")
    expected = means(attacked[attacked["tap"] != "none"])
    assert heights[:4] == pytest.approx([value / EXAMPLES for value in expected])
    assert ticks(ax) == list(TAPS)


def test_curves_have_one_line_per_model(whole: pd.DataFrame) -> None:
    for draw in (collapse_over_epochs, accuracy_against_eps):
        ax = draw(frame_of())
        assert len([line for line in ax.lines if len(line.get_xdata())]) == 6
    (curve,) = [line for line in accuracy_against_eps(whole).lines if len(line.get_xdata())]
    assert list(curve.get_xdata()) == [0.0, 0.05, 0.1, 0.15, 0.2]
    at = {"measure": "accuracy", "condition": "attacked", "epoch": -1, "feature": ""}
    assert list(curve.get_ydata()) == pytest.approx(means(rows_of(whole, **at), "eps"))


@pytest.mark.parametrize("name", sorted(PLOTS))
def test_a_plot_draws_on_given_axes(name: str, whole: pd.DataFrame) -> None:
    ax = Figure().subplots()
    assert PLOTS[name](whole, ax=ax) is ax
    assert ax.has_data()
    assert "n = " in ax.texts[-1].get_text()
    assert ax.get_title(loc="left")


def test_a_plot_without_rows_or_values_says_so(whole: pd.DataFrame) -> None:
    for draw in PLOTS.values():
        with pytest.raises(InputError, match="no rows of"):
            draw(whole[:0])
    rows = whole[whole["measure"] == "leap_rate"].assign(value=np.nan, note="too few examples")
    with pytest.raises(InputError, match="too few examples"):
        leap_rate_per_layer(rows)


def test_rows_of_a_profile_are_drawn_though_they_name_no_model(
    whole: pd.DataFrame, tmp_path: Path
) -> None:
    facts = ["suite", "dataset", "backbone", "ball", "model", "head", "objective", "seed"]
    one = whole[whole["seed"] == 0].drop(columns=facts, errors="ignore")
    drawn = [saved.name for saved in save_each(one, tmp_path) if saved.path]
    assert {"story", "collapse_per_layer", "leap_matrices", "trajectory_in_plane"} <= set(drawn)
    for ax in (*story(one).axes, *panels(one, leap_rate_per_layer).axes, collapse_per_layer(one)):
        assert ax.lines
    plt.close("all")


def test_plots_of_one_model_refuse_several(two: pd.DataFrame) -> None:
    for draw in (
        alignment_angles,
        collapse_against_eps,
        landing_fraction,
        leap_layers,
        leap_matrix,
        nearest_vertex_accuracy,
        trajectory_in_plane,
    ):
        with pytest.raises(InputError, match="choose one of linear-pgd, linear-standard"):
            draw(two)


def test_what_cannot_be_compared_is_refused(whole: pd.DataFrame) -> None:
    mixed = pd.concat([whole.assign(dataset="digits"), whole.assign(dataset="cifar10", model="b")])
    with pytest.raises(InputError, match="across dataset: cifar10, digits"):
        collapse_per_layer(mixed)
    with pytest.raises(InputError, match="several times"):
        collapse_per_layer(pd.concat([whole, whole]))


def test_of_several_radii_the_largest_is_drawn(whole: pd.DataFrame) -> None:
    small = whole.assign(eps=whole["eps"] / 2, value=0.0)
    both, alone = (leap_rate_per_layer(rows) for rows in (pd.concat([whole, small]), whole))
    assert lines(both) == lines(alone)


def test_averaged_features_are_drawn_unless_others_are_asked_for(whole: pd.DataFrame) -> None:
    attacked = {"measure": "leap_rate", "condition": "attacked"}
    drawn = lines(leap_rate_per_layer(whole))
    assert drawn[COLOURS["attacked"]] == pytest.approx(means(rows_of(whole, **attacked)))
    assert set(drawn) == {COLOURS["attacked"], COLOURS["gaussian noise"]}
    flat = whole[whole["feature"] == "flatten"]
    drawn = lines(leap_rate_per_layer(flat))
    rows = rows_of(whole, feature="flatten", **attacked)
    assert drawn[COLOURS["attacked"]] == pytest.approx(means(rows))
    # A model without averaged features cannot stand beside one that has them.
    with pytest.raises(InputError, match="across feature: flatten, gap"):
        leap_rate_per_layer(pd.concat([whole, flat.assign(model="other")]))


def test_story_has_two_rows_of_objectives() -> None:
    figure = story(frame_of())
    axes = figure.axes
    assert len(axes) == 6
    assert [ax.get_title() for ax in axes[:3]] == ["standard", "pgd", "trades"]
    assert axes[0].get_yscale() == "log"
    assert all(ax.has_data() for ax in axes)
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"clean", "attacked", "gaussian noise", "etf", "linear"} <= labels


def test_panels_that_share_a_logarithmic_axis_show_means_and_not_those_of_logarithms() -> None:
    frame = frame_of(seeds=3)
    far = frame["measure"].eq("nc1") & frame["seed"].eq(2)
    frame.loc[far, "value"] *= 50
    for ax, objective in zip(story(frame).axes[:3], ("standard", "pgd", "trades"), strict=True):
        at = {"objective": objective, "condition": "attacked", "measure": "nc1", "split": "train"}
        for head, drawn in zip(("etf", "linear"), lines_of(ax, COLOURS["attacked"]), strict=True):
            rows = rows_of(frame, **at, head=head, grouping="true")
            assert drawn == pytest.approx(means(rows))


def test_bands_are_intervals_over_seeds_from_three_on() -> None:
    frame = frame_of(seeds=3)
    ax = leap_rate_per_layer(frame[frame["model"] == "etf-pgd"])
    assert "mean of 3 seeds; band: 95 % interval (Student t), from the smallest seed" in note(ax)
    rows = rows_of(frame, model="etf-pgd", measure="leap_rate", condition="attacked", split="train")
    found = [mean_interval(list(part["value"])) for _, part in rows.groupby("depth")]
    heights = np.concatenate([band.get_paths()[0].vertices[:, 1] for band in ax.collections])
    for one in found:
        assert np.isclose(heights, one.low).any()
        assert np.isclose(heights, one.high).any()


@pytest.fixture(scope="module")
def leaps(whole: pd.DataFrame) -> pd.DataFrame:
    """Rows of one figure, and the story."""
    return whole[(whole["measure"] == "leap_rate") & (whole["condition"] == "attacked")]


def test_figures_without_rows_are_left_out_with_the_reason(
    leaps: pd.DataFrame, tmp_path: Path
) -> None:
    saved = save_each(leaps, tmp_path)
    reasons = {figure.name: figure.skipped for figure in saved if figure.path is None}
    assert reasons["leap_matrix"] == reasons["leap_matrices"] == "no rows of leap_matrix"
    assert reasons["leap_rate_against_eps"] == "no rows of leap_rate under sweep"
    assert reasons["nearest_vertex_accuracy"] == "no rows of ncc_adaptive"
    assert {path.stem for path in tmp_path.iterdir()} == {"story", "leap_rate_per_layer"}


def test_data_sets_have_figures_of_their_own_and_names_are_no_mathematics(
    leaps: pd.DataFrame, tmp_path: Path
) -> None:
    odd = leaps.assign(model="$\\frac$", objective="$x$", tap=leaps["tap"] + "$_{$")
    mixed = pd.concat([odd.assign(dataset="a/../b"), odd.assign(dataset="a_b")])
    paths = save_all(mixed, tmp_path)
    assert sorted(tmp_path.rglob("*")) == sorted(paths)
    assert len(set(paths)) == 4


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
    with pytest.raises(InputError, match="choose one attack"):
        nearest_vertex_accuracy(whole.assign(attack=whole["attack"].replace("standard", "fast")))


def test_a_leap_matrix_names_its_classes_and_has_a_colour_bar(whole: pd.DataFrame) -> None:
    ax = leap_matrix(whole.assign(dataset="fashion_mnist"))
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress"]
    assert [text.get_text() for text in ax.get_yticklabels()] == names
    assert [one.get_ylabel() for one in ax.child_axes] == ["share of row"]
    told = whole.assign(dataset="folder")
    told.attrs["class_names"] = {"folder": ["ant", "bee", "cat", "a long name " + 40 * "x"]}
    named = [text.get_text() for text in leap_matrix(told).get_yticklabels()]
    assert named == ["ant", "bee", "cat", "a long name " + 25 * "x" + "..."]
    ours = leap_matrix(whole.assign(dataset="mine.npz"), bar=False)
    assert [text.get_text() for text in ours.get_xticklabels()] == ["0", "1", "2", "3"]
    assert ours.child_axes == []


def test_models_may_share_a_scale(whole: pd.DataFrame, tmp_path: Path) -> None:
    drawn = [
        save_each(whole, tmp_path / name, names=("collapse_per_layer",), alone=True, spans=spans)
        for name, spans in (("own", {}), ("all", {"collapse_per_layer": (1e-3, 1e5)}))
    ]
    own, wide = (one.path.read_bytes() for (one,) in drawn if one.path)
    assert own != wide


def test_a_leap_matrix_has_shares_of_the_tap_that_is_named(whole: pd.DataFrame) -> None:
    attacked = {"measure": "leap_matrix", "condition": "attacked"}
    assert_shares(leap_matrix(whole), rows_of(whole, tap="penultimate", **attacked))
    ax = leap_matrix(whole, tap="stage1")
    assert_shares(ax, rows_of(whole, tap="stage1", **attacked))
    assert "layer stage1" in note(ax)
    with pytest.raises(UnknownNameError, match="unknown tap 'stage9'; did you mean 'stage"):
        leap_matrix(whole, tap="stage9")
    rows = whole.copy()
    rows.loc[(rows["measure"] == "leap_matrix") & (rows["i"] == 0), "value"] = 0.0
    drawn = np.ma.asarray(leap_matrix(rows).collections[0].get_array()).reshape(4, 4)
    assert np.ma.getmaskarray(drawn).all(1).tolist() == [True, False, False, False]


def test_leap_matrices_have_a_panel_per_layer_and_a_row_per_model(two: pd.DataFrame) -> None:
    *axes, bar = leap_matrices(two).axes
    assert bar.get_ylabel() == "share of row"
    assert [ax.get_title() for ax in axes] == [*TAPS, *[""] * 4]
    assert [ax.get_ylabel().split()[0] for ax in axes[::4]] == ["linear-pgd", "linear-standard"]
    model = "linear-standard"
    assert_shares(axes[6], rows_of(two, measure="leap_matrix", tap="stage2", model=model))
    with pytest.raises(InputError, match="of one layer"):
        leap_matrices(two[two["tap"] == "stage1"])


def test_the_way_along_the_edge_has_a_line_per_layer_or_model(
    whole: pd.DataFrame, two: pd.DataFrame
) -> None:
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
    ax = trajectory_on_edge(two)
    assert labels(ax) == ["linear-pgd", "linear-standard"]
    assert len(ax.collections) == 2


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
    names = [text.get_text() for text in trajectory_in_plane(whole.assign(dataset="digits")).texts]
    assert names[:CLASSES] == ["0", "1", "2", "3"]
    names = [one.get_text() for one in trajectory_in_plane(whole.assign(dataset="cifar10")).texts]
    assert names[:CLASSES] == ["airplane", "automobile", "bird", "cat"]
    assert f"n = {len(x)} train examples; seed 0 of 2" in note(ax)


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
    robust = (two["model"] == "linear-pgd") & (two["seed"] == 1)
    never = two["measure"].eq("collapse_radius") & robust  # is reached by this seed
    ax = leap_rate_against_eps(two.assign(value=two["value"].mask(never)))
    assert len([container for container in ax.containers if container.has_xerr]) == 1


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
    opened = whole["measure"].eq("collapse_radius_high") & whole["seed"].eq(0)
    ax = collapse_against_eps(whole.assign(value=whole["value"].mask(opened)))
    (band,) = ax.patches  # an open interval ends with the sweep
    assert band.get_extents().transformed(ax.transData.inverted()).x1 == pytest.approx(0.3)


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
    each = whole[whole["measure"] == "alignment_angle_class"]
    more = pd.concat([whole, *(each.assign(i=each["i"] + 4 * k) for k in range(1, 6))])
    assert "boxes: classes" in note(alignment_angles(more)), "instead of many dots"


def test_every_figure_is_written(whole: pd.DataFrame, tmp_path: Path) -> None:
    names = {path.stem for path in save_all(whole, tmp_path)}
    assert names == {"story", "leap_matrices", *PLOTS}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_title_and_caption_stand_outside_of_what_is_drawn(
    two: pd.DataFrame, tmp_path: Path
) -> None:
    """The picture without words is whole in the one with them, and nothing lies over it."""
    named = two.assign(dataset="a data set with a name of several lines, as it happens to be")
    inks = []
    for words in (False, True):
        (saved,) = save_each(named, tmp_path, names=["story"], words=words)
        ink = np.asarray(Image.open(saved.path).convert("L")) < 128
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        inks.append(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(float))
    bare, worded = inks
    assert worded.shape[0] > bare.shape[0] + 40
    near = ndimage.binary_dilation(worded, iterations=2).astype(float)  # not the same pixels
    found = signal.correlate(near, bare, "valid", "fft").max() / bare.sum()
    assert found > 0.99


def test_a_name_looks_the_same_in_every_panel(whole: pd.DataFrame) -> None:
    """Also where a panel has fewer names: the legend stands for all of them."""
    looks: dict[str, set[tuple[object, ...]]] = {}
    for ax in story(whole).axes:
        for line in ax.lines:
            if len(line.get_xdata()):
                seen = looks.setdefault(str(to_hex(line.get_color())), set())
                seen.add((line.get_linestyle(), line.get_marker()))
    assert {COLOURS["clean"], COLOURS["attacked"], COLOURS["gaussian noise"]} <= looks.keys()
    assert all(len(seen) == 1 for seen in looks.values())


def test_models_of_one_name_become_panels_of_their_own(whole: pd.DataFrame) -> None:
    figure = panels(pd.concat([whole, whole.assign(model="wider")]), collapse_per_layer)
    assert [ax.get_title() for ax in figure.axes] == ["linear-standard", "wider"]


def test_a_legend_of_long_names_stays_within_the_figure(two: pd.DataFrame, tmp_path: Path) -> None:
    long = two.assign(objective=two["objective"] + ", a name longer than a third of a column")
    rows = long[long["condition"] == "sweep"]
    figure = panels(rows, leap_rate_against_eps)
    (legend,) = figure.legends
    assert legend.get_window_extent().width <= figure.bbox.width
    assert [text.get_text() for text in legend.get_texts()] == sorted(set(rows["objective"]))


def boxes(figure: DrawnFigure) -> tuple[list[Bbox], list[Bbox]]:
    """Where the legends of a laid out figure are, and where its axes are with all their words."""
    figure.canvas.draw()
    around = [ax.get_tightbbox() for ax in figure.axes]
    return [one.get_window_extent() for one in figure.legends], [one for one in around if one]


@pytest.mark.parametrize(("width", "inches"), [("column", 3.25), ("page", 6.75)])
@pytest.mark.parametrize("name", [*PLOTS, "story", "leap_matrices"])
def test_a_figure_is_finished_at_the_width_of_a_paper(
    name: str, width: Width, inches: float, whole: pd.DataFrame
) -> None:
    if name in PLOTS:
        figure = PLOTS[name](whole, width=width).figure
    else:
        figure = {"story": story, "leap_matrices": leap_matrices}[name](whole, width=width)
    assert isinstance(figure, DrawnFigure)
    file = io.BytesIO()
    figure.savefig(file, format="pdf")
    assert b"/Subtype /Type3" not in file.getvalue()
    assert b"/CIDFontType2" in file.getvalue(), "TrueType"
    assert float(figure.get_size_inches()[0]) == inches
    assert "n = " in figure.caption
    legends, axes = boxes(figure)
    for box in legends:
        assert not any(box.overlaps(other) for other in axes)
    slack = 0.05 * figure.dpi
    for box in [*legends, *axes]:
        assert box.x0 >= -slack
        assert box.x1 <= figure.bbox.width + slack
        assert box.y1 <= figure.bbox.height + slack
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) >= 6


def test_groups_become_rows_where_a_column_has_no_room_for_them(two: pd.DataFrame) -> None:
    frame = frame_of()
    wide, narrow = story(frame), story(frame, width="column")
    assert [ax.get_title() for ax in wide.axes] == ["standard", "pgd", "trades", "", "", ""]
    assert [ax.get_title(loc="left") for ax in narrow.axes[::2]] == ["standard", "pgd", "trades"]
    assert wide.caption == narrow.caption
    for wrong in ("colum", 0.5, float("nan")):
        with pytest.raises(InputError, match="'column', 'page' or inches"):
            story(frame, width=wrong)
    with pytest.raises(InputError, match=r"4 panels side by side need 2\.9 inches, found 2"):
        leap_matrices(two, width=2.0)


def test_figures_of_a_paper_have_their_captions_beside_them(
    two: pd.DataFrame, tmp_path: Path
) -> None:
    for folder in ("one", "again"):
        only, *_ = save_each(
            two,
            tmp_path / folder,
            names=("story", "leap_matrix", "accuracy_against_eps"),
            format="pdf",
            words=False,
        )
    text = (tmp_path / "one" / "figures.tex").read_text()
    assert only.path is not None
    assert text.count(r"\includegraphics{") == 3
    assert r"\label{fig:story}" in text
    assert rf"\caption{{{only.title}. {only.caption.replace('%', chr(92) + '%')}.}}" in text
    for name in ("story.pdf", "leap_matrix.pdf", "figures.tex"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    (svg,) = save_each(two, tmp_path, names=("story",), format="svg", width="column")
    assert svg.path is not None
    assert svg.path.read_text().startswith("<?xml")
    with pytest.raises(UnknownNameError, match="did you mean 'story'"):
        save_each(two, tmp_path, names=("stroy",))
