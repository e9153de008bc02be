"""When a training saves its state, and how it goes on from there.

It saves at the ends of epochs, every minute within a longer one, and at once when it was asked to
stop (`robust_nc.runtime.stopping`). See docs/adr/0013-state-within-an-epoch.md.

>>> import pathlib, tempfile, torch
>>> from robust_nc.config import TrainConfig
>>> state = TrainerState(torch.nn.Linear(1, 1), TrainConfig(epochs=1))
>>> keeper = Keeper(state, Checkpoints(pathlib.Path(tempfile.mkdtemp()), {}))
>>> keeper.resume()
>>> keeper.save(final=True)
>>> keeper.checkpoints.load().step
0
"""

import time

from robust_nc.exceptions import StoppedError
from robust_nc.runtime import stopping
from robust_nc.training.checkpoint import Checkpoints, Snapshot
from robust_nc.training.epoch_meter import not_finite
from robust_nc.training.progress import append_log, start_log
from robust_nc.training.trainer_state import TrainerState

SAVE_SECONDS = 5.0
SAVE_SECONDS_WITHIN = 60.0

_SHARE = 0.05  # of the time that saving within epochs may take


class Keeper:
    """Saves a training and resumes it; without `checkpoints` it only heeds the wish to stop.

    `save_seconds` are between saves at the ends of epochs, `save_seconds_within` between those
    within an epoch: 0 saves after each step, and anything else waits longer where a save takes
    long. Where several processes train one model, all of them call the same methods, and the first
    one saves.
    """

    def __init__(
        self,
        state: TrainerState,
        checkpoints: Checkpoints | None,
        *,
        save_seconds: float = SAVE_SECONDS,
        save_seconds_within: float = SAVE_SECONDS_WITHIN,
    ) -> None:
        self.state = state
        self.checkpoints = checkpoints
        self.save_seconds = save_seconds
        self.save_seconds_within = save_seconds_within
        self._saved_at = time.monotonic()
        self._cost = 0.0

    @property
    def note(self) -> str | None:
        """What a status line should say of the checkpoints: that one was damaged."""
        if self.checkpoints is None or self.checkpoints.recovered is None:
            return None
        return "(the last checkpoint was damaged; went on from the one before)"

    def resume(self) -> None:
        """Take the state on disk, if there is one, and clear away what a kill left behind.

        Raises `StoppedError` where there is something to do and the process was asked to stop.
        """
        snapshot = self.state.group.lead(self._loaded)
        if snapshot:
            self.state.restore(snapshot)
        finished = self.state.epoch >= self.state.config.epochs

        def tidy() -> None:
            if self.checkpoints:
                self.checkpoints.tidy(finished=finished)
                start_log(self.checkpoints.folder / "log.jsonl", self.state.history)

        self.state.group.lead(tidy)
        if not finished and self.state.group.agree(stopping.wished()):
            self.stop()

    def pause(self) -> None:
        """Save within an epoch if it is time, or if the training was asked to stop.

        Raises `StoppedError` then, and `TrainingError` instead of saving what is not finite.
        """
        seconds = self.save_seconds_within
        wished, due = self._asked(seconds and max(seconds, self._cost / _SHARE))
        if wished or due:
            self.save()
        if wished:
            self.stop()

    def end_epoch(self) -> None:
        """Log an epoch that has just ended, and save if it is time or if the training stops."""
        state = self.state
        final = state.epoch == state.config.epochs

        def log() -> None:
            if self.checkpoints:
                append_log(self.checkpoints.folder / "log.jsonl", state.history[-1])

        state.group.lead(log)
        wished, due = self._asked(self.save_seconds)
        if final or wished or due:
            self.save(final=final)
        if wished and not final:
            self.stop()

    def save(self, *, final: bool = False) -> None:
        """Save the state as it is. Raises `TrainingError` where it is not finite."""
        began = time.monotonic()
        meter = self.state.meter
        running = meter.running
        meter.check()
        meter.stop()
        if not self.state.finite:
            raise not_finite("a weight", meter.epoch, self.state.step)
        draws = self.state.draws() if meter.steps else None

        def write() -> None:
            if self.checkpoints:
                self.checkpoints.save(self.state._snapshot(draws), going_on=not final)

        self.state.group.lead(write)
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - began
        if running:
            meter.start()

    def stop(self) -> None:
        """Raise `StoppedError`, with what became of the state."""
        if self.checkpoints is None and self.state.group.rank == 0:
            raise StoppedError(
                "stopped as asked; this training keeps no checkpoints, so it begins anew next time"
            )
        raise StoppedError

    def kept(self) -> str:
        """Say which state is on disk, for a training that broke."""
        if self.checkpoints is None or self.checkpoints.saved is None:
            return "no state was saved before"
        return (
            f"the last good state, of {self.checkpoints.saved}, is kept in "
            f"{self.checkpoints.folder}: the same command goes on from there, "
            "and another train.lr trains anew"
        )

    def _asked(self, seconds: float) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether the last save was `seconds` ago."""
        late = self.checkpoints is not None and time.monotonic() - self._saved_at >= seconds
        wished, due = self.state.group.total(int(stopping.wished()), int(late))
        return wished > 0, due > 0

    def _loaded(self) -> Snapshot | None:
        return self.checkpoints.load() if self.checkpoints else None
