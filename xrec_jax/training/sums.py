"""Checksums stored in a checkpoint: computed when saving, verified when restoring."""

from __future__ import annotations

from typing import Any

from xrec_jax.core.storage.checksums import json_checksum, tree_checksums

_KEY = "checksums"


class Damaged(Exception):  # noqa: N818 (the caller makes the user's error of it)
    """A checkpoint differs from what was saved; the message is a part of a sentence."""


def record(step: int, saved: Any, data: Any, progress: Any) -> dict[str, Any]:
    """Custom metadata of a checkpoint: its step and checksums.

    Args:
      step: step of the checkpoint.
      saved: tree of its arrays.
      data: state of the data iterator (JSON).
      progress: state of the loop (JSON).
    """
    arrays = {name: list(checksum) for name, checksum in tree_checksums(saved).items()}
    parts = {"data": json_checksum(data), "progress": json_checksum(progress)}
    return {_KEY: {"step": step, "arrays": arrays} | parts}


def read_record(metadata: Any) -> dict[str, Any] | None:
    """Record of a checkpoint; None in one written by a version without checksums.

    Raises:
      Damaged: if there is a record with another structure.
    """
    stored = metadata.get(_KEY) if isinstance(metadata, dict) else None
    if stored is None:
        return None
    if not isinstance(stored, dict) or not isinstance(stored.get("arrays"), dict):
        raise Damaged("its checksums cannot be read")
    for name, checksum in stored["arrays"].items():
        fits = isinstance(checksum, list) and [type(value) for value in checksum] == [
            str,
            list,
            str,
        ]
        if not fits:
            raise Damaged(f"the checksum of {name} cannot be read")
    return stored


def shapes_of(record: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every recorded array."""
    return {name: tuple(checksum[1]) for name, checksum in record["arrays"].items()}


def verify(record: dict[str, Any], step: int, restored: dict[str, Any]) -> None:
    """Compares a restored checkpoint with its record.

    Args:
      record: result of `read_record`.
      step: step of the folder's name.
      restored: `state`, `data` and `progress`.

    Raises:
      Damaged: names the first part that differs.
    """
    if record.get("step") != step:
        raise Damaged(f"it says that it is the one of step {record.get('step')}")
    for name in ("data", "progress"):
        if record.get(name) != json_checksum(restored[name]):
            raise Damaged(f"{name} holds other values than were saved")
    for name, now in tree_checksums(restored["state"]).items():
        then = record["arrays"].get(name)
        # Values converted to another type on restoring have other bytes, and are not damaged.
        if then is not None and then[0] == now[0] and then[2] != now[2]:
            raise Damaged(f"{name} holds other values than were saved")
