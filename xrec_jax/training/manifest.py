"""Manifest beside a stage's checkpoints: the newest step, and checksums of each one's files.

The file is written when a checkpoint is complete, outside of its folder, so that it also reveals a
lost folder. It is optional: without it, only the checksums inside a checkpoint are compared.
"""

from __future__ import annotations

import dataclasses
import pathlib
import zlib
from collections.abc import Collection

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
    """Complete checkpoints of a stage.

    Attributes:
      step: step of the newest checkpoint that was ever complete; 0 if none is known.
      folders: checksums of the files of each kept checkpoint, by step.
    """

    step: int = 0
    folders: dict[int, FileSums] = dataclasses.field(default_factory=dict)

    def write(self, directory: epath.Path) -> None:
        """Writes the manifest with a checksum of itself."""
        value = {"step": self.step, "folders": {str(s): f for s, f in self.folders.items()}}
        files.write_json(directory / NAME, value | {"checksum": json_checksum(value)})


def read(directory: epath.Path) -> Manifest:
    """Reads a manifest; a missing or damaged one is empty."""
    try:
        value = files.read_json(directory / NAME)
        if value.pop("checksum") != json_checksum(value):
            return Manifest()
        return Manifest(value["step"], {int(s): f for s, f in value["folders"].items()})
    except (UserError, AttributeError, LookupError, TypeError, ValueError):
        return Manifest()


def file_sums(folder: epath.Path) -> FileSums:
    """Size and CRC-32 of all files of a local folder; empty for a remote one."""
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
    """Describes the first missing or short file, as a part of a sentence; "" if complete."""
    for name, (size, *_) in recorded.items():
        path = pathlib.Path(folder) / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size < size:
            return f"{name} has {path.stat().st_size} of {size} bytes"
    return ""


def changed(folder: epath.Path, recorded: FileSums) -> str:
    """Name of the first file whose size or checksum has changed; "" if none has."""
    root = pathlib.Path(folder)
    return next((name for name, checksum in recorded.items() if _sum(root / name) != checksum), "")


def pruned(manifest: Manifest, step: int, new_files: FileSums, kept: Collection[int]) -> Manifest:
    """Manifest with a newly completed checkpoint, without the ones that are gone.

    Args:
      manifest: previous manifest.
      step: step of the new checkpoint.
      new_files: checksums of its files.
      kept: steps of the checkpoints that still exist.
    """
    folders = {s: f for s, f in manifest.folders.items() if s in kept} | {step: new_files}
    return Manifest(step, folders)
