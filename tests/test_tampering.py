"""Whatever is changed in a record or beside it is found, and named."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers_appraisal import altered, opened

from robust_nc.io.files import digest, sha256_of
from robust_nc.record import Stored, pack_flags, unpack_flags, write_rows
from robust_nc.verification.consistency import inconsistencies
from robust_nc.verification.evidence import check_evidence, find_evidence
from robust_nc.verification.originals import examples_of

Values = dict[str, Any]


@pytest.fixture
def copied(verdict_copy: tuple[Stored, str]) -> Stored:
    return verdict_copy[0]


def places(stored: Stored, reference: str | None = None) -> set[str]:
    """Everything that is named as wrong, with the images and without or with the model."""
    model = None if reference is None else opened(reference)
    found = check_evidence(stored, examples=examples_of(stored.record, None), model=model)
    return {finding.place for finding in (*inconsistencies(stored), *found.wrong)}


def broken_row(values: Values) -> int:
    return int(np.flatnonzero(np.array(values["verdict"]["broken_by"]) >= 0)[0])


def flip_flag(values: Values) -> None:
    """Claim an example to be robust that was broken."""
    flags = unpack_flags(values["verdict"]["robust"])
    flags[broken_row(values)] = True
    values["verdict"]["robust"] = pack_flags(flags)


def leave_the_credit_out(values: Values) -> None:
    values["verdict"]["broken_by"][broken_row(values)] = -1


def change_eps_and_name(values: Values) -> None:
    values["config"]["threat"]["eps"] *= 2
    values["cell"] = digest(values["config"])[:16]


def count_anew(values: Values) -> None:
    """Make a second cell of one model."""
    values["config"]["evaluation"]["examples"] += 1
    values["cell"] = digest(values["config"])[:16]


def put(place: str, change: Callable[[Any], Any]) -> Callable[[Values], None]:
    """Change the value at a dotted place."""

    def changed(values: Values) -> None:
        *outer, last = place.split(".")
        inner: Any = values
        for name in outer:
            inner = inner[int(name) if name.isdigit() else name]
        inner[last] = change(inner[last])

    changed.__name__ = place
    return changed


def zeros(_: object) -> str:
    return "0" * 64


# What is changed; the field that its seal names; what else gives it away to a forger who seals it.
CHANGES: list[tuple[Callable[[Values], None], str, set[str]]] = [
    (flip_flag, "verdict", {"verdict.broken_by", "verdict.robust"}),
    (put("scores.robust.value", lambda v: v + 0.05), "scores", {"scores.robust.value"}),
    (put("scores.robust.high", lambda v: v + 0.001), "scores", {"scores.robust.high"}),
    (put("config.threat.eps", lambda v: 2 * v), "config", {"cell", "config.threat"}),
    (change_eps_and_name, "config", {"config.threat"}),
    (leave_the_credit_out, "verdict", {"verdict.broken_by"}),
    (put("attacks.0.broke", lambda v: v + 1), "attacks", {"attacks.0.broke"}),
    (put("passes.forward", lambda v: v - 1), "passes", {"passes.forward"}),
    (put("weights.state", zeros), "weights", {"weights.state"}),
    (put("rows.sha256", zeros), "rows", {"rows"}),
    (put("evidence.sha256", zeros), "evidence", {"evidence.sha256"}),
    (put("evidence.broken", lambda v: v - 1), "evidence", {"evidence.broken"}),
    (put("data.dataset", lambda v: "cifar10"), "data", {"data.dataset"}),
    (put("seed", lambda v: v + 1), "seed", {"seed", "evidence.seed"}),
    (put("evidence.full", zeros), "evidence", {"evidence.full"}),
    (
        put("data.which", lambda v: "the first 1000 of test in the official order"),
        "data",
        {"data.which"},
    ),
    (count_anew, "config", {"config.evaluation.examples"}),
]
NAMES = [change.__name__ for change, *_ in CHANGES]


def test_what_was_not_touched_is_whole(verdict):
    stored, reference = verdict
    assert places(stored, reference) == set()


@pytest.mark.parametrize(("change", "field", "_"), CHANGES, ids=NAMES)
def test_a_change_breaks_the_seal_of_its_field(copied, change, field, _):
    assert field in places(altered(copied, change, seal=False))


@pytest.mark.parametrize(("change", "_", "named"), CHANGES, ids=NAMES)
def test_sealed_anew_it_contradicts_something_else(copied, change, _, named):
    found = places(altered(copied, change, seal=True))
    assert named <= found
    assert "seals" not in found


def test_a_smaller_model_than_was_judged_is_claimed_in_vain(copied, verdict):
    halve = put("weights.parameters", lambda number: number // 2)
    assert places(altered(copied, halve, seal=True), verdict[1]) == {"weights.parameters"}


def test_a_date_is_named_by_its_seal_alone(copied):
    backdate = put("created", lambda date: "2020-01-01T00:00:00+00:00")
    assert places(altered(copied, backdate, seal=False)) == {"created"}
    assert places(altered(copied, backdate, seal=True)) == set(), "nothing else knows the date"


def test_seals_cannot_be_left_out(copied):
    assert "seals" in places(altered(copied, lambda values: values.pop("seals"), seal=False))


def test_a_forger_who_knows_it_all_is_refuted_by_the_model_and_the_evidence(copied, verdict):
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
def test_one_byte_of_the_evidence_or_the_rows_is_found(copied, place):
    rows = copied.path.parent / copied.record.rows.path
    for path, named in ((rows, {"rows"}), (find_evidence(copied), {"rows", "evidence.sha256"})):
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 1
        path.write_bytes(content)
        found = places(copied)
        assert named <= found
        assert named != {"rows"} or found == {"rows"}


@pytest.mark.parametrize("size", [0, 7, 100])
def test_evidence_that_is_cut_is_found(copied, size):
    path = find_evidence(copied)
    path.write_bytes(path.read_bytes()[:size])
    assert {"evidence.sha256", "evidence"} <= places(copied)


def test_rows_that_were_written_anew_contradict_the_scores(copied):
    frame = copied.rows()
    frame.loc[frame["condition"] == "attacked", "value"] += 0.1
    file = write_rows(copied.path.parent / copied.record.rows.path, frame)
    point = put("rows.sha256", lambda digest: file.sha256)
    assert places(altered(copied, point, seal=True)) == {"scores.robust.value"}


def test_rows_that_are_no_rows_are_named(copied):
    path = copied.path.parent / copied.record.rows.path
    point = put("rows.sha256", lambda digest: sha256_of(path))
    for content in (b"PAR1 nothing PAR1", b""):
        path.write_bytes(content)
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
    stored = altered(copied, put("data.examples", lambda v: v - 1), seal=True)
    found = {finding.place for finding in inconsistencies(stored)}
    assert {"verdict.robust", "verdict.broken_by"} <= found


def test_a_wild_record_is_never_a_crash(copied):
    """Values of the right type and no sense."""
    wild = [put("verdict.robust", lambda _, flags=flags: flags) for flags in ("3:ff", "no flags")]
    wild += [
        put("verdict.broken_by", lambda _, codes=codes: codes)
        for codes in ([], [-9] * 120, [99] * 120, [2**62] * 120)
    ]
    wild += [
        put("scores", lambda _: {}),
        put("scores.robust.n", lambda _: 0),
        put("scores.robust.value", lambda _: -3.0),
        put("config", lambda _: {}),
        put("created", lambda _: "yesterday"),
        put("data.examples", lambda _: -5),
        put("attacks", lambda _: []),
    ]
    before = copied.path.read_text()
    for change in wild:
        stored = altered(copied, change, seal=True)
        assert inconsistencies(stored), change.__name__
        check_evidence(stored, examples=None, model=None)
        copied.path.write_text(before)
