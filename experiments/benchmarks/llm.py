"""Tuning and generation with a tiny LLaMA beside transformers and PEFT, and the same on a GPU.

    python experiments/benchmarks/llm.py --cores=1                      # only ours
    python experiments/benchmarks/llm.py --cores=1 --peer=VENV/bin/python   # torch side beside it
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
import gzip
import json
import os
import pathlib
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.append(str(ROOT))  # works without an installation, too
PROMPTS = "../shared/data/llmxrec/bpr-mf/prompts.jsonl.gz"

TINY: dict[str, Any] = dict(
    vocab_size=4096, hidden_size=256, intermediate_size=688, num_layers=4, num_heads=8,
    num_kv_heads=4, head_dim=32, max_positions=2048,
)  # fmt: skip
LLAMA3_8B: dict[str, Any] = dict(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_layers=32, num_heads=32,
    num_kv_heads=8, head_dim=128, max_positions=131072, rope_theta=500000.0,
)  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {"tiny": TINY, "llama3_8b": LLAMA3_8B}
TARGETS = {"qv": ("q", "v"), "all": ("q", "k", "v", "o", "gate", "up", "down")}
HISTORY = 12  # films in a prompt that shares its beginning: about 350 tokens in all
BATCHES = (16, 32, 64)
# Dense bf16 FLOP/s that vendors publish, by a part of the device's kind; the first match counts.
PEAKS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "B200": 2250e12, "GB200": 2450e12,
    "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "TPU v4": 275e12,
    "TPU v5 lite": 197e12, "TPU v5": 459e12, "TPU v6": 918e12,
}  # fmt: skip


# --- The work -------------------------------------------------------------------------------------


def user_prompts(data: str, tokenizer_folder: pathlib.Path, users: int) -> tuple[list, str]:
    """LLMXRec's movie prompts, ten recommended items a user: token ids, and where they are from."""
    from xrec_jax.llm.bpe import train_bpe
    from xrec_jax.text.prompts import render_prompt
    from xrec_jax.text.published import MOVIE

    rng, begin, end = random.Random(0), "title and class:\n", "\n\nUse ONLY"
    if pathlib.Path(data).exists():
        with gzip.open(data, "rt") as file:
            lines = [json.loads(line) for line in file]
        texts, source = [x["prompt"] for x in lines if x["dataset"] == "ml-100k"], "LLMXRec"
    else:
        source, kinds = "generated", ("Comedy", "Drama War", "Action Thriller", "Musical Romance")
        words = "river night iron summer last glass king letter winter road small house".split()
        items = [
            {"movie_title": " ".join(rng.sample(words, 2)).title(), "class": rng.choice(kinds)}
            for _ in range(400)
        ]
        texts = [
            render_prompt(
                MOVIE, item=rng.choice(items), history=rng.sample(items, rng.randint(8, 30)),
                user={"age": rng.randint(18, 60), "gender": "female", "occupation": "artist"},
            ).text
            for _ in range(300)
        ]  # fmt: skip
    tokenizer = train_bpe(texts, tokenizer_folder, vocab_size=TINY["vocab_size"])
    recommended = [text.split(begin)[1].split(end)[0] for text in texts]
    prompts = []
    for text in rng.sample(texts, users):
        head, rest = text.split(begin)
        watched, instruction = head.split("\n\n", 1)
        kept = watched.split("\n")[: 1 + 2 * HISTORY]  # a title and a class line each
        head = "\n".join(kept) + "\n\n" + instruction
        tail = end + rest.split(end)[1]
        prompts += [head + begin + item + tail for item in rng.sample(recommended, 10)]
    rng.shuffle(prompts)
    return [list(map(int, tokenizer.encode(text))) for text in prompts], source


