"""Claims as files: `[[claim]]` tables, each checked whole before anything runs.

`of` and `against` choose cells by dotted keys of a configuration. A part needs only those options
that tell it from the others of the suite; what its class takes by default counts as said. Exactly
one cell per seed must be left.

>>> import tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp()) / "mine.toml"
>>> _ = path.write_text('''
... [[claim]]
... id = "M1"
... says = "Standard training collapses further with a fixed head."
... source = "a note of ours"
... suite = "quickstart"
... quantity = "nc1_clean"
... of = { "train.objective" = "standard", "model.head" = "etf" }
... against = { "train.objective" = "standard", "model.head" = "linear" }
... expect = "below"
... effect = 0.1
... ''')
>>> [(plan.claim.id, sorted(plan.of)) for plan in read_claims(str(path)).plans]
[('M1', [0, 1])]
"""

import dataclasses
import inspect
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from robust_nc.claims.deciding import Expect
from robust_nc.claims.quantities import taps, whole
from robust_nc.config import Component, Part, RunConfig, configuration, plain, read
from robust_nc.exceptions import ConfigError, InputError, unknown_name
from robust_nc.io.files import canonical_json, digest
from robust_nc.models.build import build_model
from robust_nc.pipeline.suite import PARTS, Cell, Suite, read_suite, value_at, with_value
from robust_nc.pipeline.suite_files import CLAIMS
from robust_nc.profiling.feature_cache import chosen_taps
from robust_nc.report.board.gather import part_label

ANSWERS = "answers"  # the folder of the answers, beside those of the suites
_KEYS = ("description", "claim")
_Text = Annotated[str, Field(min_length=1)]


@configuration
class Bounds:
    """What a premise asks of a quantity, in the cells of one side or of both."""

    minimum: float | None = None
    maximum: float | None = None
    side: Literal["both", "of", "against"] = "both"

    def hold(self, value: float | None) -> bool:
        """Whether a value lies within; a cell without one does not."""
        if value is None:
            return False
        above = self.minimum is None or value >= self.minimum
        return above and (self.maximum is None or value <= self.maximum)


