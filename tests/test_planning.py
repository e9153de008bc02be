"""The plan of a suite: counts against counted passes and records, totals, files of speeds."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers_runner import GRID, TINY
from rich.console import Console

from robust_nc.cli.plan import plan_command
from robust_nc.config import RunConfig, read
from robust_nc.data.load import to_unit
from robust_nc.engines.options import RunOptions
from robust_nc.evaluation import evaluate
from robust_nc.exceptions import ConfigError
from robust_nc.pipeline.suite import Suite, read_suite
from robust_nc.planning.cell_sizes import Anatomist
from robust_nc.planning.cells import expected
from robust_nc.planning.counting_hooks import Counter, counted, objective_passes
from robust_nc.planning.geometry_cost import geometry_pieces, sweeps
from robust_nc.planning.pieces import Passes, total
from robust_nc.planning.plan import Chain, price, probes_of, sketch_suite, wall_clock
from robust_nc.planning.speeds import Rate, Speeds, read_speeds, write_speeds
from robust_nc.planning.stopwatch import Stopwatch, line
from robust_nc.planning.survivors import Survival, measured, read_records
from robust_nc.planning.timing import Bench
from robust_nc.planning.training_cost import training_pieces
from robust_nc.planning.verdict_cost import verdict_pieces
from robust_nc.profiling.profile_model import profile_cell
from robust_nc.training import run
from robust_nc.training.run import training_data

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


def site_of(config: RunConfig):
    return Anatomist(None).look(config)


def watch_models(monkeypatch) -> list[Counter]:
    """Count the passes of every model that is built for a training."""
    seen: list[Counter] = []
    make = run.build_model

    def watched(*args, **options):
        model = make(*args, **options)
        seen.append(Counter())
        model.backbone.register_forward_hook(seen[-1].note)
        return model

    monkeypatch.setattr(run, "build_model", watched)
    return seen


def suite_of(text: str, folder: Path) -> Suite:
    path = folder / "tiny.toml"
    path.write_text(text)
    return read_suite(str(path))


def flat_speeds(sketches, rate: Rate | None = None) -> Speeds:
    rate = rate or Rate(fixed=0.0, each=1.0)
    rates = {probe.key: rate for probe in probes_of(sketches)}
    return Speeds(device="cpu x86_64", threads=1, torch="2", rates=rates)


class TestPassesOfTraining:
    @pytest.mark.parametrize(
        "objective",
        [
            "standard",
            "fgsm",
            {"name": "pgd", "steps": 3},
            {"name": "trades", "steps": 2},
            {"name": "mart", "steps": 2},
            {"name": "awp", "steps": 2},
            {"name": "pgd", "steps": 2, "bn_mode": "train"},
        ],
    )
    def test_planned_passes_are_those_that_a_training_makes(self, objective, monkeypatch):
        config = config_of(train={"objective": objective})
        seen = watch_models(monkeypatch)
        run.train_cell(config)
        planned = total(training_pieces(site_of(config), clean=0.9, robust=0.5))
        # The probe of collapse reads the blocks of a backbone, past its hook.
        read = 2 * min(config.train.collapse_examples, 130)
        assert seen[0].trained == planned.trained
        assert seen[0].gradients == planned.gradients
        assert seen[0].forwards == planned.forwards - read
        assert planned.steps == 6

    def test_a_validated_training_is_planned_within_a_few_percent(self, monkeypatch):
        config = config_of(
            data={"train_limit": 400, "validation": 0.2},
            train={"objective": {"name": "pgd", "steps": 5}, "epochs": 2},
        )
        seen = watch_models(monkeypatch)
        trained = run.train_cell(config)
        robust = sum(row["validation_attacked"] for row in trained.history) / 2
        clean = sum(row["validation_clean"] for row in trained.history) / 2
        planned = total(training_pieces(site_of(config), clean=clean, robust=robust))
        assert planned.gradients == pytest.approx(seen[0].gradients, rel=0.05)

    def test_the_step_of_a_fixed_head_with_its_loss_is_counted(self):
        model = {"head": "haframe", "neck": "transform"}
        config = config_of(model=model, train={"objective": {"name": "trades", "steps": 4}})
        assert objective_passes(config) == Passes(forwards=1.0, gradients=4.0, trained=2.0)


class TestPassesOfGeometry:
    @pytest.mark.parametrize(
        "measure",
        [
            {"targets": [], "radii": []},
            {"targets": ["cyclic", "nearest"], "radii": [0.5, 1.0], "restarts": 2},
            {"targets": ["random"], "radii": [1.0], "feature": "both", "batch_size": 25},
        ],
    )
    def test_planned_passes_are_those_that_a_profile_makes(self, measure):
        config = config_of(measure=measure)
        info = Anatomist(None).look(config).info
        learnt, _ = training_data(config, info, None)
        test = run.read_split(config.data.dataset, "test", limit=60)
        model = Anatomist(None).model(config).eval()
        with counted(model.normalise) as counter:
            profile_cell(model, learnt.split, test, config, report=lambda share, text: None)
        planned = total(geometry_pieces(site_of(config), Survival(0.9, 0.5)))
        assert planned.gradients == counter.gradients
        assert planned.forwards == counter.forwards

    def test_features_that_do_not_fit_into_memory_are_passed_again(self):
        config = config_of(measure={"feature": "flatten", "targets": []})
        site = site_of(config)
        wide = site._replace(dims={"flatten": {"block1": 1_000_000}})
        assert sweeps(wide, "flatten", 2_000) > 2 * sweeps(site, "flatten", 2_000)


class TestPassesOfVerdicts:
    @pytest.mark.parametrize("protocol", ["fgsm", "pgd", "fast"])
    def test_what_nothing_breaks_costs_the_passes_that_are_planned(self, protocol):
        config = config_of(threat={"eps": 1e-6})
        model = Anatomist(None).model(config).eval()
        split = run.read_split(config.data.dataset, "test", limit=20)
        images = to_unit(split.images)
        labels = model(images).argmax(1)
        found = evaluate(model, images, labels, config.threat.ball(), protocol=protocol)
        assert found.robust.all()
        spent = int((found.forward_passes + found.backward_passes).sum())
        site = site_of(config)
        planned = total(verdict_pieces(site, "attack", protocol, 20, Survival(1.0, 1.0))).total - 8
        # Far from the boundary no example passes a gate; planned are some that do.
        few = 1.05 if protocol != "fast" else 1.9
        assert spent <= 1.02 * planned <= few * spent

    @pytest.mark.parametrize("suite", ["heads-under-attack", "fixed-heads"])
    def test_records_of_defended_models_spent_what_is_counted(self, suite):
        records = read_records([RESULTS / suite])
        cells = [c for c in read_suite(suite).cells if c.config.train.objective.name == "pgd"]
        assert 0.9 < expected(site_of(cells[0].config), records).spent < 1.1


class TestSurvival:
    def test_records_of_the_same_kind_of_model_come_before_assumptions(self):
        cells = read_suite("heads-under-attack").cells
        records = read_records([RESULTS / "heads-under-attack"])
        found = measured(cells[0].config, records, lambda survival: 1.0)
        assert found is not None
        assert found.source.startswith("from")
        assert len(found.broke) == 4
        other = dataclasses.replace(
            cells[0].config, threat=dataclasses.replace(cells[0].config.threat, eps=0.2)
        )
        assert measured(other, records, lambda survival: 1.0) is None
        assert expected(site_of(other), records).source == "assumed for standard"

    def test_robustness_falls_with_the_radius(self):
        found = Survival(0.9, 0.3)
        assert found.at(0.0).robust == pytest.approx(0.9)
        assert found.at(1.0).robust == pytest.approx(0.3)
        assert found.at(2.0).robust == pytest.approx(0.1)
        assert Survival(0.0, 0.0).at(2.0).robust == 0.0


class TestPlan:
    def test_cells_that_share_weights_train_once(self, tmp_path):
        suite = suite_of(TINY + GRID, tmp_path)
        costs = price(found := sketch_suite(suite, tmp_path, Anatomist(None)), flat_speeds(found))
        assert [bool(cost.seconds.get("train")) for cost in costs] == [True, False] * 2

    def test_cells_that_are_done_cost_nothing_more(self, tmp_path):
        suite = read_suite("heads-under-attack")
        shutil.copytree(RESULTS / "heads-under-attack", tmp_path / "out")
        gone = suite.cells[3]
        (tmp_path / "out" / gone.model / f"{gone.id}.json").unlink()
        sketches = sketch_suite(suite, tmp_path / "out", Anatomist(None))
        assert [sketch.cell.id for sketch in sketches if sketch.left] == [gone.id]
        assert all(sketch.pieces for sketch in sketches)

    def test_more_devices_shorten_the_time_but_not_below_the_longest_chain(self):
        work = [Chain((3.0, 3.0)), Chain((2.0,)), Chain((2.0,))]
        assert [wall_clock(work, devices) for devices in (1, 2, 3, 9)] == [10.0, 6.0, 6.0, 6.0]

    @pytest.mark.parametrize("kind", ["claims", "cifar10-linf", "deep-rfm", "long-tail"])
    def test_suites_of_the_package_can_be_counted(self, kind, tmp_path):
        names = ["memorization-dilation", "hierarchy"] if kind == "claims" else [kind]
        for name in names:
            suite = read_suite(name)
            some = suite._replace(cells=suite.cells[::7])
            sketches = sketch_suite(some, tmp_path, Anatomist(None))
            assert all(total(sketch.pieces).forwards > 0 for sketch in sketches)


class TestTiming:
    def test_every_kind_of_probe_of_a_suite_can_be_timed(self, tmp_path):
        text = TINY.replace("radii = []", "radii = [1.0]").replace(
            "trajectories = 0", "trajectories = 4\nagop_examples = 4\nbatch_size = 20"
        )
        text = text.replace("epochs = 2", 'epochs = 2\nobjective = { name = "pgd", steps = 2 }')
        sketches = sketch_suite(suite_of(text, tmp_path), tmp_path, Anatomist(None))
        probes = probes_of(sketches)
        kinds = {"step", "inner", "forward", "attack", "verdict", "geometry", "rows", "radii"}
        kinds |= {"turnover"}
        assert {probe.kind for probe in probes} == kinds | {"agop", "evidence", "epoch", "cell"}
        bench = Bench(Anatomist(None), Stopwatch(seconds=0.0))
        for probe in probes:
            rate = bench.time(probe)
            assert min(rate.fixed, rate.each) >= 0, probe.key
            assert rate.seconds(8) > 0 or probe.kind in ("radii", "turnover"), probe.key

    def test_a_rate_goes_through_both_timings_and_never_falls(self):
        assert line(4, 3.0, 8, 5.0) == Rate(fixed=1.0, each=0.5)
        assert line(4, 3.0, 8, 2.0).seconds(8) == pytest.approx(2.0)
        assert line(4, 1.0, 8, 4.0) == Rate(fixed=0.0, each=0.5)


class TestSpeedsFile:
    def test_it_keeps_what_was_measured(self, tmp_path):
        speeds = Speeds(device="a gpu", threads=4, torch="2", rates={"k": Rate(fixed=1, each=2)})
        write_speeds(tmp_path / "speeds.json", speeds)
        assert read_speeds(tmp_path / "speeds.json") == speeds

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "cannot be read"),
            ('{"schema_version": 9}', "schema version 9"),
            ('{"schema_version": 1, "device": 3, "threads": 1, "torch": "2"}', "device"),
            (
                '{"schema_version": 1, "device": "x", "threads": 1, "torch": "2", '
                '"rates": {"k": {"fixed": -1.0, "each": 0.0}}}',
                "negative",
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
        sketches = sketch_suite(suite, tmp_path / "out", Anatomist(None))
        file = tmp_path / "speeds.json"
        write_speeds(file, flat_speeds(sketches, Rate(fixed=3.6, each=0.0)))
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
        assert "\n  small_cnn-linear-standard: 2\n" in out

    def test_without_a_price_there_is_no_money(self, tmp_path, capsys):
        assert "money" not in self.planned(tmp_path, capsys)

    @pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
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
        write_speeds(
            tmp_path / "s.json",
            Speeds(
                device="gpu x",
                threads=1,
                torch="2",
                rates={
                    "forward | vgg 3x32x32, 10 classes": Rate(fixed=1, each=0),
                    "no key of ours": Rate(fixed=1, each=0),
                },
            ),
        )
        with pytest.raises(ConfigError, match=r"on gpu x.*small_cnn.*they hold no key.*; vgg"):
            plan(tmp_path / "tiny.toml", speeds=tmp_path / "s.json")

    def test_claims_are_planned_suite_by_suite(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine.toml").write_text(
            "\n".join(
                f'[[claim]]\nid = "{name}"\nsays = "s"\nsource = "ours"\nsuite = "{suite}"\n'
                'quantity = "nc1_clean"\nof = { "train.objective" = "standard", '
                '"model.head" = "etf" }\nexpect = "below"\nreference = 1.0\neffect = 0.1'
                for name, suite in (("A", "quickstart"), ("B", "heads-under-attack"))
            )
        )
        suites = [read_suite(name) for name in ("quickstart", "heads-under-attack")]
        sketches = [s for suite in suites for s in sketch_suite(suite, tmp_path, Anatomist(None))]
        write_speeds(tmp_path / "s.json", flat_speeds(sketches))
        plan(Path("mine.toml"), speeds=tmp_path / "s.json")
        out = capsys.readouterr().out
        assert "quickstart: 12 cells" in out
        assert "heads-under-attack: 75 cells" in out
        assert "all suites: 87 cells" in out
