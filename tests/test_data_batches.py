import pytest
import torch
from helpers_data import random_split
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_nc.data.base import numbered
from robust_nc.data.batches import Batch, Batches, hold_out
from robust_nc.data.load import to_unit
from robust_nc.exceptions import ConfigError, InputError


def joined(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def by_id(batches: Batches, epoch: int) -> dict[int, torch.Tensor]:
    every = joined(list(batches.epoch(epoch)))
    return dict(zip(every.ids.tolist(), every.images, strict=True))


def test_an_epoch_shows_every_example_once_with_its_own_label() -> None:
    split = random_split(50)
    every = joined(list(Batches(split, batch_size=16, device="cpu").epoch(0)))
    assert every.ids.sort().values.tolist() == list(range(50))
    assert torch.equal(every.labels, split.labels[every.ids])
    assert torch.equal(every.images, to_unit(split.images)[every.ids])


def test_the_order_follows_seed_and_epoch_only() -> None:
    split = random_split(50)

    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(split, batch_size=16, device="cpu", seed=seed)
        return joined(list(batches.epoch(epoch))).ids.tolist()

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(*key)) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}) == 4


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    batches = Batches(random_split(20), batch_size=8, device="cpu", augment=("crop", "flip"))
    state = torch.get_rng_state()
    seen = joined(list(batches.epoch(0)))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    again = joined(list(batches.epoch(0)))
    assert torch.equal(seen.images, again.images)


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [(9, 4, [4, 4]), (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1])],
)
def test_a_trailing_single_example_is_left_out_unless_alone(
    n: int, batch_size: int, sizes: list[int]
) -> None:
    batches = Batches(random_split(n), batch_size=batch_size, device="cpu")
    assert [len(batch.labels) for batch in batches.epoch(0)] == sizes
    assert len(batches) == len(sizes)
    assert batches.num_examples == n


def test_measuring_goes_through_everything_in_order_and_as_it_is() -> None:
    split = random_split(9)
    batches = Batches(split, batch_size=4, device="cpu", augment=("crop", "flip"))
    parts = list(batches.ordered())
    every = joined(parts)
    assert [len(part.labels) for part in parts] == [4, 4, 1]
    assert every.ids.tolist() == list(range(9))
    assert torch.equal(every.images, to_unit(split.images))


def test_augmentation_depends_on_seed_epoch_and_id_alone() -> None:
    split = random_split(40)
    augment = ("crop", "flip")
    one = by_id(Batches(split, batch_size=40, device="cpu", augment=augment, seed=1), 2)
    part = split.at(torch.arange(39, 9, -1))
    two = by_id(Batches(part, batch_size=7, device="cpu", augment=augment, seed=1), 2)
    assert len(two) >= 29
    assert all(torch.equal(one[number], image) for number, image in two.items())
    for seed, epoch in [(1, 3), (2, 2)]:
        other = by_id(
            Batches(split, batch_size=40, device="cpu", augment=augment, seed=seed), epoch
        )
        assert sum(not torch.equal(one[number], other[number]) for number in one) > 30


def test_a_crop_is_a_window_of_the_padded_image_and_all_windows_come() -> None:
    split = random_split(600, shape=(2, 5, 6))
    seen = by_id(Batches(split, batch_size=64, device="cpu", augment=("crop",)), 0)
    corners = set()
    for number, image in seen.items():
        padded = torch.zeros(2, 13, 14)
        padded[:, 4:9, 4:10] = to_unit(split.images[number])
        fits = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if torch.equal(image, padded[:, top : top + 5, left : left + 6])
        ]
        assert fits
        corners.add(fits[0])
    assert len(corners) == 81


def test_a_flip_is_left_right_and_hits_about_half() -> None:
    split = random_split(400, shape=(1, 4, 4))
    seen = by_id(Batches(split, batch_size=64, device="cpu", augment=("flip",)), 0)
    images = to_unit(split.images)
    flipped = 0
    for number, image in seen.items():
        mirrored = torch.equal(image, images[number].flip(-1))
        assert mirrored or torch.equal(image, images[number])
        flipped += mirrored
    assert 150 < flipped < 250


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True])
def test_a_bad_batch_size_is_refused(batch_size: int) -> None:
    with pytest.raises(InputError, match="batch_size"):
        Batches(random_split(4), batch_size=batch_size, device="cpu")


def test_bad_splits_and_augmentations_are_refused() -> None:
    split = random_split(4)
    with pytest.raises(ConfigError, match="did you mean 'flip'"):
        Batches(split, batch_size=2, device="cpu", augment=("flop",))
    with pytest.raises(InputError, match="one length"):
        Batches(split._replace(labels=split.labels[:3]), batch_size=2, device="cpu")
    with pytest.raises(InputError, match="empty"):
        Batches(split.at(torch.arange(0)), batch_size=2, device="cpu")
    with pytest.raises(InputError, match=r"\(N, C, H, W\)"):
        Batches(split._replace(images=split.images[:, 0]), batch_size=2, device="cpu")


@settings(deadline=None, max_examples=25)
@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(lambda n: max(n) > 1),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_hold_out_is_a_stratified_partition(counts: list[int], share: float, seed: int) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    split = numbered(torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1), labels)
    train, validation = hold_out(split, share, seed=seed)
    assert torch.equal(hold_out(split, share, seed=seed)[1].ids, validation.ids)
    both = torch.cat([train.ids, validation.ids])
    assert both.sort().values.tolist() == list(range(len(labels)))
    for part in (train, validation):
        assert torch.equal(part.ids, part.ids.sort().values)
        assert torch.equal(part.labels, split.labels[part.ids])
        assert torch.equal(part.images, split.images[part.ids])
    for label, count in enumerate(counts):
        held = int((validation.labels == label).sum())
        if count >= 2:
            assert 1 <= held <= count - 1
            assert abs(held - share * count) <= 1
        else:
            assert held == 0


@pytest.mark.parametrize(
    ("classes", "share", "message"),
    [
        (3, -0.1, r"\[0, 1\)"),
        (3, 1.0, r"\[0, 1\)"),
        (3, float("nan"), r"\[0, 1\)"),
        (6, 0.5, "nothing can be held out of 6"),
    ],
)
def test_a_share_that_cannot_be_held_out_is_refused(
    classes: int, share: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        hold_out(random_split(6, classes=classes), share, seed=0)
