"""Which data a run was started on: kept in its `data.json`, and compared by all that open the run.

A row of a table of parameters belongs to an id only as long as the ids are those of the training.
So ids, split and descriptions are compared as they were read, not as they are stored: a file may
move, be compressed or get columns that nobody reads. Runs without the file are opened as they are.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import log
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage import files
from xrec_jax.data import digests
from xrec_jax.data.readers.sources import data_files
from xrec_jax.data.run_data import RunData, prepare
from xrec_jax.data.splits import PARTS

Record = dict[str, Any]
# Files of texts that their stages do not compare themselves: a stage that reads them, and the key.
_TEXTS = (("pretrain", "files"), ("judge", "explanations"))


def identify(config: Any, data: RunData) -> Record:
    """What a run's data is, computed alike on every process.

    Args:
      config: `config` of the run.
      data: of the run.

    Returns:
      `files`: name, `bytes` and `sha256` of each file read, by its role ("events", "events.train",
      "users", "pretrain.files 1", ...). `users` and `items`: `count` and `sha256` of the ids in
      order, and `table`, that of their descriptions or None. `split`: its `kind` and, for each
      part, the number of `events`, `pairs` (a digest of the rows of users and items in order) and
      `values` (of times and ratings). `notes`: counts of what was left out. `digest`: of all but
      the notes; equal on two machines that read the same.
    """
    dataset, split = data.dataset, data.split
    parts = {part: digests.of_events(getattr(split, part)) for part in PARTS}
    record: Record = {
        "files": {
            role: {"name": path.name, "bytes": path.stat().st_size, "sha256": digests.of_file(path)}
            for role, path in _files(config)
        },
        "users": digests.of_ids(dataset.user_ids, dataset.users),
        "items": digests.of_ids(dataset.item_ids, dataset.items),
        "split": {"kind": split.kind, **parts},
    }
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return record | {"notes": dict(dataset.notes), "digest": digest}


def path_of(rundir: RunDir) -> epath.Path:
    """Where a run keeps what data it was started on."""
    return rundir.path / "data.json"


def recorded(rundir: RunDir) -> Record | None:
    """What the run was started on; None where that was not recorded.

    Raises:
      UserError: if the file is damaged.
    """
    path = path_of(rundir)
    if not path.exists():
        return None
    found = files.read_json(path)
    if not isinstance(found, dict) or not all(
        isinstance(found.get(key), dict) for key in ("files", "users", "items", "split")
    ):
        raise UserError(
            f"{path}: not a record of a run's data; without the file the run opens unchecked"
        )
    return found


def record(rundir: RunDir, now: Record) -> None:
    """Keeps what data a run is started on, unless it was started before.

    It has to be there before `config.json` is, which says that the run was started.
    """
    if is_primary() and not rundir.config_path.exists():
        files.write_json(path_of(rundir), now)


def open_data(config: Any, rundir: RunDir, *, texts: bool = False) -> RunData:
    """Reads the data of an existing run.

    Args:
      config: of the run.
      rundir: of the run.
      texts: whether files of texts that its stages read must be the same, too.

    Raises:
      UserError: if it is not the data that the run was started on, or cannot be read.
    """
    data = prepare(config.data)
    if recorded(rundir) is not None:
        compare(rundir, identify(config, data), texts=texts)
    return data


def check_unread(config: Any, rundir: RunDir) -> None:
    """As `open_data`, for what works with a run's results alone: no data is fine, other data not.

    Files whose content is as before are not read as tables.

    Args:
      config: of the run.
      rundir: of the run.

    Raises:
      UserError: if the data is not what the run was started on.
    """
    before = recorded(rundir)
    if before is None or not rundir.config_path.exists():
        return
    try:
        now = {role: digests.of_file(path) for role, path in data_files(config.data).items()}
    except UserError:
        return  # moved or deleted: nothing to compare with
    if any(now[role] != _digest_of(before["files"].get(role)) for role in now):
        open_data(config, rundir)


def compare(rundir: RunDir, now: Record, *, texts: bool = True) -> None:
    """Compares what a run was started on with what is there now.

    Args:
      rundir: of the run; nothing is compared where it has no record, or was not started.
      now: of `identify`.
      texts: see `open_data`.

    Raises:
      UserError: names the files that changed, and in what.
    """
    before = recorded(rundir) if rundir.config_path.exists() else None
    if before is None:
        return
    changed = [
        entry["name"]
        for role, entry in now["files"].items()
        if entry["sha256"] != _digest_of(before["files"].get(role))
    ]
    different = [*_differences(before, now), *(_other_texts(before, now) if texts else ())]
    if different:
        why = f"{', '.join(changed)} changed" if changed else "it is read otherwise"
        raise UserError(
            f"{rundir.path}: the data changed since the run was started ({why}): other "
            f"{', '.join(different)}; give the data that it was started on, or start anew in "
            "another --workdir"
        )
    if changed and is_primary():
        log(
            f"note: {', '.join(changed)} changed since {rundir.path} was started, but users, items "
            "and split are the same"
        )


def same_tested(one: Record, other: Record, part: str) -> bool:
    """Whether two runs measure the same users on the same items, by id.

    Args:
      one: of `identify`.
      other: likewise.
      part: "valid" or "test".
    """
    return all(
        _at(one, *keys) == _at(other, *keys) is not None
        for keys in (("users", "sha256"), ("items", "sha256"), ("split", part, "pairs"))
    )


def identity_of(config: Any, rundir: RunDir) -> Record | None:
    """What a run was started on or, where that was not recorded, what its files hold now.

    Returns:
      None where the files cannot be read any more.
    """
    found = recorded(rundir)
    if found is not None:
        return found
    try:
        return identify(config, prepare(config.data))
    except UserError:
        return None


def _files(config: Any) -> Iterator[tuple[str, pathlib.Path]]:
    """Role and path of every file that the run reads its data from."""
    yield from data_files(config.data).items()
    for stage, key in _TEXTS:
        if stage not in config.stages:
            continue
        specs = [spec for spec in config[stage][key] if isinstance(spec, str)]
        paths = [path for spec in specs for path in files.joined(spec)]
        for number, path in enumerate(map(pathlib.Path, paths), start=1):
            if path.is_file():  # or else its stage says so, if it still needs it
                yield f"{stage}.{key} {number}", path


def _differences(before: Record, now: Record) -> Iterator[str]:
    for kind in ("users", "items"):
        if _at(before, kind, "sha256") != _at(now, kind, "sha256"):
            counts = f"{_at(before, kind, 'count')} then, {_at(now, kind, 'count')} now"
            yield f"{kind} ({counts})"
        elif _at(before, kind, "table") != _at(now, kind, "table"):
            yield f"descriptions of {kind}"
    for part in PARTS:
        if _at(before, "split", part) != _at(now, "split", part):
            sizes = [_at(found, "split", part, "events") for found in (before, now)]
            yield f"{part} events ({sizes[0]} then, {sizes[1]} now)"


def _other_texts(before: Record, now: Record) -> Iterator[str]:
    for stage, key in _TEXTS:
        roles = [role for role in now["files"] if role.startswith(f"{stage}.{key} ")]
        if any(
            _digest_of(before["files"].get(role)) != _digest_of(now["files"][role])
            for role in roles
        ):
            yield f"texts of {stage}.{key}"


def _at(found: Any, *keys: str) -> Any:
    """A value of a record, None where it is not there."""
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _digest_of(entry: Any) -> Any:
    return _at(entry, "sha256")
