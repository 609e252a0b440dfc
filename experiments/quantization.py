"""Bytes and prediction error of a LLaMA whose frozen kernels are stored in 8 or 4 bits.

    python experiments/quantization.py                          # small LLaMA, random and trained
    python experiments/quantization.py --path=DIR --text=FILE   # a checkpoint of one's own

Without `--path` the model has random weights, and then those weights trained for `--steps` steps on
the bytes of this repository's Python files: random weights predict next to nothing, so that their
error says little. The evaluated text is held out. With `--path`, a Hugging Face directory or an
imported checkpoint, `--text` is cut into tokens by the checkpoint's tokenizer; without it, tokens
are random.

All rows compute in float32, so that the storage alone makes the difference. `weight error` is the
root mean square error of the seven projections over their root mean square, `logit error` the same
of the logits, KL the divergence of the next token's distribution from the float32 model's, in nats
a token. `top 1` is how often both have the same likeliest token. Prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.files import write_json
from xrec_jax.llm.io import checkpoint
from xrec_jax.llm.model import quantize
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.llama import Llama

ROOT = pathlib.Path(__file__).resolve().parents[1]
STORAGE = ("float32", "bfloat16", "int8", "nf4")
COLUMNS = ("bytes", "kernel_bytes", "weight_error", "logit_error", "kl", "top_1", "perplexity")


def store(params: Any, storage: str) -> Any:
    """The float32 parameters as they are stored: bfloat16 all of them, else the projections."""
    if storage == "bfloat16":
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    return quantize.quantize_params(params, "none" if storage == "float32" else storage)


def kernels(params: Any) -> dict[str, Any]:
    """The seven projections by name."""
    return {name: params["layers"][group][name]["kernel"] for group, name in quantize.PROJECTIONS}


def squares(plain: jax.Array, stored: Any) -> tuple[float, float]:
    """Sums of squares of the error and of the weights, layer by layer to bound memory."""

    @jax.jit
    def layer(plain, stored):
        plain = plain.astype(jnp.float32)
        error = quantize.dequantize(stored, jnp.float32) - plain
        return jnp.stack([jnp.sum(error**2), jnp.sum(plain**2)])

    sums = [
        np.asarray(layer(plain[i], jax.tree.map(lambda leaf, i=i: leaf[i], stored)), np.float64)
        for i in range(len(plain))
    ]
    return tuple(np.sum(sums, axis=0).tolist())


def compare(model: Llama, params: Any, ids: np.ndarray) -> dict[str, dict[str, Any]]:
    """One record for each way of storing `params`.

    Args:
      model: computes in float32.
      params: float32.
      ids: `[rows, length]` tokens to predict.
    """

    @jax.jit
    def row(params, stored, ids):
        right, logits = (model.logits(p, ids[None])[0, :-1] for p in (params, stored))
        log_right, log_probs = jax.nn.log_softmax(right), jax.nn.log_softmax(logits)
        return {
            "error": jnp.sum((logits - right) ** 2),
            "norm": jnp.sum(right**2),
            "kl": jnp.sum(jnp.exp(log_right) * (log_right - log_probs), axis=-1).mean(),
            "top_1": (right.argmax(-1) == logits.argmax(-1)).mean(),
            "loss": -jnp.take_along_axis(log_probs, ids[1:, None], axis=-1).mean(),
        }

    records = {}
    for storage in STORAGE:
        stored = store(params, storage)
        # Row by row: the logits of all rows at once would need too much memory.
        rows = [row(params, stored, jnp.asarray(line)) for line in ids]
        mean = {key: np.mean([float(record[key]) for record in rows]) for key in rows[0]}
        plain, small = kernels(params), kernels(stored)
        sums = {name: squares(plain[name], small[name]) for name in plain}
        error, norm = np.sum(list(sums.values()), axis=0)
        records[storage] = {
            "bytes": quantize.bytes_of(stored),
            "kernel_bytes": quantize.bytes_of(small),
            "weight_error": float(np.sqrt(error / norm)),
            "weight_error_by_projection": {
                name: float(np.sqrt(error / norm)) for name, (error, norm) in sums.items()
            },
            "logit_error": float(np.sqrt(mean["error"] / mean["norm"])),
            "kl": float(mean["kl"]),
            "top_1": float(mean["top_1"]),
            "perplexity": float(np.exp(mean["loss"])),
        }
    return records


def train(model: Llama, params: Any, data: np.ndarray, steps: int, seed: int) -> Any:
    """Parameters after some steps of AdamW on random windows of `data`, 8 of 128 tokens each."""
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 2e-3, steps // 10 + 1, steps))

    def loss(params, ids):
        logits = model.logits(params, ids[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()

    @jax.jit
    def step(params, state, ids):
        value, gradients = jax.value_and_grad(loss)(params, ids)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    # Windows of 129 tokens: 128 inputs and their next tokens.
    rng, state = np.random.default_rng(seed), optimizer.init(params)
    for number in range(steps):
        starts = rng.integers(0, len(data) - 129, 8)
        ids = jnp.asarray(np.stack([data[start : start + 129] for start in starts]))
        params, state, value = step(params, state, ids)
        if number % 50 == 49:
            print(f"step {number + 1}: loss {float(value):.3f}", file=sys.stderr)
    return params


def windows(data: np.ndarray, rows: int, length: int) -> np.ndarray:
    """The first `rows` windows of `length` tokens."""
    rows = min(rows, len(data) // length)
    if rows == 0:
        raise UserError(f"the text has {len(data)} tokens, fewer than one row of {length}")
    return data[: rows * length].reshape(rows, length).astype(np.int32)


def tokens(path: str, text: str, config: LlamaConfig, count: int, seed: int) -> np.ndarray:
    """Tokens of `text` by the tokenizer in `path`; random ones if there is no text."""
    if not text:
        return np.random.default_rng(seed).integers(0, config.vocab_size, count)
    from transformers import AutoTokenizer

    try:
        content = pathlib.Path(text).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{text}: not a readable UTF-8 file ({error})") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no tokenizer there, which --text needs") from error
    return np.asarray(tokenizer(content)["input_ids"])


def show(title: str, records: dict[str, dict[str, Any]]) -> None:
    """Prints one table."""
    print(f"\n{title}\n{'storage':9}" + "".join(f"{name:>14}" for name in COLUMNS))
    for storage, record in records.items():
        cells = (f"{record[c]:14,d}" if "bytes" in c else f"{record[c]:14.4g}" for c in COLUMNS)
        print(f"{storage:9}" + "".join(cells))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compares the ways of storing one or two models, and prints all tables."""
    result: dict[str, Any] = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    if args.path:
        source = checkpoint.open_model(args.path)
        model = Llama(source.config)
        data = tokens(args.path, args.text, source.config, args.rows * args.length, args.seed)
        params = jax.tree.map(jnp.asarray, source.load_params(dtype=np.float32))
        models = {pathlib.Path(args.path).name: (params, data)}
    else:
        head_dim = args.hidden // args.heads
        model = Llama(
            LlamaConfig(
                vocab_size=args.vocab,
                hidden_size=args.hidden,
                intermediate_size=args.inner,
                num_layers=args.layers,
                num_heads=args.heads,
                num_kv_heads=args.kv_heads,
                head_dim=head_dim,
                max_positions=args.length,
            )
        )
        if args.vocab < 256:
            raise UserError(f"--vocab={args.vocab}: bytes need at least 256")
        # Without a checkpoint the bytes of the source tree are the text; its end is held out.
        files = sorted((ROOT / "xrec_jax").rglob("*.py"))
        data = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)
        held_out = len(data) * 9 // 10
        params = nn.unbox(model.init(jax.random.key(args.seed)))
        models = {"random": (params, data[held_out:])}
        if args.steps:
            trained = train(model, params, data[:held_out], args.steps, args.seed)
            models["trained"] = (trained, data[held_out:])
    result["parameters"] = model.config.num_parameters
    result["settings"] = {
        k: v for k, v in vars(args).items() if k not in ("path", "text", "output")
    }
    result["models"] = {}
    for name, (params, data) in models.items():
        records = compare(model, params, windows(data, args.rows, args.length))
        show(f"{name}: {model.config.num_parameters:,} parameters", records)
        result["models"][name] = records
    return result


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--path", default="", help="Hugging Face directory or imported checkpoint")
    parser.add_argument("--text", default="", help="UTF-8 file to evaluate on, with --path")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--inner", type=int, default=688)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=300, help="0: random weights only")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="", help="default: in experiments/results")
    args = parser.parse_args()
    name = f"quantization_{pathlib.Path(args.path).name}" if args.path else "quantization"
    output = args.output or ROOT / "experiments" / "results" / f"{name}.json"
    try:
        write_json(output, run(args))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
