"""Agreement of a run's processes on config, data and run directory, checked before they begin."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage import files

_SEEN_S = 10.0  # network file systems show a new file with delay


def texts_of_all(text: str) -> list[str]:
    """Gathers one text of each process on all of them, in process order."""
    if jax.process_count() == 1:
        return [text]
    # A gather needs equal shapes: sizes first, then rows padded to the longest. One byte more,
    # since an empty row cannot be gathered.
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(data)], np.int32)).reshape(-1)
    padded = np.zeros(int(sizes.max()) + 1, np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def same(what: str, value: str, *, way_out: str) -> None:
    """Raises if any process has another value than process 0.

    Args:
      what: name of the value compared, such as "data".
      value: value of this process, such as a digest.
      way_out: advice for the message.

    Raises:
      UserError: the same on every process.
    """
    values = texts_of_all(value)
    for number, theirs in enumerate(values):
        if theirs != values[0]:
            raise UserError(f"process {number} has another {what} than process 0; {way_out}")


def same_config(values: Mapping[str, Any]) -> None:
    """As `same`, for a config; names the first key that differs.

    Args:
      values: config values by dotted key.
    """
    text = json.dumps(files.plain(values), sort_keys=True)
    digests = texts_of_all(hashlib.sha256(text.encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    # The whole config travels only if the digests differ, to name the key.
    first, *others = map(json.loads, texts_of_all(text))
    for number, theirs in enumerate(others, start=1):
        for key in sorted(first.keys() | theirs.keys()):
            if first.get(key) != theirs.get(key):
                raise UserError(
                    f"process {number} has {key}={theirs.get(key)!r} and process 0 "
                    f"{key}={first.get(key)!r}; give every process the same --config"
                )


def same_directory(path: epath.PathLike) -> None:
    """Raises if a process does not see the run directory of process 0.

    Process 0 creates a file there for a moment, which the others look for.

    Raises:
      UserError: the same on every process.
    """
    if jax.process_count() == 1:
        return
    folder = epath.Path(path)
    existed = folder.exists()
    token, *_ = texts_of_all(secrets.token_hex(8))
    sign, refusal = folder / f".processes-{token}.tmp", ""
    if is_primary():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sign.write_text(token)
        except OSError as error:
            refusal = f"process 0 cannot write to {folder}: {error.strerror}"
    # Every process learns of a failure before it decides, so all of them raise or none.
    refusal, *_ = texts_of_all(refusal)
    missing = "" if refusal or _seen(sign) else "missing"
    seen = texts_of_all(missing)
    if is_primary():
        with contextlib.suppress(OSError):
            sign.unlink(missing_ok=True)
            if any(seen) and not existed:
                folder.rmdir()
    if any(seen):
        number = next(n for n, unseen in enumerate(seen) if unseen)
        refusal = (
            f"process {number} does not see the run directory of process 0, {folder}; every host "
            "must have it at the same path, on storage that they share"
        )
    if refusal:
        raise UserError(refusal)


def _seen(sign: epath.Path) -> bool:
    deadline = time.monotonic() + _SEEN_S
    while not sign.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
