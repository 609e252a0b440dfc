"""Identity of a stage's inputs: a stage resumes with the same content, or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage import files


def digest(content: Any) -> str:
    """SHA-256 of plain values, such as lists of texts."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def is_known(
    path: epath.Path, now: Mapping[str, str], *, workdir: epath.Path, started: str
) -> bool:
    """Compares a stage's inputs with those that it was started with.

    Args:
      path: the stage's `identity.json`.
      now: digests of the current inputs, by name.
      workdir: the run directory, for messages.
      started: subject of messages, such as "tuning".

    Returns:
      Whether the stage was started before; else `now` is to be written to `path`.

    Raises:
      UserError: names the input that differs, or the file if it is damaged.
    """
    if not path.exists():
        return False
    before = files.read_json(path)
    names = list(before) if isinstance(before, dict) else []
    if not names or not all(isinstance(before[name], str) and before[name] for name in names):
        raise UserError(
            f"{path}: damaged, it does not say what {started} was started with; put it back, or "
            "delete it if the content is the same"
        )
    # Only today's inputs are compared: an identity written by an earlier version may lack or have
    # more names, and a name it lacks counts as different.
    for name, value in now.items():
        if before.get(name) != value:
            raise UserError(
                f"{workdir}: {started} was started with another content of the {name} "
                f"({str(before.get(name))[:12]}, now {value[:12]}; see {path}); give the same, or "
                "another --workdir"
            )
    return True