def prepare(folder: pathlib.Path, args: argparse.Namespace) -> None:
    """Writes the checkpoint and the work that both sides read."""
    import jax
    from flax import linen as nn

    from xrec_jax.llm.config import LlamaConfig
    from xrec_jax.llm.hf_export import save_params
    from xrec_jax.llm.llama import Llama

    config = LlamaConfig(**TINY)
    params = jax.jit(lambda key: nn.unbox(Llama(config).init(key)))(jax.random.key(0))
    save_params(folder / "model", params, config)
    rng = np.random.default_rng(0)

    def tokens(*shape: int) -> np.ndarray:
        return rng.integers(0, config.vocab_size, shape, dtype=np.int32)

    tune = tokens(8, 256)
    answers = np.where(np.arange(256) >= 256 - 80, tune, -100)
    spread = rng.uniform(size=args.prompts)
    np.savez(
        folder / "work.npz", check_ids=tokens(2, 64), tune_ids=tune, labels_full=tune,
        labels_completion=answers, generate_ids=tokens(16, 128), generate_new=64,
        mixed_ids=tokens(args.prompts, args.mixed_prompt),
        limits_uniform=np.round(8 + 120 * spread).astype(np.int32),
        limits_loguniform=np.round(8 * 16**spread).astype(np.int32),
    )  # fmt: skip
    ids, source = user_prompts(args.data, folder / "tokenizer", args.users)
    (folder / "prompts.json").write_text(json.dumps({"ids": ids, "source": source}))


# --- Our side -------------------------------------------------------------------------------------


