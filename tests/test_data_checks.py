import numpy as np
import pytest
import torch

from robust_nc.checks import check_images, check_labels
from robust_nc.exceptions import InputError

GOOD = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_images_become_float32(dtype: torch.dtype) -> None:
    checked = check_images(GOOD.to(dtype))
    assert checked.dtype == torch.float32
    assert torch.equal(checked, GOOD.to(dtype).float())


@pytest.mark.parametrize(
    "array",
    [
        GOOD.numpy(),
        GOOD.numpy()[:, :, ::-1],
        GOOD.numpy().astype(">f4"),
        np.asfortranarray(GOOD.numpy()),
    ],
)
def test_images_from_numpy_in_any_memory_layout(array: np.ndarray) -> None:
    assert np.array_equal(check_images(array).numpy(), array.astype(np.float32))


def test_a_read_only_array_is_taken_and_left_alone() -> None:
    array = GOOD.numpy().copy()
    array.flags.writeable = False
    check_images(array).zero_()
    assert np.array_equal(array, GOOD.numpy())


def test_images_keep_no_gradient() -> None:
    assert not check_images(GOOD.clone().requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([[1, 2]], r"shape \(N, C, H, W\), found \(1, 2\)"),
        ("cat.png", "torch tensor or a NumPy array, found str"),
        ([GOOD, None], "found unlike rows"),
        (GOOD[0], r"found \(1, 4, 4\)"),
        (GOOD[:, :, :0], r"have no pixels: found the shape \(\d+, 1, 0, 4\)"),
        ((GOOD * 255).to(torch.uint8), r"floats in \[0, 1\], found uint8.*/ 255"),
        (GOOD * 255, "divide by 255"),
        (GOOD - 0.5, "normalisation belongs inside the classifier"),
        (torch.full((1, 1, 2, 2), float("nan")), "must be finite"),
        (torch.full((1, 1, 2, 2), float("inf")), "must be finite"),
        (torch.full((1, 1, 2, 2), 1e300, dtype=torch.float64), "must be finite"),
        (GOOD.to(torch.complex64), "found complex64"),
    ],
)
def test_bad_images_are_answered_with_one_sentence(images: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_images(images)


@pytest.mark.parametrize(
    "labels",
    [[0, 2, 1], np.array([0, 2, 1], dtype=np.uint8), torch.tensor([0.0, 2.0, 1.0])],
)
def test_labels_become_int64(labels: object) -> None:
    checked = check_labels(labels, 3, num_classes=3)
    assert checked.dtype == torch.int64
    assert checked.tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.eye(3), r"found \(3, 3\); turn one-hot rows"),
        ([0, 1], "found 2 labels for 3 images"),
        ([0, 1, 3], r"in 0\.\.2, found 3"),
        ([0, 1, -1], r"in 0\.\.2, found -1"),
        ([0, 1, 0.5], "with fractions"),
        ([0, 1, float("nan")], "with fractions"),
        ([True, False, True], "class numbers, found bool"),
        (["cat", "dog", "cat"], "found unlike rows"),
        (None, "found NoneType"),
    ],
)
def test_bad_labels_are_answered_with_one_sentence(labels: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_labels(labels, 3, num_classes=3)


def test_without_a_number_of_classes_only_negative_labels_are_refused() -> None:
    assert check_labels([0, 99], 2).tolist() == [0, 99]
    with pytest.raises(InputError, match="0 or more, found -1"):
        check_labels([0, -1], 2)
