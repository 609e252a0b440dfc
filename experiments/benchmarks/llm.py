"""Tuning and generation with a tiny LLaMA beside transformers and PEFT, and the same on a GPU.

    python experiments/benchmarks/llm.py --cores=1                      # only ours
    python experiments/benchmarks/llm.py --cores=1 --peer=VENV/bin/python   # torch side beside it
    python experiments/benchmarks/llm.py --cores=1 --quick --peer=VENV/bin/python   # in 15 minutes
    python experiments/benchmarks/llm.py --gpu --output=experiments/results/llm_gpu.json

Both sides load one random Hugging Face checkpoint (its logits, first losses and greedy tokens are
compared before anything counts), run in processes of their own pinned to the same cores with as
many threads, stay warm, and take turns pass by pass, so that a slow minute of the machine hits
both. Reported are medians over the passes, and the peak memory of each process. Compilation is
outside the clock. The peer's environment (torch, transformers, peft) is never needed for ours.

Mixed lengths: every prompt has its own number of new tokens. With order "unknown" no schedule may
look at it in advance, as when answers end by an EOS: batches are taken as prompts come. "known" may
sort by it first. "continuous" refills rows as they finish, "static" waits for a batch's longest.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.append(str(ROOT))  # works without an installation, too

from experiments.benchmarks import llm_device, llm_work  # noqa: E402

PROMPTS = "../shared/data/llmxrec/bpr-mf/prompts.jsonl.gz"
BATCHES = (16, 32, 64)
MIXED_PROMPTS = (128, 32)
# Answer lengths, and whether a schedule may look at them. --quick takes the first three at the
# first prompt length and the first two at others.
CASES = ("loguniform/unknown", "uniform/unknown", "loguniform/known", "uniform/known")
QUICK = dict(repeats=3, steps=3, mixed_repeats=1, peer_share=0.25, users=8)


class Child:
    """A process that answers commands."""

    def __init__(self, command: list[str], cores: list[int]):
        hidden = ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")
        environment = {k: v for k, v in os.environ.items() if k not in hidden}
        threads = str(len(cores))
        environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
        path = environment.get("PYTHONPATH", "")  # a changed copy of the package may stand there
        environment["PYTHONPATH"] = f"{path}{os.pathsep}{ROOT}" if path else str(ROOT)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )

    def ask(self, do: str, **options: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"do": do, **options}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{do} failed; the process's own message stands above")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


class Pair:
    """Our process and the peer's, if there is one, taking turns."""

    def __init__(self, folder: pathlib.Path, args: argparse.Namespace):
        cores = args.pinned
        ours = [sys.executable, str(HERE / "llm_ours.py"), f"--folder={folder}"]
        peer = [args.peer, "-B", str(HERE / "llm_peer.py"), f"--folder={folder}"]
        self.ours = Child(ours, cores)
        self.peer = Child([*peer, f"--threads={len(cores)}"], cores) if args.peer else None

    def each(
        self, repeats: int, do: str, *, beside: dict[str, list[float]] | None = None, **options: Any
    ) -> dict[str, list[dict[str, Any]]]:
        """Every side's answers: one that warms up, dropped but for its `first_loss`, and more.

        Args:
          repeats: how many answers count.
          do: the command.
          beside: gets each side's rate of matrix products, measured before each of its answers.
          **options: of the command.
        """
        sides = {"peer": self.peer, "ours": self.ours}
        answers_of: dict[str, list] = {name: [] for name, side in sides.items() if side}
        for turn in range(repeats + 1):
            for name in answers_of:
                child = sides[name]
                assert child is not None
                if beside is not None and turn:
                    rate = child.ask("matmul", size=1024, repeats=5)["flops"]
                    beside.setdefault(name, []).append(rate)
                answers_of[name].append(child.ask(do, **options))
        for answers in answers_of.values():
            answers[1]["first_loss"] = answers[0].get("first_loss")
            del answers[0]
        return answers_of

    def memory(self) -> dict[str, float]:
        """Peak memory so far, MiB."""
        peaks = {"ours": self.ours.ask("memory")["peak_mib"]}
        return peaks | ({"peer": self.peer.ask("memory")["peak_mib"]} if self.peer else {})

    def close(self) -> None:
        """Ends both."""
        self.ours.close()
        if self.peer:
            self.peer.close()


