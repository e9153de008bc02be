"""Models of strangers, in a process of their own: what judges them is out of their reach.

A model is code, and code can do more than answer: replace the attack, the referee or the report.
Here it answers logits and the gradients that it is asked for (`model_process`), and what it answers
is taken for numbers of the expected shape, or refused. Attacks, verdicts, images and randomness
stay in this process.

>>> with isolated_model("torch.nn:Flatten", num_classes=4, image_shape=(1, 2, 2)) as opened:
...     opened.model(torch.zeros(3, 1, 2, 2)).shape
torch.Size([3, 4])
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robust_nc.config import plain, read
from robust_nc.evaluation.sanity.output import WatchedPass
from robust_nc.exceptions import CheckpointError, ConfigError, InputError, RecordError
from robust_nc.io.text import one_line, printable
from robust_nc.io.untrusted import parse_json
from robust_nc.models.backbones import ImageShape
from robust_nc.models.taps import Tapped
from robust_nc.runtime.torch_state import kept_draws
from robust_nc.runtime.waiting import wait_briefly
from robust_nc.zoo import sandbox
from robust_nc.zoo.code import Tell
from robust_nc.zoo.model_process import (
    MESSAGE_BYTES,
    WINDOW,
    Ask,
    Flag,
    ModelCopies,
    ModelFacts,
    ModelLayers,
    ModelMessage,
    ModelRequest,
    Window,
)
from robust_nc.zoo.reference import OpenedModel, fetched, name_of, runs_code

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

NOTICE_SECONDS = 30.0  # until the user is told that an answer is waited for
ANSWER_SECONDS = 600.0  # until it is given up
_LONGEST = 2_000  # characters of an error
_START = (
    "from robust_nc.zoo.sandbox import give_up_rights; filtered = give_up_rights(); "
    "from robust_nc.zoo.model_process import serve; serve(filtered)"
)
_REFUSALS = {
    kind.__name__: kind for kind in (CheckpointError, ConfigError, InputError, RecordError)
}


class ModelError(Exception):
    """What a model raised in its process."""


class ModelLink:
    """The process of a model: asks it, bounds how long it takes, and ends it.

    Whatever it does but answer ends it; from then on all that it is asked raises the same
    `InputError`, and so does `check`.
    """

    def __init__(self, reference: str, scratch: Path, tell: Tell | None) -> None:
        self.reference = reference
        self.passes = 0  # the graph of the last one is kept there
        self.smooth = False
        self.seen: WatchedPass | None = None
        self._tell = tell
        self._waiting = False  # and not answered yet
        self._broken = ""
        self._ending = contextlib.ExitStack()
        confinement = sandbox.confined(scratch)
        file = _shared_memory()
        self._ending.callback(os.close, file)
        self.window = Window(file)
        self._socket, theirs = socket.socketpair()
        self._ending.callback(self._socket.close)
        variables = sandbox.kept_variables(scratch)
        wait_briefly(variables)
        command = [*confinement.prefix, sys.executable, "-P", "-c", _START]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # megabytes of it hold nobody up
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), file),
                start_new_session=True,  # Ctrl-C is for this process
                env=variables,
            )
        self._ending.callback(self._kill)
        self._missing = confinement.missing

    def open(self, request: ModelRequest) -> tuple[ModelFacts, Tensor | None]:
        """Have the model opened; return what it is, and its last linear map. As `open_model`."""
        hello = self._received("before the model was opened")
        self._warn(self._missing, filtered=bool(hello.flags & Flag.FILTERED))
        text = self.window.write(json.dumps(plain(request)))
        answer = self.ask(ModelMessage(Ask.OPEN, text=text))
        facts = self.told(ModelFacts, answer)
        if facts.classes < request.num_classes:
            raise self.end(f"tells {facts.classes} classes apart of {request.num_classes}")
        linear = len(answer.shape) == 2 and answer.shape[0] == facts.classes
        return facts, self.window.get(answer.shape, answer=True) if linear else None

    def _warn(self, missing: str, *, filtered: bool) -> None:
        reach = [] if filtered else ["start processes"]
        if missing:
            reach += [] if filtered else ["open connections"]
            reach += ["read and write your files"]
        if reach and self._tell is not None:
            why = f": {missing}" if missing else ""
            self._tell(
                f"{self.reference} runs in a process of its own with bounded memory and time, but "
                f"it could {' and '.join(reach)}{why}; run code that you do not trust on Linux "
                "with bubblewrap"
            )

    def ask(self, asked: ModelMessage) -> ModelMessage:
        """Return the answer; raises what the model raised, by its name, or `InputError`."""
        self.check()
        if self._waiting:  # an answer to what was asked before would be taken for this one's
            raise self.end("was interrupted")
        self._waiting = True
        try:
            self._socket.sendall(asked.written())
        except OSError:
            raise self.end(f"ended its process ({self._status()})") from None
        answer = self._received("while it was asked")
        self._waiting = False
        if answer.kind == Ask.DONE:
            return answer
        kind, _, text = self.window.read(answer.text)[:_LONGEST].partition("\n")
        text = printable(text)
        if answer.kind == Ask.REFUSED and asked.kind == Ask.OPEN:
            raise _REFUSALS.get(kind, ConfigError)(text)
        if answer.kind == Ask.STARVED:
            raise MemoryError(f"it may have no more ({text})")
        if answer.kind != Ask.FAILED:
            raise self.end("gave an answer of no known kind")
        # Of the name that it has there: who catches it tells it.
        raise type(kind if kind.isidentifier() else "Exception", (ModelError,), {})(text)

    def told(self, kind: type[T], answer: ModelMessage) -> T:
        """Return what the text of an answer says."""
        try:
            return read(kind, parse_json(self.window.read(answer.text), what="JSON"), source="JSON")
        except (ConfigError, RecordError) as error:
            raise self.end(f"gave an answer that cannot be used ({one_line(str(error))})") from None

    def _received(self, when: str) -> ModelMessage:
        """Wait for a message."""
        content, began, told = b"", time.monotonic(), False
        while len(content) < MESSAGE_BYTES:
            waited = time.monotonic() - began
            if waited >= ANSWER_SECONDS:
                raise self.end(f"did not answer within {ANSWER_SECONDS:g} s, and was ended")
            if waited >= NOTICE_SECONDS and not told:
                told = True
                if self._tell is not None:
                    self._tell(
                        f"{self.reference} has not answered for {NOTICE_SECONDS:g} s; it is given "
                        f"up after {ANSWER_SECONDS:g} s"
                    )
            limit = ANSWER_SECONDS if told else min(NOTICE_SECONDS, ANSWER_SECONDS)
            self._socket.settimeout(max(limit - waited, 1e-3))
            try:
                part = self._socket.recv(MESSAGE_BYTES - len(content))
            except TimeoutError:
                continue
            except OSError:
                part = b""
            if not part:
                raise self.end(f"ended its process {when} ({self._status()})")
            content += part
        return ModelMessage.read(content)

    def end(self, what: str) -> InputError:
        """End the process for good, and return the error that says why."""
        self._broken = f"{self.reference} {what}; no verdict on it counts"
        self._kill()
        return InputError(self._broken)

    def check(self, error: BaseException | None = None) -> None:
        """Raise `InputError` if the process was ended, or `error` is what its model raised."""
        if self._broken:
            raise InputError(self._broken) from error
        if isinstance(error, ModelError):
            said = f"{type(error).__name__}: {error}"
            raise InputError(f"{self.reference} failed: {said}") from error
        if isinstance(error, MemoryError):
            raise InputError(f"{self.reference} ran out of memory: {error}") from error

    def close(self) -> None:
        """End the process and give back what it held."""
        self._ending.close()

    def _status(self) -> str:
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "it closed the line"
        return f"by signal {-code}" if code < 0 else f"exit status {code}"

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()


def _shared_memory() -> int:
    """Return a file in memory that nobody can shorten: who reads beyond its end would be killed."""
    if not hasattr(os, "memfd_create"):  # not Linux
        with tempfile.TemporaryFile() as file:
            file.truncate(WINDOW)
            return os.dup(file.fileno())
    found = os.memfd_create("robust_nc", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(found, WINDOW)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(found, fcntl.F_ADD_SEALS, seals)
    return found


class IsolatedModel(nn.Module):
    """A model in another process, or a faster copy there: images to logits, with gradients.

    It draws there from the state that torch's generator has here; then this one goes on elsewhere.
    """

    head_weight: Tensor | None
    place: Tensor

    def __init__(
        self, link: ModelLink, facts: ModelFacts, head: Tensor | None = None, number: int = 0
    ) -> None:
        super().__init__()
        self.told_digests = facts.digests
        self.told_parameters = facts.parameters
        self.taps = facts.taps
        self._link = link
        self._facts = facts
        self._number = number
        self.register_buffer("head_weight", head, persistent=False)
        self.register_buffer("place", torch.empty(0), persistent=False)  # tells the device

    def extra_repr(self) -> str:
        """Tell models apart by their tensors, as the name of a log does."""
        return f"{self._link.reference}, {self._number}, {sorted(self.told_digests.items())}"

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, K)` of images `(N, C, H, W)` float32."""
        flags = Flag.SMOOTH if self._link.smooth else 0
        if torch.is_autocast_enabled(images.device.type):
            flags |= Flag.BF16
        if self._link.seen is not None:
            flags |= Flag.WATCHED
        if torch.is_grad_enabled() and images.requires_grad:
            logits: Tensor = _Pass.apply(images, self, flags)  # type: ignore[no-untyped-call]
            return logits
        return self.look(images, flags)[0]

    @contextlib.contextmanager
    def smoothed(self) -> Iterator[None]:
        """Let the smooth stand-in answer in this block."""
        self._link.smooth = True
        try:
            yield
        finally:
            self._link.smooth = False

    def candidates(self, images: Tensor) -> list[list[tuple[nn.Module, tuple[str, ...]]]]:
        """Have faster copies made there."""
        groups = self._link.told(ModelCopies, self._asked(Ask.CANDIDATES, images)).groups
        return [
            [
                (IsolatedModel(self._link, self._facts, number=number), names)
                for number, names in group
            ]
            for group in groups
        ]

    @contextlib.contextmanager
    def watched(self, seen: WatchedPass) -> Iterator[None]:
        """Note what passes in this block do, as the process tells it."""
        self._link.seen = seen
        try:
            yield
        finally:
            self._link.seen = None

    @torch.no_grad()
    def tapped(
        self, images: Tensor, *, taps: Collection[str] | None = None, feature: str = "gap"
    ) -> Tapped:
        """Return logits and features from one pass, without a way back."""
        link = self._link
        asked = json.dumps({"taps": None if taps is None else list(taps), "feature": feature})
        answer = self._asked(Ask.LAYERS, images, text=link.window.write(asked))
        layers = link.told(ModelLayers, answer).layers
        if taps is not None and {name for name, _ in layers} != set(taps):
            raise link.end("answered other layers than it was asked for")
        logits = self._answered((len(images), self._facts.classes), answer)
        at, features = logits.numel(), {}
        for name, width in layers:
            rows = link.window.get((len(images), width), answer=True, after=at)
            features[name], at = rows.to(images.device), at + rows.numel()
        return Tapped(logits.to(images.device), features)

    def look(self, images: Tensor, flags: int) -> tuple[Tensor, bool]:
        """Return logits, and whether there is a way back, if the flags ask for one."""
        link = self._link
        link.window.draws.copy_(torch.get_rng_state())
        answer = self._asked(Ask.LOGITS, images, flags, extra=torch.get_num_threads())
        if answer.flags & Flag.DREW:
            torch.default_generator.manual_seed(int(torch.randint(2**62, ())))
        logits = self._answered((len(images), self._facts.classes), answer)
        if link.seen is not None:
            link.seen.gradients_on |= bool(answer.flags & Flag.TURNED_ON)
            link.seen.backwards += answer.number
            if answer.flags & Flag.FIRST_INPUT and link.seen.first_input is None:
                link.seen.first_input = link.window.get(
                    tuple(images.shape), answer=True, after=logits.numel()
                )
        return logits.to(images.device), bool(answer.flags & flags & Flag.GRADIENTS)

    def slope(self, images: Tensor, by_logits: Tensor) -> Tensor | None:
        """Return the gradient by the images of the last pass, None if there is no way back."""
        self._link.window.put(by_logits, answer=False)
        answer = self._link.ask(ModelMessage(Ask.GRADIENT, shape=tuple(by_logits.shape)))
        if not answer.flags & Flag.GRADIENTS:
            return None
        return self._answered(tuple(images.shape), answer).to(images.device)

    @property
    def passes(self) -> int:
        """How often the process was asked for more than a gradient."""
        return self._link.passes

    def _asked(
        self, kind: Ask, images: Tensor, flags: int = 0, *, extra: int = 0, text: int = 0
    ) -> ModelMessage:
        if images.ndim != 4 or images.dtype != torch.float32:
            raise InputError(f"expected images (N, C, H, W) float32, found {images.dtype}")
        self._link.passes += 1
        self._link.window.put(images.detach(), answer=False)
        shape = tuple(images.shape)
        return self._link.ask(ModelMessage(kind, flags, self._number, extra, text, shape))

    def _answered(self, shape: tuple[int, ...], answer: ModelMessage) -> Tensor:
        if answer.shape != shape:
            raise self._link.end(f"answered numbers of shape {answer.shape}, not {shape}")
        return self._link.window.get(shape, answer=True)


