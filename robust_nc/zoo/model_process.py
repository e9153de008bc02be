"""The process that a stranger's model runs in: it answers logits and gradients, and nothing else.

Messages are numbers of one fixed form over a socket; tensors and texts lie in a window of memory
that both processes see. Nothing is pickled. The other end, which believes no answer, is
`robust_nc.zoo.isolation`.

>>> ModelMessage(Ask.LOGITS, shape=(8, 1, 28, 28)) == ModelMessage.read(
...     ModelMessage(Ask.LOGITS, shape=(8, 1, 28, 28)).written()
... )
True
"""

import json
import math
import mmap
import socket
import struct
import sys
from contextlib import ExitStack
from enum import IntEnum
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from robust_nc.config import Positive, configuration, plain, read
from robust_nc.evaluation.acceleration import candidates, cast_once, lowered
from robust_nc.evaluation.sanity.output import WatchedPass, watched
from robust_nc.exceptions import InputError, RobustNCError
from robust_nc.io.digests import count_parameters
from robust_nc.models.taps import module_taps, read_taps
from robust_nc.registry import ATTACKS
from robust_nc.runtime.torch_state import default_device, full_precision, ran_out, untouched
from robust_nc.zoo.reference import OpenedModel, open_model

_Change = Literal["folded", "channels_last"]
_FORM = struct.Struct("<BBHII4I")
_STATE, _TEXT, _IMAGES, _ANSWERS = 0, 2**13, 2**23, 2**23 + 2**30  # bytes into the window
WINDOW = _ANSWERS + 2**30
_MOST_SAID, _MOST_MESSAGES = 2_000, 20  # characters of an error, messages of an opening


class Ask(IntEnum):
    """What a message asks for, or how what was asked for ended."""

    OPEN = 1
    LOGITS = 2
    GRADIENT = 3
    CANDIDATES = 4
    LAYERS = 5
    DONE = 6
    FAILED = 7  # the model raised something
    REFUSED = 8  # there is no such model, or none that can be used
    STARVED = 9  # memory ran out


class Flag:
    """How it is asked for, or what was seen: bits of a number, which an enumeration is slow for."""

    GRADIENTS = 1  # keep the graph; there is one
    SMOOTH = 2  # through the smooth stand-in
    BF16 = 4
    WATCHED = 8
    DREW = 16  # the model drew from torch's generator
    TURNED_ON = 32  # it turned gradients on
    FIRST_INPUT = 64  # what its first layer read is in the window, behind the logits
    FILTERED = 128  # the system refuses processes and connections


class ModelMessage(NamedTuple):
    """One message. `number` is of a model, `extra` a count, `text` the bytes of one in the window.

    `shape` is that of the images, or of the answer, in the window.
    """

    kind: int
    flags: int = 0
    number: int = 0
    extra: int = 0
    text: int = 0
    shape: tuple[int, ...] = ()

    def written(self) -> bytes:
        """Return its bytes."""
        sides = [side + 1 for side in self.shape]
        return _FORM.pack(*self[:5], *sides, *[0] * (4 - len(sides)))

    @staticmethod
    def read(content: bytes) -> "ModelMessage":
        """Return the message of `MESSAGE_BYTES` bytes."""
        kind, flags, number, extra, text, *sides = _FORM.unpack(content)
        return ModelMessage(
            kind, flags, number, extra, text, tuple(one - 1 for one in sides if one)
        )


MESSAGE_BYTES = _FORM.size


class Window:
    """Memory that both processes see. What is read is a copy: the other end may go on writing."""

    def __init__(self, file: int) -> None:
        self._memory = mmap.mmap(file, WINDOW)
        self._bytes = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._floats = torch.frombuffer(self._memory, dtype=torch.float32)

    def put(self, values: Tensor, *, answer: bool, after: int = 0) -> None:
        """Write float32 images, or an answer behind `after` others; `MemoryError` if too many."""
        self._room(values.shape, answer, after).copy_(values)

    def get(self, shape: tuple[int, ...], *, answer: bool, after: int = 0) -> Tensor:
        """Return a copy of images, or of an answer."""
        return self._room(shape, answer, after).clone()

    def images(self, shape: tuple[int, ...]) -> Tensor:
        """Return images as they lie there: no copy, for who trusts the other end."""
        return self._room(shape, False, 0).detach()

    def _room(self, shape: tuple[int, ...], answer: bool, after: int) -> Tensor:
        first, count = (_ANSWERS if answer else _IMAGES) // 4 + after, math.prod(shape)
        if after + count > 2**28:
            raise MemoryError(f"{count:,} numbers are out of memory that two processes share")
        return self._floats[first : first + count].view(shape)

    @property
    def draws(self) -> Tensor:
        """The state of torch's generator that a model is to draw from; it can be written."""
        return self._bytes[_STATE : _STATE + len(torch.get_rng_state())]

    def write(self, text: str) -> int:
        """Write a text, and return its bytes; `InputError` for too long a one."""
        content = text.encode(errors="replace")
        if len(content) > _IMAGES - _TEXT:
            raise InputError(f"{len(content):,} bytes of text are more than can be told")
        self._memory[_TEXT : _TEXT + len(content)] = content
        return len(content)

    def read(self, count: int) -> str:
        """Return the text of so many bytes."""
        return self._memory[_TEXT : _TEXT + min(count, _IMAGES - _TEXT)].decode(errors="replace")


