"""Host memory that `xrec import` takes, measured on a random checkpoint in several files.

    python experiments/benchmarks/import_memory.py --json=experiments/results/import_memory.json
    python experiments/benchmarks/import_memory.py --kinds=gguf --gguf=smollm2 --json=FILE

Writes a checkpoint with the shape of a 1.1B LLaMA in Hugging Face format, file by file, imports it
in a process of its own, and compares the peak resident memory of that process with twice the
largest file plus 1 GiB; for bfloat16, for float32, and for one GGUF file in Q8_0 (where the limit
is that of float32 in Hugging Face format). Three minutes and 9 GB of disk. With `--gguf` a GGUF
file that is there is loaded, too: seconds to open and read it, and memory beyond the parameters.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from tokenizers import pre_tokenizers

from xrec_jax import cli
from xrec_jax.llm.io import checkpoint, hf, hf_export, hub
from xrec_jax.llm.io.gguf import export
from xrec_jax.llm.io.gguf.model import open_model
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.layout import Parameter, parameters

# TinyLlama 1.1B's sizes.
CONFIG = LlamaConfig(
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=5632,
    num_layers=22,
    num_heads=32,
    num_kv_heads=4,
    head_dim=64,
    max_positions=2048,
)
GIB = 1 << 30
GGUF = "gguf"


class Random:
    """Random weights, made when they are asked for."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def tensor(self, parameter: Parameter, layer: int | None) -> np.ndarray:
        """A tensor in our layout."""
        del layer
        shape = parameter.hf_shape[::-1] if parameter.transposed else parameter.hf_shape
        return self._rng.standard_normal(shape, np.float32) * np.float32(0.02)


def tokenizer() -> dict[str, Any]:
    """The least that a GGUF file needs of a tokenizer: all bytes, and one merge."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he"]
    values = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": ["h e"]}
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def peak_memory() -> int:
    """Peak resident memory of this program in bytes; unlike `ru_maxrss`, not of what forked it."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def import_here(path: str, output: str) -> None:
    """Imports and prints the peak resident memory of this process."""
    start = time.monotonic()
    status = cli.main(["import", f"--path={path}", f"--output={output}"])
    peak = peak_memory()
    seconds = time.monotonic() - start
    print(json.dumps({"status": status, "peak": peak, "seconds": seconds}))


def measure(folder: pathlib.Path, dtype: str, shard_bytes: int) -> dict[str, Any]:
    """Writes the checkpoint, imports it, and checks what came out against the source."""
    path = folder / ("model.gguf" if dtype == GGUF else "hf")
    if dtype == GGUF:
        export.save_model(path, Random(), CONFIG, tokenizer(), out_type="q8_0")
        shards = [path.stat().st_size]
    else:
        hf_export.save_model(path, Random(), CONFIG, dtype=dtype, max_shard_bytes=shard_bytes)
        shards = [file.stat().st_size for file in path.glob("*.safetensors")]
    command = [sys.executable, __file__, f"--path={path}", f"--output={folder / 'out'}"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    report = json.loads(out.splitlines()[-1])
    source, imported = (checkpoint.open_model(where) for where in (path, folder / "out"))
    exact = all(
        np.array_equal(source.tensor(p, layer), imported.tensor(p, layer))
        for p in parameters(CONFIG)
        for layer in ((0, CONFIG.num_layers - 1) if p.layers else (None,))
    )
    # A file in quantised form is read as float32, of which a directory has files of this size.
    limit = 2 * (shard_bytes if dtype == GGUF else max(shards)) + GIB
    return {
        "parameters": CONFIG.num_parameters,
        "dtype": dtype,
        "files": len(shards),
        "largest_file_mib": round(max(shards) / 2**20),
        "peak_mib": round(report["peak"] / 2**20),
        "limit_mib": round(limit / 2**20),
        "within_limit": report["status"] == 0 and report["peak"] < limit,
        "exact": exact,
        "seconds": round(report["seconds"], 1),
    }


def load_here(path: str) -> None:
    """Loads a GGUF file and prints how long that took and what memory."""
    before = peak_memory()
    start = time.monotonic()
    model = open_model(hub.resolve(path))
    opened = time.monotonic()
    params = model.load_params()
    read = time.monotonic()
    peak = peak_memory()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    report = {
        "file": model.path.name,
        "file_mib": round(model.file_bytes / 2**20),
        "parameters_mib": round(size / 2**20),
        "beyond_parameters_mib": round((peak - before - size) / 2**20),
        "open_seconds": round(opened - start, 2),
        "read_seconds": round(read - opened, 2),
    }
    print(json.dumps(report))


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shard_mb", type=int, default=500, help="largest file")
    parser.add_argument("--json", default="", help="also write the result there")
    kinds = (*hf.DTYPES, GGUF)
    parser.add_argument("--kinds", default=",".join(kinds), help="what to import, of the default")
    parser.add_argument("--gguf", default="", help="also load this file, or smollm2")
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--path", default="", help=argparse.SUPPRESS)
    parser.add_argument("--output", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load_here(arguments.path)
        return
    if arguments.path:
        import_here(arguments.path, arguments.output)
        return
    results: list[dict[str, Any]] = []
    for dtype in arguments.kinds.split(","):
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(pathlib.Path(folder), dtype, arguments.shard_mb * 1_000_000))
    if arguments.gguf:
        command = [sys.executable, __file__, "--load", f"--path={arguments.gguf}"]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results.append(json.loads(out.splitlines()[-1]))
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