def lora_step(model: Any, targets: tuple[str, ...], seed: int = 0) -> tuple[Any, Any, Callable]:
    """An adapter, its optimiser's state, and the jitted step
    `(params, adapter, state, ids, labels) -> (adapter, state, loss)`.
    """  # noqa: D205
    import jax
    import jax.numpy as jnp
    import optax

    from xrec_jax.llm import lora
    from xrec_jax.llm.losses import cross_entropy

    adapter = lora.init(lora.LoraConfig(targets=targets), model.config, jax.random.key(seed))
    optimizer = optax.adamw(3e-4, weight_decay=0.01)

    def loss_fn(trained: Any, params: Any, ids: jax.Array, labels: jax.Array) -> jax.Array:
        hidden = model.hidden(params, ids, adapter=adapter.replace(params=trained))
        following = jnp.roll(labels, -1, axis=1).at[:, -1].set(-100)
        weights = (following >= 0).astype(jnp.float32)
        total = cross_entropy(hidden, model.table(params), jnp.maximum(following, 0), weights)
        return total / weights.sum()

    def step(params: Any, trained: Any, state: Any, ids: jax.Array, labels: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(trained, params, ids, labels)
        updates, state = optimizer.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, loss

    state = jax.jit(optimizer.init)(adapter.params)
    return adapter.params, state, jax.jit(step, donate_argnums=(1, 2))


class Ours:
    """Answers the same commands as `llm_peer.Peer`."""

    def __init__(self, folder: pathlib.Path):
        import jax

        from xrec_jax.llm import hf, schedule
        from xrec_jax.llm.llama import Llama

        self._folder = folder
        self._work = dict(np.load(folder / "work.npz"))
        found = hf.open_model(folder / "model")
        self._model = Llama(found.config)
        self._params = jax.tree.map(jax.numpy.asarray, found.load_params())
        self._tuned: dict[str, Any] = {}
        self._samplers: dict[Any, Any] = {}
        self._warm: set[Any] = set()
        self._sorted = schedule.Run._ordered

    def versions(self) -> dict[str, str]:
        """Of the libraries."""
        import flax
        import jax

        import xrec_jax

        modules = (jax, flax, xrec_jax)
        return {module.__name__: module.__version__ for module in modules}

    def matmul(self, size: int, repeats: int) -> dict[str, Any]:
        """float32 FLOP/s of a square product."""
        import jax

        a, b = jax.random.uniform(jax.random.key(0), (2, size, size))
        product = jax.jit(jax.numpy.matmul)
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            product(a, b).block_until_ready()
            seconds.append(time.perf_counter() - start)
        return {"flops": 2 * size**3 / statistics.median(seconds[1:])}

    def logits(self) -> dict[str, Any]:
        """Of some random tokens, into a file."""
        import jax

        out = jax.jit(self._model.logits)(self._params, self._work["check_ids"])
        np.save(self._folder / "ours_logits.npy", np.asarray(out))
        return {}

    def tune(self, targets: str, loss: str, steps: int) -> dict[str, Any]:
        """Times LoRA steps; the first call compiles and returns the first loss."""
        name, first = f"{targets}/{loss}", None
        ids, labels = self._work["tune_ids"], self._work[f"labels_{loss}"]
        if name not in self._tuned:
            trained, state, step = lora_step(self._model, TARGETS[targets])
            trained, state, first = step(self._params, trained, state, ids, labels)
            first = float(first)
            trained, state, _ = step(self._params, trained, state, ids, labels)
            self._tuned[name] = (trained, state, step)
        trained, state, step = self._tuned[name]
        start = time.perf_counter()
        for _ in range(steps):
            trained, state, value = step(self._params, trained, state, ids, labels)
            float(value)
        seconds = time.perf_counter() - start
        self._tuned[name] = (trained, state, step)
        return {"seconds": seconds / steps, "first_loss": first}

    def _sampler(self, batch: int, schedule: str, **options: Any) -> Any:
        from xrec_jax.llm.sampler import Sampler

        key = (batch, schedule, *options.items())
        if key not in self._samplers:
            self._samplers[key] = Sampler(
                self._model, self._params, eos=(), batch=batch, schedule=schedule, **options
            )
        return self._samplers[key]

    def _once(self, key: Any, call: Callable[[], Any]) -> None:
        if key not in self._warm:
            self._warm.add(key)
            call()

    def _requests(self, ids: Any, limits: Any) -> list[Any]:
        from xrec_jax.llm.schedule import Request

        pairs = zip(ids, limits, strict=True)
        return [Request(list(map(int, row)), int(limit)) for row, limit in pairs]

    def generate(self) -> dict[str, Any]:
        """Times one static batch."""
        ids, new = self._work["generate_ids"], int(self._work["generate_new"])
        sampler = self._sampler(len(ids), "static")
        requests = self._requests(ids, [new] * len(ids))
        if not (self._folder / "ours_tokens.npy").exists():
            answers = sampler.generate(requests)
            np.save(self._folder / "ours_tokens.npy", np.array([a.ids for a in answers]))
        start = time.perf_counter()
        answers = sampler.generate(requests)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": sum(len(a.ids) for a in answers)}

    def mixed(self, limits: str, batch: int, order: str, schedule: str) -> dict[str, Any]:
        """Times the whole mixed workload; the first call of a kind also warms up.

        Args:
          limits: which distribution of answer lengths.
          batch: rows.
          order: "known" lets the schedule sort by length, "unknown" takes prompts as they come.
          schedule: "continuous" or "static".
        """
        from xrec_jax.llm.schedule import Run

        wanted = self._work[f"limits_{limits}"]
        requests = self._requests(self._work["mixed_ids"], wanted)
        sampler = self._sampler(batch, schedule)
        # The schedule sorts by `max_new_tokens`, which here stands for a length nobody knows yet.
        Run._ordered = self._sorted if order == "known" else lambda self, group: group  # type: ignore[method-assign]
        # All of it once before: which numbers of prompts are read at a time, and so what is
        # compiled, depends on every answer's length.
        self._once((limits, batch, order, schedule), lambda: sampler.generate(requests))
        start = time.perf_counter()
        answers = sampler.generate(requests)
        seconds = time.perf_counter() - start
        Run._ordered = self._sorted  # type: ignore[method-assign]
        if [len(answer.ids) for answer in answers] != wanted.tolist():
            raise AssertionError("an answer has not the length that was asked for")
        return {
            "seconds": seconds, "tokens": int(wanted.sum()), "prompts": len(requests),
            "steps": sampler.work.steps,
        }  # fmt: skip

    def shared(self, share: bool, batch: int, new: int) -> dict[str, Any]:
        """Times ten prompts a user, with what they share read once or every time."""
        ids = json.loads((self._folder / "prompts.json").read_text())["ids"]
        requests = self._requests(ids, [new] * len(ids))
        sampler = self._sampler(batch, "continuous", share_prefixes=share)
        self._once((share, batch, new), lambda: sampler.generate(requests))
        start = time.perf_counter()
        answers = sampler.generate(requests)
        seconds = time.perf_counter() - start
        tokens = sum(len(a.ids) for a in answers)
        work = sampler.work
        return {
            "seconds": seconds, "tokens": tokens, "answers": hash(str([a.ids for a in answers])),
            "prompt_tokens": work.prompt_tokens, "shared_tokens": work.shared_tokens,
            "mean_prompt": sum(map(len, ids)) / len(ids), "prompts": len(ids),
        }  # fmt: skip

    def memory(self) -> dict[str, float]:
        """Peak resident memory of this process."""
        return {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def serve(folder: pathlib.Path) -> None:
    """Calls the method of `Ours` that each line of standard input names."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    ours = Ours(folder)
    for line in sys.stdin:
        command = json.loads(line)
        begin, busy = time.perf_counter(), time.process_time()
        found = getattr(ours, command.pop("do"))(**command)
        found["cpu_share"] = (time.process_time() - busy) / (time.perf_counter() - begin)
        answers.write(json.dumps(found) + "\n")
        answers.flush()


# --- The driver -----------------------------------------------------------------------------------


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
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip

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
        ours = [sys.executable, __file__, "--child=serve", f"--folder={folder}"]
        peer = [args.peer, "-B", str(HERE / "llm_peer.py"), f"--folder={folder}"]
        self.ours = Child(ours, cores)
        self.peer = Child([*peer, f"--threads={len(cores)}"], cores) if args.peer else None

    def each(self, repeats: int, do: str, **options: Any) -> dict[str, list[dict[str, Any]]]:
        """Every side's answers: one that warms up, dropped but for its `first_loss`, and more."""
        sides = {"peer": self.peer, "ours": self.ours}
        found: dict[str, list] = {name: [] for name, side in sides.items() if side}
        for _ in range(repeats + 1):
            for name in found:
                child = sides[name]
                assert child is not None
                found[name].append(child.ask(do, **options))
        for answers in found.values():
            answers[1]["first_loss"] = answers[0].get("first_loss")
            del answers[0]
        return found

    def memory(self) -> dict[str, float]:
        """Peak memory so far, MiB."""
        found = {"ours": self.ours.ask("memory")["peak_mib"]}
        return found | ({"peer": self.peer.ask("memory")["peak_mib"]} if self.peer else {})

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
        "cpu_share": statistics.median(shares), "tokens_per_cpu_second": statistics.median(by_cpu),
        "tokens_per_second": statistics.median(rates), "least": min(rates), "most": max(rates),
        "passes": len(rates), **{k: v for k, v in kept.items() if v is not None},
    }  # fmt: skip


def compared(found: dict[str, list], tokens: float | None = None) -> dict[str, Any]:
    """Summaries of both sides and their ratio."""
    entry: dict[str, Any] = {name: summary(answers, tokens) for name, answers in found.items()}
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
    """LoRA steps; also the agreement of both sides and the machine's matrix rate."""
    pair = Pair(folder, args)
    results: dict[str, Any] = {}
    results["versions"] = pair.ours.ask("versions")
    rates = [pair.ours.ask("matmul", size=1024, repeats=9)["flops"]]
    pair.ours.ask("logits")
    if pair.peer:
        results["versions"] |= pair.peer.ask("versions")
        rates.append(pair.peer.ask("matmul", size=1024, repeats=9)["flops"])
        pair.peer.ask("logits")
        a, b = (np.load(folder / f"{side}_logits.npy") for side in ("ours", "peer"))
        results["logits_difference"] = float(np.abs(a - b).max())
        if not results["logits_difference"] < 1e-4:
            raise SystemExit(f"logits differ by {results['logits_difference']}: nothing to compare")
    results["versions"].pop("cpu_share")
    results["matmul_flops"] = max(rates)
    parameters = matmul_parameters(TINY)
    for targets, loss in (("qv", "full"), ("all", "full"), ("qv", "completion"),
                          ("all", "completion")):  # fmt: skip
        found = pair.each(args.repeats, "tune", targets=targets, loss=loss, steps=args.steps)
        entry = compared(found, tokens=8 * 256)
        if "peer" in found:
            losses = [found[side][0]["first_loss"] for side in ("ours", "peer")]
            if not abs(losses[0] - losses[1]) < 1e-4:
                raise SystemExit(f"first losses differ: {losses}")
        if loss == "full":
            rate = entry["ours"]["tokens_per_second"] * 4 * parameters
            entry |= {"flops_at_4n": rate, "share_of_matmul_rate": rate / results["matmul_flops"]}
        results[f"{targets}/{loss}"] = entry
        names = {"full": "all tokens trained", "completion": "80 of 256 tokens trained"}
        show(f"LoRA step, {targets}, {names[loss]}", entry)
    results["peak_mib"] = pair.memory()
    pair.close()
    share = results["qv/full"]["share_of_matmul_rate"]
    print(f"  at 4N {share:.0%} of the matmul rate, {results['matmul_flops'] / 1e9:.0f} GFLOP/s")
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
        "prompt_tokens": args.mixed_prompt,
        "peer_share_of_batches": args.peer_share,
    }
    sides = [(pair.ours, "ours", name) for name in ("continuous", "static")]
    if pair.peer:
        sides.insert(0, (pair.peer, "peer", "static"))
    for limits in ("loguniform", "uniform"):
        for order in ("unknown", "known"):
            found: dict[str, Any] = {}
            passes: dict[str, list] = {}
            for turn in range(args.mixed_repeats + 1):
                for batch in BATCHES:
                    for child, side, name in sides:
                        options = dict(limits=limits, batch=batch, order=order)
                        more = dict(share=args.peer_share) if side == "peer" else {"schedule": name}
                        if not turn and side == "ours":
                            continue  # it warms up by itself
                        if not turn and (batch != BATCHES[0] or limits == "uniform"):
                            continue
                        answer = child.ask("mixed", **options, **more)
                        if turn:
                            passes.setdefault(f"{side} {name} {batch}", []).append(answer)
            found = {name: summary(answers) for name, answers in passes.items()}
            results[f"{limits}/{order}"] = found | ratios(found)
            show_mixed(f"{limits} lengths, {order}", found, results[f"{limits}/{order}"])
    results["peak_mib"] = pair.memory()
    pair.close()
    return results