@configuration
class ModelFacts:
    """What a process says of its model: as `OpenedModel`, its parameters, layers and messages."""

    classes: Annotated[int, Field(ge=2, lt=2**20)]
    digests: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{16}$")]]
    facts: dict[str, str]
    parameters: Annotated[int, Field(ge=0)]
    taps: tuple[str, ...]
    said: tuple[str, ...]


@configuration
class ModelCopies:
    """Numbers of faster copies and what was done to each, by groups (`acceleration.candidates`)."""

    groups: list[list[tuple[Annotated[int, Field(ge=1, lt=2**16)], tuple[_Change, ...]]]]


@configuration
class ModelLayers:
    """Names of layers and the width of their features, in the order of the answer."""

    layers: list[tuple[str, Annotated[int, Field(ge=1, lt=2**26)]]]


@configuration
class ModelRequest:
    """What `open_model` is asked."""

    reference: str
    num_classes: Positive
    image_shape: tuple[Positive, Positive, Positive]


class ModelServer:
    """Answers for one model and its faster copies, from the window and into it."""

    def __init__(self, own: nn.Module, window: Window) -> None:
        self._models = [own]
        self._window = window
        self._device = default_device()
        self._cast: dict[int, nn.Module] = {}  # with weights in bfloat16
        self._graph: tuple[Tensor, Tensor] | None = None  # images, and the logits made of them

    def answer(self, asked: ModelMessage) -> ModelMessage:
        """Do what is asked; whatever the model raises comes through."""
        given = self._window.images(asked.shape).to(self._device)
        if asked.kind == Ask.GRADIENT:
            return self._gradient(given)
        self._graph = None
        if asked.kind == Ask.LOGITS:
            return self._logits(given, asked)
        if asked.kind == Ask.CANDIDATES:
            return self._candidates(given)
        return self._layers(given, **json.loads(self._window.read(asked.text)))

    def _logits(self, images: Tensor, asked: ModelMessage) -> ModelMessage:
        flags, found = asked.flags, 0
        if asked.extra != torch.get_num_threads():
            torch.set_num_threads(asked.extra)
        before = self._drawing()
        seen = None
        with torch.set_grad_enabled(bool(flags & Flag.GRADIENTS)), ExitStack() as stack:
            images.requires_grad_(torch.is_grad_enabled())
            model = self._models[asked.number]
            if flags & Flag.BF16:
                stack.enter_context(lowered("bf16", self._device))
                if asked.number not in self._cast:
                    self._cast[asked.number] = cast_once(model, images.detach())
                model = self._cast[asked.number]
            if flags & Flag.SMOOTH:
                model = ATTACKS.load("smooth").stand_in(model)
            if flags & Flag.WATCHED:
                seen = stack.enter_context(watched(model))
            logits = model(images)
            stack.close()
            logits = _checked(logits, len(images)).float()
        if not all(map(torch.equal, before, self._states())):
            found |= Flag.DREW
        self._window.put(logits.detach(), answer=True)
        if logits.requires_grad:
            self._graph = images, logits
            found |= Flag.GRADIENTS
        if seen is not None:
            found |= self._note(seen, images, after=logits.numel())
        backwards = 0 if seen is None else min(seen.backwards, 2**16 - 1)
        return ModelMessage(Ask.DONE, found, backwards, shape=tuple(logits.shape))

    def _note(self, seen: WatchedPass, images: Tensor, *, after: int) -> int:
        """Put down what was seen of a pass."""
        found, first = Flag.TURNED_ON if seen.gradients_on else 0, seen.first_input
        if first is not None and (len(first), first.numel()) == (len(images), images.numel()):
            self._window.put(first.float().flatten(), answer=True, after=after)
            found |= Flag.FIRST_INPUT
        return found

    def _drawing(self) -> list[Tensor]:
        """Draw from here on as the other process would have drawn, and return the states."""
        torch.set_rng_state(self._window.draws.clone())
        if self._device.type == "cuda":  # where the draws are others
            torch.cuda.manual_seed(torch.default_generator.initial_seed())
        return self._states()

    def _states(self) -> list[Tensor]:
        there = [torch.cuda.get_rng_state()] if self._device.type == "cuda" else []
        return [torch.get_rng_state(), *there]

    def _gradient(self, slope: Tensor) -> ModelMessage:
        assert self._graph is not None
        images, logits = self._graph
        (gradient,) = torch.autograd.grad(
            logits, images, slope, retain_graph=True, allow_unused=True
        )
        if gradient is None:
            return ModelMessage(Ask.DONE)
        self._window.put(gradient, answer=True)
        return ModelMessage(Ask.DONE, Flag.GRADIENTS, shape=tuple(gradient.shape))

    def _candidates(self, images: Tensor) -> ModelMessage:
        groups: list[list[tuple[int, tuple[str, ...]]]] = []
        for variants in candidates(self._models[0], images):
            new = [each.model for each in variants if each.model not in self._models]
            self._models += new
            groups.append([(self._models.index(each.model), each.names) for each in variants])
        return ModelMessage(Ask.DONE, text=self._window.write(json.dumps({"groups": groups})))

    @torch.no_grad()
    def _layers(self, images: Tensor, taps: list[str] | None, feature: str) -> ModelMessage:
        tapped = read_taps(self._models[0], images, taps, feature)
        values = [tapped.logits, *tapped.features.values()]
        self._window.put(torch.cat([one.flatten().float() for one in values]), answer=True)
        layers = [(name, features.shape[1]) for name, features in tapped.features.items()]
        text = self._window.write(json.dumps({"layers": layers}))
        return ModelMessage(Ask.DONE, text=text, shape=tuple(tapped.logits.shape))


