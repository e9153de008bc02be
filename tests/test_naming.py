"""What names a cell and its weights."""

import pytest

from robust_nc.config import RunConfig, cell_id, plain, read, training_id, training_part


def test_the_digest_follows_the_values_and_not_their_order() -> None:
    one = read(RunConfig, {"seed": 1, "train": {"epochs": 3, "lr": 0.2}})
    other = read(RunConfig, {"train": {"lr": 0.2, "epochs": 3}, "seed": 1})
    assert cell_id(one) == cell_id(other)
    assert cell_id(one) != cell_id(read(RunConfig, {"seed": 2, "train": {"epochs": 3, "lr": 0.2}}))


def test_cells_that_are_only_judged_differently_share_their_weights() -> None:
    base = RunConfig()
    judged = read(RunConfig, {"evaluation": {"examples": 7}, "measure": {"steps": 3}})
    trained = read(RunConfig, {"train": {"epochs": 7}})
    assert cell_id(base) != cell_id(judged)
    assert training_id(base) == training_id(judged)
    assert training_id(base) != training_id(trained)


def test_fields_that_came_later_leave_names_alone_until_they_are_used() -> None:
    """Results that were published with an earlier version keep their cell ids."""
    assert cell_id(RunConfig()) == "a77657f1fbf4bfd4"
    whole = plain(RunConfig())
    for table, fields in naming._LATER.items():
        assert {name: whole[table][name] for name in fields} == fields
    assert "noise" not in training_part(RunConfig())["data"]


@pytest.mark.parametrize(
    "values",
    [
        {"data": {"noise": {"name": "symmetric", "rate": 0.2}}},
        {"model": {"neck": "transform"}},
        {"train": {"backbone_lr": 0.1}},
        {"train": {"averaging": "ema"}},
    ],
)
def test_later_fields_that_training_depends_on_name_other_weights(values) -> None:
    assert training_id(read(RunConfig, values)) != training_id(RunConfig())
