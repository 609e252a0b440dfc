"""The accelerator's part of `llm.py`: LoRA tuning and decoding in bfloat16 on one device."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np

from experiments.benchmarks.llm_ours import lora_training
from experiments.benchmarks.llm_work import TARGETS, TINY, tuning_batch

LLAMA3_8B: dict[str, Any] = dict(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_positions=131072,
    rope_theta=500000.0,
)
SHAPES: dict[str, dict[str, Any]] = {"tiny": TINY, "llama3_8b": LLAMA3_8B}


def random_params(config: Any, dtype: Any) -> Any:
    """Weights made on the device, one leaf at a time: nothing is read or sent."""
    import jax
    import jax.numpy as jnp

    from xrec_jax.llm.model import layout

    leaves, tree = jax.tree.flatten(layout.abstract(config, dtype))
    make = jax.jit(lambda key, shape: 0.02 * jax.random.normal(key, shape, dtype), static_argnums=1)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    filled = []
    for key, leaf in zip(keys, leaves, strict=True):
        norm = leaf.ndim == 1 or leaf.shape == (config.num_layers, config.hidden_size)
        filled.append(jnp.ones(leaf.shape, dtype) if norm else make(key, leaf.shape))
    return jax.tree.unflatten(tree, filled)


def copy_bandwidth(size: int, repeats: int = 10) -> float:
    """Bytes/s read and written by a plain copy of `size` bytes on the device."""
    import jax
    import jax.numpy as jnp

    x = jnp.zeros(size // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    copy(x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        copy(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * 4 * x.size / statistics.median(seconds)


def accelerator(args: argparse.Namespace) -> dict[str, Any]:
    """LoRA tuning and decoding in bf16 on one device."""
    import jax
    import jax.numpy as jnp

    from xrec_jax.llm.model.config import LlamaConfig
    from xrec_jax.parallel.devices import peak_flops

    device = jax.devices()[0]
    config = LlamaConfig(**SHAPES[args.shape])
    peak = peak_flops(device)
    results: dict[str, Any] = {
        "device": device.device_kind,
        "jax": jax.__version__,
        "shape": args.shape,
        "peak_bf16_flops": peak or None,
        "parameters": config.num_parameters,
        "copy_bytes_per_second": copy_bandwidth(args.copy_bytes),
    }
    print(
        f"{device.device_kind}: copies {results['copy_bytes_per_second'] / 1e12:.2f} TB/s",
        flush=True,
    )
    params = jax.block_until_ready(random_params(config, jnp.bfloat16))
    if "tuning" in args.sections.split(","):
        results["tuning"] = device_tuning(config, params, peak, args)
    if "generation" in args.sections.split(","):
        results["decoding"] = device_decoding(config, params, results, args)
    stats = device.memory_stats() or {}
    results["peak_device_gib"] = stats.get("peak_bytes_in_use", 0) / 2**30
    return results


def device_tuning(config: Any, params: Any, peak: float, args: Any) -> list[dict[str, Any]]:
    """LoRA rank 8 on all projections: every batch size and remat policy that fits."""
    import jax
    import jax.numpy as jnp

    from xrec_jax.llm.model.llama import Llama
    from xrec_jax.parallel.mesh import make_mesh, use_mesh

    records, mesh = [], make_mesh(devices=jax.devices()[:1])
    for remat in args.remat.split(","):
        for batch in map(int, args.device_batches.split(",")):
            model = Llama(config, jnp.bfloat16, remat=remat)
            entry: dict[str, Any] = {"remat": remat, "batch": batch, "sequence": args.sequence}
            try:
                with use_mesh(mesh):
                    seconds, loss = device_steps(model, params, mesh, batch, args)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                # Batch sizes ascend, so that no later one fits either.
                records.append(entry | {"fits": False})
                print(f"  remat {remat}, batch {batch}: does not fit", flush=True)
                break
            rate = batch * args.sequence / seconds
            entry |= {"fits": True, "tokens_per_second": rate, "loss": loss}
            entry["flops_at_4n"] = rate * 4 * config.matmul_parameters
            entry["mfu"] = entry["flops_at_4n"] / peak if peak else None
            records.append(entry)
            share = f", MFU {entry['mfu']:.1%}" if peak else ""
            print(f"  remat {remat}, batch {batch}: {rate:,.0f} tokens/s{share}", flush=True)
    return records


def device_steps(
    model: Any, params: Any, mesh: Any, batch: int, args: argparse.Namespace
) -> tuple[float, float]:
    """Median seconds of a step of the `instruct` stage, and the last loss."""
    from xrec_jax.parallel.mesh import put_batch

    rng = np.random.default_rng(1)
    shape = (batch, args.sequence)
    ids = rng.integers(0, model.config.vocab_size, shape, dtype=np.int32)
    rows = put_batch(tuning_batch(ids, ids), mesh)
    state, step = lora_training(model, params, TARGETS["all"], mesh)
    # The first steps compile and warm up, outside the clock.
    for _ in range(3):
        state, metrics = step(state, rows)
    loss, seconds = float(metrics["train/loss"]), []
    for _ in range(args.repeats):
        start = time.perf_counter()
        for _ in range(args.steps):
            state, metrics = step(state, rows)
        loss = float(metrics["train/loss"])
        seconds.append((time.perf_counter() - start) / args.steps)
    return statistics.median(seconds), loss


def device_decoding(config: Any, params: Any, results: Any, args: Any) -> list[dict[str, Any]]:
    """Decoding steps without the prompt's reading: a long generation less one of a single token."""
    import jax
    import jax.numpy as jnp

    from xrec_jax.llm.generation.sampler import Sampler
    from xrec_jax.llm.generation.schedule import Request
    from xrec_jax.llm.model.llama import Llama

    rng, records = np.random.default_rng(0), []
    prompt, new, batch = args.prompt, args.new, args.decode_batch
    prompts = rng.integers(0, config.vocab_size, (batch, prompt)).tolist()
    model = Llama(config, jnp.bfloat16)
    for unstack in (False, True):
        sampler = Sampler(
            model, params, eos=(), batch=batch, schedule="static", unstack_layers=unstack
        )
        # The difference of a long and a one-token generation leaves the decoding steps alone.
        timed: dict[int, float] = {}
        for count in (1, new):
            requests = [Request(ids, count) for ids in prompts]
            sampler.generate(requests)
            seconds = []
            for _ in range(args.repeats):
                start = time.perf_counter()
                sampler.generate(requests)
                seconds.append(time.perf_counter() - start)
            timed[count] = statistics.median(seconds)
        step = (timed[new] - timed[1]) / (new - 1)
        # Every matrix once, and the keys and values of the tokens so far, on average.
        weights = 2 * config.matmul_parameters
        place = 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim
        cache = place * batch * (prompt + new / 2)
        entry: dict[str, Any] = {
            "batch": batch,
            "prompt": prompt,
            "new": new,
            "unstack_layers": unstack,
            "seconds_per_step": step,
            "tokens_per_second": batch / step,
            "prompt_tokens_per_second": batch * prompt / timed[1],
            "weight_bytes": weights,
            "cache_bytes": cache,
            "bytes_per_second": (weights + cache) / step,
        }
        entry["share_of_copy"] = entry["bytes_per_second"] / results["copy_bytes_per_second"]
        records.append(entry)
        print(
            f"  decode, batch {batch}, unstack_layers={unstack}: {1e3 * step:.2f} ms a step, "
            f"{entry['share_of_copy']:.1%} of copy bandwidth",
            flush=True,
        )
        # The next sampler needs the memory of this one's weights and programs.
        del sampler
        jax.clear_caches()
    return records
