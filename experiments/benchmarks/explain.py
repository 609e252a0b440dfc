"""Pairs explained a second: our engine beside a plain loop over transformers' `generate`.

    python experiments/benchmarks/explain.py --peer=VENV/bin/python \
        --output=experiments/results/explain.json

A planted world, the ten best items of each user by a BPR, prompts with ten history entries, greedy
answers of 64 tokens by one random LLaMA (the size of `llm.py`), in float32. Both sides read the
same Hugging Face directory in processes of their own, pinned to one core, and take turns; reported
are medians over the passes, and how many texts are equal. Compilation is outside the clock.

Ours is the whole engine: prompts are rendered and tokenised, answers written to shards, checked and
joined. The peer gets the tokens of its prompts ready; "loop" answers one at a time, "batched" sorts
by length, pads on the left, and keeps the fastest of several batch sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # works without an installation, too

from xrec_jax.core.storage import files  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
TOP_K = 10
NEW_TOKENS = 64


class Ours:
    """The engine on a finished run."""

    def __init__(self, folder: pathlib.Path):
        import numpy as np

        from xrec_jax.api import Run
        from xrec_jax.inference import explainers
        from xrec_jax.inference.recommendations import recommended_pairs
        from xrec_jax.parallel.mesh import use_mesh
        from xrec_jax.tasks.requests import request_builder

        self._folder, self._turn = folder, 0
        self._run = Run(folder / "run")
        self._builder = request_builder(self._run.config, self._run.rundir, self._run.data)
        self._pairs = list(
            recommended_pairs(
                self._run.config,
                self._run.data,
                self._run.rundir,
                self._run.mesh,
                users=np.arange(self._run.data.dataset.num_users),
                top_k=TOP_K,
                system="",
            )
        )
        with use_mesh(self._run.mesh):
            self._explainer = explainers.load(
                [explainers.Spec("base")],
                self._run.config,
                self._run.rundir,
                self._run.mesh,
                self._builder,
            )[0]

    def prepare(self) -> dict[str, Any]:
        """Writes the prompts' tokens for the peer."""
        requests = self._builder.many(self._pairs)
        (self._folder / "prompts.json").write_text(
            json.dumps([request.ids for request in requests])
        )
        lengths = [len(request.ids) for request in requests]
        return {"pairs": len(requests), "prompt_tokens": statistics.mean(lengths)}

    def answer(self, count: int) -> dict[str, Any]:
        """Explains the first pairs, from rows to the finished file."""
        from xrec_jax.inference import bulk
        from xrec_jax.inference.shards import Parts

        self._turn += 1
        output = self._folder / f"ours-{self._turn}.jsonl"
        start = time.perf_counter()
        bulk.produce(
            Parts(output, {}, shard=4096),
            pairs=lambda: self._pairs[:count],
            builder=self._builder,
            place=bulk.workplace(self._run.mesh),
            explainer=lambda: self._explainer,
        )
        seconds = time.perf_counter() - start
        texts = [record["text"] for record in files.read_records(output)]
        return {"seconds": seconds, "pairs": count, "texts": texts}


def make(folder: pathlib.Path, users: int) -> None:
    """Makes the run that both sides read."""
    from experiments import explained_world
    from experiments.benchmarks.llm_work import TINY

    explained_world.make(
        folder / "run",
        users=users,
        items=200,
        visits=20.0,
        history=10,
        max_new_tokens=NEW_TOKENS,
        batch=64,
        sizes={**TINY, "initializer_range": 0.1},
    )


def serve(folder: pathlib.Path) -> None:
    """Calls the method of `Ours` that each line of standard input names."""
    from xrec_jax.core.runtime.memory import keep_freed_memory

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    keep_freed_memory()
    ours = Ours(folder)
    for line in sys.stdin:
        command = json.loads(line)
        answers.write(json.dumps(getattr(ours, command.pop("do"))(**command)) + "\n")
        answers.flush()


def main() -> None:
    """Makes the work, lets both sides take turns, writes the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", default="", help="python with torch and transformers")
    parser.add_argument("--output", default="")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loop", type=int, default=16, help="pairs of a pass of the plain loop")
    parser.add_argument("--batched", type=int, default=64, help="pairs of a batched pass")
    parser.add_argument("--serve", type=pathlib.Path, help="answer commands; used by itself")
    parser.add_argument("--make", type=pathlib.Path, help="make the run; used by itself")
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    if args.make:
        make(args.make, args.users)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(pathlib.Path(folder), args)
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if args.output:
        pathlib.Path(args.output).write_text(text)


def measure(folder: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
    """Times our engine and the peer in turns on the same prompts; see the module."""
    from experiments.benchmarks.llm import Child

    subprocess.run(
        [sys.executable, str(HERE / "explain.py"), f"--make={folder}", f"--users={args.users}"],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )
    # Both processes stay warm on the same core, and only one of them works at a time.
    cores = [args.core]
    ours = Child([sys.executable, str(HERE / "explain.py"), f"--serve={folder}"], cores)
    work = ours.ask("prepare")
    command = [args.peer, "-B", str(HERE / "explain_peer.py"), f"--folder={folder}"]
    peer = Child(command, cores) if args.peer else None
    rates: dict[str, list[float]] = {}
    texts: dict[str, list[str]] = {}
    settings: dict[str, Any] = {}
    for turn in range(args.repeats + 1):  # the first pass warms up
        passes = [("ours", ours, "answer", args.users * TOP_K)]
        if peer:
            passes += [
                ("loop", peer, "loop", args.loop),
                ("batched", peer, "batched", args.batched),
            ]
        for name, child, do, count in passes:
            answer = child.ask(do, count=count)
            texts[name] = answer["texts"]
            settings[name] = answer.get("setting")
            if turn:
                rates.setdefault(name, []).append(answer["pairs"] / answer["seconds"])
            print(f"{name}: {answer['pairs'] / answer['seconds']:.2f} pairs a second", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    result: dict[str, Any] = {
        "pairs_per_second": medians,
        "passes": rates,
        "prompt_tokens": work["prompt_tokens"],
        "new_tokens": NEW_TOKENS,
        "pairs": {"ours": args.users * TOP_K, "loop": args.loop, "batched": args.batched},
        "settings": settings,
        "cores": 1,
        "load": os.getloadavg()[0],
        "machine": platform.processor() or platform.machine(),
    }
    for name in ("loop", "batched"):
        if name in medians:
            result[f"ours_to_{name}"] = medians["ours"] / medians[name]
            pairs = [*zip(texts["ours"], texts[name], strict=False)]
            result[f"equal_texts_{name}"] = f"{sum(a == b for a, b in pairs)} of {len(pairs)}"
    ours.close()
    if peer:
        result["versions"] = peer.ask("versions")
        peer.close()
    return result


if __name__ == "__main__":
    main()
