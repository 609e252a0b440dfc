"""Identity of the data that a run was started on: stored in `data.json`, compared on every opening.

A row of an embedding table belongs to an id only as long as the ids are those of the training. So
ids, split and descriptions are compared as they were read, not as they are stored: a file may move,
be compressed or get unused columns. Runs without the file are opened unchecked.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import log
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage import files
from xrec_jax.data import digests
from xrec_jax.data.readers.sources import data_files
from xrec_jax.data.run_data import RunData, prepare
from xrec_jax.data.splits import SPLITS

Record = dict[str, Any]
# Text files that their stages do not compare themselves: stage and config key.
_TEXTS = (("pretrain", "files"), ("judge", "explanations"))


def identify(config: ml_collections.ConfigDict, data: RunData) -> Record:
    """Computes the identity of a run's data; equal on every process.

    Args:
      config: config of the run.
      data: data of the run.
    """
    dataset, split = data.dataset, data.split
    events = {name: digests.of_events(getattr(split, name)) for name in SPLITS}
    record: Record = {
        "files": {
            role: {"name": path.name, "bytes": path.stat().st_size, "sha256": digests.of_file(path)}
            for role, path in _files(config)
        },
        "users": digests.of_ids(dataset.user_ids, dataset.users),
        "items": digests.of_ids(dataset.item_ids, dataset.items),
        "split": {"kind": split.kind, **events},
    }
    if data.item_vectors is not None:
        record["item_vectors"] = digests.of_vectors(*data.item_vectors)
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return record | {"notes": dict(dataset.notes), "digest": digest}


def path_of(rundir: RunDir) -> epath.Path:
    """Path of a run's `data.json`."""
    return rundir.path / "data.json"


def recorded(rundir: RunDir) -> Record | None:
    """Reads the identity that a run was started on; None if it was not recorded.

    Raises:
      UserError: if the file is damaged.
    """
    path = path_of(rundir)
    if not path.exists():
        return None
    content = files.read_json(path)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), dict) for key in ("files", "users", "items", "split")
    ):
        raise UserError(
            f"{path}: not a record of a run's data; without the file the run opens unchecked"
        )
    return content


def record(rundir: RunDir, now: Record) -> None:
    """Stores the identity of the data that a run is started on, unless it was started before.

    It must be written before `config.json`, which marks the run as started.
    """
    if is_primary() and not rundir.config_path.exists():
        files.write_json(path_of(rundir), now)


def open_data(config: ml_collections.ConfigDict, rundir: RunDir, *, texts: bool = False) -> RunData:
    """Reads the data of an existing run.

    Args:
      config: config of the run.
      rundir: directory of the run.
      texts: also compare the text files that its stages read.

    Raises:
      UserError: if the data differs from that of the run's start, or cannot be read.
    """
    data = prepare(config.data)
    if recorded(rundir) is not None:
        compare(rundir, identify(config, data), texts=texts)
    return data


def check_unread(config: ml_collections.ConfigDict, rundir: RunDir) -> None:
    """As `open_data`, for commands that need only a run's results: missing data is accepted.

    Files with unchanged content are not parsed.

    Args:
      config: config of the run.
      rundir: directory of the run.

    Raises:
      UserError: if the data differs from that of the run's start.
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
    """Compares the present data with that of the run's start.

    Args:
      rundir: directory of the run; nothing is compared if it has no record or was not started.
      now: present identity, from `identify`.
      texts: see `open_data`.

    Raises:
      UserError: names the files and contents that changed.
    """
    before = recorded(rundir) if rundir.config_path.exists() else None
    if before is None:
        return
    changed = [
        entry["name"]
        for role, entry in now["files"].items()
        if entry["sha256"] != _digest_of(before["files"].get(role))
    ]
    # The content decides, not the files: a file may change in ways that no reader sees.
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


def same_tested(first: Record, other: Record, split: str) -> bool:
    """True if two runs are evaluated on the same users, items and held-out events.

    Args:
      first: identity of a run, from `identify`.
      other: identity of another run.
      split: "valid" or "test".
    """
    return all(
        _at(first, *keys) == _at(other, *keys) is not None
        for keys in (("users", "sha256"), ("items", "sha256"), ("split", split, "pairs"))
    )


def identity_of(config: ml_collections.ConfigDict, rundir: RunDir) -> Record | None:
    """Identity that a run was started on or, if not recorded, that of its files now.

    Returns:
      The identity; None if the files cannot be read any more.
    """
    identity = recorded(rundir)
    if identity is not None:
        return identity
    try:
        return identify(config, prepare(config.data))
    except UserError:
        return None


def _files(config: ml_collections.ConfigDict) -> Iterator[tuple[str, pathlib.Path]]:
    """Yields role and path of every file that the run reads data from."""
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
    if _at(before, "item_vectors") != _at(now, "item_vectors"):
        yield "item vectors"
    for name in SPLITS:
        if _at(before, "split", name) != _at(now, "split", name):
            sizes = [_at(record, "split", name, "events") for record in (before, now)]
            yield f"{name} events ({sizes[0]} then, {sizes[1]} now)"


def _other_texts(before: Record, now: Record) -> Iterator[str]:
    for stage, key in _TEXTS:
        roles = [role for role in now["files"] if role.startswith(f"{stage}.{key} ")]
        if any(
            _digest_of(before["files"].get(role)) != _digest_of(now["files"][role])
            for role in roles
        ):
            yield f"texts of {stage}.{key}"


def _at(value: object, *keys: str) -> Any:
    """Value at a path of keys in a record; None if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _digest_of(entry: object) -> object:
    return _at(entry, "sha256")
