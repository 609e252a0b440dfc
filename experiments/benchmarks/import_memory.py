"""Host memory that `xrec import` takes, measured on a random checkpoint in several files.

    python experiments/benchmarks/import_memory.py --json=experiments/results/import_memory.json

Writes a checkpoint with the shape of a 1.1B LLaMA in Hugging Face format, file by file, imports it
in a process of its own, and compares the peak resident memory of that process with twice the
largest file plus 1 GiB; for bfloat16 and for float32. Two minutes and 9 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from xrec_jax import cli
from xrec_jax.llm.io import checkpoint, hf, hf_export
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


class Random:
    """Random weights, made when they are asked for."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def tensor(self, parameter: Parameter, layer: int | None) -> np.ndarray:
        """A tensor in our layout."""
        del layer
        shape = parameter.hf_shape[::-1] if parameter.transposed else parameter.hf_shape
        return self._rng.standard_normal(shape, np.float32) * np.float32(0.02)


def import_here(path: str, output: str) -> None:
    """Imports and prints the peak resident memory of this process."""
    start = time.monotonic()
    status = cli.main(["import", f"--path={path}", f"--output={output}"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.monotonic() - start
    print(json.dumps({"status": status, "peak": peak, "seconds": seconds}))


def measure(folder: pathlib.Path, dtype: str, shard_bytes: int) -> dict[str, Any]:
    """Writes the checkpoint, imports it, and checks what came out against the source."""
    hf_export.save_model(folder / "hf", Random(), CONFIG, dtype=dtype, max_shard_bytes=shard_bytes)
    shards = [file.stat().st_size for file in (folder / "hf").glob("*.safetensors")]
    command = [sys.executable, __file__, f"--path={folder / 'hf'}", f"--output={folder / 'out'}"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    report = json.loads(out.splitlines()[-1])
    source, imported = hf.open_model(folder / "hf"), checkpoint.open_model(folder / "out")
    exact = all(
        np.array_equal(source.tensor(p, layer), imported.tensor(p, layer))
        for p in parameters(CONFIG)
        for layer in ((0, CONFIG.num_layers - 1) if p.layers else (None,))
    )
    limit = 2 * max(shards) + GIB
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


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shard_mb", type=int, default=500, help="largest file")
    parser.add_argument("--json", default="", help="also write the result there")
    parser.add_argument("--path", default="", help=argparse.SUPPRESS)
    parser.add_argument("--output", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.path:
        import_here(arguments.path, arguments.output)
        return
    results = []
    for dtype in hf.DTYPES:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(pathlib.Path(folder), dtype, arguments.shard_mb * 1_000_000))
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
