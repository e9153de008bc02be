"""`robust-nc evaluate`: what it says where, and what it makes of mistakes."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_runner import Ran, cli, signalled

from robust_nc.exceptions import ConfigError
from robust_nc.io.untrusted import file_name
from robust_nc.pipeline.card import LONGEST, model_name, read_card
from robust_nc.record import Card, Stored, read_record
from robust_nc.record.folder import read_all
from robust_nc.report.site import write as site

FAST = ("--dataset", "digits", "--protocol", "pgd", "--n", 40)
CARD = 'name = "Ours"\nauthors = "A. U. Thor"\nextra_data = false\n'


@pytest.fixture(autouse=True, scope="module")
def quick_page() -> Iterator[None]:
    """Figures take seconds, and have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "write_model", lambda stored, _: stored.path.parent / "index.html")
        yield


def record_in(out: Path) -> Stored:
    (path,) = out.glob("*.json")
    return read_record(path)


def field(ran: Ran, name: str) -> str:
    """One entry of the verdict, joined to one line."""
    lines, found = ran.out.splitlines(), []
    for line in lines:
        if line.startswith(f"{name}:"):
            found = [line.partition(":")[2]]
        elif found and line.startswith(" "):
            found.append(line)
        elif found:
            break
    return " ".join(" ".join(found).split())


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verdict") / "out"


@pytest.fixture(scope="module")
def ran(own_model: str, out: Path, quick_page: None) -> Ran:
    return cli("evaluate", own_model, *FAST, "--eps", "8/255", "--out", out)


class TestTheVerdict:
    def test_it_fits_one_screen_and_says_what_was_judged_and_how(self, ran, own_model):
        assert ran.code == 0, ran.err
        lines = ran.out.splitlines()
        assert len(lines) <= 24
        paths = ("record:", "evidence:", "page:", "model:", "check it:")
        assert all(len(line) <= 100 for line in lines if not line.startswith(paths))
        assert ran.out.startswith("net-make on digits, Linf 8/255, protocol pgd\n")
        assert field(ran, "model") == f"{own_model} (2,130 parameters)"

    def test_accuracies_have_intervals_and_each_attack_and_pass_is_counted(self, ran, out):
        scores = record_in(out).record.scores
        for name in ("clean", "robust"):
            score = scores[name]
            told = f"{score.value:.1%} [{100 * score.low:.1f}, {100 * score.high:.1f}]"
            assert field(ran, name).startswith(told)
        assert "the first 40 of test" in field(ran, "clean")
        record = record_in(out).record
        told = field(ran, "broken by")
        for use in record.attacks:
            assert f"{use.name} {use.broke}" in told
        assert told.endswith(f"{round(40 * record.scores['robust'].value)} of 40 are left")
        each = (record.passes.forward + record.passes.backward) / 40
        assert field(ran, "passes").startswith(f"{each:,.0f} per example")

    def test_the_geometry_names_layers(self, ran, out):
        summary = record_in(out).record.summary
        assert field(ran, "leaps").startswith(f"{summary['leap_rate']:.1%} leap")
        assert f"{summary['nc1_attacked']:.3g} attacked" in field(ran, "NC1")
        assert field(ran, "radius") == "not measured"
        use = record_in(out).record.geometry
        assert 0 < use.passes <= use.allowed
        assert field(ran, "left out").startswith("88% of the images, attacks at other radii")
        assert "layers: 2, 4, penultimate" in field(ran, "leap layer")

    def test_it_says_where_all_lies_and_how_to_check_it(self, ran, out, own_model):
        path = record_in(out).path
        assert field(ran, "record") == str(path)
        assert field(ran, "evidence").startswith(str(path.with_suffix(".evidence")))
        assert field(ran, "page") == str(out / "index.html")
        assert field(ran, "check it") == f"robust-nc verify {path} --model {own_model}"

    def test_progress_and_prints_of_the_model_go_to_stderr(self, ran):
        assert "a print of the factory" in ran.err
        assert "a print of the factory" not in ran.out
        for stage in ("attack: ", "evidence: ", "geometry: ", "page: "):
            assert stage in ran.err

    def test_the_verdict_is_told_before_the_geometry_is_measured(self, ran, out):
        record = record_in(out).record
        told = f"verdict: {record.scores['clean'].value:.1%} clean, "
        assert 0 < ran.err.index(told) < ran.err.index("geometry: ") < ran.err.index("page: ")
        assert f"of 40 images; written to {record_in(out).path}" in ran.err

    def test_a_second_call_shows_the_same(self, ran, out, own_model):
        again = cli("evaluate", own_model, *FAST, "--eps", "8/255", "--out", out)
        assert (again.code, again.out) == (0, ran.out)
        assert "is there already" in again.err
        assert "attack: " not in again.err


