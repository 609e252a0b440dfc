"""The goldens of `make_goldens.py` computed by this package: largest absolute differences.

Needs no torch; both `tests/llm/test_parity.py` and `live.py` call it.
"""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xrec_jax.llm.io import hf, peft_io
from xrec_jax.llm.model import layout
from xrec_jax.llm.model.llama import Llama
from xrec_jax.llm.model.lora import Adapter, LoraConfig
from xrec_jax.llm.model.losses import cross_entropy

CHECKPOINTS = ("llama2", "llama3", "llama31", "llama32", "linear", "dynamic")
LORA = ("qv", "all")
LIMIT = 1e-4
IGNORED = -100  # label of a token that is not learnt


def arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a golden file."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def load(folder: pathlib.Path, **options: Any) -> tuple[Llama, Any]:
    """The model in a Hugging Face directory, as stored; options of `Llama`."""
    opened = hf.open_model(folder)
    return Llama(opened.config, **options), jax.tree.map(jnp.asarray, opened.load_params())


def difference(a: Any, b: Any) -> float:
    """Largest absolute difference; NaN anywhere gives infinity."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape}")
    largest = float(np.max(np.abs(a.astype(np.float64) - b)))
    return largest if np.isfinite(largest) else float("inf")


def logits_difference(folder: pathlib.Path, **options: Any) -> float:
    """Differences of the logits of two whole sequences; options of `Llama`."""
    golden, (model, params) = arrays(folder / "goldens.npz"), load(folder, **options)
    return difference(jax.jit(model.logits)(params, golden["ids"]), golden["logits"])


def padded_difference(folder: pathlib.Path) -> float:
    """Difference of a left-padded batch, at the columns that are not padding."""
    golden, (model, params) = arrays(folder / "goldens.npz"), load(folder)
    mask = golden["padded_mask"].astype(np.int32)
    logits = jax.jit(model.logits)(params, golden["padded_ids"], segments=mask)
    if not np.isfinite(logits).all():
        return float("inf")  # padding, too, must stay finite: its gradients would spread
    return difference(logits * mask[..., None], golden["padded_logits"])


def greedy(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Greedy tokens after the prompt, ours and the reference's, `[64]` each; without a cache."""
    golden, (model, params) = arrays(folder / "goldens.npz"), load(folder)
    start, count = len(golden["prompt"]), len(golden["greedy"])
    ids = jnp.zeros((1, start + count), jnp.int32).at[0, :start].set(golden["prompt"])

    @jax.jit
    def generate(params: Any, ids: jax.Array) -> jax.Array:
        def extend(column: jax.Array, ids: jax.Array) -> jax.Array:
            logits = model.logits(params, ids)[0, column - 1]  # zeros after it are not seen
            return ids.at[0, column].set(jnp.argmax(logits))

        return jax.lax.fori_loop(start, start + count, extend, ids)

    return np.asarray(generate(params, ids))[0, start:], golden["greedy"]


def _by_module(golden: dict[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    prefix = f"{part}/"
    return {key.removeprefix(prefix): value for key, value in golden.items() if prefix in key}


def to_tree(factors: dict[str, np.ndarray]) -> Any:
    """Our adapter tree from `layers.0.self_attn.q_proj.lora_A` -> `[rank, in]` and so on."""
    tree: dict[str, Any] = {}
    layers = 1 + max(int(key.split(".")[1]) for key in factors)
    for name, (group, module) in layout.PROJECTIONS.items():
        if f"layers.0.{module}.lora_A" not in factors:
            continue
        tree.setdefault(group, {})[name] = {
            ours: jnp.stack(
                [factors[f"layers.{n}.{module}.lora_{theirs}"].T for n in range(layers)]
            )
            for ours, theirs in (("a", "A"), ("b", "B"))
        }
    return {"layers": tree}


def loss(model: Llama, params: Any, adapter: Adapter, batch: dict[str, Any]) -> jax.Array:
    """Mean negative log-likelihood of a batch's labelled tokens: what PEFT's model returns."""
    hidden = model.hidden(params, batch["ids"], segments=batch["mask"], adapter=adapter)
    targets = jnp.roll(batch["labels"], -1, axis=1).at[:, -1].set(IGNORED)
    weights = (targets != IGNORED).astype(jnp.float32)
    total = cross_entropy(hidden, model.table(params), jnp.maximum(targets, 0), weights)
    return total / weights.sum()


def lora_differences(golden: pathlib.Path, name: str) -> dict[str, float]:
    """Differences of the loss, of every gradient and of the adapter after the steps of AdamW."""
    manifest = json.loads((golden / "manifest.json").read_text())
    model, params = load(golden / manifest["lora_base"])
    theirs = arrays(golden / f"lora_{name}.npz")
    settings = manifest["lora"][name]
    config = LoraConfig(
        rank=settings["r"],
        alpha=settings["lora_alpha"],
        targets=tuple(target.removesuffix("_proj") for target in settings["target_modules"]),
    )
    start, end = _by_module(theirs, "start"), _by_module(theirs, "end")
    zeros = {key: np.zeros_like(value) for key, value in end.items() if key.endswith("B")}
    data = [
        {key: jnp.asarray(theirs[key][n], jnp.int32) for key in ("ids", "mask", "labels")}
        for n in range(len(theirs["ids"]))
    ]
    value_and_grad = jax.jit(jax.value_and_grad(functools.partial(loss, model), argnums=1))

    # Gradients are compared at a point where B is not zero: there all of A's would vanish.
    adapter = Adapter(to_tree({**start, **_by_module(theirs, "point")}), config)
    value, grad = value_and_grad(params, adapter, data[0])
    differences = {"loss": difference(value, theirs["loss"])}
    differences |= _leaves("gradient", grad.params, to_tree(_by_module(theirs, "gradient")))

    adamw = manifest["adamw"]
    optimizer = optax.adamw(
        adamw["lr"],
        b1=adamw["betas"][0],
        b2=adamw["betas"][1],
        eps=adamw["eps"],
        weight_decay=adamw["weight_decay"],
    )

    @jax.jit
    def step(adapter: Adapter, state: Any, batch: Any) -> Any:
        value, grad = value_and_grad(params, adapter, batch)
        updates, state = optimizer.update(grad, state, adapter)
        return optax.apply_updates(adapter, updates), state, value

    # Training starts as PEFT does, from B = 0.
    adapter = Adapter(to_tree({**start, **zeros}), config)
    state, losses = optimizer.init(adapter), []
    for n in range(len(theirs["step_losses"])):
        adapter, state, value = step(adapter, state, data[n % len(data)])
        losses.append(float(value))
    differences["step losses"] = difference(losses, theirs["step_losses"])
    return differences | _leaves("end", adapter.params, to_tree(end))


def _leaves(what: str, ours: Any, theirs: Any) -> dict[str, float]:
    """Differences of all arrays of two adapter trees, which must have the same structure."""
    differences = jax.tree.map(difference, ours, theirs)
    return {
        f"{what} {path[-2].key}.{path[-1].key}": value
        for path, value in jax.tree_util.tree_leaves_with_path(differences)
    }


def peft_difference(golden: pathlib.Path) -> float:
    """Difference of the logits with an adapter that PEFT trained and saved."""
    manifest = json.loads((golden / "manifest.json").read_text())
    model, params = load(golden / manifest["lora_base"])
    theirs = arrays(golden / "peft_adapter" / "goldens.npz")
    adapter = peft_io.load_adapter(golden / "peft_adapter", model.config)
    return difference(
        jax.jit(model.logits)(params, theirs["ids"], adapter=adapter), theirs["logits"]
    )
