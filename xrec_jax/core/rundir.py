"""The run directory: what lies where, and which configuration it belongs to."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from xrec_jax.core import identity
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import read_metrics
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.core.storage import files, schema
from xrec_jax.core.storage.marks import Marks


class Left(NamedTuple):
    """What a finished stage leaves in the run directory.

    Attributes:
      paths: files, and folders with all that is in them; perhaps some that are not there.
      sections: of `evaluation.json` besides that of the stage's own name.
    """

    paths: Sequence[epath.Path]
    sections: tuple[str, ...] = ()


class RunDir:
    """Paths and small files of a run.

    Args:
      path: local or `gs://`.
      allow_imports: whether `config` may import the modules that the directory's own `config.json`
        names. It may come from somebody else, so only who asks for it runs its code.
    """

    def __init__(self, path: epath.PathLike, *, allow_imports: bool = False):
        self.allow_imports = allow_imports
        try:
            self.path = files.absolute(path)
        except UserError as error:
            raise UserError(f"--workdir={error}") from error

    @property
    def config_path(self) -> epath.Path:
        return self.path / "config.json"

    @property
    def evaluation_path(self) -> epath.Path:
        return self.path / "evaluation.json"

    @functools.cached_property
    def marks(self) -> Marks:
        """Of finished stages."""
        return Marks(self.path)

    def checkpoints(self, stage: str) -> epath.Path:
        """Folder of a stage's checkpoints."""
        return self.path / "checkpoints" / stage

    def per_user(self, stage: str) -> epath.Path:
        """File of a finished stage's per-user metrics; it exists once the stage is done."""
        return self.path / "per_user" / f"{stage}.npz"

    def check_is_directory(self) -> None:
        """Raises a `UserError` if a file, or a link to nowhere, is where the directory is to be."""
        if files.is_local(self.path) and os.path.islink(self.path) and not self.path.exists():
            target = os.readlink(self.path)
            raise UserError(f"--workdir={self.path} is a link to {target}, which is not there")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir={self.path} is a file, not a directory")

    def check_records(self) -> None:
        """Reads what a finished stage's mark is made of, before anything is changed.

        Raises:
          UserError: if figures or metrics are damaged.
        """
        self.evaluation()
        read_metrics(self.path / "metrics.jsonl")

    def stored(self) -> dict[str, Any]:
        """Content of `config.json` as it is; `run_config.read_config` fills in today's defaults.

        Raises:
          UserError: if there is none, or it is damaged.
        """
        if not self.config_path.exists():
            raise UserError(f"{self.path} is not a run directory: it has no config.json")
        return _object(self.config_path)

    def evaluation(self) -> dict[str, Any]:
        """Content of `evaluation.json`; empty before the first stage is done."""
        if not self.evaluation_path.exists():
            return {}
        found = self._sections()
        for name, systems in found.items():
            self.marks.check_section("evaluation", name, systems)
        return found

    def _sections(self) -> dict[str, Any]:
        found = _object(self.evaluation_path)
        schema.check_figures(
            found, self.evaluation_path, "put it back, or delete it and run `xrec evaluate`"
        )
        return found

    def write_evaluation(self, stage: str, systems: dict[str, Any], **more: dict[str, Any]) -> None:
        """Replaces one stage of `evaluation.json`, and what else the stage writes, all at once.

        Args:
          stage: name of the stage and of its section.
          systems: its content.
          **more: further sections of the stage.
        """
        self.reopen(stage)
        if is_primary():
            kept = self._sections() if self.evaluation_path.exists() else {}
            files.write_json(self.evaluation_path, kept | {stage: systems, **more})

    def keep_identity(self, path: epath.Path, now: Mapping[str, str], *, started: str) -> None:
        """Keeps what a stage was started with; refuses to go on with something else.

        All processes call it.

        Args:
          path: the stage's `identity.json`.
          now: digests by name.
          started: subject of messages, such as "tuning".

        Raises:
          UserError: names what is another one.
        """
        barrier(f"{path.name} looked for")
        known = identity.is_known(path, now, workdir=self.path, started=started)
        barrier(f"{path.name} compared")  # before anybody writes
        if is_primary() and not known:
            files.write_json(path, now)

    # What is done.

    def gone(self, stage: str) -> list[str] | None:
        """What a finished stage left and is not there any more; None if it is not marked as done.

        Raises:
          UserError: if a file or a figure was changed since.
        """
        return self.marks.missing(stage, self.evaluation())

    def reopen(self, stage: str) -> None:
        """Says, before anything of a stage changes, that it is not done; see `mark_done`."""
        if is_primary():
            self.marks.remove(stage)

    def mark_done(self, stage: str, left: Left) -> None:
        """Marks a stage as done, on the first process."""
        if is_primary():
            found = self.evaluation()
            self.marks.write(
                stage,
                left.paths,
                evaluation={n: found[n] for n in (stage, *left.sections) if n in found},
                metrics=self.lines_of(stage, read_metrics(self.path / "metrics.jsonl")),
            )

    @staticmethod
    def lines_of(stage: str, records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Lines of `metrics.jsonl` that a stage wrote."""
        return [r for r in records if f"{r['stage']}/".startswith(f"{stage}/")]


def _object(path: epath.Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    found = files.read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object; the file was not written by a run")
    return found