def ratios(found: dict[str, Any]) -> dict[str, Any]:
    """The best batch size of each schedule, and how they compare."""

    def rate(name: str) -> float:
        return float(found[name]["tokens_per_second"])

    best = {
        kind: max((name for name in found if name.startswith(kind)), key=rate)
        for kind in ("peer static", "ours static", "ours continuous")
        if any(name.startswith(kind) for name in found)
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


def show_mixed(label: str, found: dict[str, Any], entry: dict[str, Any]) -> None:
    """A block of the table: useful tokens/s for every batch size, then the ratios of the best."""
    print(f"  {label}, batch {BATCHES}, useful tokens/s")
    for kind in ("peer static", "ours static", "ours continuous"):
        rates = [found.get(f"{kind} {batch}") for batch in BATCHES]
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


def matmul_parameters(shape: dict[str, Any]) -> int:
    """N of the 4N FLOPs a token."""
    from xrec_jax.llm.config import LlamaConfig

    return LlamaConfig(**shape).matmul_parameters


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = ""
    if pathlib.Path("/proc/cpuinfo").exists():
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(), "cores_of_machine": os.cpu_count(),
        "python": platform.python_version(), "load_before": os.getloadavg(),
    }  # fmt: skip


# --- A GPU (or TPU) -------------------------------------------------------------------------------


