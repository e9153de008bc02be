"""Corrupted images: all fifteen at every size, keyed by example, and what the library makes."""

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robust_nc.data import corruptions
from robust_nc.data.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    check_corruptions,
    chosen_corruptions,
    corrupt_images,
    corruption_library,
    enlargement,
    mean_corruption_error,
)
from robust_nc.exceptions import ConfigError, InputError, UnknownNameError

RANDOM = [name for name in CORRUPTIONS if name not in {"defocus_blur", "zoom_blur", "brightness"}]
RANDOM = [name for name in RANDOM if name not in {"contrast", "pixelate", "jpeg_compression"}]


@pytest.fixture
def library() -> ModuleType:
    pytest.importorskip("imagecorruptions", reason="needs the extra robust_nc[corruptions]")
    return corruption_library()


def pictures(shape: tuple[int, int, int], count: int = 3) -> Tensor:
    """Dim, soft blobs and a little grain: all corruptions have something to change."""
    channels, height, width = shape
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    found = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return found * 0.5 + 0.2 * torch.rand(found.shape, generator=generator)


def as_bytes(images: Tensor) -> np.ndarray:
    found: np.ndarray = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return found


def stored(images: Tensor) -> Tensor:
    return (images * 255).round() / 255


@pytest.mark.usefixtures("library")
class TestEverySize:
    @pytest.mark.parametrize(("shape", "severity"), [((1, 8, 8), 1), ((3, 40, 36), 5)], ids=str)
    @pytest.mark.parametrize("name", CORRUPTIONS)
    def test_gives_images_of_the_same_shape_that_differ(
        self, name: str, shape: tuple[int, int, int], severity: int
    ) -> None:
        images = pictures(shape)
        made = corrupt_images(images, name, severity, ids=torch.arange(3))
        assert made.shape == images.shape
        assert made.dtype == torch.float32
        assert made.is_contiguous()
        assert 0 <= float(made.min()) <= float(made.max()) <= 1
        moved = (made - stored(images)).abs().flatten(1).mean(1)
        assert float(moved.mean() if severity == 1 else moved.min()) > 2e-3

    def test_grows_with_severity(self) -> None:
        images, ids = pictures((1, 8, 8), 10), torch.arange(10)
        moved = torch.tensor(
            [
                [
                    float((corrupt_images(images, name, level, ids=ids) - images).square().mean())
                    for level in SEVERITIES
                ]
                for name in CORRUPTIONS
            ]
        ).sqrt()
        weak = [n for n, row in zip(CORRUPTIONS, moved, strict=True) if row[4] <= 1.05 * row[0]]
        assert weak == []
        assert bool((moved.mean(0).diff() > 0).all())


