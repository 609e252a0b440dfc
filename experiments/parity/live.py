"""This package against transformers and PEFT in one run: what `make parity` prints.

    python -m experiments.parity.live

Makes the goldens anew and compares them with the committed ones, compares this package with fresh
goldens from another seed, and lets transformers and PEFT load what this package exports. Where
SmolLM2's package is installed, both read its GGUF file, and the logits and 64 greedy tokens of five
prompts are compared with each other and with the golden, in shares of the logits' range. Tokens of
its tokenizer and of small ones are compared with those of llama.cpp, too. Prints the
largest absolute difference of each comparison; the exit status is 1 if one reaches 1e-4.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import tempfile
import warnings
from collections.abc import Iterator

os.environ["JAX_PLATFORMS"] = "cpu"  # float32 there is float32
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch
import transformers

from experiments.parity import (
    checkpoints,
    gguf_llamacpp,
    gguf_logits,
    gguf_tokenizers,
    make_goldens,
    ours,
)
from xrec_jax.core.errors import UserError
from xrec_jax.llm.io import hf_export, hub, peft_io, tensorfile
from xrec_jax.llm.model import lora
from xrec_jax.llm.model.llama import Llama

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "tests" / "llm" / "golden"

Rows = Iterator[tuple[str, float]]


def regenerated(new: pathlib.Path, old: pathlib.Path) -> Rows:
    """Differences between two directories of goldens; a file only in one of them is infinite."""
    for name in (*ours.CHECKPOINTS, "peft_adapter", *(f"lora_{name}.npz" for name in ours.LORA)):
        files = [[*_files(root / name)] for root in (new, old)]
        same = [[p.name for p in each] for each in files]
        worst = 0.0 if same[0] == same[1] and files[0] else float("inf")
        for pair in zip(*files, strict=False):
            a, b = (_stored(path) for path in pair)
            if a.keys() != b.keys():
                worst = float("inf")
            else:
                worst = max([worst, *(ours.difference(a[key], b[key]) for key in a)])
        yield f"goldens regenerated: {name}", worst


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_file():
        return [path]
    return sorted(p for p in path.glob("*") if p.suffix in (".npz", ".safetensors"))


def _stored(path: pathlib.Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        return ours.arrays(path)
    return {
        name: np.concatenate([rows for _, rows in tensor.chunks(0, tensor.shape[0])])
        for name, tensor in tensorfile.read_header(path).items()
    }


def computed(golden: pathlib.Path, what: str) -> Rows:
    """Differences between this package and the goldens in a directory."""
    for name in ours.CHECKPOINTS:
        yield f"{what}: {name} logits", ours.logits_difference(golden / name)
        yield f"{what}: {name} logits, left-padded", ours.padded_difference(golden / name)
        tokens, reference = ours.greedy(golden / name)
        yield f"{what}: {name} greedy tokens that differ", float((tokens != reference).sum())
    for name in ours.LORA:
        differences = ours.lora_differences(golden, name)
        yield f"{what}: LoRA ({name}) loss", differences.pop("loss")
        yield f"{what}: LoRA ({name}) losses of 10 steps", differences.pop("step losses")
        for part, text in (("gradient", "gradients"), ("end", "adapter after 10 steps")):
            worst = max(value for key, value in differences.items() if key.startswith(part))
            yield f"{what}: LoRA ({name}) {text}", worst
    yield f"{what}: adapter from PEFT", ours.peft_difference(golden)


def exported(golden: pathlib.Path, scratch: pathlib.Path) -> Rows:
    """Differences after transformers and PEFT have loaded what this package wrote."""
    for number, name in enumerate(ours.CHECKPOINTS):
        model, params = ours.load(golden / name)
        ids = ours.arrays(golden / name / "goldens.npz")["ids"]
        adapter = _random_adapter(model, jax.random.key(number))
        base_logits = jax.jit(model.logits)(params, ids)
        logits = jax.jit(model.logits)(params, ids, adapter=adapter)
        folder = scratch / name

        hf_export.save_params(folder / "base", params, model.config, max_shard_bytes=50_000)
        peer = _read(folder / "base")
        yield f"export: {name} in transformers", _difference(peer, ids, base_logits)
        again = jax.tree.map(ours.difference, ours.load(folder / "base")[1], params)
        yield f"export: {name} read back", max(jax.tree.leaves(again))

        peft_io.save_adapter(folder / "adapter", adapter)
        peer = peft.PeftModel.from_pretrained(peer, folder / "adapter").eval()
        yield f"export: {name} adapter in PEFT", _difference(peer, ids, logits)
        peer = peer.merge_and_unload()
        merged = lora.merge(params, adapter)
        yield (
            f"export: {name} merged here and by PEFT",
            _difference(peer, ids, jax.jit(model.logits)(merged, ids)),
        )
        hf_export.save_params(folder / "merged", merged, model.config)
        peer = _read(folder / "merged")
        yield f"export: {name} merged, in transformers", _difference(peer, ids, logits)


def smollm2() -> Rows:
    """Differences from transformers' own reader of GGUF files, on the base that a package holds."""
    try:
        path = hub.packaged()
    except UserError as error:
        print(f"left out: {error}")
        return
    yield from gguf_logits.weights_differing(path)
    yield from gguf_logits.compared(path, ours.arrays(gguf_logits.GOLDEN))


def tokenizers(texts: pathlib.Path | None) -> Rows:
    """Lines that the tokenizers of GGUF files encode otherwise than their references."""
    for row in gguf_tokenizers.rows(texts):
        if row.must_agree:
            yield f"tokenizer: {row.text}", float(row.lines)


def _random_adapter(model: Llama, key: jax.Array) -> lora.Adapter:
    """An adapter of all projections that changes the logits."""
    config = lora.LoraConfig(rank=3, alpha=5.0)
    adapter = lora.init(config, model.config, key)
    leaves, tree = jax.tree.flatten(adapter)
    keys = jax.random.split(key, len(leaves))
    drawn = [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def _read(folder: pathlib.Path) -> torch.nn.Module:
    return transformers.LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, **checkpoints.EAGER
    )


def _difference(theirs: torch.nn.Module, ids: np.ndarray, logits: jax.Array) -> float:
    return ours.difference(checkpoints.logits_of(theirs, ids), jnp.asarray(logits))


def main() -> None:
    """Prints one line a comparison and exits with 1 if one is too large."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--golden", type=pathlib.Path, default=COMMITTED)
    parser.add_argument("--seed", type=int, default=1, help="of the fresh goldens")
    parser.add_argument("--texts", type=pathlib.Path, help="folder of JSON lines for tokenizers")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # other libraries' deprecations
    versions = {p.__name__: p.__version__ for p in (torch, transformers, peft, jax)}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        make_goldens.write_all(scratch / "again", seed=0)
        make_goldens.write_all(scratch / "fresh", seed=args.seed)
        for rows in (
            regenerated(scratch / "again", args.golden),
            computed(args.golden, "committed"),
            computed(scratch / "fresh", f"seed {args.seed}"),
            exported(scratch / "fresh", scratch / "exported"),
            gguf_llamacpp.rows(),
            smollm2(),
            tokenizers(args.texts),
        ):
            for text, value in rows:
                bad = not value < ours.LIMIT
                failed += bad
                print(f"{value:9.1e}  {text}{'   TOO LARGE' if bad else ''}", flush=True)
    print(f"{failed} of these reach {ours.LIMIT}" if failed else f"all below {ours.LIMIT}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
