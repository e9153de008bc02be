"""Rows under common corruptions: a planted classifier, one pass per corruption, stated sources."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robust_nc.config import MeasureConfig
from robust_nc.exceptions import DataError, UnknownNameError
from robust_nc.geometry.collapse import measure_collapse
from robust_nc.geometry.leaps import measure_leaps
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.nearest import nearest_vertex
from robust_nc.models.taps import read_taps
from robust_nc.profiling.feature_cache import chosen_taps
from robust_nc.profiling.measurement import Examples, Measurement
from robust_nc.profiling.rows import Row
from robust_nc.profiling.shards import ModelExecutor, SplitShards
from robust_nc.profiling.split_rows import SplitRows
from robust_nc.profiling.sweeps import (
    CorruptionSource,
    corrupted_rows,
    corruption_source,
    made_corruptions,
    stored_corruptions,
)
from robust_nc.record import COLUMNS, tidy
from robust_nc.threat import Ball

SIDE = 6


class Range(nn.Module):
    """Class 1 where the brightest and darkest pixels are at least 0.5 apart; one tap, two units."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = Spread()
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
            self.head.bias.copy_(torch.tensor([0.5, -0.5]))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.spread(images))
        return logits


class Spread(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1)
        spread = self.scale * (pixels.amax(1) - pixels.amin(1))
        return torch.stack([spread, pixels.mean(1)], 1)