@pytest.mark.usefixtures("library")
class TestDraws:
    @pytest.mark.parametrize("name", CORRUPTIONS)
    def test_depend_on_the_example_alone(self, name: str) -> None:
        images, ids = pictures((3, 32, 32), 4), torch.tensor([7, 3, 900, 4])
        whole = corrupt_images(images, name, 3, ids=ids)
        np.random.seed(5)  # noqa: NPY002 (another state of the global generator)
        order = torch.tensor([2, 0])
        some = corrupt_images(images[order], name, 3, ids=ids[order])
        assert torch.equal(some, whole[order])

    @pytest.mark.parametrize("name", RANDOM)
    def test_differ_between_examples_and_seeds(self, name: str) -> None:
        image = pictures((3, 32, 32), 1)
        first, second = corrupt_images(image.repeat(2, 1, 1, 1), name, 3, ids=torch.tensor([0, 1]))
        other = corrupt_images(image, name, 3, ids=torch.tensor([0]), seed=1)[0]
        assert not torch.equal(first, second)
        assert not torch.equal(first, other)

    def test_differ_between_corruptions_and_severities(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def draw(image: object, severity: int) -> np.ndarray:
            return np.random.randint(0, 256, np.asarray(image).shape)  # noqa: NPY002

        found = SimpleNamespace(corruption_dict={"fog": draw, "contrast": draw})
        monkeypatch.setattr(corruptions, "corruption_library", lambda: found)
        images, ids = pictures((3, 8, 8)), torch.arange(3)
        first = corrupt_images(images, "fog", 1, ids=ids)
        assert torch.equal(corrupt_images(images, "fog", 1, ids=ids), first)
        assert not torch.equal(corrupt_images(images, "fog", 2, ids=ids), first)
        assert not torch.equal(corrupt_images(images, "contrast", 1, ids=ids), first)

    def test_leave_it_alone_where_the_library_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(image: object, severity: int) -> None:
            np.random.rand()  # noqa: NPY002
            raise ZeroDivisionError

        found = SimpleNamespace(corruption_dict={"fog": fails})
        monkeypatch.setattr(corruptions, "corruption_library", lambda: found)
        state = np.random.get_state()  # noqa: NPY002
        with pytest.raises(ZeroDivisionError):
            corrupt_images(pictures((1, 8, 8)), "fog", 1, ids=torch.arange(3))
        after = np.random.get_state()  # noqa: NPY002
        for one, other in zip(after, state, strict=True):
            np.testing.assert_array_equal(one, other)


class TestAgainstTheLibrary:
    @pytest.mark.parametrize("name", ["contrast", "brightness", "pixelate", "jpeg_compression"])
    def test_small_images_are_its_own(self, library: ModuleType, name: str) -> None:
        images = pictures((3, 32, 32))
        made = corrupt_images(images, name, 4, ids=torch.arange(3))
        for image, result in zip(as_bytes(images), as_bytes(made), strict=True):
            np.testing.assert_array_equal(
                result, library.corrupt(image, severity=4, corruption_name=name)
            )

    @pytest.mark.parametrize("name", ["defocus_blur", "zoom_blur"])
    def test_large_images_are_its_own(self, library: ModuleType, name: str) -> None:
        images = pictures((3, 224, 230), 1)
        made = corrupt_images(images, name, 2, ids=torch.arange(1))
        expected = library.corrupt(as_bytes(images)[0], severity=2, corruption_name=name)
        np.testing.assert_array_equal(as_bytes(made)[0], expected)

    @pytest.mark.parametrize("side", [8, 33, 64])
    def test_enlarging_alone_changes_nothing(
        self, monkeypatch: pytest.MonkeyPatch, side: int
    ) -> None:
        sizes = []

        def unchanged(image: object, severity: int) -> object:
            sizes.append(np.asarray(image).shape)
            return image

        found = SimpleNamespace(corruption_dict={"defocus_blur": unchanged})
        monkeypatch.setattr(corruptions, "corruption_library", lambda: found)
        images = pictures((3, side, side + 3))
        made = corrupt_images(images, "defocus_blur", 1, ids=torch.arange(3))
        torch.testing.assert_close(made, stored(images), rtol=0, atol=1e-7)
        factor = {8: 7, 33: 7, 64: 4}[side]
        assert sizes[0] == (side * factor, (side + 3) * factor, 3)
        assert enlargement("defocus_blur", side, side + 3) == factor

    @pytest.mark.usefixtures("library")
    def test_noise_on_grey_images_keeps_its_strength(self) -> None:
        grey = torch.full((40, 1, 28, 28), 0.5)
        made = corrupt_images(grey, "gaussian_noise", 1, ids=torch.arange(40))
        assert float((made - 0.5).std()) == pytest.approx(0.08, rel=0.02)  # the library's first


class TestMeanCorruptionError:
    def test_is_the_mean_error_of_each_corruption_then_of_all(self) -> None:
        assert mean_corruption_error({"fog": [1.0, 0.0], "snow": [0.5]}) == 0.5
        assert mean_corruption_error({"fog": [0.9], "snow": [0.6]}) == pytest.approx(0.25)

    def test_divides_sums_over_severities_not_each_severity(self) -> None:
        found = mean_corruption_error({"fog": [0.9, 0.5]}, {"fog": [0.8, 0.2]})
        assert found == pytest.approx(0.6 / 1.0)

    @pytest.mark.parametrize("accuracies", [{}, {"fog": []}])
    def test_of_nothing_is_refused(self, accuracies: dict[str, list[float]]) -> None:
        with pytest.raises(InputError, match="needs accuracies of one"):
            mean_corruption_error(accuracies)

    def test_refuses_a_baseline_of_other_corruptions_or_without_errors(self) -> None:
        with pytest.raises(InputError, match="same corruptions"):
            mean_corruption_error({"fog": [0.5]}, {"snow": [0.5]})
        with pytest.raises(InputError, match="no error under fog"):
            mean_corruption_error({"fog": [0.5]}, {"fog": [1.0]})


class TestRefusals:
    @pytest.fixture(autouse=True)
    def _without_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Names and images are refused whether it is there or not."""

        def missing() -> ModuleType:
            raise AssertionError("asked for the library first")

        monkeypatch.setattr(corruptions, "corruption_library", missing)

    def test_unknown_names_are_answered_with_the_nearest(self) -> None:
        for refuse in (check_corruptions, chosen_corruptions):
            with pytest.raises(UnknownNameError, match="corruption 'forst'; did you mean 'frost'"):
                refuse(["fog", "forst"])
        with pytest.raises(UnknownNameError, match="'frost'"):
            corrupt_images(pictures((1, 8, 8)), "forst", 1, ids=torch.arange(3))

    def test_all_is_not_one(self) -> None:
        with pytest.raises(UnknownNameError, match="unknown corruption 'all'") as error:
            corrupt_images(pictures((1, 8, 8)), "all", 3, ids=torch.arange(3))
        assert "all" not in str(error.value).split("Valid: ")[1].split(", ")

    def test_all_stands_for_the_fifteen(self) -> None:
        check_corruptions(["all"])
        assert chosen_corruptions(["all"]) == CORRUPTIONS
        assert chosen_corruptions(["snow", "all"])[:2] == ("snow", "gaussian_noise")
        assert len(set(chosen_corruptions(["snow", "all"]))) == 15
        assert chosen_corruptions([]) == ()

    @pytest.mark.parametrize(
        ("images", "severity", "message"),
        [
            *((torch.rand(3, 1, 8, 8), wrong, "1, 2, 3, 4 or 5") for wrong in (0, 6, True, "3")),
            (torch.rand(3, 2, 8, 8), 1, "1 or 3 channels and at least 4 x 4"),
            (torch.rand(3, 1, 8, 2), 1, "1 or 3 channels and at least 4 x 4"),
            (torch.rand(2, 1, 8, 8), 1, "3 ids for 2 images"),
            (torch.full((3, 1, 8, 8), 255.0), 1, "divide by 255"),
        ],
    )
    def test_images_and_severities(self, images: Tensor, severity: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            corrupt_images(images, "fog", severity, ids=torch.arange(3))


class TestLibrary:
    def test_a_missing_one_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(corruptions, "DISTRIBUTION", "imagecorruptions-nowhere")
        with pytest.raises(ConfigError, match=r"not installed: pip install .robust_nc\[corrupt"):
            corruption_library()

    def test_a_broken_one_says_why(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(corruptions, "DISTRIBUTION", "numpy")
        monkeypatch.setitem(sys.modules, "imagecorruptions", None)
        with pytest.raises(ConfigError, match="does not import"):
            corruption_library()

    def test_its_unmaintained_namesake_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        old = SimpleNamespace(glass_blur=lambda image, severity: image)
        monkeypatch.setattr(corruptions, "DISTRIBUTION", "numpy")
        monkeypatch.setattr(importlib, "import_module", lambda name: old)
        with pytest.raises(ConfigError, match="of another package"):
            corruption_library()