def _bounds(value: object) -> object:
    """Read a bare number as the minimum."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"minimum": value} if number else value


@configuration
class Claim:
    """One claim: which quantity of which cells, and what it is expected to be.

    The value of a seed is the quantity of the cell `of`, less that of the cell `against` with the
    same seed where there is one. Expected is that its mean is `above` or `below` the `reference` by
    more than `effect`, or `equal` to it within `effect`. `premise`: quantities that cells must
    reach (a number), or keep within bounds. `beside`: quantities that are told, and decide nothing.
    With `variant`, options of the quantity, the claim is decided only where all variants agree.
    `changed`: when and why the claim was put otherwise than at first.
    """

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    says: _Text
    source: _Text
    suite: _Text
    quantity: Part
    of: dict[str, Any]
    against: dict[str, Any] | None = None
    expect: Expect
    reference: float = 0.0
    effect: Annotated[float, Field(ge=0)]
    premise: dict[str, Annotated[Bounds, BeforeValidator(_bounds)]] = Field(default_factory=dict)
    beside: tuple[Part, ...] = ()
    variant: tuple[dict[str, Any], ...] = ()
    changed: str = ""


class ClaimPlan(NamedTuple):
    """A claim with what it names looked up: one quantity per variant, and cells by seed.

    `digest` is that of the claim's own entry, as it was read and before defaults.
    """

    claim: Claim
    digest: str
    suite: Suite
    quantities: tuple[Component, ...]
    of: dict[int, Cell]
    against: dict[int, Cell] | None


class Claims(NamedTuple):
    """A file of claims."""

    name: str
    description: str
    plans: tuple[ClaimPlan, ...]

    def suites(self) -> tuple[Suite, ...]:
        """Return the suites that the claims are about, each once, in the order of the claims."""
        return tuple({plan.suite.name: plan.suite for plan in self.plans}.values())


def holds_claims(name: str) -> bool:
    """Whether a name, or a path that ends with `.toml`, is one of claims rather than of a suite."""
    if not name.endswith(".toml"):
        return name == CLAIMS
    try:
        return "claim" in tomllib.loads(Path(name).read_text())
    except (OSError, ValueError):
        return False


def read_claims(name: str = CLAIMS) -> Claims:
    """Read the claims of the package, or those at a path that ends with `.toml`.

    A suite whose name ends with `.toml` is looked for beside the file. Raises `ConfigError` that
    names the file, the claim, what was found and what is valid.
    """
    inside = not name.endswith(".toml")
    source = f"{name}.toml" if inside else name
    folder = resources.files("robust_nc.benchmarks") if inside else Path(name).parent
    try:
        values = tomllib.loads((folder / Path(source).name).read_text())
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the claims {source} cannot be read: {error}") from None
    for key in values:
        if key not in _KEYS:
            raise unknown_name(f"key in {source}", key, _KEYS)
    entries = values.get("claim")
    tables = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    if not entries or not tables:
        raise ConfigError(f"{source}: claims are tables [[claim]], and at least one is needed")
    plans = tuple(_plan(entry, Path(name).parent, source) for entry in entries)
    _check_apart(plans, source)
    return Claims(Path(source).stem, str(values.get("description", "")), plans)


def _plan(entry: dict[str, Any], folder: Path, source: str) -> ClaimPlan:
    source = f"{source}, claim {entry.get('id', 'without an id')}"
    claim = read(Claim, entry, source=source)
    if claim.expect == "equal" and claim.effect == 0:
        raise ConfigError(f"{source}: equal needs a margin, that is an effect above 0")
    for name, bounds in claim.premise.items():
        low, high = bounds.minimum, bounds.maximum
        told = f"{source}: the premise on {name}"
        if low is None and high is None:
            raise ConfigError(f"{told} needs a minimum or a maximum")
        if low is not None and high is not None and low > high:
            raise ConfigError(f"{told}: its minimum is above its maximum")
        if bounds.side == "against" and claim.against is None:
            raise ConfigError(f"{told} is of `against`, which is not given")
    name, options = claim.quantity.name, claim.quantity.options
    quantities = tuple(
        Component(name=name, options=options | variant) for variant in claim.variant or ({},)
    )
    try:
        for part in (*claim.beside, *(Component(name=name) for name in claim.premise)):
            whole(part)
        texts = [canonical_json(plain(whole(part))) for part in quantities]
        for place, text in enumerate(texts):
            if text in texts[:place]:  # it would count twice in Holm's family
                raise ConfigError(
                    f"two variants are the same quantity {part_label(plain(quantities[place]))}, "
                    "defaults counted; each would count as a test of its own, so leave one out"
                )
        beside = claim.suite.endswith(".toml")
        suite = read_suite(str(folder / claim.suite) if beside else claim.suite)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    of = _cells_of(suite, claim.of, f"{source}, of")
    against = None
    if claim.against is not None:
        against = _cells_of(suite, claim.against, f"{source}, against")
        if not set(of) & set(against):
            raise ConfigError(f"{source}: `of` and `against` have no seed in common")
        if of == against:
            raise ConfigError(f"{source}: `of` and `against` are the same cells")
    for side in (of,) if against is None else (of, against):
        one = next(iter(side.values()))  # the cells of a side differ in the seed alone
        _check_taps(one.config, (*quantities, *claim.beside), source)
    return ClaimPlan(claim, digest(entry), suite, quantities, of, against)


def _check_taps(config: RunConfig, parts: Iterable[Component], source: str) -> None:
    """Refuse a tap that no cell with this configuration measures."""
    wanted = [(part, tap) for part in parts for tap in taps(part)]
    if config.measure.taps is None and all(tap == "penultimate" for _, tap in wanted):
        return  # every backbone has it
    known = _measured(config)
    for part, tap in wanted:
        if known is not None and tap not in known:
            where = f"{part.name!r} of {config.model.backbone.name!r}"
            raise ConfigError(f"{source}: {unknown_name(f'tap for {where}', tap, known)}")


def _measured(config: RunConfig) -> tuple[str, ...] | None:
    """Name the taps that a cell measures; None where only the data set's sizes can tell."""
    plainly = dataclasses.replace(
        config.model, head=Component(name="linear"), num_classes=None, mean=None, std=None
    )
    try:
        return chosen_taps(build_model(plainly), config.measure.taps)
    except InputError:
        return None


