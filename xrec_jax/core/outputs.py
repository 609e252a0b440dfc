"""Where a command may write: not over what it reads, nor over what a run is made of."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files

# Of a run directory, whichever stages it has; the marks name what else belongs to it.
_FILES = ("config.json", "data.json", "evaluation.json", "metrics.jsonl")
_FOLDERS = ("checkpoints", "done", "per_user", "tensorboard")


def check_output(
    output: epath.PathLike, *, reads: Mapping[str, Sequence[epath.PathLike]] | None = None
) -> None:
    """Refuses an output that cannot become a file, or that would destroy another one.

    Args:
      output: the file to write.
      reads: flags and the files that they name; what names no file is passed over.

    Raises:
      UserError: names the flag, or the run that the file belongs to.
    """
    files.check_file(output, "--output")
    if not files.is_local(output):
        return
    target = pathlib.Path(os.path.abspath(output))
    for flag, paths in (reads or {}).items():
        for path in filter(None, paths):
            with contextlib.suppress(OSError, ValueError):
                if os.path.samefile(path, target):
                    raise UserError(f"--output={output} is a file that {flag} reads; name another")
    if not target.exists():
        return
    for run in _runs_around(target):
        parts = target.relative_to(run).parts
        own = (len(parts) == 1 and parts[0] in _FILES) or (len(parts) > 1 and parts[0] in _FOLDERS)
        if own or RunDir(run).marks.has_file(epath.Path(target)):
            raise UserError(f"--output={output} is a file of the run in {run}; name another")


def _runs_around(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Run directories that a file lies in."""
    for folder in target.parents:
        if (folder / "config.json").is_file() and any(
            (folder / name).exists() for name in ("evaluation.json", "metrics.jsonl", *_FOLDERS)
        ):
            yield folder
