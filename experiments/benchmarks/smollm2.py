"""LoRA tuning and bulk generation with SmolLM2 beside transformers, PEFT and llama.cpp, on a CPU.

    python experiments/benchmarks/smollm2.py --cores=2 --peer=VENV/bin/python

Both sides read the packaged GGUF file, in processes of their own pinned to the same cores with as
many threads, and take turns, so that a slow minute of the machine hits all of them; compilation is
outside the clock. Tuning: LoRA of rank 8 on all projections, rows of LLMXRec's examples, the last
80 tokens of each trained. Generation: LLMXRec's prompts (about 430 tokens) with 80 new tokens each,
32 rows at once; llama.cpp reads the 4-bit file, the others weights of `dtype`. Reported are medians
of tokens/s (of tuning all tokens, of generation new ones) and the peak memory of each process. The
peers' environment (torch, transformers, peft, gguf, xllamacpp) is never needed for ours.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.append(str(ROOT))  # works without an installation, too

from experiments.benchmarks import llm_work  # noqa: E402
from experiments.benchmarks.llm import Child  # noqa: E402

DATA = "../shared/data/llmxrec/instructions.jsonl"
DTYPES = ("float32", "bfloat16")


def prepare(folder: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
    """Writes prompts and tuning rows as token ids, and where the base is."""
    from xrec_jax.core.storage import files
    from xrec_jax.llm.io import hub
    from xrec_jax.llm.io.tokenizer import load_tokenizer

    path = str(hub.resolve("smollm2"))
    (folder / "path.txt").write_text(path)
    tokenizer = load_tokenizer(path)
    records = files.read_records(args.data)
    order = np.random.default_rng(0).permutation(len(records))
    texts = [records[i] for i in order]
    prompts = [list(map(int, tokenizer.encode(text["prompt"]))) for text in texts[: args.prompts]]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    stream = [
        int(token)
        for text in texts
        for token in tokenizer.encode(text["prompt"] + "\n" + text["completion"])
    ]
    rows = np.array(stream[: args.rows * args.length], np.int32).reshape(args.rows, args.length)
    labels = np.where(np.arange(args.length) >= args.length - 80, rows, -100)
    np.savez(folder / "work.npz", ids=rows, labels=labels)
    return {"mean_prompt": float(np.mean([len(ids) for ids in prompts])), "prompts": len(prompts)}


def turns(
    sides: dict[str, Child], repeats: int, do: str, cases: list[tuple[str, str]], **options: Any
) -> dict[str, Any]:
    """Medians of each case's tokens/s, all cases taking turns.

    Args:
      sides: processes by name.
      repeats: timed passes.
      do: the command.
      cases: side and dtype of each.
      **options: of the command.
    """
    answers: dict[str, list[dict[str, Any]]] = {}
    for turn in range(repeats):
        for side, dtype in cases:
            answer = sides[side].ask(do, dtype=dtype, **options)
            answers.setdefault(f"{side}/{dtype}", []).append(answer)
            rate = answer["tokens"] / answer["seconds"]
            print(f"  {do} {turn + 1}/{repeats} {side} {dtype}: {rate:,.0f} tokens/s", flush=True)
    result: dict[str, Any] = {}
    for name, passes in answers.items():
        rates = [answer["tokens"] / answer["seconds"] for answer in passes]
        result[name] = {
            "tokens_per_second": statistics.median(rates),
            "least": min(rates),
            "most": max(rates),
        }
        for key in ("first_loss", "prompt_tokens", "shared_tokens"):
            if key in passes[0]:
                result[name][key] = passes[0][key]
    return result


def ratios(section: dict[str, Any]) -> dict[str, float]:
    """Our best dtype over every peer's best, and our bfloat16 over our float32."""

    def best(side: str) -> float:
        return max(v["tokens_per_second"] for k, v in section.items() if k.startswith(side))

    peers = {name.split("/")[0] for name in section} - {"ours"}
    out = {f"ours_to_{peer}": best("ours") / best(peer) for peer in sorted(peers)}
    rate = {k: v["tokens_per_second"] for k, v in section.items()}
    if "ours/bfloat16" in rate and "ours/float32" in rate:
        out["bfloat16_to_float32"] = rate["ours/bfloat16"] / rate["ours/float32"]
    return out


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Both sections."""
    cores = list(range(args.first_core, args.first_core + args.cores))
    results: dict[str, Any] = {"machine": llm_work.machine(), "cores_pinned": cores}
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        results["work"] = prepare(folder, args)
        programs = {"ours": sys.executable}
        if args.peer:
            programs |= {"transformers": args.peer, "llamacpp": args.peer}
        tail = [f"--folder={folder}", f"--threads={len(cores)}"]
        script = str(HERE / "smollm2_sides.py")
        # A section's processes hold what they have loaded, so each section starts its own.
        for section in args.sections.split(","):
            sides = {
                name: Child([program, script, f"--side={name}", *tail], cores)
                for name, program in programs.items()
                if section == "generate" or name != "llamacpp"
            }
            versions = [side.ask("versions") for side in sides.values()]
            results.setdefault("versions", {}).update(
                {k: v for x in versions for k, v in x.items()}
            )
            results["versions"].pop("cpu_share")
            plain = [(side, dtype) for dtype in args.dtypes for side in sides if side != "llamacpp"]
            if section == "tune":
                entry = turns(sides, args.repeats, "tune", plain, steps=args.steps)
            else:
                cases = plain + [("llamacpp", "q4_1")] * ("llamacpp" in sides)
                options = {"count": args.prompts, "new": args.new}
                entry = turns(sides, args.generate_repeats, "generate", cases, **options)
            entry["ratios"] = ratios(entry)
            entry["peak_mib"] = {
                name: side.ask("memory")["peak_mib"] for name, side in sides.items()
            }
            results[section] = entry
            print(
                f"{section}: {json.dumps(entry['ratios'])} peak MiB {entry['peak_mib']}", flush=True
            )
            for side in sides.values():
                side.close()
    results["machine"]["load_after"] = os.getloadavg()
    return results


def main() -> None:
    """Runs, prints and writes everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cores", type=int, default=2, help="how many, from --first-core on")
    parser.add_argument("--first-core", type=int, default=0)
    parser.add_argument("--peer", default="", help="python of an environment with the peers")
    parser.add_argument("--sections", default="tune,generate", help="some of these")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="some of these")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes of tuning")
    parser.add_argument("--generate-repeats", type=int, default=1, help="timed passes")
    parser.add_argument("--steps", type=int, default=2, help="tuning steps a pass")
    parser.add_argument("--rows", type=int, default=2, help="of a tuning batch")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a tuning row")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new", type=int, default=80, help="tokens to generate a prompt")
    parser.add_argument("--data", default=DATA, help="LLMXRec's instructions")
    parser.add_argument("--output", default="experiments/results/smollm2.json")
    args = parser.parse_args()
    args.dtypes = args.dtypes.split(",")
    results = run(args)
    path = pathlib.Path(args.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