def random_params(config: Any, dtype: Any) -> Any:
    """Weights made on the device, one leaf at a time: nothing is read or sent."""
    import jax
    import jax.numpy as jnp

    from xrec_jax.llm import layout

    leaves, tree = jax.tree.flatten(layout.abstract(config, dtype))
    make = jax.jit(lambda key, shape: 0.02 * jax.random.normal(key, shape, dtype), static_argnums=1)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    made = []
    for key, leaf in zip(keys, leaves, strict=True):
        norm = leaf.ndim == 1 or leaf.shape == (config.num_layers, config.hidden_size)
        made.append(jnp.ones(leaf.shape, dtype) if norm else make(key, leaf.shape))
    return jax.tree.unflatten(tree, made)


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

    from xrec_jax.llm.config import LlamaConfig

    device = jax.devices()[0]
    config = LlamaConfig(**SHAPES[args.shape])
    peak = next((flops for part, flops in PEAKS.items() if part in device.device_kind), None)
    results: dict[str, Any] = {
        "device": device.device_kind, "jax": jax.__version__, "shape": args.shape,
        "peak_bf16_flops": peak, "parameters": config.num_parameters,
        "copy_bytes_per_second": copy_bandwidth(args.copy_bytes),
    }  # fmt: skip
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


def device_tuning(config: Any, params: Any, peak: float | None, args: Any) -> list[dict[str, Any]]:
    """LoRA rank 8 on all projections: every batch size and remat policy that fits."""
    import jax
    import jax.numpy as jnp

    from xrec_jax.llm.llama import Llama

    found = []
    for remat in args.remat.split(","):
        for batch in map(int, args.device_batches.split(",")):
            model = Llama(config, jnp.bfloat16, remat=remat)
            shape = (batch, args.sequence)
            ids = jax.random.randint(jax.random.key(1), shape, 0, config.vocab_size)
            entry: dict[str, Any] = {"remat": remat, "batch": batch, "sequence": args.sequence}
            trained, state, step = lora_step(model, TARGETS["all"])
            try:
                for _ in range(3):
                    trained, state, loss = step(params, trained, state, ids, ids)
                loss.block_until_ready()
                seconds = []
                for _ in range(args.repeats):
                    start = time.perf_counter()
                    for _ in range(args.steps):
                        trained, state, loss = step(params, trained, state, ids, ids)
                    loss.block_until_ready()
                    seconds.append((time.perf_counter() - start) / args.steps)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                found.append(entry | {"fits": False})
                print(f"  remat {remat}, batch {batch}: does not fit", flush=True)
                break
            rate = batch * args.sequence / statistics.median(seconds)
            entry |= {"fits": True, "tokens_per_second": rate, "loss": float(loss)}
            entry["flops_at_4n"] = rate * 4 * config.matmul_parameters
            entry["mfu"] = entry["flops_at_4n"] / peak if peak else None
            found.append(entry)
            share = f", MFU {entry['mfu']:.1%}" if peak else ""
            print(f"  remat {remat}, batch {batch}: {rate:,.0f} tokens/s{share}", flush=True)
    return found