def _check_apart(plans: tuple[ClaimPlan, ...], source: str) -> None:
    """Refuse two claims, or two suites, that would be written to one place."""
    seen: dict[str, Suite] = {ANSWERS: Suite(ANSWERS, "", ())}
    ids: set[str] = set()
    for plan in plans:
        if plan.claim.id in ids:
            raise ConfigError(f"{source}: two claims have the id {plan.claim.id!r}")
        ids.add(plan.claim.id)
        if seen.setdefault(plan.suite.name, plan.suite) != plan.suite:
            raise ConfigError(
                f"{source}: a suite other than that of claim {plan.claim.id} would be written to "
                f"the folder {plan.suite.name!r} too; give it another name"
            )


def _cells_of(suite: Suite, wanted: Mapping[str, Any], source: str) -> dict[int, Cell]:
    """Return the cells of one model, by seed, whose configuration has the wanted values.

    `source` says in errors where `wanted` stands. Raises `ConfigError` for a key or value that no
    configuration can have, and where no model, or more than one, has them.
    """
    values = {key: _plain(key, value, source) for key, value in wanted.items()}
    found = [
        cell
        for cell in suite.cells
        if all(_fits(key, value, value_at(cell.config, key)) for key, value in values.items())
    ]
    models = sorted({cell.model for cell in found or suite.cells})
    if not found:
        raise ConfigError(
            f"{source}: no cell of the suite {suite.name} has {_text(wanted)}; "
            f"its models: {', '.join(models)}"
        )
    if len(models) > 1:
        raise ConfigError(
            f"{source}: {len(models)} models of the suite {suite.name} have {_text(wanted)} "
            f"({', '.join(models)}); say what tells them apart"
        )
    return {cell.config.seed: cell for cell in sorted(found, key=lambda cell: cell.config.seed)}


def _plain(key: str, value: object, source: str) -> Any:
    """Read a value as a suite would, and return it as a configuration holds it."""
    if key == "seed":
        raise ConfigError(f"{source}: seed is what a claim is averaged over; leave it out")
    config = read(RunConfig, with_value({}, key.split("."), value), source=source)
    found = value_at(config, key)
    if isinstance(found, dict) and "options" not in found:
        raise ConfigError(
            f"{source}: {key!r} is a table; write whole keys in quotes, such as "
            f"'{key}.{min(found)}'"
        )
    if isinstance(found, dict) and key in PARTS:
        parameters = _parameters(key, found["name"])
        for option in found["options"]:
            if option not in parameters:
                raise unknown_name(f"option of {found['name']!r} in {source}", option, parameters)
    return found


def _fits(key: str, wanted: Any, found: Any) -> bool:
    if not (isinstance(wanted, dict) and isinstance(found, dict)):
        return bool(wanted == found)
    if wanted["name"] != found["name"]:
        return False
    parameters = _parameters(key, found["name"]) if key in PARTS else {}
    known = {name: parameter.default for name, parameter in parameters.items()} | found["options"]
    return all(name in known and known[name] == value for name, value in wanted["options"].items())


def _parameters(key: str, name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(PARTS[key][0].load(name)).parameters


def _text(wanted: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value!r}" for key, value in wanted.items()) or "no condition"
