"""The runs of a comparison, opened, and how far their data agrees."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath
from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.data import run_identity
from xrec_jax.run_config import read_config

_FILES = ("path", "users", "items")  # keys of config.data that may differ between equal data


class ComparedRun(NamedTuple):
    """A run of a comparison.

    Attributes:
      name: of its folder, or its path where two folders have one name.
      rundir: its directory.
      config: its configuration.
      identity: of the data that it read; None for runs that did not record it.
    """

    name: str
    rundir: RunDir
    config: ConfigDict
    identity: run_identity.Record | None


def open_runs(workdirs: Sequence[epath.PathLike], *, allow_imports: bool) -> list[ComparedRun]:
    """Opens the runs of a comparison.

    Args:
      workdirs: run directories.
      allow_imports: import the modules that their configs name.

    Raises:
      UserError: for fewer than two runs, one given twice or without a finished stage, or data that
        changed since the run read it.
    """
    if len(workdirs) < 2:
        raise UserError("a comparison needs two runs: --workdir=A --workdir=B")
    rundirs = [RunDir(path, allow_imports=allow_imports) for path in workdirs]
    paths = [os.fspath(rundir.path) for rundir in rundirs]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"--workdir={path} is given twice; a run does not differ from itself")
    # Names of folders are short to read; only paths are always distinct.
    names = [rundir.path.name for rundir in rundirs]
    if len(set(names)) < len(names):
        names = paths
    runs = []
    for name, rundir in zip(names, rundirs, strict=True):
        config = read_config(rundir)
        if not rundir.evaluation():
            raise UserError(f"{rundir.path}: no stage is finished; run `xrec run` first")
        # Only results are compared, so data that was moved away is no obstacle.
        run_identity.check_unread(config, rundir)
        runs.append(ComparedRun(name, rundir, config, run_identity.identity_of(config, rundir)))
    return runs


def comparable_splits(first: ComparedRun, other: ComparedRun) -> set[str]:
    """The splits, of "valid" and "test", in which two runs hold out the same users and items."""
    splits = {"valid", "test"}
    mine, theirs = first.identity, other.identity
    if mine is None or theirs is None:  # a run of a version that did not record its data
        return splits if _same_data(first.config, other.config) else set()
    return {split for split in splits if run_identity.same_tested(mine, theirs, split)}


def _same_data(config: ConfigDict, other: ConfigDict) -> bool:
    """True if two configs name the same data, wherever its files are."""
    a, b = config.data.to_dict(), other.data.to_dict()
    return all(a.get(key) == b.get(key) for key in a.keys() | b.keys() if key not in _FILES)


def known_to_differ(run: ComparedRun, other: ComparedRun) -> bool:
    """True if two runs are known to have different users or items."""
    mine, theirs = run.identity, other.identity
    if mine is None or theirs is None:
        return False
    return any(
        mine[kind].get("sha256") != theirs[kind].get("sha256") for kind in ("users", "items")
    )