def summary(answers: list[dict[str, Any]], tokens: float | None = None) -> dict[str, Any]:
    """Median, least and most tokens/s of some passes, and what else they said."""
    rates = [(tokens or answer["tokens"]) / answer["seconds"] for answer in answers]
    kept = {k: v for k, v in answers[0].items() if k not in ("seconds", "tokens", "cpu_share")}
    shares = [answer["cpu_share"] for answer in answers]
    by_cpu = [rate / share for rate, share in zip(rates, shares, strict=True)]
    return {
        "cpu_share": statistics.median(shares),
        "tokens_per_cpu_second": statistics.median(by_cpu),
        "tokens_per_second": statistics.median(rates),
        "least": min(rates),
        "most": max(rates),
        "passes": len(rates),
        **{k: v for k, v in kept.items() if v is not None},
    }


def compared(records: dict[str, list], tokens: float | None = None) -> dict[str, Any]:
    """Summaries of both sides and their ratio."""
    entry: dict[str, Any] = {name: summary(answers, tokens) for name, answers in records.items()}
    if "peer" in entry:
        for name, rate in (("ratio", "tokens_per_second"), ("cpu_ratio", "tokens_per_cpu_second")):
            entry[name] = entry["ours"][rate] / entry["peer"][rate]
    return entry


def show(label: str, entry: dict[str, Any]) -> None:
    """One line of the table."""
    ours, peer = entry["ours"], entry.get("peer")
    other = f"{peer['tokens_per_second']:>9,.0f}" if peer else f"{'-':>9}"
    ratio = f"{entry['ratio']:>6.2f}{entry['cpu_ratio']:>6.2f}" if peer else f"{'-':>6}{'-':>6}"
    ratio += "".join(f"{side['cpu_share']:>6.2f}" for side in (ours, peer) if side)
    note = f"  {peer['setting']}" if peer and "setting" in peer else ""
    print(f"  {label:<44}{ours['tokens_per_second']:>9,.0f}{other}{ratio}{note}", flush=True)


