"""The record of checksums in a checkpoint: made when saving, held against what is restored."""

from __future__ import annotations

from typing import Any

from xrec_jax.core.storage.checksums import json_checksum, tree_checksums

_KEY = "checksums"


class Damaged(Exception):  # noqa: N818 (the caller makes the user's error of it)
    """A checkpoint does not hold what was saved; the message is a part of a sentence."""


def record(step: int, saved: Any, data: Any, progress: Any) -> dict[str, Any]:
    """What a checkpoint says of itself, as its custom metadata.

    Args:
      step: of the checkpoint.
      saved: tree of its arrays.
      data: state of the data iterator (JSON).
      progress: state of the loop (JSON).
    """
    arrays = {name: list(one) for name, one in tree_checksums(saved).items()}
    parts = {"data": json_checksum(data), "progress": json_checksum(progress)}
    return {_KEY: {"step": step, "arrays": arrays} | parts}


def read_record(metadata: Any) -> dict[str, Any] | None:
    """The record of a checkpoint; None in one that was written before there were checksums.

    Raises:
      Damaged: if the record is there but is not one.
    """
    found = metadata.get(_KEY) if isinstance(metadata, dict) else None
    if found is None:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("arrays"), dict):
        raise Damaged("its checksums cannot be read")
    for name, one in found["arrays"].items():
        fits = isinstance(one, list) and [type(part) for part in one] == [str, list, str]
        if not fits:
            raise Damaged(f"the checksum of {name} cannot be read")
    return found


def shapes_of(record: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every recorded array."""
    return {name: tuple(one[1]) for name, one in record["arrays"].items()}


def verify(record: dict[str, Any], step: int, restored: dict[str, Any]) -> None:
    """Compares what was restored with the record.

    Args:
      record: from `read_record`.
      step: that the folder's name says.
      restored: `state`, `data` and `progress`.

    Raises:
      Damaged: names the first part that differs.
    """
    if record.get("step") != step:
        raise Damaged(f"it says that it is the one of step {record.get('step')}")
    for part in ("data", "progress"):
        if record.get(part) != json_checksum(restored[part]):
            raise Damaged(f"{part} holds other values than were saved")
    for name, now in tree_checksums(restored["state"]).items():
        then = record["arrays"].get(name)
        if then is not None and then[0] == now[0] and then[2] != now[2]:
            raise Damaged(f"{name} holds other values than were saved")