def _checked(logits: object, count: int) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
        found = getattr(logits, "shape", type(logits).__name__)
        raise InputError(f"the model must return logits (N, K), N = {count}, found {found}")
    return logits


def received(link: socket.socket) -> ModelMessage | None:
    """Wait for a message; None where the other end is gone."""
    content = b""
    while len(content) < MESSAGE_BYTES:
        part = link.recv(MESSAGE_BYTES - len(content))
        if not part:
            return None
        content += part
    return ModelMessage.read(content)


def serve(filtered: bool) -> None:
    """Serve the model that the first message names, until the other end is gone."""
    link, window = socket.socket(fileno=int(sys.argv[1])), Window(int(sys.argv[2]))
    link.sendall(ModelMessage(Ask.DONE, Flag.FILTERED if filtered else 0).written())
    said: list[str] = []
    asked = received(link)
    request = read(ModelRequest, json.loads(window.read(0 if asked is None else asked.text)))
    try:
        opened = open_model(
            request.reference,
            num_classes=request.num_classes,
            image_shape=request.image_shape,
            tell=said.append,
        )
        facts = plain(_facts(opened, said))
        linear = [part for part in opened.model.modules() if isinstance(part, nn.Linear)]
        head = linear[-1].weight.detach().float() if linear else torch.empty(0)
        window.put(head, answer=True)
    except RobustNCError as error:
        text = window.write(f"{type(error).__name__}\n{str(error)[:_MOST_SAID]}")
        link.sendall(ModelMessage(Ask.REFUSED, text=text).written())
        return
    text = window.write(json.dumps(facts))
    link.sendall(ModelMessage(Ask.DONE, text=text, shape=tuple(head.shape)).written())
    own = opened.model.to(default_device())
    server = ModelServer(own, window)
    with torch.inference_mode(False), untouched(own), full_precision():
        while (asked := received(link)) is not None:
            link.sendall(_answered(server, asked, window).written())


def _answered(server: ModelServer, asked: ModelMessage, window: Window) -> ModelMessage:
    try:
        return server.answer(asked)
    except Exception as error:  # a stranger's model may raise anything
        kind = Ask.STARVED if ran_out(error) else Ask.FAILED
        text = f"{type(error).__name__}\n{str(error)[:_MOST_SAID]}"
        return ModelMessage(kind, text=window.write(text))


def _facts(opened: OpenedModel, said: list[str]) -> ModelFacts:
    try:
        taps = module_taps(opened.model)
    except Exception:  # a stranger's model may raise anything
        taps = ()
    return ModelFacts(
        classes=opened.num_classes,
        digests=dict(opened.digests),
        facts=dict(opened.facts),
        parameters=count_parameters(opened.model),
        taps=taps,
        said=tuple(text[:_MOST_SAID] for text in said[:_MOST_MESSAGES]),
    )
