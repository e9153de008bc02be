"""The command line: what it says, where it says it, and with which exit code."""

import json
from pathlib import Path

import helpers_report
import pytest
from helpers_runner import cli, start

import robust_nc
from robust_nc.pipeline.suite import suite_names
from robust_nc.registry import DATASETS


class TestHelp:
    @pytest.mark.parametrize(
        ("verb", "words"),
        [
            (
                "run",
                [
                    "SUITE",
                    "--out",
                    "--cells",
                    "--where",
                    "--minutes",
                    "--overwrite",
                    "only-missing",
                ],
            ),
            ("board", ["RESULTS", "--format", "--out", "latex", "html"]),
            ("data", ["list", "fetch", "NAME", "--root"]),
            ("doctor", ["broken"]),
        ],
    )
    def test_a_verb_names_its_options(self, verb, words):
        ran = cli(verb, "--help")
        assert ran.code == 0
        assert f"robust-nc {verb}" in ran.out
        assert [word for word in words if word not in ran.out] == []

    def test_the_verbs_are_named(self):
        ran = cli("--help")
        assert ran.code == 0
        for verb in ("run", "board", "data", "doctor"):
            assert verb in ran.out


class TestBadUse:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], ["run", "board", "data", "doctor"]),
            (["rnu", "quickstart"], ["run", "board", "data", "doctor"]),
            (["run"], ["SUITE"]),
            (["run", "quickstart", "--owerwrite", "always"], ["--overwrite", "only-missing"]),
            (["run", "quickstart", "--overwrite", "sometimes"], ["never", "only-cache"]),
            (["run", "quickstart", "--workers", "two"], ["--workers", "INT"]),
            (["board", "--format", "pdf"], ["table", "csv", "latex", "markdown", "html"]),
            (["data", "steal"], ["list", "fetch"]),
        ],
    )
    def test_it_is_answered_with_what_is_valid(self, arguments, words):
        ran = cli(*arguments)
        assert (ran.code, ran.out) == (2, "")
        assert [word for word in words if word not in ran.err] == []
        assert "Traceback" not in ran.err


class TestData:
    def test_the_list_prints_every_name_on_any_terminal(self, monkeypatch):
        for columns in ("40", "80", "200"):
            monkeypatch.setenv("COLUMNS", columns)
            ran = cli("data", "list")
            assert (ran.code, ran.err) == (0, "")
            assert [name for name in DATASETS.names() if name not in ran.out] == []

    def test_the_folder_is_the_given_one(self, tmp_path, monkeypatch):
        monkeypatch.setenv("COLUMNS", "300")
        assert str(tmp_path) in cli("data", "list", "--root", tmp_path).out

    def test_what_needs_no_fetch_says_so(self, tmp_path):
        ran = cli("data", "fetch", "digits", "--root", tmp_path)
        assert "digits" in ran.out + ran.err
        assert "Traceback" not in ran.err


def test_doctor_prints_versions():
    ran = cli("doctor")
    assert (ran.code, ran.err) == (0, "")
    for word in ("python", "torch", robust_nc.__version__, "cores", "device", "seaborn", "ray"):
        assert word in ran.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--workers", "0"], "--workers must be at least 1, found 0"),
        (["--address", "auto"], "--address is for a cluster; add --engine ray"),
        (["--engine", "ray", "--shards", "0"], "shards must be at least 1, found 0"),
    ],
)
@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_a_plan_refuses_what_a_run_refuses(plan, options, said, tmp_path):
    ran = cli("run", "quickstart", "--out", tmp_path / "out", *plan, *options)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    helpers_report.write_grid(folder, objectives=("pgd", "standard"), heads=("etf",), seeds=2)
    return folder


class TestBoard:
    @pytest.mark.parametrize(
        ("style", "sign"),
        [
            ("table", "---"),
            ("csv", "rank,unranked,model,"),
            ("latex", r"\begin{tabular}"),
            ("markdown", "|"),
        ],
    )
    def test_every_format_goes_to_stdout_or_a_file(self, results, tmp_path, style, sign):
        ran = cli("board", results, "--format", style)
        assert (ran.code, ran.err) == (0, "")
        assert sign in ran.out
        assert "etf" in ran.out
        path = tmp_path / "board.txt"
        written = cli("board", results, "--format", style, "--out", path)
        assert (written.code, written.out, written.err) == (0, "", f"wrote {path}\n")
        assert path.read_text() == ran.out

    def test_a_page_is_written(self, results, tmp_path):
        ran = cli("board", results, "--format", "html", "--out", tmp_path / "site")
        assert (ran.code, ran.out) == (0, "")
        page = Path(ran.err.removeprefix("wrote ").strip())
        assert "<html" in page.read_text()
        assert page.is_relative_to(tmp_path / "site")

    def test_one_record_is_a_board_too(self, results):
        path = next(results.rglob("*.json"))
        ran = cli("board", path, "--format", "csv")
        assert ran.code == 0
        assert len(ran.out.strip().splitlines()) == 2
        assert json.loads(path.read_text())["model"] in ran.out

    def test_output_that_cannot_be_written_is_one_sentence(self, results):
        with Path("/dev/full").open("w") as full:
            process = start("board", results, stdout=full)
            _, err = process.communicate()
        assert process.returncode == 1
        assert "No space left on device" in err
        assert err.count("\n") == 1

    def test_a_reader_that_stops_reading_is_no_error(self, results):
        process = start("board", results)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 1)
        process.stderr.close()


def test_unknown_suites_are_answered_with_the_known_ones():
    ran = cli("run", "quikstart")
    assert (ran.code, ran.out) == (2, "")
    assert "did you mean 'quickstart'" in ran.err
    assert [name for name in suite_names() if name not in ran.err] == []


def test_sentences_stay_on_one_line_whatever_the_width(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "30")
    ran = cli("board", tmp_path / "a-folder-that-does-not-exist")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
