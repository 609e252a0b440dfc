"""Selection and reading of the (user, item) pairs to explain, and identity of the output."""

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
from xrec_jax.inference.recommendations import recommended_by_several, recommended_pairs
from xrec_jax.inference.shards import Parts
from xrec_jax.tasks.requests import RequestBuilder, UserItem
from xrec_jax.text.records.instructions import Instruction, read_instructions

# Keys shared by all stages that do not affect explanations; the base is identified by its weights.
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
# Keys added in later versions, with their former behaviour: outputs begun before can be resumed.
_LATER = {"data.columns.title": "", "data.split.validation": "part"}
# Irrelevant keys that former versions included in the digest; outputs begun then can be resumed.
_ONCE_COUNTED = ("joint.",)
_FIELDS = ("user", "item", "rank", "score", "system")


def parts(
    output: epath.PathLike,
    config: Any,
    rundir: RunDir,
    builder: RequestBuilder,
    spec: Spec,
    selection: dict[str, Any],
    *,
    ignored: tuple[str, ...],
    shard: int,
) -> Parts:
    """Parts of an output of explanations, with the identity of everything it depends on.

    Args:
      output: path of the output.
      config: configuration of the run, with the options of the command.
      rundir: directory of the run.
      builder: builder of the run's requests.
      spec: the explainer.
      selection: named values that determine the pairs.
      ignored: prefixes of the config keys of stages that do not affect explanations.
      shard: number of pairs of a shard.
    """
    base, adapter = explainers.identities(spec, config, rundir)
    own = explainers.own_identity(spec, config, rundir)
    samples = dict(config.instruct.samples)
    drawn = {key: samples[key] for key in ("max_new_tokens", "temperature", "top_k", "top_p")}
    identity = {
        "run": _digest(config, builder, ignored),
        **selection,
        "explainer": spec.name,
        "base": base,
        "adapter": adapter,
        "prompt": builder.identity(),
        "seed": config.seeds[0],
    }
    # Only actual dependencies: outputs begun before a key existed lack it and can be resumed.
    identity |= {} if base is None else drawn
    identity |= {} if own is None else {"explainer_identity": own}
    # The digest as earlier versions made it; parts that carry it can be resumed.
    counted = tuple(key for key in ignored if key not in _ONCE_COUNTED)
    former = {"run": _digest(config, builder, counted)}
    return Parts(output, identity, shard=shard, former=former)


def _digest(config: Any, builder: RequestBuilder, ignored: tuple[str, ...]) -> str:
    """Prefix of the SHA-256 of the events and of all config values that are not ignored."""
    flat, ignored = json.loads(json.dumps(files.plain(config.to_dict()))), (*_APART, *ignored)
    kept = {k: v for k, v in _leaves(flat) if not k.startswith(ignored) and _LATER.get(k) != v}
    content = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    data = builder.data.dataset
    # The events, not their files: a copied or renamed data set gives the same output.
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
    """Training examples of the run's adapter; empty if it has none."""
    path = rundir.path / "instructions" / "train.jsonl"
    return read_instructions(path) if path.exists() else []


def write_pairs(
    path: epath.Path,
    config: Any,
    data: RunData,
    rundir: RunDir,
    mesh: Mesh,
    builder: RequestBuilder,
) -> None:
    """Recommends to users in random order, with users outside the instruction set first.

    All processes compute, the primary one writes `pairs.jsonl`.

    Raises:
      UserError: if no pair is left.
    """
    cfg, trained = config.explain, _tuned_on(rundir)
    prompts = {user_item.group for user_item in trained}
    known = {str(user_item.meta.get("user")) for user_item in trained}
    order = rng.permutation(rng.fold(config.seeds[0], Stream.SHARED_62), data.dataset.num_users)
    seen = np.array([str(data.dataset.user_ids[row]) in known for row in order], bool)
    # With a limit, users that the adapter was tuned on are the first to be left out.
    rows = np.concatenate([order[~seen], order[seen]])[: cfg.users or None]
    left_out = written = 0

    def recommended() -> Iterator[tuple[UserItem, dict[str, Any]]]:
        options: Any = {"users": rows, "top_k": cfg.top_k}
        if not cfg.systems:
            for user_item in recommended_pairs(
                config, data, rundir, mesh, system=cfg.system, **options
            ):
                yield user_item, {}
            return
        for user_item, ranks in recommended_by_several(
            config, data, rundir, mesh, systems=cfg.systems, **options
        ):
            yield user_item, {"systems": ranks}

    def lines() -> Iterator[str]:
        nonlocal left_out, written
        for user_item, more in recommended():
            request = builder(user_item)
            # White space as in `Instruction.group`, which `prompts` holds.
            if " ".join(request.prompt.split()) in prompts:
                left_out += 1
                continue
            written += 1
            yield files.json_lines([{**builder.pair(request), **more}])

    # Pairs are written one by one: there may be more than fit into memory.
    def write(temporary: str) -> None:
        with epath.Path(temporary).open("wb") as file:
            for line in lines():
                file.write(line.encode())
        if not written:
            raise UserError(
                "explain: no pair is left to explain; every prompt is one that was tuned on, or "
                "nothing is left to recommend"
            )

    if not is_primary():  # the scores behind the lines are a collective computation
        for _ in lines():
            pass
        return
    files.write_atomic(path, write)
    tuned_users = int(np.isin(rows, order[seen]).sum())
    log(
        f"explain: {written:,} pairs of {len(rows):,} users, {tuned_users:,} of whom have another "
        f"prompt in the tuning set; {left_out:,} pairs left out whose very prompt was tuned on; "
        f"{builder.cut:,} prompts cut to what the model takes"
    )


def read_pairs(path: epath.PathLike, builder: RequestBuilder) -> Iterator[UserItem]:
    """Reads pairs from JSON lines or Parquet: `user`, `item`, optional `rank`, `score`, `system`.

    Raises:
      UserError: names an invalid line, or an id that is not in the data.
    """
    place = ""
    for place, record in _rows(path):
        try:
            yield builder.user_item(record)
        except UserError as error:
            raise UserError(f"{path}, {place}: {error}") from error
    if not place:
        raise UserError(f"{path}: no pair in it")


def _rows(path: epath.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the records of a file with their positions, in bounded memory."""
    if str(path).endswith(".parquet"):
        with parquet.readable(path):
            frame = pl.scan_parquet(str(path), glob=False)
            columns = frame.collect_schema().names()
            total = frame.select(pl.len()).collect().item()
        for key in _FIELDS[:2]:
            if key not in columns:
                raise UserError(f"{path}: no column {key!r}{did_you_mean(key, columns)}")
        present = [column for column in _FIELDS if column in columns]
        # In slices: all records as Python objects would take far more memory than the file.
        for first in range(0, total, 1 << 16):
            with parquet.readable(path):
                rows = frame.select(present).slice(first, 1 << 16).collect().to_dicts()
            yield from ((f"row {number}", row) for number, row in enumerate(rows, first + 1))
        return
    yield from ((f"line {number}", row) for number, row in files.numbered_records(path))


def digest(path: epath.Path) -> str:
    """Prefix of the SHA-256 of a file."""
    return digests.of_file(path)[:16]
