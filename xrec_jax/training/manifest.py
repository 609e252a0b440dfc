"""What lies beside a stage's checkpoints: which is the newest, and the files of each.

The file is written when a checkpoint is complete, outside of its folder, so it also tells of a
folder that is gone. Nothing depends on it: without it, only the checksums inside are compared.
"""

from __future__ import annotations

import dataclasses
import pathlib
import zlib
from typing import Any

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage import files
from xrec_jax.core.storage.checksums import json_checksum

NAME = "newest.json"
_READ = 1 << 22  # bytes read at once
_LARGEST = 1 << 30  # of a larger file only the size is compared
_UNREAD = "commit_success.txt"  # Orbax writes it for object stores only to look at

FileSums = dict[str, list[int]]  # name in the folder: size, CRC-32 (absent for large files)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The complete checkpoints of a stage.

    Attributes:
      step: of the newest one that was ever complete; 0 if nothing is known.
      folders: files of the kept ones by step.
    """

    step: int = 0
    folders: dict[int, FileSums] = dataclasses.field(default_factory=dict)

    def write(self, directory: epath.Path) -> None:
        """Writes it, with a checksum of itself."""
        value = {"step": self.step, "folders": {str(s): f for s, f in self.folders.items()}}
        files.write_json(directory / NAME, value | {"checksum": json_checksum(value)})


def read(directory: epath.Path) -> Manifest:
    """Reads a manifest; an empty one where there is none, or where it is damaged itself."""
    try:
        value = files.read_json(directory / NAME)
        if value.pop("checksum") != json_checksum(value):
            return Manifest()
        return Manifest(value["step"], {int(s): f for s, f in value["folders"].items()})
    except (UserError, AttributeError, LookupError, TypeError, ValueError):
        return Manifest()


def file_sums(folder: epath.Path) -> FileSums:
    """Size and CRC-32 of all files of a local folder; none of a remote one."""
    if not files.is_local(folder):
        return {}
    root = pathlib.Path(folder)
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != _UNREAD)
    return {path.relative_to(root).as_posix(): _sum(path) for path in paths}


def _sum(path: pathlib.Path) -> list[int]:
    size = path.stat().st_size
    if size > _LARGEST:
        return [size]
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_READ):
            crc = zlib.crc32(block, crc)
    return [size, crc]


def incomplete(folder: epath.Path, recorded: FileSums) -> str:
    """What is missing of a folder, as a part of a sentence; "" if nothing is."""
    for name, (size, *_) in recorded.items():
        path = pathlib.Path(folder) / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size < size:
            return f"{name} has {path.stat().st_size} of {size} bytes"
    return ""


def changed(folder: epath.Path, recorded: FileSums) -> str:
    """The first file that is not as it was written; "" if all are."""
    root = pathlib.Path(folder)
    return next((name for name, one in recorded.items() if _sum(root / name) != one), "")


def pruned(manifest: Manifest, step: int, found: FileSums, kept: Any) -> Manifest:
    """The manifest once another checkpoint is complete.

    Args:
      manifest: before.
      step: of the new one.
      found: its files.
      kept: steps that are still there.
    """
    folders = {s: f for s, f in manifest.folders.items() if s in kept} | {step: found}
    return Manifest(step, folders)