def test_without_geometry_it_says_so_and_a_card_names_the_model(own_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "card.toml").write_text(CARD)
    options = ("--eps", 0.1, "--no-geometry", "--root", "data", "--card", "card.toml")
    ran = cli("evaluate", own_model, *FAST, *options)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("Ours on digits")
    assert field(ran, "geometry").startswith("not measured")
    (stored,) = read_all(tmp_path / "out" / "evaluate")
    path = stored.path.relative_to(tmp_path)
    assert field(ran, "check it") == f"robust-nc verify {path} --model {own_model} --root data"
    card = stored.record.card
    assert (card.authors, card.extra_data) == ("A. U. Thor", False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((*FAST, "--eps", "8"), "did you mean 8/255?"),
        ((*FAST,), "--eps"),
        (("--eps", "0.1"), "--dataset"),
        ((*FAST, "--eps", "0.1", "--norm", "L3"), "Linf"),
        ((*FAST, "--eps", "0.1", "--card", "no.toml"), "no.toml is not there"),
    ],
)
def test_a_mistake_is_one_answer(own_model, tmp_path, options, words):
    ran = cli("evaluate", own_model, *options, "--out", tmp_path / "out")
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "out").exists()


def test_sigterm_flushes_the_log_and_the_same_command_goes_on_from_it(own_model, tmp_path):
    arguments = ["evaluate", own_model, "--dataset", "digits", "--eps", "8/255", "--n", "60"]
    arguments += ["--out", tmp_path, "--no-geometry", "--attack", "fgsm"]

    def logged() -> int:
        return sum(path.read_bytes().count(b"\n") for path in tmp_path.rglob("*.jsonl"))

    ran = signalled(signal.SIGTERM, lambda: logged() >= 2, *arguments)
    assert (ran.code, ran.out) == (143, "")
    *_, last = ran.err.splitlines()
    assert last.startswith("stopped as asked; what was finished is saved, and the same command")
    assert last.endswith(f": robust-nc {' '.join(map(str, arguments))}")
    assert "Traceback" not in ran.err
    assert not list(tmp_path.glob("*.json"))
    kept = logged()
    assert kept >= 2
    assert "robust:" in cli(*arguments).out
    assert len(list(tmp_path.glob("*.json"))) == 1
    assert not list(tmp_path.rglob("*.jsonl"))


class TestCards:
    def write(self, folder: Path, text: str) -> Path:
        (folder / "card.toml").write_text(text)
        return folder / "card.toml"

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ('nam = "x"', "unknown key 'nam' .did you mean 'name'.*valid: name, authors"),
            ("name = 3", "name: .*found 3"),
            ("name = ", "is not TOML"),
            (f'notes = "{"x" * (LONGEST + 1)}"', "notes has 2,001 characters; at most 2,000"),
            ("#" * 70_000, "larger than"),
        ],
    )
    def test_what_is_no_card_is_refused(self, tmp_path, text, words):
        with pytest.raises(ConfigError, match=words) as raised:
            read_card(self.write(tmp_path, text))
        assert "card.toml" in str(raised.value)

    def test_what_no_reader_sees_is_replaced(self, tmp_path):
        text = 'name = "A\\u001b[31m\\u202eB\\u0000"\nnotes = "one\\r\\ntwo\\tthree\\u0007"\n'
        text += 'authors = "Müller, 李 \u200cو"'
        card = read_card(self.write(tmp_path, text))
        assert (card.name, card.notes) == ("A?[31m?B?", "one\ntwo three?")
        assert card.authors == "Müller, 李 \u200cو", "other alphabets stay"

    @pytest.mark.parametrize("name", ["../../x", "-rf", "a/b", ".hidden", "Ω", "x" * 500, " "])
    def test_a_name_becomes_a_file_name_or_nothing(self, name):
        made = model_name(Card(name=name))
        assert not made or file_name(made, what="name") == made
