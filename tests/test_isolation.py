"""A stranger's code in a process of its own: only its answers have a part in its verdict."""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_appraisal import BALL, claiming_all
from helpers_runner import Ran, cli
from torch import Tensor

from robust_nc import Ball, evaluate, load_dataset
from robust_nc.evaluation.evaluate_model import Outcome
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.plugins import find_attack
from robust_nc.record import Stored, read_record
from robust_nc.types import EvaluationProtocol
from robust_nc.verification import audit as auditing
from robust_nc.verification.evidence import find_evidence
from robust_nc.zoo import isolation, sandbox
from robust_nc.zoo.isolation import isolated_model
from robust_nc.zoo.reference import open_model

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing holds a process there")

CODE = '''
"""Strangers: the network of net.py, with its weights, and what they do beside answering."""

import os, sys, threading, time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

CALLS = [0]


def layers():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10)
    )


def honest():
    model = layers()
    model.load_state_dict(load_file(Path(__file__).with_name("weights.safetensors")))
    return model


def doing(act, after=1):
    """The network, which acts at each call after the first ones (one is made when it is opened)."""
    def hook(module, inputs):
        CALLS[0] += 1
        if CALLS[0] > after:
            return act(inputs[0])
    model = honest()
    model.register_forward_pre_hook(hook)
    return model


def exits():
    return doing(lambda images: sys.exit(0))


def exits_at_once():
    return doing(lambda images: os._exit(0))


def exits_when_probed():
    return doing(lambda images: os._exit(0) if len(images) == 4 else None)


def hangs():
    return doing(lambda images: time.sleep(60))


def forks():
    def act(images):
        while True:
            try:
                os.kill(os.getppid(), 9)
            except PermissionError:
                os.fork()
    return doing(act)


def starves():
    return doing(lambda images: torch.ones(30 * 2**30, dtype=torch.uint8) and None)


def answers_by_itself():
    """Finds the line and the window, and answers in the place of the one who serves it."""
    from robust_nc.zoo.model_process import Ask, ModelMessage
    import socket
    def act(images):
        link = socket.socket(fileno=int(sys.argv[1]))
        link.sendall(ModelMessage(Ask.DONE, 1, shape=(len(images), 99)).written())
    return doing(act)


def refuses():
    """Ends as an error that who audits takes for one of the record."""
    import socket
    from robust_nc.zoo.model_process import Ask, ModelMessage
    def act(images):
        link = socket.socket(fileno=int(sys.argv[1]))
        link.sendall(ModelMessage(Ask.REFUSED).written())
    return doing(act)


def lies_of_its_layers():
    import socket
    from robust_nc.zoo.model_process import Ask, ModelMessage, Window
    facts = '{"classes": 10, "digests": {}, "facts": {}, "parameters": 1, "taps": [], "said": []}'
    line, window = map(int, sys.orig_argv[-2:])
    text = Window(window).write(facts)
    message = ModelMessage(Ask.DONE, text=text, shape=(10, 2**31))
    socket.socket(fileno=line).sendall(message.written())
    time.sleep(9)


def answers_nonsense():
    import socket
    return doing(lambda images: socket.socket(fileno=int(sys.argv[1])).sendall(b"?" * 32))


def shrinks():
    """Takes away the memory that the other end is about to read."""
    def act(images):
        try:
            os.ftruncate(int(sys.argv[2]), 0)
        except OSError:
            pass
    return doing(act)


def at_once_in_the_factory():
    os._exit(0)


def exits_in_the_factory():
    sys.exit(0)


def forges():
    """Audits itself."""
    import robust_nc.verification.audit as audit
    from robust_nc.evaluation.evaluate_model import Outcome
    def forged(model, images, labels, ball, **options):
        known = torch.ones(len(images), dtype=torch.bool)
        none = torch.zeros(len(images), dtype=torch.int64)
        return Outcome(known, known, none - 1, images, none, none, ())
    audit.evaluate = forged
    return honest()


def changes_everything():
    """Prints megabytes, changes all defaults, and replaces what judges in its own process."""
    import robust_nc.evaluation.scoring as scoring
    import robust_nc.evaluation.evaluate_model as evaluation
    forges()
    evaluation.evaluate = nn.functional.cross_entropy = None
    scoring.margins = lambda logits, labels: -torch.ones(len(logits))
    def act(images):
        print("x" * 2**20, flush=True)
        os.write(2, b"x" * 2**20)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(7)
        torch.manual_seed(0)
    model = doing(act)
    torch.set_grad_enabled(False)
    torch.inference_mode(True).__enter__()
    return model


def raises():
    def act(images):
        raise ValueError("no more of this")
    return doing(act)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = honest()

    def forward(self, images):
        return self.inner(images + 0.2 * torch.randn_like(images))


class Rounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = honest()

    def forward(self, images):
        with torch.enable_grad():
            return nn.functional.one_hot(self.inner((images * 8).round() / 8).argmax(1), 10).float()


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
        )

    def forward(self, images):
        return self.net(images)


def writes():
    """Writes where it may, reads the environment, and tries to get out."""
    import json, socket, tempfile
    found = {"scratch": tempfile.gettempdir(), "token": os.environ.get("SECRET_TOKEN", "")}
    Path(tempfile.gettempdir(), "mine").write_text("mine")
    for name, reach in {
        "beside": lambda: Path(__file__).with_name("left").write_text("left"),
        "socket": socket.socket,
        "process": os.fork,
    }.items():
        try:
            reach()
            found[name] = "reached"
        except OSError:
            found[name] = "refused"
    raise RuntimeError(json.dumps(found))
'''
FOUR = EvaluationProtocol(
    "four",
    tuple(
        (name, find_attack(name, options))
        for name, options in (
            ("pgd", {"steps": 5}),
            ("apgd", {"steps": 10}),
            ("fab", {"steps": 5}),
            ("square", {"queries": 40}),
        )
    ),
)
DATA = {"num_classes": 10, "image_shape": (1, 8, 8)}