def device_decoding(config: Any, params: Any, results: Any, args: Any) -> list[dict[str, Any]]:
    """Decoding steps without the prompt's reading: a long generation less one of a single token."""
    import jax
    import jax.numpy as jnp

    from xrec_jax.llm.llama import Llama
    from xrec_jax.llm.sampler import Sampler
    from xrec_jax.llm.schedule import Request

    rng, found = np.random.default_rng(0), []
    prompt, new, batch = args.prompt, args.new, args.decode_batch
    prompts = rng.integers(0, config.vocab_size, (batch, prompt)).tolist()
    model = Llama(config, jnp.bfloat16)
    for unstack in (False, True):
        sampler = Sampler(
            model, params, eos=(), batch=batch, schedule="static", unstack_layers=unstack
        )
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
            "batch": batch, "prompt": prompt, "new": new, "unstack_layers": unstack,
            "seconds_per_step": step, "tokens_per_second": batch / step,
            "prompt_tokens_per_second": batch * prompt / timed[1],
            "weight_bytes": weights, "cache_bytes": cache,
            "bytes_per_second": (weights + cache) / step,
        }  # fmt: skip
        entry["share_of_copy"] = entry["bytes_per_second"] / results["copy_bytes_per_second"]
        found.append(entry)
        print(
            f"  decode, batch {batch}, unstack_layers={unstack}: {1e3 * step:.2f} ms a step, "
            f"{entry['share_of_copy']:.1%} of copy bandwidth",
            flush=True,
        )
        del sampler
        jax.clear_caches()
    return found


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All sections on the CPU."""
    args.pinned = list(range(args.first_core, args.first_core + args.cores))
    results: dict[str, Any] = {"machine": machine(), "cores_pinned": args.pinned}
    if not args.peer:
        print("no --peer: only our side is measured")
    print(f"  {'tokens/s':<44}{'ours':>9}{'peer':>9}{'ratio':>6}  by CPU seconds; CPU shares")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        passed = (
            f"--prompts={args.prompts}",
            f"--mixed-prompt={args.mixed_prompt}",
            f"--users={args.users}",
            f"--data={args.data}",
        )
        command = [sys.executable, __file__, "--child=prepare", f"--folder={folder}", *passed]
        subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        for section in args.sections.split(","):
            results[section] = SECTIONS[section](folder, args)
    results["machine"]["load_after"] = os.getloadavg()
    for section, found in results.items():
        if isinstance(found, dict) and "peak_mib" in found:
            peaks = ", ".join(f"{side} {peak:,.0f}" for side, peak in found["peak_mib"].items())
            print(f"  peak memory, {section}: {peaks} MiB")
    return results


def main() -> None:
    """Runs and prints everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cores", type=int, default=1, help="how many, from --first-core on")
    parser.add_argument("--first-core", type=int, default=0)
    parser.add_argument("--peer", default="", help="python of an environment with torch and peft")
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--repeats", type=int, default=7, help="timed passes")
    parser.add_argument("--steps", type=int, default=5, help="tuning steps a pass")
    parser.add_argument("--prompts", type=int, default=512, help="of the mixed workload")
    parser.add_argument("--mixed-prompt", type=int, default=128, help="tokens to read in it")
    parser.add_argument("--mixed-repeats", type=int, default=3)
    parser.add_argument("--peer-share", type=float, default=0.25, help="of mixed batches it runs")
    parser.add_argument("--users", type=int, default=16, help="of the shared prompts")
    parser.add_argument("--data", default=str(ROOT / PROMPTS), help="LLMXRec's prompts, if there")
    parser.add_argument("--output", default="")
    parser.add_argument("--gpu", action="store_true", help="the accelerator's part instead")
    parser.add_argument("--shape", choices=SHAPES, default="llama3_8b", help="with --gpu")
    parser.add_argument("--sequence", type=int, default=2048, help="with --gpu")
    parser.add_argument("--device-batches", default="2,4,8,16", help="with --gpu, ascending")
    parser.add_argument("--remat", default="dots,full", help="with --gpu")
    parser.add_argument("--decode-batch", type=int, default=64, help="with --gpu")
    parser.add_argument("--prompt", type=int, default=256, help="with --gpu, tokens to read")
    parser.add_argument("--new", type=int, default=129, help="with --gpu, tokens to generate")
    parser.add_argument("--copy-bytes", type=int, default=1 << 32, help="with --gpu")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child or args.gpu:
        from xrec_jax.core.memory import keep_freed_memory

        keep_freed_memory()
    if args.child == "prepare":
        prepare(args.folder, args)
        return
    if args.child == "serve":
        serve(args.folder)
        return
    results = accelerator(args) if args.gpu else run(args)
    path = pathlib.Path(args.output or f"experiments/results/llm{'_gpu' * args.gpu}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
