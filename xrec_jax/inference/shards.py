"""The parts of a long job on disk: what is asked, shards that are done, and how they become one.

`OUTPUT.parts/` holds `pairs.bin`, all pairs in order; `manifest.json`, which command they belong
to; and a file for every shard that is done. Every file appears whole or not at all, so a job that
was killed at any moment goes on with the shards that are missing. When none is missing, they are
checked against the pairs, joined, renamed onto OUTPUT, and the folder goes.
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
from xrec_jax.tasks.requests import Asked
from xrec_jax.text.records.explanations import EXPLANATION_COLUMNS

_PAIR = np.dtype(
    [("user", "<i4"), ("item", "<i4"), ("rank", "<i4"), ("score", "<f8"), ("system", "<i2")]
)
_FORMAT = 1
# Of Parquet files; a shard in which a column is empty throughout must not decide its type.
_TYPES = {"rank": pl.Int64, "score": pl.Float64, "tokens": pl.Int64, "log_prob": pl.Float64}
SCHEMA = pl.Schema({name: _TYPES.get(name, pl.String) for name in EXPLANATION_COLUMNS})


class Parts:
    """The parts of one output file.

    Args:
      output: the file, local or `gs://`.
      identity: what the output is a function of; plain values by name.
      shard: pairs of a shard.
      former: values of `identity` that earlier versions gave to the same output.
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
        """Pairs in all."""
        return self._pairs

    @property
    def shards(self) -> int:
        """Shards in all."""
        return -(-self._pairs // self._shard)

    def open(self) -> bool:
        """Reads the manifest.

        Returns:
          Whether there is one; else the pairs are still to be planned.

        Raises:
          UserError: if the parts belong to another command.
        """
        manifest = self.folder / "manifest.json"
        if not manifest.exists():
            return False
        found = files.read_json(manifest)
        if not isinstance(found, dict) or not {"identity", "pairs", "systems"} <= found.keys():
            raise UserError(f"{manifest} is damaged; delete {self.folder} and start anew")
        for key in self._identity.keys() | found["identity"].keys():
            mine, theirs = self._identity.get(key), found["identity"].get(key)
            if theirs not in (mine, self._former.get(key, mine)):
                raise UserError(
                    f"{self.folder} holds parts of another command ({key}={theirs!r}, now "
                    f"{mine!r}): finish that one, give another --output, or delete the folder"
                )
        self._pairs, self._systems = found["pairs"], found["systems"]
        return True

    def just_finished(self) -> bool:
        """Whether an earlier call wrote the output and was ended before its parts were gone."""
        manifest = self._finished / "manifest.json"
        if not manifest.exists():
            return False
        found = files.read_json(manifest)
        self._pairs = found["pairs"]
        mine = [json.loads(json.dumps({**self._identity, **f})) for f in ({}, self._former)]
        return found["identity"] in mine and self.output.exists() and not self.folder.exists()

    def plan(self, pairs: Iterable[Asked]) -> None:
        """Writes down the pairs, in bounded memory, and then the manifest.

        Raises:
          UserError: if there are none.
        """
        systems: dict[str | None, int] = {None: -1}
        count = 0

        def blocks() -> Iterator[bytes]:
            nonlocal count
            rows = []
            for asked in pairs:
                system = systems.setdefault(asked.system, len(systems) - 1)
                score = np.nan if asked.score is None else asked.score
                rows.append((asked.user, asked.item, asked.rank or 0, score, system))
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
            with contextlib.suppress(OSError):  # nothing is left behind a mistake
                self.folder.rmdir()
            raise
        names = [name for name in systems if name is not None]
        files.write_json(
            self.folder / "manifest.json",
            {"identity": self._identity, "pairs": count, "systems": names},
        )

    def pairs(self, shard: int) -> list[Asked]:
        """The pairs of a shard."""
        first = shard * self._shard
        size = min(self._shard, self._pairs - first)
        with (self.folder / "pairs.bin").open("rb") as file:
            file.seek(first * _PAIR.itemsize)
            found = np.frombuffer(file.read(size * _PAIR.itemsize), _PAIR)
        if len(found) != size:
            raise UserError(f"{self.folder}/pairs.bin is cut off; delete the folder and start anew")
        return [
            Asked(
                user,
                item,
                rank or None,
                None if score != score else score,
                None if system < 0 else self._systems[system],
            )
            for user, item, rank, score, system in found.tolist()
        ]

    def path(self, shard: int) -> epath.Path:
        """The file of a shard."""
        return self.folder / f"shard-{shard:05d}-of-{self.shards:05d}.jsonl"

    def missing(self) -> list[int]:
        """Shards that are not done."""
        there = {path.name for path in self.folder.iterdir()}
        return [shard for shard in range(self.shards) if self.path(shard).name not in there]

    def size(self, shards: Iterable[int]) -> int:
        """Pairs in some shards."""
        return sum(min(self._shard, self._pairs - shard * self._shard) for shard in shards)

    def write(self, shard: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes a shard; afterwards it is done."""
        files.write_text(self.path(shard), files.json_lines(records))

    def merge(self, names: Any) -> None:
        """Joins all shards into the output, after a look at every record.

        Args:
          names: from a pair to the ids of its user and item.

        Raises:
          UserError: if a shard does not hold exactly its pairs, one record each, in their order.
        """
        parquet = self.output.suffix == ".parquet"
        if files.is_local(self.output):
            made = self.folder / "merged"
            self._join(made, names)
            if parquet:
                _to_parquet(made, self.folder / "merged.parquet")
                made = self.folder / "merged.parquet"
            os.replace(made, self.output)
        else:  # an object store replaces an object at once
            with tempfile.TemporaryDirectory() as local:
                made = epath.Path(local) / "merged"
                self._join(made, names)
                if parquet:
                    _to_parquet(made, made.parent / "merged.parquet")
                    made = made.parent / "merged.parquet"
                made.copy(self.output, overwrite=True)
        self.remove()

    def _join(self, path: epath.Path, names: Any) -> None:
        with path.open("wb") as file:
            for shard in range(self.shards):
                data = self.path(shard).read_bytes()
                _check(data, [names(asked) for asked in self.pairs(shard)], self.path(shard))
                file.write(data)

    def remove(self) -> None:
        """Removes the parts; a kill in between leaves what `just_finished` knows."""
        if files.is_local(self.folder) and self.folder.exists():
            if self._finished.exists():
                self._finished.rmtree()
            os.replace(self.folder, self._finished)
        folder = self._finished if files.is_local(self.folder) else self.folder
        if not folder.exists():
            return
        for path in list(folder.iterdir()):
            if path.name != "manifest.json":
                path.unlink()
        folder.rmtree()


def remove_parts(output: epath.Path) -> None:
    """Removes what a kill left of the parts of an output that is whole."""
    for name in (f"{output.name}.parts", f"{output.name}.parts.done"):
        if (output.parent / name).exists():
            (output.parent / name).rmtree()


def _check(data: bytes, expected: list[tuple[str, str]], path: epath.Path) -> None:
    try:
        found = jsonl.log_records(io.BytesIO(data), path)
        names = [(record["user"], record["item"]) for record in found]
    except (KeyError, TypeError, UserError):  # somebody else wrote into it
        names = []
    if not data.endswith(b"\n") or names != expected:
        raise UserError(
            f"{path} does not hold its {len(expected)} pairs, one record each; delete it and run "
            "the same command again"
        )


def _to_parquet(source: epath.Path, target: epath.Path) -> None:
    """Turns JSON lines into Parquet, a block at a time."""
    pl.scan_ndjson(os.fspath(source), schema=SCHEMA).sink_parquet(os.fspath(target))
