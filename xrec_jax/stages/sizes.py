"""Refuses sizes that cannot fit any memory this run has, before anything is built of them.

The estimates count only what cannot be avoided, from the configuration and the data's size, without
tracing a model: a hundred million layers take longer to trace than anybody waits. They are held
against all memory that there is, not what is free, so nothing that could work is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime import memory
from xrec_jax.data.run_data import RunData
from xrec_jax.llm import run_base
from xrec_jax.llm.io.checkpoint import open_model
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.lora import sizes as projections
from xrec_jax.llm.model.precision import dtype_named
from xrec_jax.stages.base import of_config

_LAYER = 1024  # bytes that the program of one layer takes at least


class Need(NamedTuple):
    """What a value of the configuration needs at least.

    Attributes:
      key: of the configuration.
      value: what it is set to.
      size: bytes.
      what: takes them.
    """

    key: str
    value: Any
    size: int
    what: str


def check(config: Any, *, data: RunData, mesh: Mesh) -> None:
    """Refuses what cannot fit.

    Raises:
      UserError: names the key, the estimate and the limit.
    """
    room = limit(mesh)
    if room is None:
        return
    for need in needs(config, data):
        if need.size > room:
            raise UserError(
                f"{need.key}={need.value}: {need.what} would take at least "
                f"{memory.amount(need.size)} of memory, and this run has {memory.amount(room)} in "
                f"all; {'use a smaller model' if need.key == 'llm.path' else 'lower it'}"
            )


def limit(mesh: Mesh) -> int | None:
    """All memory that the arrays of a run may take, on all devices; None if nobody knows."""
    devices = list(mesh.devices.flat)
    if any(device.platform == "cpu" for device in devices):
        host = memory.total()
        return None if host is None else host * jax.process_count()
    local = [device for device in devices if device.process_index == jax.process_index()]
    stats = (local[0].memory_stats() or {}) if local else {}
    size = stats.get("bytes_limit")
    return None if not size else int(size) * mesh.devices.size


def needs(config: ConfigDict, data: RunData) -> Iterator[Need]:
    """What the values of a configuration need, for the stages that it names."""
    # Whatever the stages are: every bootstrap keeps its means.
    for key, value in _named(config.to_dict(), "resamples"):
        figures = 3 * len(config.ranking.ks) if key == "ranking.resamples" else 2
        yield Need(key, value, 8 * value * figures, "the resampled means")
    if any(stage in config.stages for stage in ("recommend", "joint")):
        for name in config.recommend:
            yield from _recommender(config.recommend[name], f"recommend.{name}", data)
    sections = [s.name for s in of_config(config) if s.needs_base or s.name == "pretrain"]
    if sections or "explain" in config.stages:
        yield from _base(config)
    if sections and (shape := _shape(config)) is not None:
        for name in sections:
            yield from _section(config[name], name, shape)


def _recommender(system: Any, where: str, data: RunData) -> Iterator[Need]:
    values = {name: _whole(value) for name, value in system.hparams.items()}
    dim, length = max(values.get("dim", 1), 1), max(values.get("length", 1), 1)
    for name, size, what in (
        ("dim", 8 * dim * max(data.dataset.num_items, 1), "the item table and its best copy"),
        ("length", 4 * length * dim, "the table of positions"),
        ("packing", values.get("packing", 0) ** 2, "the mask of a row"),
        ("inner", 4 * values.get("inner", 0) * dim, "a layer"),
        ("layers", values.get("layers", 0) * max(_LAYER, 4 * dim), "the layers"),
    ):
        if name in values:
            yield Need(f"{where}.hparams.{name}", values[name], size, what)
    if (tower := system.get("content")) and tower.mode:
        hidden = _whole(tower.hidden)
        width = max(dim, _whole(tower.components))
        yield Need(f"{where}.content.hidden", hidden, 8 * hidden * width, "the hidden layer")
    batch = _whole(system.train.batch_size)
    rows = 4 * batch * (max(length, values.get("packing", 0)) + dim)
    yield Need(f"{where}.train.batch_size", batch, rows, "the rows of a batch and their vectors")
    ahead = _whole(system.train.prefetch)
    yield Need(f"{where}.train.prefetch", ahead, 4 * batch * ahead, "the batches prepared ahead")
    if count := values.get("negatives", 0):
        yield Need(f"{where}.hparams.negatives", count, 4 * batch * count, "those of a batch")


def _base(config: Any) -> Iterator[Need]:
    llm = config.llm
    if llm.path:
        shape = _shape(config)
        if shape is not None and llm.quantization in ("", "none"):
            size = shape.num_parameters * jnp.dtype(dtype_named(llm.dtype)).itemsize
            yield Need("llm.path", llm.path, size, f"its weights in {llm.dtype}")
        return
    values = {
        name: _whole(llm[name])
        for name in ("num_layers", "hidden_size", "intermediate_size", "vocab_size")
    }
    layers, hidden, inner, words = values.values()
    for name, size in (
        ("hidden_size", 8 * hidden * hidden),
        ("vocab_size", 8 * words * hidden),
        ("intermediate_size", 24 * inner * hidden),
        ("num_layers", layers * max(_LAYER, 8 * (hidden * hidden + 3 * hidden * inner))),
    ):
        yield Need(f"llm.{name}", values[name], size, "the parameters and their best copy")


def _shape(config: Any) -> LlamaConfig | None:
    """The base's shape; None where another check will say why there is none."""
    try:
        if config.llm.path:
            return open_model(config.llm.path).config
        return run_base.model_config(config)
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _section(section: Any, where: str, shape: LlamaConfig) -> Iterator[Need]:
    values = section.to_dict()
    length = max(_whole(values.get("length", 1)), 1)
    # An adapter has two thin matrices for every projection of every layer.
    if "lora" in values:
        parts = sum(
            sum(sides)
            for name, sides in projections(shape).items()
            if name in values["lora"]["targets"]
        )
        rank = _whole(values["lora"]["rank"])
        size = 8 * rank * parts * shape.num_layers
        yield Need(f"{where}.lora.rank", rank, size, "the adapter and its best copy")
    if "train" in values:
        train = values["train"]
        batch, parts = _whole(train["batch_size"]), max(_whole(train.get("accumulation", 1)), 1)
        yield Need(f"{where}.length", length, length * 2 * shape.hidden_size, "one row")
        size = batch * length * (4 + 2 * shape.hidden_size // parts)
        yield Need(f"{where}.train.batch_size", batch, size, "the rows and their hidden states")
        ahead = _whole(train.get("prefetch", 1))
        size = 4 * batch * length * ahead
        yield Need(f"{where}.train.prefetch", ahead, size, "the batches prepared ahead")
    # Generation keeps keys and values of all its positions.
    for key, value in _named(values, "max_new_tokens"):
        size = 4 * value * shape.num_layers * shape.num_kv_heads * shape.head_dim
        yield Need(f"{where}.{key}", value, size, "keys and values of one answer")
    if where == "joint":
        count = _whole(values["rollout"]["per_round"])
        size = 8 * count * max(_whole(values["explain"]["max_new_tokens"]), 1)
        yield Need("joint.rollout.per_round", count, size, "the answers of a round")


def _named(values: dict[str, Any], name: str, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number under a key, however deep: its full key and the number."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _named(value, name, f"{prefix}{key}.")
        elif key == name and _whole(value):
            yield f"{prefix}{key}", value


def _whole(value: Any) -> int:
    """A value where it is a positive whole number; other checks tell of those that are not."""
    return value if type(value) is int and value > 0 else 0
