"""Checks of output paths: a command overwrites neither its inputs nor the files of a run."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files

# Files and folders of every run directory; the marks of finished stages name all others.
_FILES = ("config.json", "data.json", "evaluation.json", "metrics.jsonl")
_FOLDERS = ("checkpoints", "done", "per_user", "tensorboard")


def check_output(
    output: epath.PathLike, *, reads: Mapping[str, Sequence[epath.PathLike]] | None = None
) -> None:
    """Refuses an output path that cannot become a file, or that would overwrite an input or a run.

    Args:
      output: the file to write.
      reads: files that the command reads, by flag; paths that name no file are skipped.

    Raises:
      UserError: names the flag, or the run that the file belongs to.
    """
    files.check_file(output, "--output")
    if not files.is_local(output):
        return
    # `samefile` also recognises links to an input.
    target = pathlib.Path(os.path.abspath(output))
    for flag, paths in (reads or {}).items():
        for path in filter(None, paths):
            with contextlib.suppress(OSError, ValueError):
                if os.path.samefile(path, target):
                    raise UserError(f"--output={output} is a file that {flag} reads; name another")
    if not target.exists():
        return
    for run in _runs_around(target):
        relative = target.relative_to(run).parts
        own = (len(relative) == 1 and relative[0] in _FILES) or (
            len(relative) > 1 and relative[0] in _FOLDERS
        )
        if own or RunDir(run).marks.has_file(epath.Path(target)):
            raise UserError(f"--output={output} is a file of the run in {run}; name another")


def _runs_around(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the run directories that contain a file."""
    for folder in target.parents:
        if (folder / "config.json").is_file() and any(
            (folder / name).exists() for name in ("evaluation.json", "metrics.jsonl", *_FOLDERS)
        ):
            yield folder
