"""Contents of a run directory without times, so that two runs can be compared."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil


def copy_tree(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a run directory without its TensorBoard files; files may vanish on the way."""
    target.mkdir(parents=True)
    if not source.exists():
        return
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if name != "tensorboard"]
        copied = target / os.path.relpath(folder, source)
        for name in folders:
            (copied / name).mkdir(parents=True, exist_ok=True)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(os.path.join(folder, name), copied / name)


def everything(folder: pathlib.Path) -> list[tuple[str, str]]:
    """Name and digest of all that is in a folder, but for what names a process or a time."""
    entries = []
    for path in sorted(folder.rglob("*")):
        name = re.sub(r"\d+-\w*-[0-9a-f]{8}\.tmp", "tmp", str(path.relative_to(folder)))
        digest = ""
        if path.is_file() and not name.startswith(".") and "checkpoints" not in name:
            digest = hashlib.sha256(_untimed(path)).hexdigest()
        entries.append((name, digest))
    return entries


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Digests of all that a run leaves, without times, TensorBoard's files and the lock.

    Checkpoints count by their names; see `arrays` for what is in them.
    """
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        first = name.parts[0]
        if first in ("tensorboard", ".lock") or (first == "checkpoints" and path.is_file()):
            continue
        if any((folder / parent / "_CHECKPOINT_METADATA").exists() for parent in name.parents):
            continue
        digest = hashlib.sha256(_untimed(path)).hexdigest() if path.is_file() else "folder"
        digests[str(name)] = digest
    return digests


def _untimed(path: pathlib.Path) -> bytes:
    """A file's bytes without what depends on the clock."""
    data = path.read_bytes()
    if path.name in ("metrics.jsonl", "rounds.jsonl"):
        lines = []
        for line in data.splitlines(keepends=True):
            try:
                record = json.loads(line)
                kept = {k: v for k, v in record.items() if not k.startswith("time/")}
                lines.append(json.dumps(kept).encode() + b"\n")
            except ValueError:
                lines.append(line)  # half a line
        return b"".join(lines)
    if path.parent.name == "done":  # a mark holds digests of files with times
        return re.sub(rb'"[^"]*(rounds\.jsonl)": \{[^}]*\}', b"", data)
    return b"" if path.name == "report.html" else data


def arrays(folder: pathlib.Path) -> dict[str, str]:
    """Digests of all arrays of all checkpoints of a run."""
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    digests = {}
    for place in sorted((folder / "checkpoints").rglob("*")):
        if not (place.is_dir() and place.name.isdigit() and (place / "state").is_dir()):
            continue
        with ocp.training.Checkpointer(place.parent) as kept:
            loaded = kept.load_checkpointables(int(place.name), {"state": None})
        for path, leaf in jax.tree_util.tree_leaves_with_path(loaded["state"]):
            name = f"{place.relative_to(folder)}{jax.tree_util.keystr(path)}"
            if hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            digests[name] = hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
    return digests
