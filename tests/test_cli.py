"""The command line: what it says, where it says it, and with which exit code."""

import ast
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import helpers_report
import pytest
import tyro
from helpers_runner import cli, start

import robust_nc
from robust_nc.cli.main import _VERBS
from robust_nc.cli.stopping import heeding
from robust_nc.exceptions import StoppedError
from robust_nc.pipeline.suite import suite_names
from robust_nc.registry import DATASETS
from robust_nc.report.figures.saving import FIGURES

WAITS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY", "OMP_NUM_THREADS")
RUN = ["SUITE", "--out", "--cells", "--where", "--minutes", "--overwrite", "only-missing"]


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ([], ["evaluate", "verify", "challenge", "compare", "submit", "run", "board", "doctor"]),
        (["run"], RUN),
        (["board"], ["RESULTS", "--format", "--out", "latex", "html"]),
        (["data"], ["list", "fetch", "NAME", "--root"]),
        (["doctor"], ["broken"]),
    ],
)
def test_help_names_verbs_and_options(verb, words):
    ran = cli(*verb, "--help")
    assert ran.code == 0
    assert " ".join(["robust-nc", *verb]) in ran.out
    assert cli().out == cli("-h").out == cli("--help").out
    assert cli("--version").out == f"robust-nc {robust_nc.__version__}\n"
    assert [word for word in words if word not in ran.out] == []


