"""Metric log, console lines and progress bars; only process 0 prints."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath
from tqdm import tqdm

from xrec_jax.core.board import Board
from xrec_jax.core.runtime.terminal import show
from xrec_jax.core.storage import files, schema
from xrec_jax.core.storage.disk import writing

_LINE: schema.Schema = {"stage": schema.TEXT, "step": schema.WHOLE}
_VALUE = schema.or_null(schema.NUMBER)


def log(text: str) -> None:
    """Prints a line at once, so that a log file shows it while the run goes on.

    Control characters in the text are escaped, and a closed standard output does not end the run.
    """
    show(text)


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """Reads the records of a `metrics.jsonl`; a last line torn by a kill is dropped.

    Raises:
      UserError: names the line that is damaged.
    """
    records = files.read_json_lines(path)
    for number, record in enumerate(records, start=1):
        where = f"{path}, record {number}"
        schema.check(record, _LINE, where, "put it back, or delete the file: only curves need it")
        for name in record.keys() - _LINE.keys():
            schema.check(record, {name: _VALUE}, where)
    return records


class MetricWriter:
    """Appends metrics to `metrics.jsonl` and to TensorBoard event files.

    One line is one object: `stage`, `step` and numbers named `group/name`. Numbers of the group
    `time` depend on the machine; all others are functions of the configuration.

    The event files hold nothing that `metrics.jsonl` lacks: if one cannot be written, a warning is
    printed once and the run continues without them.

    Args:
      workdir: the run directory.
      enabled: false on every process but the first.
    """

    def __init__(self, workdir: epath.PathLike, *, enabled: bool = True):
        self._workdir = epath.Path(workdir)
        self._path = self._workdir / "metrics.jsonl"
        self._enabled = enabled
        self._local = files.is_local(workdir)
        self._boards: dict[str, Board] = {}
        self._boards_work = True

    def rewind(self, stage: str, step: int) -> None:
        """Drops the records of `stage` after `step`: those steps are about to be run again."""
        if not self._enabled:
            return
        records = read_metrics(self._path)
        kept = [r for r in records if r["stage"] != stage or r["step"] <= step]
        if self._path.exists():
            files.write_text(self._path, files.json_lines(kept))
        self._try_boards(lambda: self._reopen(stage, step))

    def write(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Logs `metrics` of `stage` at `step`."""
        if not self._enabled:
            return
        values = {name: files.plain(value) for name, value in sorted(metrics.items())}
        line = files.json_lines([{"stage": stage, "step": step, **values}])
        if self._local:
            with writing(self._path), self._path.open("ab") as file:
                file.write(line.encode())
        else:  # object stores cannot append
            before = self._path.read_bytes() if self._path.exists() else b""
            self._path.write_bytes(before + line.encode())
        # Event files hold scalars only; None stands for a value that is not finite.
        numbers = {n: float(v) for n, v in values.items() if isinstance(v, (int, float))}
        self._try_boards(lambda: self._board(stage).scalars(numbers, step))

    def close(self) -> None:
        """Closes the TensorBoard files."""
        for board in [*self._boards.values()]:
            self._try_boards(board.close)
        self._boards.clear()

    def _try_boards(self, write: Callable[[], object]) -> None:
        """Runs a TensorBoard write; the first failure prints a warning and disables later ones."""
        if not self._boards_work:
            return
        try:
            write()
        except Exception as error:  # also of a store's client; none of them may end a run
            self._boards_work = False
            for board in self._boards.values():
                with contextlib.suppress(Exception):
                    board.close()
            self._boards.clear()
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            log(
                f"warning: cannot write to {self._workdir / 'tensorboard'} "
                f"({' '.join(str(reason).split())}); going on without it, metrics.jsonl has all"
            )

    def _reopen(self, stage: str, step: int) -> None:
        if board := self._boards.pop(stage, None):
            board.close()
        self._board(stage, purge_step=step + 1)

    def _board(self, stage: str, purge_step: int | None = None) -> Board:
        if stage not in self._boards:
            folder = self._workdir / "tensorboard" / stage
            self._boards[stage] = Board(folder, purge_step=purge_step)
        return self._boards[stage]


class Progress:
    """A progress bar with rate and remaining time; periodic plain lines outside a terminal.

    Args:
      label: name of the activity.
      total: number of units in all.
      initial: units done by an earlier run.
      unit: name of one unit.
      enabled: false silences it (every process but the first).
      every_s: seconds between plain lines.
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        initial: int = 0,
        unit: str = "step",
        enabled: bool = True,
        every_s: float = 10.0,
    ):
        self._label, self._total, self._unit = label, total, unit
        self._count = self._initial = initial
        self._start = self._last = time.monotonic()
        self._every_s = every_s
        self._enabled = enabled
        self._bar = None
        if enabled and sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=initial, desc=label, unit=unit, leave=False, mininterval=0.2
            )

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts `count` more units; `note` is shown behind the rate."""
        self._count += count
        if self._bar is not None:
            self._bar.update(count)
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            return
        now = time.monotonic()
        if self._enabled and now - self._last >= self._every_s:
            self._last = now
            # Units of an earlier run took no time of this one.
            rate = (self._count - self._initial) / (now - self._start)
            left = (self._total - self._count) / max(rate, 1e-9)
            tail = f", {note}" if note else ""
            log(
                f"{self._label}: {self._count}/{self._total} {self._unit}s, "
                f"{rate:.1f}/s, {left:.0f} s left{tail}"
            )

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
