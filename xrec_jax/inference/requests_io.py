"""Which pairs are explained: drawn for a stage or read from a file; and what fixes the answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
from etils import epath
from jax.sharding import Mesh

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.logging import log
from xrec_jax.core.rng import Stream
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage import files
from xrec_jax.data import digests
from xrec_jax.data.readers import parquet
from xrec_jax.data.run_data import RunData
from xrec_jax.inference import explainers
from xrec_jax.inference.explainers import Spec
from xrec_jax.inference.recommendations import recommended_pairs
from xrec_jax.inference.shards import Parts
from xrec_jax.tasks.requests import Asked, CaseMaker
from xrec_jax.text.records.instructions import Instruction, read_instructions

# Keys that all stages share and that change no explanation; the base is told by its weights.
_APART = (
    "mesh.",
    "data.path",
    "data.users",
    "data.items",
    "llm.path",
    "llm.generation_batch",
    "audit.",
    "stages",
    "name",
)
# Keys that came later, with what stands for the time before: outputs that were begun then go on.
_LATER = {"data.columns.title": "", "data.split.validation": "part"}
# Keys that change no explanation and were part of the digest once; outputs begun then go on, too.
_ONCE_COUNTED = ("joint.",)
_FIELDS = ("user", "item", "rank", "score", "system")


def parts(
    output: epath.PathLike,
    config: Any,
    rundir: RunDir,
    maker: CaseMaker,
    spec: Spec,
    asked: dict[str, Any],
    *,
    apart: tuple[str, ...],
    shard: int,
) -> Parts:
    """The parts of an output of explanations, which belong to what it is a function of.

    Args:
      output: the file.
      config: of the run, with whatever a command changed in it.
      rundir: of the run.
      maker: of its prompts.
      spec: the explainer.
      asked: which pairs, by name.
      apart: beginnings of the keys of stages that change no explanation.
      shard: pairs of a shard.
    """
    base, adapter = explainers.identities(spec, config, rundir)
    own = explainers.own_identity(spec, config, rundir)
    samples = dict(config.instruct.samples)
    drawn = {key: samples[key] for key in ("max_new_tokens", "temperature", "top_k", "top_p")}
    identity = {
        "run": _digest(config, maker, apart),
        **asked,
        "explainer": spec.name,
        "base": base,
        "adapter": adapter,
        "prompt": maker.identity(),
        "seed": config.seeds[0],
    }
    # Only what the explainer depends on: outputs begun before a key existed lack it, and go on.
    identity |= {} if base is None else drawn
    identity |= {} if own is None else {"explainer_identity": own}
    counted = tuple(key for key in apart if key not in _ONCE_COUNTED)
    former = {"run": _digest(config, maker, counted)}
    return Parts(output, identity, shard=shard, former=former)


def _digest(config: Any, maker: CaseMaker, apart: tuple[str, ...]) -> str:
    """The start of the SHA-256 of the events and of all values but those that are apart."""
    flat, apart = json.loads(json.dumps(files.plain(config.to_dict()))), (*_APART, *apart)
    kept = {k: v for k, v in _leaves(flat) if not k.startswith(apart) and _LATER.get(k) != v}
    content = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    data = maker.data.dataset
    for array in (data.interactions.user, data.interactions.item, data.user_ids, data.item_ids):
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:16]


def _leaves(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _leaves(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _tuned_on(rundir: RunDir) -> list[Instruction]:
    """What the run's adapter was tuned on; empty if it has none."""
    path = rundir.path / "instructions" / "train.jsonl"
    return read_instructions(path) if path.exists() else []


def write_pairs(
    path: epath.Path, config: Any, data: RunData, rundir: RunDir, mesh: Mesh, maker: CaseMaker
) -> None:
    """Recommends to users in a drawn order; those who were not tuned on come first.

    All processes compute, the first one writes `pairs.jsonl`.

    Raises:
      UserError: if no pair is left.
    """
    asked, trained = config.explain, _tuned_on(rundir)
    prompts = {one.group for one in trained}
    known = {str(one.meta.get("user")) for one in trained}
    order = rng.permutation(rng.fold(config.seeds[0], Stream.SHARED_62), data.dataset.num_users)
    seen = np.array([str(data.dataset.user_ids[row]) in known for row in order], bool)
    rows = np.concatenate([order[~seen], order[seen]])[: asked.users or None]
    left_out = written = 0

    def lines() -> Iterator[str]:
        nonlocal left_out, written
        found = recommended_pairs(
            config, data, rundir, mesh, users=rows, top_k=asked.top_k, system=asked.system
        )
        for one in found:
            case = maker(one)
            if " ".join(case.prompt.split()) in prompts:
                left_out += 1
                continue
            written += 1
            yield files.json_lines([maker.pair(case)])

    def write(temporary: str) -> None:
        with epath.Path(temporary).open("wb") as file:
            for line in lines():
                file.write(line.encode())
        if not written:
            raise UserError(
                "explain: no pair is left to explain; every prompt is one that was tuned on, or "
                "nothing is left to recommend"
            )

    if not is_primary():
        for _ in lines():
            pass
        return
    files.write_atomic(path, write)
    again = int(np.isin(rows, order[seen]).sum())
    log(
        f"explain: {written:,} pairs of {len(rows):,} users, {again:,} of whom have another prompt "
        f"in the tuning set; {left_out:,} pairs left out whose very prompt was tuned on; "
        f"{maker.cut:,} prompts cut to what the model takes"
    )


def read_asked(path: epath.PathLike, maker: CaseMaker) -> Iterator[Asked]:
    """Pairs from JSON lines or Parquet, with `user`, `item` and perhaps `rank`, `score`, `system`.

    Raises:
      UserError: names the line that is wrong, or an id that is not in the data.
    """
    place = ""
    for place, record in _rows(path):
        try:
            yield maker.asked(record)
        except UserError as error:
            raise UserError(f"{path}, {place}: {error}") from error
    if not place:
        raise UserError(f"{path}: no pair in it")


def _rows(path: epath.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of a file with their places, one at a time: recommendations may be millions."""
    if str(path).endswith(".parquet"):
        with parquet.readable(path):
            frame = pl.scan_parquet(str(path), glob=False)
            columns = frame.collect_schema().names()
            total = frame.select(pl.len()).collect().item()
        for key in _FIELDS[:2]:
            if key not in columns:
                raise UserError(f"{path}: no column {key!r}{did_you_mean(key, columns)}")
        wanted = [column for column in _FIELDS if column in columns]
        for first in range(0, total, 1 << 16):
            with parquet.readable(path):
                rows = frame.select(wanted).slice(first, 1 << 16).collect().to_dicts()
            yield from ((f"row {number}", row) for number, row in enumerate(rows, first + 1))
        return
    yield from ((f"line {number}", row) for number, row in files.numbered_records(path))


def digest(path: epath.Path) -> str:
    """The start of the SHA-256 of a file."""
    return digests.of_file(path)[:16]