@pytest.mark.parametrize("verb", _VERBS)
def test_help_of_a_verb_ends_with_examples_that_can_be_typed(verb):
    *_, title, first, second = cli(verb, "--help").out.splitlines()
    assert title == "examples:"
    kinds = {name: one.kind for name, one in _VERBS.items()}
    for line in (first, second):
        program, *words = shlex.split(line.partition(">")[0])
        assert program == "robust-nc"
        options = tyro.extras.subcommand_cli_from_dict(kinds, args=words)
        assert type(options) is _VERBS[verb].kind
    assert first.strip() in cli().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu", "quickstart"], ["run", "board", "data", "doctor"]),
        (["run"], ["SUITE"]),
        (["run", "quickstart", "--owerwrite", "always"], ["--overwrite", "only-missing"]),
        (["run", "quickstart", "--overwrite", "sometimes"], ["never", "only-cache"]),
        (["run", "quickstart", "--workers", "two"], ["--workers", "INT"]),
        (["board", "--format", "doc"], ["table", "csv", "latex", "markdown", "html", "pdf"]),
        (["data", "steal"], ["list", "fetch"]),
    ],
)
def test_bad_use_is_answered_with_what_is_valid(arguments, words):
    ran = cli(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert [word for word in words if word not in ran.err] == []
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "quikstart"], f"did you mean 'quickstart'? Valid: {', '.join(suite_names())}"),
        (["run", "no.toml"], "no.toml cannot be read"),
        (["run", "."], "unknown suite"),
        (["run", "bytes.toml"], "bytes.toml cannot be read"),
        (["run", "own.toml"], "own.toml: unknown key 'trian' (did you mean 'train'?)"),
        (["run", "claims", "--where", "seed=0"], "claims need all of theirs"),
        (["WORLD_SIZE=two", "run", "quickstart"], "must be a whole number, found 'two'"),
        (["data", "fetch", "cifar"], "did you mean 'cifar10'"),
        (["data", "fetch"], "say which data set to fetch"),
        (["data", "list", "cifar10"], "data fetch cifar10"),
        (["board", "absent"], "there is no results folder"),
        (["board", "."], "holds no records; run a suite first: robust-nc run quickstart"),
    ],
)
def test_a_mistake_is_one_sentence_whatever_the_width(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "30")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "own.toml").write_text("[base.trian]")
    if "=" in arguments[0]:
        monkeypatch.setenv(*arguments[0].split("="))
        arguments = arguments[1:]
    ran = cli(*arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("robust-nc: ")
    assert sentence in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("columns", ["40", "300"])
def test_the_list_of_data_prints_every_name_on_any_terminal(monkeypatch, tmp_path, columns):
    monkeypatch.setenv("COLUMNS", columns)
    ran = cli("data", "list", "--root", tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert [name for name in DATASETS.names() if name not in ran.out] == []
    assert columns == "40" or str(tmp_path) in ran.out
    fetched = cli("data", "fetch", "digits", "--root", tmp_path)
    assert "digits" in fetched.out + fetched.err, "what needs no fetch says so"
    assert "Traceback" not in fetched.err


def test_doctor_prints_versions():
    ran = cli("doctor")
    assert (ran.code, ran.err) == (0, "")
    for word in (
        "python",
        "torch",
        robust_nc.__version__,
        "cores",
        "device",
        "threads wait",
        "isolation  bubblewrap",
        "seaborn",
    ):
        assert word in ran.out


WATCHED = """
import os, sys
names, sys.argv[2:] = sys.argv[2:], []
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            found = {name: os.environ[name] for name in names if name in os.environ}
            print(found, flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
from robust_nc.cli.main import main
main()
"""


@pytest.mark.parametrize(
    "theirs",
    [
        {},
        {"OMP_NUM_THREADS": "1"},
        {"OMP_WAIT_POLICY": "active"},
        {"GOMP_SPINCOUNT": "7"},
        {"KMP_BLOCKTIME": "200"},
    ],
)
def test_threads_wait_briefly_unless_the_user_said_how(theirs):
    environment = {name: value for name, value in os.environ.items() if name not in WAITS}
    ran = subprocess.run(
        [sys.executable, "-c", WATCHED, "doctor", *WAITS],
        env=environment | theirs,
        capture_output=True,
        text=True,
        check=True,
    )
    brief = {"GOMP_SPINCOUNT": "1000", "OMP_WAIT_POLICY": "passive"}
    assert ast.literal_eval(ran.stdout) == theirs | (
        brief if theirs.keys() <= {"OMP_NUM_THREADS"} else {}
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["rnu"],
        ["run", "quikstart"],
        ["run", "no.toml"],
        ["suites", "show", "quikstart"],
        ["data", "fetch", "cifra10"],
        ["board", "absent"],
        ["board", "--format", "doc"],
        ["verify", "absent"],
        ["compare", "absent", "absent"],
        ["submit", "absent"],
        ["challenge", "absent", "--evidence", "x", "--model", "y"],
        ["--completion", "fish"],
        ["run", "--help"],
    ],
)
def test_an_unknown_name_is_answered_without_torch(arguments):
    ran = subprocess.run(
        [sys.executable, "-c", WATCHED.replace("sys.argv[2:], []", "[], sys.argv[2:]"), *arguments],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == (0 if "--help" in arguments else 2)
    assert "{" not in ran.stdout or "--help" in arguments, "torch was asked for"
    assert ran.stderr or "--help" in arguments


COMPLETE = """
source /dev/stdin
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); _tyro_robust_nc
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["bo"], ["board"]),
        (["board", "--fo"], ["--format"]),
        (["board", "--format", "la"], ["latex"]),
        (["run", "quickstart", "--overwrite", "only-"], ["only-missing", "only-cache"]),
    ],
)
def test_a_shell_completes_verbs_options_and_choices(words, found):
    script = cli("--completion", "bash").out
    shell = ["bash", "-c", COMPLETE, "bash", "robust-nc", *words]
    ran = subprocess.run(shell, input=script, capture_output=True, text=True)
    assert (ran.stdout.split(), ran.stderr) == (found, "")
    assert cli("--completion", "zsh").out.startswith("#compdef robust-nc\n")
    assert "Valid: bash, zsh" in cli("--completion", "tcsh").err


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
            ("csv", "rank,order,unranked,model,"),
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

    def test_columns_are_chosen_by_name(self, results):
        ran = cli("board", results, "--columns", "model", "robust", "--format", "markdown")
        assert (ran.code, ran.err) == (0, "")
        assert "| model | robust % |" in ran.out
        wrong = cli("board", results, "--columns", "model", "robst")
        assert (wrong.code, wrong.out, wrong.err.count("\n")) == (2, "", 1)
        assert "did you mean 'robust'" in wrong.err
        assert "backbone" in wrong.err

    @pytest.mark.parametrize(
        ("given", "suffix"),
        [(["--figures", "story", "leap_matrix"], "pdf"), (["--format", "svg"], "svg")],
    )
    def test_figures_are_written_for_a_paper(self, results, tmp_path, given, suffix):
        ran = cli("board", results, *given, "--out", tmp_path, "--where", "objective=pgd")
        assert (ran.code, ran.out) == (0, "")
        *left_out, last = ran.err.splitlines()
        made = sorted(path.name for path in tmp_path.glob(f"*.{suffix}"))
        assert last.startswith(f"wrote {len(made)} figures into {tmp_path}")
        assert f"story.{suffix}" in made
        assert (tmp_path / "figures.tex").exists() == (suffix == "pdf")
        assert len(made) + len(left_out) == (2 if suffix == "pdf" else len(FIGURES))
        assert all(line.startswith("no ") and ": " in line for line in left_out)
        wrong = cli("board", results, "--figures", "stroy", "--out", tmp_path)
        assert (wrong.code, wrong.err.count("\n")) == (2, 1)
        assert "did you mean 'story'" in wrong.err

    @pytest.mark.parametrize("more", [[], ["--sql", "select * from board"]])
    def test_a_terminal_of_80_columns_has_room(self, results, monkeypatch, more):
        monkeypatch.setenv("COLUMNS", "80")
        ran = cli("board", results, *more)
        assert max(map(len, (ran.out + ran.err).splitlines())) <= 80

    def test_findings_of_verify_fit_too(self, results, monkeypatch):
        monkeypatch.setenv("COLUMNS", "60")
        lines = cli("verify", results).out.splitlines()
        assert max(len(line) for line in lines if line.startswith(" ")) <= 60

    def test_a_page_is_written(self, results, tmp_path):
        one = next(results.rglob("*.json"))
        ran = cli("board", one, "--format", "html", "--out", tmp_path / "site")
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


class TestEndings:
    @pytest.mark.parametrize(
        ("error", "code", "sentence"),
        [
            (KeyboardInterrupt(), 130, "interrupted; nothing finished is lost. Go on with: again"),
            (StoppedError("stopped; go on with"), 143, "stopped; go on with: again"),
        ],
    )
    def test_each_has_its_code_and_its_sentence(self, error, code, sentence):
        told: list[str] = []

        def command() -> int:
            raise error

        assert heeding(command, "again", told.append) == code
        assert told == [sentence]

    def test_who_is_interrupted_after_sigterm_was_terminated(self):
        def command() -> int:
            os.kill(os.getpid(), signal.SIGTERM)
            raise KeyboardInterrupt

        assert heeding(command, "again", [].append) == 143

    def test_an_end_is_an_end_and_no_handler_stays_behind(self):
        before = signal.getsignal(signal.SIGTERM)
        assert heeding(lambda: 1, "again", [].append) == 1
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        assert signal.getsignal(signal.SIGTERM) == before