class _Pass(torch.autograd.Function):
    """A pass whose graph is in another process; where another took its place, it is made again."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, model: IsolatedModel, flags: int) -> Tensor:
        """Return logits."""
        ctx.model, ctx.flags, ctx.draws = model, flags | Flag.GRADIENTS, torch.get_rng_state()
        ctx.save_for_backward(images)
        logits, differentiable = model.look(images, ctx.flags)
        ctx.number = model.passes
        if not differentiable:
            ctx.mark_non_differentiable(logits)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logits: Tensor) -> tuple[Tensor | None, None, None]:
        """Return the gradient by the images."""
        (images,) = ctx.saved_tensors
        if ctx.number != ctx.model.passes:
            with kept_draws(torch.device("cpu")):
                torch.set_rng_state(ctx.draws)
                ctx.model.look(images, ctx.flags & ~Flag.WATCHED)
            ctx.number = ctx.model.passes
        return ctx.model.slope(images, by_logits), None, None


@contextlib.contextmanager
def isolated_model(
    reference: str, *, num_classes: int, image_shape: ImageShape, tell: Tell | None = None
) -> Iterator[OpenedModel]:
    """Open a model as `open_model` does, in a process of its own, which ends with this block.

    Whatever of it went wrong there within the block is raised at its end at the latest, whoever
    caught it: a process that ended, hung or answered nonsense, memory that ran out. Raises as
    `open_model`; `InputError` for that.
    """
    if sys.platform == "win32":
        raise ConfigError(
            f"{reference} is code, which runs in a process of its own; Windows has none of what "
            "holds it there: use --trusted for code that you trust"
        )
    with tempfile.TemporaryDirectory(prefix="robust-nc-") as scratch:
        place = fetched(reference, tell)
        link = ModelLink(reference, Path(scratch), tell)
        try:
            request = ModelRequest(
                reference=place, num_classes=num_classes, image_shape=image_shape
            )
            facts, head = link.open(request)
            for text in facts.said:
                if tell is not None:
                    tell(one_line(text))
            yield OpenedModel(
                IsolatedModel(link, facts, head).eval(),
                reference,
                name_of(reference),
                facts.classes,
                facts.digests,
                {} if runs_code(reference) else facts.facts,
            )
            link.check()
        except Exception as error:
            link.check(error)
            raise
        finally:
            link.close()
