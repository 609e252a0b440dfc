"""Parts of a bulk output on disk: planned pairs, finished shards, and merging them.

`OUTPUT.parts/` holds `pairs.bin` with all pairs in order, `manifest.json` with the identity of the
command, and a file for every finished shard. All files are written atomically, so a job killed at
any moment is resumed with the missing shards. When none is missing, they are checked against the
pairs, concatenated and renamed to OUTPUT, and the folder is removed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage import files, jsonl
from xrec_jax.tasks.requests import UserItem
from xrec_jax.text.records.explanations import EXPLANATION_COLUMNS

_PAIR = np.dtype(
    [("user", "<i4"), ("item", "<i4"), ("rank", "<i4"), ("score", "<f8"), ("system", "<i2")]
)
_FORMAT = 1
# Column types of Parquet files; a column that is empty in one shard must not get another type.
_TYPES = {"rank": pl.Int64, "score": pl.Float64, "tokens": pl.Int64, "log_prob": pl.Float64}
SCHEMA = pl.Schema({name: _TYPES.get(name, pl.String) for name in EXPLANATION_COLUMNS})


class Parts:
    """Parts of one output file.

    Args:
      output: path of the output, local or `gs://`.
      identity: plain values, by name, that determine the output.
      shard: number of pairs of a shard.
      former: values of `identity` of the same output in earlier versions.
    """

    def __init__(
        self,
        output: epath.PathLike,
        identity: Mapping[str, Any],
        *,
        shard: int,
        former: Mapping[str, Any] | None = None,
    ):
        self.output = files.absolute(output)
        self.folder = self.output.parent / f"{self.output.name}.parts"
        self._finished = self.output.parent / f"{self.output.name}.parts.done"
        self._identity = {**identity, "shard": shard, "format": _FORMAT}
        self._former = former or {}
        self._shard = shard
        self._pairs = 0
        self._systems: list[str] = []

    @property
    def count(self) -> int:
        """Total number of pairs."""
        return self._pairs

    @property
    def shards(self) -> int:
        """Total number of shards."""
        return -(-self._pairs // self._shard)

    def open(self) -> bool:
        """Reads the manifest.

        Returns:
          True if there is one; otherwise the pairs must be planned first.

        Raises:
          UserError: if the parts belong to another command.
        """
        manifest = self.folder / "manifest.json"
        if not manifest.exists():
            return False
        stored = files.read_json(manifest)
        if not isinstance(stored, dict) or not {"identity", "pairs", "systems"} <= stored.keys():
            raise UserError(f"{manifest} is damaged; delete {self.folder} and start anew")
        for key in self._identity.keys() | stored["identity"].keys():
            # An output that an earlier version began carries the former value.
            own, other = self._identity.get(key), stored["identity"].get(key)
            if other not in (own, self._former.get(key, own)):
                raise UserError(
                    f"{self.folder} holds parts of another command ({key}={other!r}, now "
                    f"{own!r}): finish that one, give another --output, or delete the folder"
                )
        self._pairs, self._systems = stored["pairs"], stored["systems"]
        return True

    def just_finished(self) -> bool:
        """True if an earlier call wrote the output and was killed while removing its parts."""
        manifest = self._finished / "manifest.json"
        if not manifest.exists():
            return False
        stored = files.read_json(manifest)
        self._pairs = stored["pairs"]
        # Through JSON, in which tuples are lists, as in what was stored.
        accepted = [json.loads(json.dumps({**self._identity, **f})) for f in ({}, self._former)]
        return stored["identity"] in accepted and self.output.exists() and not self.folder.exists()

    def plan(self, pairs: Iterable[UserItem]) -> None:
        """Writes the pairs, in bounded memory, and then the manifest.

        Raises:
          UserError: if there is no pair.
        """
        systems: dict[str | None, int] = {None: -1}
        count = 0

        def blocks() -> Iterator[bytes]:
            nonlocal count
            rows = []
            for user_item in pairs:
                # Names as numbers: pairs of one size, so that a shard is found by its offset.
                system = systems.setdefault(user_item.system, len(systems) - 1)
                score = np.nan if user_item.score is None else user_item.score
                rows.append((user_item.user, user_item.item, user_item.rank or 0, score, system))
                count += 1
                if len(rows) == 1 << 16:
                    yield np.array(rows, _PAIR).tobytes()
                    rows.clear()
            yield np.array(rows, _PAIR).tobytes()

        def write(path: str) -> None:
            with epath.Path(path).open("wb") as file:
                for block in blocks():
                    file.write(block)
            if not count:
                raise UserError("there is no pair to explain: nothing is left to recommend")

        try:
            files.write_atomic(self.folder / "pairs.bin", write)
        except BaseException:
            with contextlib.suppress(OSError):  # an error leaves no empty folder behind
                self.folder.rmdir()
            raise
        # The manifest comes last: with it, the pairs are known to be complete.
        names = [name for name in systems if name is not None]
        files.write_json(
            self.folder / "manifest.json",
            {"identity": self._identity, "pairs": count, "systems": names},
        )

    def pairs(self, shard: int) -> list[UserItem]:
        """Reads the pairs of a shard."""
        first = shard * self._shard
        size = min(self._shard, self._pairs - first)
        with (self.folder / "pairs.bin").open("rb") as file:
            file.seek(first * _PAIR.itemsize)
            rows = np.frombuffer(file.read(size * _PAIR.itemsize), _PAIR)
        if len(rows) != size:
            raise UserError(f"{self.folder}/pairs.bin is cut off; delete the folder and start anew")
        return [
            UserItem(
                user,
                item,
                rank or None,
                # NaN stands for no score.
                None if score != score else score,
                None if system < 0 else self._systems[system],
            )
            for user, item, rank, score, system in rows.tolist()
        ]

    def path(self, shard: int) -> epath.Path:
        """Path of a shard's file."""
        return self.folder / f"shard-{shard:05d}-of-{self.shards:05d}.jsonl"

    def missing(self) -> list[int]:
        """Numbers of the missing shards."""
        existing = {path.name for path in self.folder.iterdir()}
        return [shard for shard in range(self.shards) if self.path(shard).name not in existing]

    def size(self, shards: Iterable[int]) -> int:
        """Number of pairs in some shards."""
        return sum(min(self._shard, self._pairs - shard * self._shard) for shard in shards)

    def write(self, shard: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes a finished shard."""
        files.write_text(self.path(shard), files.json_lines(records))

    def merge(self, names: Any) -> None:
        """Verifies all shards and concatenates them to the output.

        Args:
          names: function from a pair to the ids of its user and item.

        Raises:
          UserError: if a shard does not hold exactly its pairs, one record each, in their order.
        """
        parquet = self.output.suffix == ".parquet"
        if files.is_local(self.output):
            # In a folder beside the output: a rename is atomic only within a file system.
            merged = self.folder / "merged"
            self._join(merged, names)
            if parquet:
                _to_parquet(merged, self.folder / "merged.parquet")
                merged = self.folder / "merged.parquet"
            os.replace(merged, self.output)
        else:  # an object store replaces objects atomically
            with tempfile.TemporaryDirectory() as local:
                merged = epath.Path(local) / "merged"
                self._join(merged, names)
                if parquet:
                    _to_parquet(merged, merged.parent / "merged.parquet")
                    merged = merged.parent / "merged.parquet"
                merged.copy(self.output, overwrite=True)
        self.remove()

    def _join(self, path: epath.Path, names: Any) -> None:
        with path.open("wb") as file:
            for shard in range(self.shards):
                data = self.path(shard).read_bytes()
                _check(
                    data, [names(user_item) for user_item in self.pairs(shard)], self.path(shard)
                )
                file.write(data)

    def remove(self) -> None:
        """Removes the parts; if killed in between, `just_finished` recognises the rest."""
        # Renamed first, or a folder that is half removed would look like unfinished parts.
        if files.is_local(self.folder) and self.folder.exists():
            if self._finished.exists():
                self._finished.rmtree()
            os.replace(self.folder, self._finished)
        folder = self._finished if files.is_local(self.folder) else self.folder
        if not folder.exists():
            return
        for path in list(folder.iterdir()):
            # The manifest goes last: by it `just_finished` recognises a removal that was cut off.
            if path.name != "manifest.json":
                path.unlink()
        folder.rmtree()


def remove_parts(output: epath.Path) -> None:
    """Removes parts that a killed call left beside a finished output."""
    for name in (f"{output.name}.parts", f"{output.name}.parts.done"):
        if (output.parent / name).exists():
            (output.parent / name).rmtree()


def _check(data: bytes, expected: list[tuple[str, str]], path: epath.Path) -> None:
    """Checks that a shard has exactly the expected pairs."""
    try:
        records = jsonl.log_records(io.BytesIO(data), path)
        names = [(record["user"], record["item"]) for record in records]
    except (KeyError, TypeError, UserError):  # changed by something else
        names = []
    if not data.endswith(b"\n") or names != expected:
        raise UserError(
            f"{path} does not hold its {len(expected)} pairs, one record each; delete it and run "
            "the same command again"
        )


def _to_parquet(source: epath.Path, target: epath.Path) -> None:
    """Converts JSON lines to Parquet in blocks."""
    pl.scan_ndjson(os.fspath(source), schema=SCHEMA).sink_parquet(os.fspath(target))
