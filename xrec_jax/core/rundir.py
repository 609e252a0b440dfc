"""The run directory: its layout, configuration, figures and marks of finished stages."""

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
    """Outputs of a finished stage in the run directory.

    Attributes:
      paths: files, and folders with all their content; missing ones are skipped.
      sections: sections of `evaluation.json` besides the one named after the stage.
    """

    paths: Sequence[epath.Path]
    sections: tuple[str, ...] = ()


class RunDir:
    """Paths and small files of a run.

    Args:
      path: local or `gs://`.
      allow_imports: allow the import of the modules that the directory's own `config.json` names.
        The directory may come from somebody else, so its code runs only on request.
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
        """Marks of finished stages."""
        return Marks(self.path)

    def checkpoints(self, stage: str) -> epath.Path:
        """Directory of a stage's checkpoints."""
        return self.path / "checkpoints" / stage

    def per_user(self, stage: str) -> epath.Path:
        """Path of a stage's per-user metrics; the file exists once the stage is done."""
        return self.path / "per_user" / f"{stage}.npz"

    def check_is_directory(self) -> None:
        """Raises a `UserError` if the path is a file or a dangling link."""
        if files.is_local(self.path) and os.path.islink(self.path) and not self.path.exists():
            target = os.readlink(self.path)
            raise UserError(f"--workdir={self.path} is a link to {target}, which is not there")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir={self.path} is a file, not a directory")

    def check_records(self) -> None:
        """Checks figures and metrics, from which marks are made, before anything is changed.

        Raises:
          UserError: if figures or metrics are damaged.
        """
        self.evaluation()
        read_metrics(self.path / "metrics.jsonl")

    def stored(self) -> dict[str, Any]:
        """Content of `config.json`, without defaults; `run_config.read_config` fills those in.

        Raises:
          UserError: if the file is missing or damaged.
        """
        if not self.config_path.exists():
            raise UserError(f"{self.path} is not a run directory: it has no config.json")
        return _object(self.config_path)

    def evaluation(self) -> dict[str, Any]:
        """Content of `evaluation.json`; empty before the first stage is done."""
        if not self.evaluation_path.exists():
            return {}
        sections = self._sections()
        for name, systems in sections.items():
            self.marks.check_section("evaluation", name, systems)
        return sections

    def _sections(self) -> dict[str, Any]:
        sections = _object(self.evaluation_path)
        schema.check_figures(
            sections, self.evaluation_path, "put it back, or delete it and run `xrec evaluate`"
        )
        return sections

    def write_evaluation(self, stage: str, systems: dict[str, Any], **more: dict[str, Any]) -> None:
        """Replaces the sections of one stage in `evaluation.json`, atomically.

        Args:
          stage: name of the stage and of its section.
          systems: content of that section: figures by system.
          **more: further sections of the stage.
        """
        # The old mark holds a digest of the section, so it goes before the section changes.
        self.reopen(stage)
        if is_primary():
            kept = self._sections() if self.evaluation_path.exists() else {}
            files.write_json(self.evaluation_path, kept | {stage: systems, **more})

    def keep_identity(self, path: epath.Path, now: Mapping[str, str], *, started: str) -> None:
        """Stores the identity of a stage's inputs; refuses to resume with other inputs.

        All processes call it.

        Args:
          path: the stage's `identity.json`.
          now: digests by name.
          started: subject of messages, such as "tuning".

        Raises:
          UserError: names the input that differs.
        """
        # No process may look for the file after the first one has written it, or processes would
        # disagree on whether the stage was started before.
        barrier(f"{path.name} looked for")
        known = identity.is_known(path, now, workdir=self.path, started=started)
        barrier(f"{path.name} compared")  # before anybody writes
        if is_primary() and not known:
            files.write_json(path, now)

    # Marks of finished stages.

    def gone(self, stage: str) -> list[str] | None:
        """Outputs of a finished stage that are missing now; None if it is not marked as done.

        Raises:
          UserError: if a file or a figure was changed since.
        """
        return self.marks.missing(stage, self.evaluation())

    def reopen(self, stage: str) -> None:
        """Removes a stage's mark, before any of its outputs changes; see `mark_done`."""
        if is_primary():
            self.marks.remove(stage)

    def mark_done(self, stage: str, left: Left) -> None:
        """Marks a stage as done; only the primary process writes."""
        if is_primary():
            sections = self.evaluation()
            self.marks.write(
                stage,
                left.paths,
                evaluation={n: sections[n] for n in (stage, *left.sections) if n in sections},
                metrics=self.lines_of(stage, read_metrics(self.path / "metrics.jsonl")),
            )

    @staticmethod
    def lines_of(stage: str, records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Selects the records of `metrics.jsonl` that a stage wrote."""
        return [r for r in records if f"{r['stage']}/".startswith(f"{stage}/")]


def _object(path: epath.Path) -> dict[str, Any]:
    """Reads a JSON file that must hold an object."""
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; the file was not written by a run")
    return content