@pytest.fixture(scope="module")
def strangers(own_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A path of code beside the weights of the network that the records are of."""
    folder = tmp_path_factory.mktemp("strangers")
    weights = Path(own_model.rpartition(":")[0]).with_name("weights.safetensors")
    shutil.copyfile(weights, folder / weights.name)
    (folder / "strangers.py").write_text(CODE)
    return str(folder / "strangers.py")


@pytest.fixture
def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_dataset("digits", split="test")
    return images[:12], labels[:12]


def same(one: Outcome, other: Outcome) -> bool:
    pairs = zip(one[:6], other[:6], strict=True)
    return all(torch.equal(*pair) for pair in pairs) and one[6:] == other[6:]


def both(
    strangers: str, name: str, digits: tuple[Tensor, Tensor], **options: Any
) -> tuple[Outcome, Outcome]:
    """Verdicts on a model in this process, and in its own."""
    reference = f"{strangers}:{name}"
    asked: dict[str, Any] = {"ball": BALL, "protocol": "pgd", "tune": False} | options
    plain = evaluate(open_model(reference, **DATA).model, *digits, **asked)
    with isolated_model(reference, **DATA) as opened:
        return plain, evaluate(opened.model, *digits, **asked)


class TestAnswers:
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("honest", {"accelerate": False, "protocol": FOUR}),
            ("Normed", {}),  # a faster copy, made there
            ("Rounded", {"ball": Ball("Linf", 0.15)}),  # no gradients; a stand-in, made there
            ("Noisy", {"protocol": "clean"}),  # the same draws
        ],
    )
    def test_the_verdict_is_that_of_this_process_to_the_bit(self, strangers, digits, name, options):
        plain, isolated = both(strangers, name, digits, **options)
        assert same(plain, isolated)
        assert name != "Normed" or "folded" in isolated.accelerated
        assert name != "Rounded" or "smooth" in isolated.broken_by
        assert name != "Rounded" or "optimisation-in-forward" in str(isolated.warnings)

    def test_a_gradient_of_a_pass_before_the_last_is_the_right_one(self, strangers, digits):
        images = digits[0][:3].clone().requires_grad_()
        with isolated_model(f"{strangers}:honest", **DATA) as opened:
            first, second = opened.model(images), opened.model(2 * images)
            found = [torch.autograd.grad(one[:, 1].sum(), images)[0] for one in (first, second)]
            again = torch.autograd.grad(opened.model(images)[:, 1].sum(), images)[0]
        assert torch.equal(found[0], again)
        assert not torch.equal(found[0], found[1] / 2)

    def test_draws_go_on_between_passes(self, strangers, digits):
        with isolated_model(f"{strangers}:Noisy", **DATA) as opened, torch.random.fork_rng([]):
            first, second = opened.model(digits[0]), opened.model(digits[0])
        assert not torch.equal(first, second)


class TestHostility:
    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("exits_at_once", r"ended its process while it was asked \(exit status 0\)"),
            ("answers_by_itself", r"answered numbers of shape \(12, 99\), not \(12, 10\)"),
            ("answers_nonsense", "gave an answer of no known kind"),
            ("refuses", "gave an answer of no known kind"),
            ("lies_of_its_layers", "ran out of memory: .* out of memory that two processes share"),
            ("forks", "PermissionError"),
            ("raises", "ValueError: no more of this"),
        ],
    )
    def test_what_it_does_ends_in_one_sentence(self, strangers, digits, name, sentence):
        with (
            pytest.raises(InputError, match=sentence),
            isolated_model(f"{strangers}:{name}", **DATA) as opened,
        ):
            evaluate(opened.model, *digits, BALL, protocol="pgd")

    @pytest.mark.parametrize("name", ["changes_everything", "shrinks"])
    def test_what_is_harmless_changes_nothing(self, strangers, digits, name):
        asked: dict[str, Any] = {"protocol": "pgd", "tune": False}
        plain = evaluate(open_model(f"{strangers}:honest", **DATA).model, *digits, BALL, **asked)
        before = torch.get_num_threads(), torch.get_default_dtype()
        with isolated_model(f"{strangers}:{name}", **DATA) as opened:
            isolated = evaluate(opened.model, *digits, BALL, **asked)
        assert same(plain, isolated)
        assert before == (torch.get_num_threads(), torch.get_default_dtype())

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("at_once_in_the_factory", "ended its process"),
            ("exits_in_the_factory", "failed: SystemExit: 0"),
        ],
    )
    def test_a_factory_that_makes_nothing_is_told(self, strangers, name, sentence):
        with (
            pytest.raises((ConfigError, InputError), match=sentence),
            isolated_model(f"{strangers}:{name}", **DATA),
        ):
            pass

    def test_who_ends_where_nobody_looks_is_told_at_the_end(self, strangers, digits):
        verdicts = []
        with (
            pytest.raises(InputError, match="ended its process"),
            isolated_model(f"{strangers}:exits_when_probed", **DATA) as opened,
        ):
            verdicts.append(evaluate(opened.model, *digits, BALL, protocol="pgd"))
        assert [warned.name for warned in verdicts[0].warnings] == ["unchecked"]


class TestReach:
    def found(self, strangers: str, said: list[str]) -> dict[str, str]:
        with (
            pytest.raises(ConfigError, match="failed: RuntimeError") as raised,
            isolated_model(f"{strangers}:writes", tell=said.append, **DATA),
        ):
            pass
        text = str(raised.value)
        return json.loads(text[text.index("{") : text.index("}") + 1])

    def test_there_are_no_files_no_network_no_processes_and_no_secrets(
        self, strangers, monkeypatch, tmp_path
    ):
        if sandbox.confined(tmp_path).missing:
            pytest.skip("bubblewrap does not work here")
        monkeypatch.setenv("SECRET_TOKEN", "hunter2")
        said: list[str] = []
        found = self.found(strangers, said)
        assert [found[name] for name in ("beside", "socket", "process")] == ["refused"] * 3
        assert found["token"] == ""
        assert not Path(found["scratch"]).exists()
        assert not said

    def test_without_bubblewrap_files_are_in_reach_and_that_is_said(self, strangers, monkeypatch):
        monkeypatch.setattr(shutil, "which", lambda name: None)
        said: list[str] = []
        found = self.found(strangers, said)
        assert found["beside"] == "reached"
        assert [found[name] for name in ("socket", "process")] == ["refused"] * 2
        assert "could read and write your files: bubblewrap is not installed" in said[0]

    def test_a_bubblewrap_that_does_not_work_is_named(self, monkeypatch, tmp_path):
        broken = tmp_path / "bwrap"
        broken.write_text("#!/bin/sh\necho no namespaces >&2\nexit 1\n")
        broken.chmod(0o755)
        monkeypatch.setattr(shutil, "which", lambda name: str(broken))
        assert sandbox.confined(tmp_path) == ((), "bubblewrap does not work here (no namespaces)")

    def test_nothing_is_left_of_it(self, strangers):
        def below(process: int) -> list[int]:
            listed = Path(f"/proc/{process}/task/{process}/children")
            found = list(map(int, listed.read_text().split()))
            return [*found, *(one for each in found for one in below(each))]

        if not Path("/proc/self/task").is_dir():
            pytest.skip("processes are not listed here")
        before = set(below(os.getpid()))
        with isolated_model(f"{strangers}:honest", **DATA):
            during = set(below(os.getpid())) - before
        assert during
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{one}").exists() for one in during):
            assert time.monotonic() < deadline, "it goes on"
            time.sleep(0.05)


@pytest.fixture
def forged(verdict_copy: tuple[Stored, str]) -> Stored:
    """A record that claims every correct example to be robust, with the evidence taken away."""
    evidence = find_evidence(verdict_copy[0])
    assert evidence is not None
    evidence.rename(evidence.with_suffix(".proof"))
    return claiming_all(verdict_copy[0])


def verified(stored: Stored, model: str, *more: object) -> Ran:
    return cli("verify", stored.path, "--model", model, "--audit", 60, "--seed", 1, *more)


class TestCommands:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch, tmp_path):
        monkeypatch.setattr(auditing, "PROTOCOL", "pgd")
        monkeypatch.setattr(auditing, "evaluate", auditing.evaluate)  # put back afterwards
        monkeypatch.chdir(tmp_path)

    def test_a_model_that_audits_itself_is_believed_only_where_it_is_trusted(
        self, strangers, forged
    ):
        fooled = verified(forged, f"{strangers}:forges", "--trusted")
        assert fooled.code == 0, fooled.out + fooled.err
        assert "none of 60 broken" in fooled.out
        auditing.evaluate = evaluate
        ran = verified(forged, f"{strangers}:forges")
        assert ran.code == 1, ran.out + ran.err
        assert "verdict.robust: more than 1 % of it breaks" in ran.out

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("exits", "ended its process while it was asked"),
            ("exits_when_probed", "ended its process while it was asked"),
            ("hangs", "did not answer within 3 s, and was ended"),
            ("starves", "ran out of memory: it may have no more"),
        ],
    )
    def test_verify_ends_in_one_sentence_and_exit_code_2(
        self, strangers, verdict_copy, monkeypatch, name, sentence
    ):
        if name == "hangs":
            opened = isolation.ModelLink.open
            monkeypatch.setattr(isolation.ModelLink, "open", lambda *a: (opened(*a), short())[0])
            short = lambda: monkeypatch.setattr(isolation, "ANSWER_SECONDS", 3.0)  # noqa: E731
        ran = cli("verify", verdict_copy[0].path, "--model", f"{strangers}:{name}")
        assert ran.code == 2, ran.out + ran.err
        told = [line for line in ran.err.splitlines() if line.startswith("robust-nc: ")]
        assert len(told) == 1
        assert sentence in told[0]
        assert "Traceback" not in ran.err
        assert "state " not in ran.out

    def test_challenge_ends_in_one_sentence_and_exit_code_2(self, strangers, forged):
        points = forged.path.with_suffix(".proof")
        asked = ("challenge", forged.path, "--evidence", points, "--model")
        ran = cli(*asked, f"{strangers}:exits")
        assert ran.code == 2, ran.out + ran.err
        assert "ended its process while it was asked" in ran.err
        assert not list(forged.path.parent.glob("*.challenge"))
        assert cli(*asked, f"{strangers}:honest").code == 0

    def test_evaluate_isolated_leaves_a_record_or_nothing(self, strangers, tmp_path):
        def judged(name: str) -> Ran:
            asked = ("--dataset", "digits", "--eps", 0.06, "--n", 30, "--protocol", "pgd")
            out = ("--isolated", "--out", tmp_path / name)
            return cli("evaluate", f"{strangers}:{name}", *asked, *out)

        ran = judged("honest")
        assert ran.code == 0, ran.err
        assert "geometry is left out" in ran.err
        (path,) = (tmp_path / "honest").glob("*.json")
        record = read_record(path).record
        assert record.weights.parameters == sum(
            one.numel() for one in open_model(f"{strangers}:honest", **DATA).model.parameters()
        )
        ended = judged("exits_when_probed")
        assert ended.code == 2, ended.out + ended.err
        assert "ended its process" in ended.err
        assert not list((tmp_path / "exits_when_probed").glob("*.json"))
        refused = cli(
            "evaluate",
            f"{strangers}:honest",
            "--dataset",
            "digits",
            "--eps",
            0.06,
            "--isolated",
            "--taps",
            "1",
        )
        assert refused.code == 2
        assert "--taps chooses layers" in refused.err
