"""The plan of a suite: counts against counted steps, passes and records, totals, speeds' files."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_runner import GRID, TINY
from rich.console import Console

from robust_nc.cli.plan import plan_command
from robust_nc.config import RunConfig, read
from robust_nc.data.load import to_unit
from robust_nc.engines.options import RunOptions
from robust_nc.evaluation import evaluate
from robust_nc.exceptions import ConfigError
from robust_nc.pipeline.suite import Suite, read_suite
from robust_nc.planning.cell_sizes import CellSizer, CellSizes
from robust_nc.planning.pieces import STAGES, expected, training_pieces, verdict_pieces
from robust_nc.planning.pilots import Pilots, rate_of
from robust_nc.planning.plan import plan_suite, probes_of, wall_clock
from robust_nc.planning.speeds import Rate, Speeds, read_speeds, write_speeds
from robust_nc.planning.survivors import Survival, measured, read_records
from robust_nc.training import run

RESULTS = Path(__file__).parent.parent / "results"
SMALL = {
    "data": {"dataset": "digits", "train_limit": 130, "test_limit": 60, "validation": 0.0},
    "model": {"backbone": {"name": "small_cnn", "width": 8}, "head": "linear"},
    "train": {"epochs": 2, "batch_size": 50},
    "threat": {"eps": 0.1},
    "measure": {"train_examples": 60, "test_examples": 40, "steps": 3, "trajectories": 0},
}


def config_of(**tables: dict[str, object]) -> RunConfig:
    merged = {name: {**SMALL.get(name, {}), **tables.get(name, {})} for name in SMALL | tables}
    return read(RunConfig, merged)


def sizes_of(config: RunConfig) -> CellSizes:
    return CellSizer(None).sizes(config)


def suite_of(text: str, folder: Path) -> Suite:
    path = folder / "tiny.toml"
    path.write_text(text)
    return read_suite(str(path))


def flat_speeds(cells, rate: Rate | None = None) -> Speeds:
    rate = rate or Rate(fixed=0.0, each=1.0)
    rates = {probe.key: rate for probe in probes_of(cells)}
    return Speeds(device="cpu x86_64", threads=1, torch="2", rates=rates)


class TestStepsOfTraining:
    def test_planned_steps_are_those_that_a_training_takes(self, monkeypatch):
        config = config_of(train={"batch_size": 43})  # a last batch of one image is left out
        seen: list[int] = []
        make = run.build_model

        def watched(*args, **options):
            model = make(*args, **options)
            model.backbone.register_forward_hook(note)
            return model

        def note(module, given, _output):
            if module.training:
                seen.append(len(given[0]))

        monkeypatch.setattr(run, "build_model", watched)
        run.train_cell(config)
        steps = training_pieces(sizes_of(config))[0]
        assert steps.calls == len(seen)
        assert steps.images == pytest.approx(sum(seen), rel=0.02)

    def test_a_validated_training_is_planned_with_what_stands_between_its_epochs(self):
        config = config_of(data={"train_limit": 400, "validation": 0.2})
        pieces = training_pieces(sizes_of(config))
        assert [p.probe.kind for p in pieces] == ["step", "validate"]
        assert [p.images for p in pieces] == [2 * 320, 2 * 80]


class Counted:
    """A model on digits that it gets right, with the calls that are made of it."""

    def __init__(self, config: RunConfig, count: int) -> None:
        self.model = CellSizer(None).build(config).eval()
        self.images = to_unit(run.read_split(config.data.dataset, "train", limit=count).images)
        with torch.no_grad():
            self.labels = self.model(self.images).argmax(1)
        self.calls = 0
        self.model.register_forward_hook(self._forward)

    def _forward(self, module, given, output):
        self._note(output)
        if output.requires_grad:
            output.register_hook(self._note)

    def _note(self, _):
        self.calls += 1


class TestPassesOfVerdicts:
    @pytest.mark.parametrize("protocol", ["fgsm", "pgd", "fast"])
    def test_what_nothing_breaks_costs_the_passes_that_are_planned(self, protocol):
        config = config_of(threat={"eps": 1e-6})
        model = Counted(config, 20)
        given = (model.model, model.images, model.labels, config.threat.ball())
        found = evaluate(*given, protocol=protocol, checks=False)
        assert found.robust.all()
        spent = int((found.forward_passes + found.backward_passes).sum())
        pieces = verdict_pieces(sizes_of(config), "attack", protocol, 20, Survival(1.0, 1.0))
        planned = sum(piece.images for piece in pieces)
        # Far from the boundary no example passes a gate; planned are some that do.
        few = 1.05 if protocol != "fast" else 1.9
        assert spent <= 1.02 * planned <= few * spent

    @pytest.mark.parametrize(("count", "eps"), [(20, 1e-6), (128, 0.5), (300, 0.5)])
    def test_calls_of_a_verdict_are_about_those_that_are_planned(self, count, eps):
        config = config_of(threat={"eps": eps})
        model = Counted(config, count)
        given = (model.model, model.images, model.labels, config.threat.ball())
        found = evaluate(*given, protocol="pgd_ce", accelerate=False, checks=False)
        survival = Survival(found.clean_accuracy, found.robust_accuracy)
        pieces = verdict_pieces(sizes_of(config), "attack", "pgd_ce", count, survival)
        assert sum(piece.calls for piece in pieces) == pytest.approx(model.calls, rel=0.5)

    @pytest.mark.parametrize("suite", ["heads-under-attack", "fixed-heads"])
    def test_records_of_defended_models_spent_what_is_counted(self, suite):
        cells = [c for c in read_suite(suite).cells if c.config.train.objective.name == "pgd"]
        config, records = cells[0].config, read_records([RESULTS / suite])
        like = [record for record in records if record.objective == "pgd"]
        spent = [(r.passes.forward + r.passes.backward) / r.data.examples for r in like]
        protocol, survival = config.evaluation.protocol, expected(config, records)
        pieces = verdict_pieces(sizes_of(config), "attack", protocol, 1_000, survival)
        planned = sum(piece.images for piece in pieces) / 1_000
        assert planned == pytest.approx(sum(spent) / len(spent), rel=0.1)


class TestSurvival:
    def test_records_of_the_same_kind_of_model_come_before_assumptions(self):
        config = read_suite("heads-under-attack").cells[0].config
        records = read_records([RESULTS / "heads-under-attack"])
        found = measured(config, records)
        assert found is not None
        assert found.source.startswith("from")
        assert found == expected(config, records)
        other = dataclasses.replace(config, threat=dataclasses.replace(config.threat, eps=0.2))
        assert measured(other, records) is None
        assert expected(other, records).source == "assumed for standard"

    def test_robustness_falls_with_the_radius(self):
        found = Survival(0.9, 0.3)
        for radius, robust in ((0.0, 0.9), (1.0, 0.3), (2.0, 0.1)):
            assert found.at(radius).robust == pytest.approx(robust)
        assert Survival(0.0, 0.0).at(2.0).robust == 0.0


class TestPlan:
    def test_cells_that_share_weights_train_once(self, tmp_path):
        suite = suite_of(TINY + GRID, tmp_path)
        cells = plan_suite(suite, tmp_path, CellSizer(None))
        seconds = [cell.seconds(flat_speeds(cells)) for cell in cells]
        assert [bool(found.get("train")) for found in seconds] == [True, False] * 2

    def test_cells_that_are_done_cost_nothing_more(self, tmp_path):
        suite = read_suite("heads-under-attack")
        shutil.copytree(RESULTS / "heads-under-attack", tmp_path / "out")
        gone = suite.cells[3]
        (tmp_path / "out" / gone.model / f"{gone.id}.json").unlink()
        cells = plan_suite(suite, tmp_path / "out", CellSizer(None))
        assert [each.cell.id for each in cells if each.left] == [gone.id]
        assert all(cell.pieces for cell in cells)

    def test_more_devices_shorten_the_time_but_not_below_the_longest_chain(self):
        work = [6.0, 2.0, 2.0]
        assert [wall_clock(work, devices) for devices in (1, 2, 3, 9)] == [10.0, 6.0, 6.0, 6.0]

    @pytest.mark.parametrize(
        "name", ["memorization-dilation", "hierarchy", "cifar10-linf", "deep-rfm", "long-tail"]
    )
    def test_suites_of_the_package_can_be_counted(self, name, tmp_path):
        suite = read_suite(name)
        cells = plan_suite(suite._replace(cells=suite.cells[::7]), tmp_path, CellSizer(None))
        assert all({p.stage for p in cell.pieces} <= set(STAGES) for cell in cells)
        assert all(any(p.stage == "measure" for p in cell.pieces) for cell in cells)


class TestTiming:
    def test_every_kind_of_probe_of_a_suite_can_be_timed(self, tmp_path):
        text = TINY.replace("radii = []", "radii = [1.0]").replace(
            "trajectories = 0", "trajectories = 4\nagop_examples = 4\nbatch_size = 20"
        )
        text = text.replace("epochs = 2", 'epochs = 2\nobjective = { name = "pgd", steps = 2 }')
        cells = plan_suite(suite_of(text, tmp_path), tmp_path, CellSizer(None))
        probes = probes_of(cells)
        kinds = {"step", "validate", "attack", "verdict", "measure"}
        assert {probe.kind for probe in probes} == kinds
        pilots = Pilots(CellSizer(None), seconds=0.0)
        for probe in probes:
            rate = pilots.time(probe)
            assert min(rate.fixed, rate.each) >= 0, probe.key
            assert rate.seconds(1, 8) > 0, probe.key

    def test_a_fit_in_closed_form_is_timed_whole(self):
        (config, *_) = (cell.config for cell in read_suite("deep-rfm").cells)
        (piece,) = training_pieces(sizes_of(config))
        assert piece.calls == 1
        assert Pilots(CellSizer(None), seconds=0.0).time(piece.probe).fixed > 0

    @pytest.mark.parametrize("fixed", [0.0, 0.02, 0.5])
    def test_a_cost_of_a_call_is_not_charged_to_its_images(self, fixed):
        found = rate_of(lambda count: fixed + 0.001 * count, 128, least=4, most=16.0)
        assert found.seconds(1, 128) == pytest.approx(fixed + 0.128)
        assert found.seconds(1, 1) == pytest.approx(fixed + 0.001)

    def test_a_batch_that_would_take_too_long_is_not_tried(self):
        tried: list[int] = []

        def cost(count: int) -> float:
            tried.append(count)
            return 1.0 * count

        assert rate_of(cost, 128, least=4, most=7.0) == Rate(fixed=0.0, each=1.0)
        assert rate_of(cost, 128, least=4, most=16.0) == Rate(fixed=0.0, each=1.0)
        assert tried == [4, 4, 16]

    @pytest.mark.parametrize("costs", [{4: 3.0, 8: 2.0}, {4: 0.5, 8: 4.0}])
    def test_a_rate_is_never_negative_and_keeps_the_cost_of_the_large_batch(self, costs):
        found = rate_of(costs.__getitem__, 8, least=4, most=99.0)
        assert min(found.fixed, found.each) >= 0
        assert found.seconds(1, 8) == pytest.approx(costs[8])


class TestSpeedsFile:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "cannot be read"),
            ('{"schema_version": 9}', "schema version 9"),
            ('{"schema_version": 3, "device": 3, "threads": 1, "torch": "2"}', "device"),
            (
                '{"schema_version": 3, "device": "x", "threads": 1, "torch": "2", '
                '"rates": {"k": {"fixed": -1.0, "each": 0.0}}}',
                "fixed.*greater than or equal to 0",
            ),
        ],
    )
    def test_a_file_that_is_none_is_refused(self, text, said, tmp_path):
        path = tmp_path / "speeds.json"
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_speeds(path)


def plan(suite: Path, **options: Any) -> None:
    plan_command(RunOptions(str(suite), plan=True, **options), Console(stderr=True))


class TestCommand:
    def planned(self, tmp_path, capsys, text: str = TINY, **options) -> str:
        suite = suite_of(text, tmp_path)
        cells = plan_suite(suite, tmp_path / "out", CellSizer(None))
        file = tmp_path / "speeds.json"
        write_speeds(file, flat_speeds(cells, Rate(fixed=3.6, each=0.0)))
        before = sorted(tmp_path.rglob("*"))
        given = {"workers": 1, "out": tmp_path / "out", **options}
        plan(tmp_path / "tiny.toml", speeds=file, **given)
        assert sorted(tmp_path.rglob("*")) == before, "a plan writes nothing"
        return str(capsys.readouterr().out)

    def test_it_tells_cells_hours_disk_money_and_where_speeds_are_from(self, tmp_path, capsys):
        out = self.planned(tmp_path, capsys, price=2.0, workers=3)
        assert "tiny: 1 cells" in out
        assert "CPU core hours" in out
        assert "with 3 processes at a time" in out
        assert "disk" in out
        assert "x 2 = " in out
        assert "assumed for standard" in out
        assert f"from {tmp_path / 'speeds.json'}, on cpu x86_64, 1 thread, torch 2" in out

    def test_a_part_of_a_suite_is_planned_alone_and_says_its_numbers(self, tmp_path, capsys):
        text = f"{TINY}\n[grid]\nseed = [0, 1, 2]\n"
        out = self.planned(tmp_path, capsys, text, where=("seed=2",))
        assert "tiny: 1 cells" in out
        assert "money" not in out, "there is no price"
        assert "\n  small_cnn-linear-standard: 2\n" in out

    def test_a_narrow_terminal_breaks_names_and_lines(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "72")
        text = f"{TINY}\n[grid]\nseed = {list(range(40))}\n"
        text = text.replace("[base.model]", '[base.model]\nhead = {name = "linear"}')
        out = self.planned(tmp_path, capsys, text, price=2.0, workers=3)
        lines = [line for line in out.splitlines() if str(tmp_path) not in line]
        assert max(map(len, lines)) <= 72
        assert "39" in out

    @pytest.mark.parametrize("wrong", [-1.0, float("nan")])
    def test_a_price_that_cannot_be_is_refused(self, wrong, tmp_path, capsys):
        with pytest.raises(ConfigError, match="--price is what an hour"):
            self.planned(tmp_path, capsys, price=wrong)

    def test_a_plan_is_not_made_by_several_processes(self, tmp_path, capsys, monkeypatch):
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.setenv(name, "2")
        with pytest.raises(ConfigError, match="leave torchrun out"):
            self.planned(tmp_path, capsys)

    def test_speeds_of_other_models_are_refused_by_name(self, tmp_path):
        suite_of(TINY, tmp_path)
        keys = ("forward | vgg 3x32x32, 10 classes", "no key of ours")
        rates = {key: Rate(fixed=1, each=0) for key in keys}
        speeds = Speeds(device="gpu x", threads=1, torch="2", rates=rates)
        write_speeds(tmp_path / "s.json", speeds)
        with pytest.raises(ConfigError, match=r"on gpu x.*small_cnn.*they hold no key.*; vgg"):
            plan(tmp_path / "tiny.toml", speeds=tmp_path / "s.json")

    def test_claims_are_planned_suite_by_suite(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine.toml").write_text(
            "\n".join(
                f'[[claim]]\nid = "{name}"\nsays = "s"\nsource = "ours"\nsuite = "{suite}"\n'
                'quantity = "nc1_clean"\nof = { "train.objective" = "standard", '
                '"model.head" = "etf" }\nexpect = "below"\nreference = 1.0\neffect = 0.1'
                for name, suite in (("A", "quickstart"), ("B", "long-tail"))
            )
        )
        suites = [read_suite(name) for name in ("quickstart", "long-tail")]
        cells = [s for suite in suites for s in plan_suite(suite, tmp_path, CellSizer(None))]
        write_speeds(tmp_path / "s.json", flat_speeds(cells))
        plan(Path("mine.toml"), speeds=tmp_path / "s.json")
        out = capsys.readouterr().out
        assert "quickstart: 12 cells" in out
        assert "long-tail: 30 cells" in out
        assert "all suites: 42 cells" in out
