"""Whatever is changed in a record or beside it is found, and named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers_appraisal import altered, judged, opened

from robust_nc.config import plain, read
from robust_nc.io.files import digest, sha256_of
from robust_nc.pipeline.finished_model import AppraisalConfig, appraisal_id
from robust_nc.record import Stored, pack_flags, read_record, unpack_flags, write_rows
from robust_nc.verification.consistency import inconsistencies
from robust_nc.verification.evidence import check_evidence, find_evidence
from robust_nc.verification.originals import examples_of

Values = dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stored, str]:
    return judged(tmp_path_factory.mktemp("judged"))


@pytest.fixture
def copied(made: tuple[Stored, str], tmp_path: Path) -> Stored:
    stored, _ = made
    folder = shutil.copytree(stored.path.parent, tmp_path / "out")
    return read_record(folder / stored.path.name)


def places(stored: Stored, reference: str | None = None) -> set[str]:
    """Everything that is named as wrong, with the images and without or with the model."""
    model = None if reference is None else opened(reference)
    found = check_evidence(stored, examples=examples_of(stored.record, None), model=model)
    return {finding.place for finding in (*inconsistencies(stored), *found.wrong)}


def robust_row(values: Values) -> int:
    return int(np.flatnonzero(unpack_flags(values["verdict"]["robust"]))[0])


def broken_row(values: Values) -> int:
    return int(np.flatnonzero(np.array(values["verdict"]["broken_by"]) >= 0)[0])


def flip_flag(values: Values) -> None:
    """Claim an example to be robust that was broken."""
    flags = unpack_flags(values["verdict"]["robust"])
    flags[broken_row(values)] = True
    values["verdict"]["robust"] = pack_flags(flags)


def raise_score(values: Values) -> None:
    values["scores"]["robust"]["value"] += 0.05


def widen_interval(values: Values) -> None:
    values["scores"]["robust"]["high"] += 0.001


def change_eps(values: Values) -> None:
    values["config"]["threat"]["eps"] *= 2


def change_eps_and_name(values: Values) -> None:
    change_eps(values)
    values["cell"] = digest(values["config"])[:16]


def change_broken_by(values: Values) -> None:
    """Credit another attack with a broken example, or leave the credit out."""
    values["verdict"]["broken_by"][broken_row(values)] = -1


def credit_attack(values: Values) -> None:
    values["attacks"][0]["broke"] += 1


def save_passes(values: Values) -> None:
    values["passes"]["forward"] -= 1


def change_weights(values: Values) -> None:
    values["weights"]["state"] = "0" * 64


def change_rows_digest(values: Values) -> None:
    values["rows"]["sha256"] = "0" * 64


def change_evidence_digest(values: Values) -> None:
    values["evidence"]["sha256"] = "0" * 64


def claim_fewer_broken(values: Values) -> None:
    values["evidence"]["broken"] -= 1


def change_data(values: Values) -> None:
    values["data"]["dataset"] = "cifar10"


def cut_of_nothing(values: Values) -> None:
    values["evidence"]["full"] = "0" * 64


def rename_images(values: Values) -> None:
    values["data"]["which"] = "the first 1000 of test in the official order"


def count_anew(values: Values) -> None:
    """Make a second cell of one appraisal."""
    values["config"]["evaluation"]["examples"] += 1
    values["cell"] = digest(values["config"])[:16]


def change_seed(values: Values) -> None:
    values["seed"] += 1


def lose_an_example(values: Values) -> None:
    values["data"]["examples"] -= 1


# What is changed; the field that its seal names; what else gives it away to a forger who seals it.
CHANGES: list[tuple[Callable[[Values], None], str, set[str]]] = [
    (flip_flag, "verdict", {"verdict.broken_by", "verdict.robust"}),
    (raise_score, "scores", {"scores.robust.value"}),
    (widen_interval, "scores", {"scores.robust.high"}),
    (change_eps, "config", {"cell", "config.threat"}),
    (change_eps_and_name, "config", {"config.threat"}),
    (change_broken_by, "verdict", {"verdict.broken_by"}),
    (credit_attack, "attacks", {"attacks.0.broke"}),
    (save_passes, "passes", {"passes.forward"}),
    (change_weights, "weights", {"weights.state"}),
    (change_rows_digest, "rows", {"rows"}),
    (change_evidence_digest, "evidence", {"evidence.sha256"}),
    (claim_fewer_broken, "evidence", {"evidence.broken"}),
    (change_data, "data", {"data.dataset"}),
    (change_seed, "seed", {"seed", "evidence.seed"}),
    (cut_of_nothing, "evidence", {"evidence.full"}),
    (rename_images, "data", {"data.which"}),
    (count_anew, "config", {"config.evaluation.examples"}),
]
NAMES = [change.__name__ for change, *_ in CHANGES]


def test_what_was_not_touched_is_whole(made):
    stored, reference = made
    assert places(stored, reference) == set()


@pytest.mark.parametrize(("change", "field", "_"), CHANGES, ids=NAMES)
def test_a_change_breaks_the_seal_of_its_field(copied, change, field, _):
    assert field in places(altered(copied, change, seal=False))


@pytest.mark.parametrize(("change", "_", "named"), CHANGES, ids=NAMES)
def test_sealed_anew_it_contradicts_something_else(copied, change, _, named):
    found = places(altered(copied, change, seal=True))
    assert named <= found
    assert "seals" not in found


def test_a_smaller_model_than_was_judged_is_claimed_in_vain(copied, made):
    def halve(values: Values) -> None:
        values["weights"]["parameters"] //= 2

    assert places(altered(copied, halve, seal=True), made[1]) == {"weights.parameters"}


def test_a_date_is_named_by_its_seal_alone(copied):
    def backdate(values: Values) -> None:
        values["created"] = "2020-01-01T00:00:00+00:00"

    assert places(altered(copied, backdate, seal=False)) == {"created"}
    assert places(altered(copied, backdate, seal=True)) == set(), "nothing else knows the date"


def test_seals_cannot_be_left_out(copied):
    assert "seals" in places(altered(copied, lambda values: values.pop("seals"), seal=False))


def test_a_forger_who_knows_it_all_is_refuted_by_the_model_and_the_evidence(copied, made):
    """Everything in the record agrees, but the evidence says otherwise."""

    def forge(values: Values) -> None:
        row = broken_row(values)
        attack = values["verdict"]["broken_by"][row]
        values["verdict"]["broken_by"][row] = -1
        values["attacks"][attack]["broke"] -= 1
        flags = unpack_flags(values["verdict"]["robust"])
        flags[row] = True
        values["verdict"]["robust"] = pack_flags(flags)

    found = places(altered(copied, forge, seal=True))
    assert {"verdict.robust", "verdict.broken_by", "scores.robust.value"} <= found


@pytest.mark.parametrize("place", [0.05, 0.3, 0.6, 0.999])
def test_one_byte_of_the_evidence_is_found(copied, place):
    path = find_evidence(copied)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    assert "evidence.sha256" in places(copied)


@pytest.mark.parametrize("size", [0, 7, 100])
def test_evidence_that_is_cut_is_found(copied, size):
    path = find_evidence(copied)
    path.write_bytes(path.read_bytes()[:size])
    assert {"evidence.sha256", "evidence"} <= places(copied)


def test_one_byte_of_the_rows_is_found(copied):
    path = copied.path.parent / copied.record.rows.path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert places(copied) == {"rows"}


def test_rows_that_were_written_anew_contradict_the_scores(copied):
    frame = copied.rows()
    frame.loc[frame["condition"] == "attacked", "value"] += 0.1
    file = write_rows(copied.path.parent / copied.record.rows.path, frame)

    def point(values: Values) -> None:
        values["rows"]["sha256"] = file.sha256

    assert places(altered(copied, point, seal=True)) == {"scores.robust.value"}


def test_rows_that_are_no_rows_are_named(copied):
    path = copied.path.parent / copied.record.rows.path
    for content in (b"PAR1 nothing PAR1", b""):
        path.write_bytes(content)

        def point(values: Values) -> None:
            values["rows"]["sha256"] = sha256_of(path)

        assert places(altered(copied, point, seal=True)) == {"rows"}
    pd.DataFrame({"value": [1.0]}).to_parquet(path)
    assert places(altered(copied, point, seal=True)) == {"rows"}
    path.unlink()
    assert places(copied) == {"rows"}


@pytest.mark.parametrize("path", ["../../secret", "/etc/passwd", ".hidden"])
def test_no_name_leaves_the_folder(copied, path):
    def point(values: Values) -> None:
        values["evidence"]["name"] = values["rows"]["path"] = path

    assert {"evidence.name", "rows"} <= places(altered(copied, point, seal=True))


def test_an_example_less_is_named(copied):
    stored = altered(copied, lose_an_example, seal=True)
    assert {"verdict.robust", "verdict.broken_by"} <= {
        finding.place for finding in inconsistencies(stored)
    }


def test_a_wild_record_is_never_a_crash(copied):
    """Values of the right type and no sense."""
    wild: list[Callable[[Values], None]] = [
        lambda values: values["verdict"].update(robust="3:ff"),
        lambda values: values["verdict"].update(robust="no flags"),
        lambda values: values["verdict"].update(broken_by=[]),
        lambda values: values["verdict"].update(broken_by=[-9] * 120),
        lambda values: values["verdict"].update(broken_by=[99] * 120),
        lambda values: values["verdict"].update(broken_by=[2**62] * 120),
        lambda values: values.update(scores={}),
        lambda values: values["scores"]["robust"].update(n=0),
        lambda values: values["scores"]["robust"].update(value=-3.0),
        lambda values: values.update(config={}),
        lambda values: values.update(created="yesterday"),
        lambda values: values["data"].update(examples=-5),
        lambda values: values.update(attacks=[]),
    ]
    before = copied.path.read_text()
    for change in wild:
        stored = altered(copied, change, seal=True)
        assert inconsistencies(stored), change
        check_evidence(stored, examples=None, model=None)
        copied.path.write_text(before)


def test_the_name_of_a_cell_is_that_of_its_settings(made):
    stored, _ = made
    settings = read(AppraisalConfig, stored.record.config)
    assert appraisal_id(settings) == stored.record.cell == digest(plain(settings))[:16]
    assert json.loads(stored.path.read_text())["cell"] == stored.record.cell