def tuning(folder: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
    """LoRA steps; also the agreement of both sides, and the matrix rate between passes."""
    from xrec_jax.llm.model.config import LlamaConfig

    pair = Pair(folder, args)
    results: dict[str, Any] = {}
    results["versions"] = pair.ours.ask("versions")
    # Speeds are only comparable where both sides compute the same function of the weights.
    pair.ours.ask("logits")
    if pair.peer:
        results["versions"] |= pair.peer.ask("versions")
        pair.peer.ask("logits")
        a, b = (np.load(folder / f"{side}_logits.npy") for side in ("ours", "peer"))
        results["logits_difference"] = float(np.abs(a - b).max())
        if not results["logits_difference"] < 1e-4:
            raise SystemExit(f"logits differ by {results['logits_difference']}: nothing to compare")
    results["versions"].pop("cpu_share")
    parameters = LlamaConfig(**llm_work.TINY).matmul_parameters
    for targets, loss in (
        ("qv", "full"),
        ("all", "full"),
        ("qv", "completion"),
        ("all", "completion"),
    ):
        products: dict[str, list[float]] = {}
        answers = pair.each(
            args.repeats, "tune", beside=products, targets=targets, loss=loss, steps=args.steps
        )
        entry = compared(answers, tokens=8 * 256)
        # The first loss shows that both sides train on the same labels.
        if "peer" in answers:
            losses = [answers[side][0]["first_loss"] for side in ("ours", "peer")]
            if not abs(losses[0] - losses[1]) < 1e-4:
                raise SystemExit(f"first losses differ: {losses}")
        entry["matmul_flops"] = {k: statistics.median(v) for k, v in products.items()}
        if loss == "full":
            # Each side by the matrix products of its own library: on one core these differ by
            # more than two on some processors, and tokens/s shows that difference first.
            for side, own in entry["matmul_flops"].items():
                flops = entry[side]["tokens_per_second"] * 4 * parameters
                entry[side] |= {"flops_at_4n": flops, "share_of_matmul_rate": flops / own}
        results[f"{targets}/{loss}"] = entry
        names = {"full": "all tokens trained", "completion": "80 of 256 tokens trained"}
        show(f"LoRA step, {targets}, {names[loss]}", entry)
        if loss == "full":
            for side, own in entry["matmul_flops"].items():
                share = entry[side]["share_of_matmul_rate"]
                print(f"    {side}: at 4N {share:.0%} of its own {own / 1e9:.0f} GFLOP/s")
    results["peak_mib"] = pair.memory()
    pair.close()
    return results


def generation(folder: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
    """One static batch of equal lengths."""
    pair = Pair(folder, args)
    entry = compared(pair.each(args.repeats, "generate"))
    if pair.peer:
        ours, peer = (np.load(folder / f"{side}_tokens.npy") for side in ("ours", "peer"))
        entry["same_tokens"] = float((ours == peer).mean())
    entry["peak_mib"] = pair.memory()
    pair.close()
    show("greedy, batch 16, prompt 128, 64 new", entry)
    return entry


def mixed(folder: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
    """Answers of 8 to 128 tokens; every side and schedule may choose its batch size."""
    pair = Pair(folder, args)
    results: dict[str, Any] = {
        "prompts": args.prompts,
        "peer_share_of_batches": args.peer_share if args.peer else None,
    }
    for number, prompt in enumerate(args.mixed_prompts):
        section = results[f"prompt_{prompt}"] = {}
        for workload in CASES[: 2 if number else 3] if args.quick else CASES:
            section[workload] = mixed_case(pair, prompt, workload, args)
            show_mixed(f"prompt {prompt}, {workload}", section[workload])
    results["peak_mib"] = pair.memory()
    pair.close()
    return results


def mixed_case(pair: Pair, prompt: int, workload: str, args: argparse.Namespace) -> dict[str, Any]:
    """One prompt length, distribution and order: everyone takes turns; warming up is theirs."""
    limits, order = workload.split("/")
    options = dict(limits=limits, order=order, prompt=prompt)
    passes: dict[str, list] = {}
    # All take turns in every repeat, so that a slow minute of the machine hits all of them.
    for _ in range(args.mixed_repeats):
        for batch in BATCHES:
            turns: list[tuple[str, Child, dict[str, Any]]] = [
                (f"ours {name} {batch}", pair.ours, {"schedule": name})
                for name in ("continuous", "static")
            ]
            if pair.peer:
                turns.insert(0, (f"peer static {batch}", pair.peer, {"share": args.peer_share}))
            for name, child, more in turns:
                answer = child.ask("mixed", batch=batch, **options, **more)
                passes.setdefault(name, []).append(answer)
    summaries = {name: summary(answers) for name, answers in passes.items()}
    return summaries | ratios(summaries)


def ratios(summaries: dict[str, Any]) -> dict[str, Any]:
    """The best batch size of each schedule, and how they compare."""

    def rate(name: str) -> float:
        return float(summaries[name]["tokens_per_second"])

    # Each schedule is judged at the batch size that suits it best.
    best = {
        kind: max((name for name in summaries if name.startswith(kind)), key=rate)
        for kind in ("peer static", "ours static", "ours continuous")
        if any(name.startswith(kind) for name in summaries)
    }
    out: dict[str, Any] = {"best": best}
    ours = rate(best["ours continuous"])
    out["continuous_to_own_static_best"] = ours / rate(best["ours static"])
    out["continuous_to_own_static"] = {
        batch: rate(f"ours continuous {batch}") / rate(f"ours static {batch}") for batch in BATCHES
    }
    if "peer static" in best:
        out["continuous_to_peer_best"] = ours / rate(best["peer static"])
        out["continuous_to_peer"] = {
            batch: rate(f"ours continuous {batch}") / rate(f"peer static {batch}")
            for batch in BATCHES
        }
    return out


def show_mixed(label: str, entry: dict[str, Any]) -> None:
    """Lines of the table: useful tokens/s for every batch size, then the ratios of the best."""
    print(f"  {label}, batch {BATCHES}, useful tokens/s")
    for kind in ("peer static", "ours static", "ours continuous"):
        rates = [entry.get(f"{kind} {batch}") for batch in BATCHES]
        if all(rates):
            line = "".join(f"{rate['tokens_per_second']:>9,.0f}" for rate in rates if rate)
            print(f"    {kind:<18}{line}")
    peer = entry.get("continuous_to_peer_best")
    same = ", ".join(f"{value:.2f}" for value in entry["continuous_to_own_static"].values())
    print(
        f"    best to best: {f'{peer:.2f} of the peer, ' if peer else ''}"
        f"{entry['continuous_to_own_static_best']:.2f} of own static (same batch: {same})",
        flush=True,
    )


def shared(folder: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
    """Ten recommendations for each user: the history is the same."""
    only = argparse.Namespace(**{**vars(args), "peer": ""})
    pair, results = Pair(folder, only), {}
    source = json.loads((folder / "prompts.json").read_text())["source"]
    for new in (32, 64):
        passes: dict[bool, list] = {True: [], False: []}
        for _ in range(args.repeats):
            for share in passes:
                passes[share].append(pair.ours.ask("shared", share=share, batch=16, new=new))
        on, off = summary(passes[True]), summary(passes[False])
        same = on.pop("answers") == off.pop("answers")
        ratio = on["tokens_per_second"] / off["tokens_per_second"]
        entry = {"shared": on, "not_shared": off, "ratio": ratio, "same_answers": same}
        results[f"{new}_new_tokens"] = entry
        print(
            f"  {on['prompts']} {source} prompts of {on['mean_prompt']:.0f} tokens, {new} new: "
            f"shared {on['tokens_per_second']:,.0f}, not {off['tokens_per_second']:,.0f} new "
            f"tokens/s, ratio {entry['ratio']:.2f}, same answers: {same}",
            flush=True,
        )
    pair.close()
    return results | {"source": source}


SECTIONS = {"tuning": tuning, "generation": generation, "mixed": mixed, "shared": shared}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All sections on the CPU."""
    args.pinned = list(range(args.first_core, args.first_core + args.cores))
    results: dict[str, Any] = {"machine": llm_work.machine(), "cores_pinned": args.pinned}
    if not args.peer:
        print("no --peer: only our side is measured")
    print(f"  {'tokens/s':<44}{'ours':>9}{'peer':>9}{'ratio':>6}  by CPU seconds; CPU shares")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        passed = (
            f"--prompts={args.prompts}",
            f"--longest={max(args.mixed_prompts)}",
            f"--users={args.users}",
            f"--data={args.data}",
        )
        command = [sys.executable, str(HERE / "llm_work.py"), f"--folder={folder}", *passed]
        subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        for section in args.sections.split(","):
            results[section] = SECTIONS[section](folder, args)
    results["machine"]["load_after"] = os.getloadavg()
    for section, section_results in results.items():
        if isinstance(section_results, dict) and "peak_mib" in section_results:
            peaks = ", ".join(
                f"{side} {peak:,.0f}" for side, peak in section_results["peak_mib"].items()
            )
            print(f"  peak memory, {section}: {peaks} MiB")
    return results


def main() -> None:
    """Runs and prints everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cores", type=int, default=1, help="how many, from --first-core on")
    parser.add_argument("--first-core", type=int, default=0)
    parser.add_argument("--peer", default="", help="python of an environment with torch and peft")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of these")
    parser.add_argument("--quick", action="store_true", help="fewer passes; options given win")
    parser.add_argument("--repeats", type=int, default=7, help="timed passes")
    parser.add_argument("--steps", type=int, default=5, help="tuning steps a pass")
    parser.add_argument("--prompts", type=int, default=512, help="of the mixed workload")
    parser.add_argument("--mixed-prompt", type=int, default=0, help="tokens to read; 0: 128, 32")
    parser.add_argument("--mixed-repeats", type=int, default=3)
    parser.add_argument("--peer-share", type=float, default=0.25, help="of mixed batches it runs")
    parser.add_argument("--users", type=int, default=16, help="of the shared prompts")
    parser.add_argument("--data", default=str(ROOT / PROMPTS), help="LLMXRec's prompts, if there")
    parser.add_argument("--output", default="")
    parser.add_argument("--gpu", action="store_true", help="the accelerator's part instead")
    parser.add_argument(
        "--shape", choices=llm_device.SHAPES, default="llama3_8b", help="with --gpu"
    )
    parser.add_argument("--sequence", type=int, default=2048, help="with --gpu")
    parser.add_argument("--device-batches", default="2,4,8,16", help="with --gpu, ascending")
    parser.add_argument("--remat", default="dots,full", help="with --gpu")
    parser.add_argument("--decode-batch", type=int, default=64, help="with --gpu")
    parser.add_argument("--prompt", type=int, default=256, help="with --gpu, tokens to read")
    parser.add_argument("--new", type=int, default=129, help="with --gpu, tokens to generate")
    parser.add_argument("--copy-bytes", type=int, default=1 << 32, help="with --gpu")
    # --quick changes defaults only, so that an option that is given still counts.
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args()
    args.mixed_prompts = [args.mixed_prompt] if args.mixed_prompt else list(MIXED_PROMPTS)
    unknown = set(args.sections.split(",")) - set(SECTIONS)
    if unknown:
        parser.error(
            f"--sections: no {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}"
        )
    if args.gpu:
        from xrec_jax.core.runtime.memory import keep_freed_memory

        keep_freed_memory()
    results = llm_device.accelerator(args) if args.gpu else run(args)
    path = pathlib.Path(args.output or f"experiments/results/llm{'_gpu' * args.gpu}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
