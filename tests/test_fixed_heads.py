"""Heads with a fixed frame: the frame that they state, nothing learnt, the scale that trains."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from robust_nc.data.hierarchy.tree import read_hierarchy
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.models.frames import haframe, orthogonal_frame, similarities, simplex_etf
from robust_nc.models.heads import EtfHead, FixedHead, HaFrameHead, OrthogonalHead

FRAMES = {
    "etf": (EtfHead, {}, simplex_etf(10, 16, seed=3)),
    "orthogonal": (OrthogonalHead, {}, orthogonal_frame(10, 16, seed=3)),
    "haframe": (
        HaFrameHead,
        {"hierarchy": "cifar10", "gamma": 3.0},
        haframe(read_hierarchy("cifar10").distances(), 16, gamma=3.0, seed=3),
    ),
}
every_kind = pytest.mark.parametrize("kind", FRAMES)


def make(kind: str, **options) -> FixedHead:
    head, own, _ = FRAMES[kind]
    return head(10, 16, seed=3, **own, **options)


@every_kind
def test_the_frame_is_the_stated_one_and_a_buffer(kind):
    head = make(kind, scale=5.0, temperature=0.5)
    assert torch.equal(head.frame(), FRAMES[kind][2])
    assert torch.equal(head.vertices(), 10 * head.frame())
    assert not list(head.parameters())
    assert list(head.state_dict()) == ["fixed_frame"]
    assert not head.fixed_frame.requires_grad
    assert head.bias_vector() is None
    assert not head.observes
    assert (head.num_classes, head.dim) == (10, 16)


@every_kind
def test_scale_follows_the_features(kind):
    assert make(kind).scale == 1
    cosine = make(kind, normalise_features=True)
    torch.testing.assert_close(cosine.vertices().norm(dim=1), torch.full((10,), 16.0))
    torch.testing.assert_close(cosine(cosine.frame() * 3), cosine(cosine.frame()))
    best = float(F.cross_entropy(cosine(cosine.frame()), torch.arange(10)))
    alone = float(F.cross_entropy(cosine(cosine.frame()) / 16, torch.arange(10)))
    assert best < 1e-3
    assert alone > 1
    assert make(kind, normalise_features=True, scale=2.0).scale == 2


def test_haframe_head_orders_mistakes_by_the_tree():
    tree = read_hierarchy("cifar10")
    head = HaFrameHead(10, 16, seed=0, hierarchy="cifar10")
    distances, logits = tree.distances(), head(head.frame()).double()
    torch.testing.assert_close(logits, similarities(distances, 2.0), rtol=0, atol=1e-6)
    for label in range(10):
        nearest_first = distances[label][logits[label].argsort(descending=True)]
        assert torch.equal(nearest_first, nearest_first.sort().values)


def test_a_tree_from_a_file(tmp_path: Path):
    path = tmp_path / "tree.json"
    path.write_text(json.dumps({"groups": [[0, 0], [0, 0], [1, 1], [2, 1], [2, 1]]}))
    head = HaFrameHead(5, 5, seed=0, hierarchy=str(path))
    gram = head.frame() @ head.frame().T
    assert gram[3, 4] > gram[3, 2] > gram[3, 0]
    torch.testing.assert_close(gram[0, 1], gram[3, 4])


@pytest.mark.parametrize(
    ("build", "error", "sentence"),
    [
        (lambda: EtfHead(4, 6, seed=0, scale=float("inf")), InputError, "scale must .* found inf"),
        (lambda: OrthogonalHead(4, 6, seed=0, scale=-1.0), InputError, "above 0, found -1"),
        (lambda: EtfHead(4, 2, seed=0), InputError, "at least 3 dimensions, found 2"),
        (lambda: OrthogonalHead(4, 3, seed=0), InputError, "at least 4 dimensions, found 3"),
        (lambda: HaFrameHead(10, 16, seed=0), InputError, "needs the tree .* cifar10, .* a path"),
        (
            lambda: HaFrameHead(10, 8, seed=0, hierarchy="digits"),
            InputError,
            "at least (9|10) dimensions, found 8",
        ),
        (
            lambda: HaFrameHead(4, 8, seed=0, hierarchy="digits"),
            InputError,
            "digits has 10 classes, and .* 4",
        ),
        (
            lambda: HaFrameHead(10, 16, seed=0, hierarchy="cifar"),
            ConfigError,
            "unknown tree of classes 'cifar'; did you mean",
        ),
        (
            lambda: HaFrameHead(10, 16, seed=0, hierarchy="digits", gamma=0.0),
            InputError,
            "gamma must be finite and above 0, found 0",
        ),
    ],
)
def test_heads_that_cannot_be_are_refused(build, error, sentence):
    with pytest.raises(error, match=sentence):
        build()