def drawn(spreads: list[float], labels: list[int], split: str = "test") -> Examples:
    """Images of two halves around 0.5 whose values are `spreads` apart."""
    halves = torch.ones(len(spreads), 1, SIDE, SIDE)
    halves[..., : SIDE // 2] = -1
    images = 0.5 + halves * torch.tensor(spreads).view(-1, 1, 1, 1) / 2
    return Examples(split, images, torch.tensor(labels), torch.arange(len(labels)))


TRAIN = drawn([0.1, 0.2, 0.9, 1.0], [0, 0, 1, 1], "train")
SPREADS = [0.1, 0.3, 0.65, 0.85, 0.98]
TEST = drawn(SPREADS, [0, 0, 1, 1, 1])


def rows_of(
    names: tuple[str, ...],
    severities: tuple[int, ...],
    source: CorruptionSource | None,
    *,
    seed: int = 0,
) -> list[Row]:
    model = Range().eval()
    settings = MeasureConfig(corruptions=names, severities=severities, batch_size=2)
    how = Measurement.of(model, settings, Ball("Linf", 0.1), num_classes=2, scale=1.0, seed=seed)
    executor = ModelExecutor(model)
    train, test = (SplitShards(executor, how, examples) for examples in (TRAIN, TEST))
    known = {"gap": SplitRows(train, "gap").vertices}
    return corrupted_rows(test, known, lambda share, text: None, source=source)


def planted(examples: Examples, corruption: str, severity: int) -> Tensor:
    """Contrast times 1 - severity/10 around the mean; brightness moves all pixels."""
    if corruption == "contrast":
        return 0.5 + (examples.images - 0.5) * (1 - severity / 10)
    return (examples.images + severity / 10).clamp(0, 1)


PLANTED = CorruptionSource("planted", lambda name, level, some: planted(some, name, level))


def chosen(rows: list[Row], **where: object) -> pd.DataFrame:
    frame = tidy(rows)
    for column, wanted in where.items():
        frame = frame[frame[column] == wanted]
    return frame


def value(rows: list[Row], **where: object) -> float:
    found = chosen(rows, **where)
    assert len(found) == 1, f"{len(found)} rows for {where}"
    return float(found["value"].iloc[0])


class TestPlanted:
    @pytest.fixture
    def rows(self) -> list[Row]:
        return rows_of(("contrast", "brightness"), (1, 3, 5), PLANTED)

    def test_accuracies_are_those_of_the_shrunken_ranges(self, rows: list[Row]) -> None:
        # 0.7 takes one of class 1 below 0.5, 0.5 all three; class 0 stays right.
        expected = {"contrast/1": 1.0, "contrast/3": 0.8, "contrast/5": 0.4}
        # Cut at 1, brighter images lose range from above.
        expected |= {"brightness/1": 1.0, "brightness/3": 1.0, "brightness/5": 0.4}
        for attack, share in expected.items():
            assert value(rows, measure="accuracy", tap="output", attack=attack) == share

    def test_means_are_over_severities_then_corruptions(self, rows: list[Row]) -> None:
        mean = ((1 + 0.8 + 0.4) / 3 + (1 + 1 + 0.4) / 3) / 2
        assert value(rows, measure="corruption_accuracy") == pytest.approx(mean)
        assert value(rows, measure="mce") == pytest.approx(1 - mean)
        found = chosen(rows, measure="mce")
        assert found["attack"].tolist() == ["2 corruptions, severities 1, 3, 5"]
        assert found["note"].tolist() == ["planted"]
        assert found["tap"].tolist() == ["output"]

    def test_taps_agree_with_the_functions_of_the_geometry(self, rows: list[Row]) -> None:
        model, images = Range().eval(), planted(TEST, "contrast", 3)
        for tap in chosen_taps(model, None):
            learnt, clean, here = (
                read_taps(model, part, [tap], feature="gap").features[tap].detach()
                for part in (TRAIN.images, TEST.images, images)
            )
            moments = Moments(2, learnt.shape[1])
            moments.update(learnt, TRAIN.labels)
            leaps = measure_leaps(clean, here, TEST.labels, moments.means)
            assert leaps.leap_rate == pytest.approx(0.2)
            place = {"tap": tap, "attack": "contrast/3"}
            for name in ("leap_rate", "landed", "displacement"):
                found = getattr(leaps, name)
                assert value(rows, measure=name, **place) == pytest.approx(found)
            groups = {"true": TEST.labels, "landed": nearest_vertex(here, moments.means)}
            for grouping, labels in groups.items():
                expected = measure_collapse(here, labels).nc1_trace
                found = value(rows, measure="nc1_trace", grouping=grouping, **place)
                assert found == pytest.approx(expected)
            assert chosen(rows, measure="landed", **place)["n"].tolist() == [1]

    def test_rows_are_complete_and_stated(self, rows: list[Row]) -> None:
        frame = tidy(rows)
        assert list(frame.columns) == list(COLUMNS)
        where = frame[["condition", "split", "feature"]].drop_duplicates()
        assert where.values.tolist() == [["corrupted", "test", "gap"]]
        assert (frame.loc[frame["value"].isna(), "note"] != "").all()
        identity = ["tap", "attack", "grouping", "vertices", "measure"]
        assert not frame.duplicated(identity).any()
        taps = chosen_taps(Range(), None)
        # per corruption and severity: 5 measures at each tap and the accuracy; two means
        assert len(frame) == 2 * 3 * (5 * len(taps) + 1) + 2
        assert frame.loc[frame["tap"] == "output", "depth"].eq(-1).all()
        assert frame.loc[frame["tap"] == taps[0], "depth"].eq(0).all()
        assert frame.loc[frame["tap"] == "output", "n"].eq(len(TEST.labels)).all()


class TestSweep:
    def test_where_nothing_is_done_nothing_moves(self) -> None:
        same = CorruptionSource("none", lambda name, level, some: some.images.clone())
        rows = rows_of(("fog",), (1,), same)
        assert chosen(rows, measure="leap_rate")["value"].eq(0).all()
        assert chosen(rows, measure="displacement")["value"].eq(0).all()
        landed = chosen(rows, measure="landed")
        assert landed["value"].isna().all()
        assert landed["note"].str.startswith("undefined").all()
        assert value(rows, measure="corruption_accuracy") == 1

    def test_unknown_names_are_refused_before_any_image(self) -> None:
        source = CorruptionSource("", lambda name, level, some: pytest.fail("asked"))
        with pytest.raises(UnknownNameError, match="did you mean 'fog'"):
            rows_of(("snow", "fogg"), (1,), source)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """CIFAR-10-C's layout, of the test examples behind two others."""
    found = tmp_path / "digits-c"
    found.mkdir()
    images = torch.cat([TEST.images[:2], TEST.images])
    blocks = [(planted(TEST._replace(images=images), "contrast", s) * 255) for s in range(1, 6)]
    pixels = torch.cat(blocks).round().byte().permute(0, 2, 3, 1).numpy()
    np.save(found / "contrast.npy", pixels)
    np.save(found / "labels.npy", np.tile([0, 0, *TEST.labels.tolist()], 5))
    return found


class TestSources:
    def test_a_folder_is_used_where_there_is_one(self, folder: Path) -> None:
        source = corruption_source("digits", folder.parent)
        assert source.label == "from digits-c"
        later = TEST._replace(ids=TEST.ids + 2)
        found = source.images("contrast", 3, later)
        torch.testing.assert_close(found, planted(TEST, "contrast", 3), rtol=0, atol=0.5 / 255)
        assert found.dtype == torch.float32

    def test_a_folder_of_other_images_is_refused(self, folder: Path) -> None:
        source = stored_corruptions(folder)
        wide = torch.zeros(len(TEST.labels), 3, SIDE, SIDE)
        with pytest.raises(DataError, match=r"images of the shape \(1, 6, 6\), .* of \(3, 6, 6\)"):
            source.images("contrast", 3, TEST._replace(ids=TEST.ids + 2, images=wide))

    def test_a_corruption_that_a_folder_lacks_is_not_made(self, folder: Path) -> None:
        source = corruption_source("digits", folder.parent)
        with pytest.raises(UnknownNameError, match="Valid: contrast"):
            source.images("fog", 3, TEST)

    def test_made_images_are_the_same_for_every_seed(self) -> None:
        pytest.importorskip("imagecorruptions", reason="needs the extra robust_nc[corruptions]")
        source = made_corruptions()
        assert source.label.startswith("made by imagecorruptions-imaug 1.")
        rows = [rows_of(("gaussian_noise",), (5,), None, seed=seed) for seed in (0, 1)]
        pd.testing.assert_frame_equal(tidy(rows[0]), tidy(rows[1]))

    def test_the_library_lowers_contrast_by_a_known_factor(self) -> None:
        pytest.importorskip("imagecorruptions", reason="needs the extra robust_nc[corruptions]")
        rows = rows_of(("contrast",), (1, 2), None)
        # Ranges times 0.4 and 0.3: all of class 1 fall below 0.5, all of class 0 stay right.
        assert value(rows, measure="accuracy", attack="contrast/1") == 0.4
        assert value(rows, measure="accuracy", attack="contrast/2") == 0.4
        # Nothing but the range of an image changes, and by that factor.
        moved = 0.6 * np.mean(SPREADS)
        place = {"measure": "displacement", "attack": "contrast/1", "tap": "penultimate"}
        assert value(rows, **place) == pytest.approx(moved / 0.8, rel=0.02)  # 0.8: between means
