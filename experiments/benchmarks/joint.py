"""One round of joint training by its parts, and its rollouts beside the path of `xrec explain`.

    python experiments/benchmarks/joint.py --workdir=runs/recpie_world --cores=1
    python experiments/benchmarks/joint.py                       # a run of the config's :tiny first
    python experiments/benchmarks/joint.py --workdir=DIR --gpu   # on the accelerator
    python experiments/benchmarks/joint.py --workdir=DIR --parts=prompts    # PPO alone

Reads a run of `configs/recpie_world.py` (its recommender, base and, if there are any, its rounds);
everything is written to a copy, the run stays as it is. Rounds go on from the run's last one. The
first one compiles; reported are medians over the next ones, as seconds of the clock and, since
others may use the machine, of this process.

Rollouts answer the very same prompts with the same adapter, sampling and seeds in turns with

* explain: `explainers.answers` with `explainers.Model`, as `xrec explain` writes; the placeholders
  of the soft prompt are plain tokens there, and beginnings that prompts share are read once;
* explain, nothing shared: the same, every prompt read whole;
* no soft prompt: the rollout's own code with the placeholders left as they are.

All end with texts. "equal lengths" lets nothing end an answer, so all sides write as many tokens;
"as they end" lets an EOS end them, and rates of tokens are compared.

"prompts" times what PPO does with one round's rollouts (log-probabilities of policy, reference and
critic, and all updates), in turns with a group's answers sharing the row of their prompt and with a
row each. Expected: with P tokens of a prompt, A of an answer and G answers in a group, the ratio of
the columns read, G (P + A) / (P + G A), less what answers in one row spend on masked scores of each
other.

Expected before the first measurement: soft vectors cost nothing by themselves (a choice between two
embeddings while prompts are read, half a megabyte sent a round), so rollouts are as fast as explain
without shared beginnings; against explain with them they lose what reading the common instruction
again costs, 5 to 10 %. In a round PPO takes most of the time: a token is read by policy, reference
and critic once and trained on twice by two of them, beside one rollout.

Found on one busy core, by process seconds: rollouts ran at 0.99 of explain without shared
beginnings and at 0.84 of it with them, so soft vectors are free, and reading the common
instruction again cost more than expected. Since then prompts share what stands before their first
soft vector. On a base that reads better, two idle cores: 1.04 of explain's tokens a second, at
equal lengths and as answers end (1.07 and 1.06 by process seconds).

With shared prompts PPO takes 21.5 s for 4,096 rollouts of `recpie_world` in groups of 8, and 62.2 s
without (2.9 times as long; 3.7 times the columns), one warm turn each on two cores. Of a whole
round there, 45.4 s, PPO is 44 %, rollouts 30 %, new explanations 20 %, scoring 5 %; evaluation and
recommender take .7 s together.
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import json
import os
import pathlib
import pstats
import runpy
import shutil
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from typing import Any

from xrec_jax.run_config import read_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # works without an installation, too

PHASES = ("rollout", "scoring", "ppo", "encoding", "recommender", "evaluation")
NEVER = -1  # a token that no model writes


class Timer:
    """Seconds of the clock and of this process."""

    def __init__(self) -> None:
        self.begin = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Seconds since it was made."""
        return time.perf_counter() - self.begin[0], time.process_time() - self.begin[1]


def copied(workdir: pathlib.Path, folder: pathlib.Path, seed: int) -> pathlib.Path:
    """What is read of a run, in a directory that may be written to."""
    folder.mkdir()
    for name in ("config.json", "evaluation.json"):
        if (workdir / name).exists():
            shutil.copy(workdir / name, folder / name)
    for name in ("base", "tokenizer", "judge"):
        if (workdir / name).exists():
            (folder / name).symlink_to((workdir / name).absolute())
    for part in ("recommend", f"joint/{seed}"):
        if (workdir / "checkpoints" / part).exists():
            shutil.copytree(workdir / "checkpoints" / part, folder / "checkpoints" / part)
    return folder


class Bench:
    """A seed of a run, ready for further rounds; used inside its mesh."""

    def __init__(self, workdir: pathlib.Path, mesh: Any, seed: int):
        from xrec_jax.core.logging import MetricWriter
        from xrec_jax.core.rundir import RunDir
        from xrec_jax.data.run_data import prepare
        from xrec_jax.joint import guards
        from xrec_jax.joint.granularity import open_setup
        from xrec_jax.joint.guards import GuardOptions, GuardState
        from xrec_jax.joint.recommender.fused import system_of
        from xrec_jax.joint.setup import JointSetup
        from xrec_jax.joint.sides import open_sides
        from xrec_jax.joint.trainer import ready, state_shape, warm_start
        from xrec_jax.llm import run_base
        from xrec_jax.run_config import import_extensions, read_config
        from xrec_jax.training.checkpoint import Checkpoints
        from xrec_jax.training.recommender import RecommenderTask

        rundir = RunDir(workdir)
        config = read_config(rundir)
        import_extensions(config)
        data = prepare(config.data)
        base = run_base.load_base(config, rundir, mesh)
        self.setup = open_setup(JointSetup(config, data, base, mesh=mesh, rundir=rundir))
        # Speed is looked at, not whether the run should go on.
        kept = ("min_delta", "gain_metric")
        limits = [f.name for f in dataclasses.fields(GuardOptions) if f.name not in kept]
        off: Any = dict.fromkeys(limits)
        self.setup.shared.guards = GuardOptions(**off)
        guards.check_rollouts = lambda *_, **__: guards.Verdict()  # type: ignore[assignment]
        task = RecommenderTask(config, system_of(config), data=data, mesh=mesh, rundir=rundir)
        sides = open_sides(self.setup, task, seed)
        writer = MetricWriter(rundir.path)
        warm_policy = sides.actor.warm_start(seed, sides.users, f"{sides.stage}/sft", writer)
        self.state: Any
        with Checkpoints(rundir.checkpoints(f"{sides.stage}/rounds")) as checkpoints:
            if checkpoints.latest is None:
                self.state = warm_start(sides, warm_policy)
            else:
                shape: Any = state_shape(sides)
                self.state, _, _ = checkpoints.restore(shape)
        self.sides = ready(sides, self.state, warm_policy)
        writer.close()
        self.guard = GuardState()
        self.number = int(self.state.step) // 2
        self.folder = rundir.path

    def round(self) -> dict[str, tuple[float, float]]:
        """Seconds of every phase of the next round: of the clock, and of this process."""
        from xrec_jax.joint.round import learn, roll_out
        from xrec_jax.training.checkpoint import Checkpoints

        self.number += 1
        whole = Timer()
        self.state = roll_out(self.sides, self.state, self.number)
        rollout = whole.read()
        self.state, self.guard, found, verdict = learn(
            self.sides, self.state, self.guard, self.number
        )
        total = whole.read()
        if "time/evaluation" not in found:
            raise SystemExit(f"the round was stopped: {verdict.line()}")
        saving = Timer()
        with Checkpoints(self.folder / "saved") as checkpoints:
            checkpoints.save(self.state, {"number": self.number}, {"number": self.number})
            checkpoints.wait()
        nan = float("nan")
        return {
            **{name: (found[f"time/{name}"], nan) for name in PHASES},
            "rollout": rollout,
            "whole": total,
            "saving": saving.read(),
        }

    def breakdown(self, repeats: int, *, profile: bool) -> dict[str, Any]:
        """Medians over rounds."""
        rounds = []
        profiler = cProfile.Profile() if profile else None
        for turn in range(repeats + 1):
            if profiler and turn == repeats:
                profiler.enable()
            found = self.round()
            if profiler and turn == repeats:
                profiler.disable()
            line = ", ".join(f"{name} {value[0]:.2f}" for name, value in found.items())
            print(f"round {self.number}{' (compiles)' if not turn else ''}: {line} s", flush=True)
            if turn:
                rounds.append(found)
        if profiler:
            pstats.Stats(profiler).sort_stats("cumulative").print_stats(45)
        medians = {name: statistics.median(one[name][0] for one in rounds) for name in rounds[0]}
        return {
            "seconds": medians,
            "share": {name: medians[name] / medians["whole"] for name in PHASES},
            "process_seconds": statistics.median(one["whole"][1] for one in rounds),
            "rounds": [{name: value[0] for name, value in one.items()} for one in rounds],
        }

    def prompts(self, repeats: int) -> dict[str, Any]:
        """Seconds of PPO on one round's rollouts, prompts shared and not, in turns."""
        import jax
        import jax.numpy as jnp
        import numpy as np

        from xrec_jax.joint.round import policy_rows, roll_out
        from xrec_jax.joint.state import on_host, training_state

        sides, policy = self.sides, self.sides.actor
        group = self.setup.shared.cfg.rollout.group_size
        if group == 1:
            print("  no answers to share a prompt: joint.rollout.group_size is 1", flush=True)
            return {"group_size": 1}
        policy.options = dataclasses.replace(policy.options, kl_stop=0.0)  # all updates, both ways
        number = self.number + 1
        state = roll_out(sides, self.state, number)
        host = on_host(state)
        score = np.random.default_rng(0).normal(size=len(host.buffer.state)).astype(np.float32)
        passes: dict[str, list[float]] = {"shared": [], "apart": []}
        compiled: dict[str, Any] = dict.fromkeys(passes)
        columns, updates = {}, set()
        for turn in range(repeats + 1):
            for way, seconds in passes.items():
                policy.group = group if way == "shared" else 1
                policy._compiled_step = compiled[way]
                copy = jax.tree.map(jnp.copy, state.policy)
                timer = Timer()
                batch, _, _ = policy_rows(sides, state, host, score)
                _, told = policy.update(training_state(copy, {}), batch, number=number)
                if turn:
                    seconds.append(timer.read()[0])
                compiled[way] = policy._compiled_step
                updates.add(told["ppo/updates"])
                columns[way] = int(batch["ids"].size)
                print(
                    f"  {way}: {timer.read()[0]:.2f} s, {told['ppo/updates']:.0f} updates",
                    flush=True,
                )
        assert len(updates) == 1, updates
        policy.group, policy._compiled_step = group, None
        policy.options = dataclasses.replace(
            policy.options, kl_stop=self.setup.shared.cfg.ppo.kl_stop
        )
        ratios = [b / a for a, b in zip(passes["shared"], passes["apart"], strict=True)]
        return {
            "group_size": group,
            "rollouts": len(host.buffer.state),
            "columns": columns,
            "seconds": {way: statistics.median(found) for way, found in passes.items()},
            "passes": passes,
            "apart_to_shared": statistics.median(ratios),
        }

    # Rollouts beside explain.

    def ways(self, count: int, *, ending: bool) -> dict[str, Callable[[], int]]:
        """Ways to answer the same prompts; each gives the number of tokens that it wrote."""
        from xrec_jax.core import rng
        from xrec_jax.inference import explainers
        from xrec_jax.joint.round import drawn_states
        from xrec_jax.llm.generation.sampler import Sampler
        from xrec_jax.llm.model.lora import Adapter
        from xrec_jax.tasks.requests import ExplanationRequest, UserItem

        shared, setup, sides = self.setup.shared, self.setup, self.sides
        eos = shared.base.tokenizer.eos_ids if ending else NEVER
        batch = shared.config.llm.generation_batch

        def sampler(share: bool) -> Sampler:
            return Sampler(
                shared.base.model, shared.base.params, eos=eos, batch=batch, share_prefixes=share
            )

        policy = self.state.policy["params"]["policy"]
        states = drawn_states(
            setup.rolled_out,
            seed=sides.seed,
            number=self.number,
            count=shared.cfg.rollout.per_round,
            group=shared.cfg.rollout.group_size,
        )[:count]
        key = (sides.seed, rng.Stream.ROLLOUTS, self.number)
        prompts = setup.prompts
        cases = [
            ExplanationRequest(
                UserItem(0, 0),
                "",
                "",
                prompts.ids[s, : prompts.length[s]].tolist(),
                [],
                int(rng.fold(*key, place)) % (1 << 32),
            )
            for place, s in enumerate(states.tolist())
        ]
        sampling = shared.exploring
        samples = types.SimpleNamespace(
            max_new_tokens=shared.size,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
        )
        adapter = Adapter(policy["lora"], shared.lora)
        together, whole = sampler(True), sampler(False)

        def explain(with_sampler: Sampler) -> Callable[[], int]:
            model = types.SimpleNamespace(
                sampler=with_sampler, adapter=lambda name: adapter, tokenizer=shared.base.tokenizer
            )
            placeholder: Any = None  # what a language model does not read
            writer = explainers.Model(
                explainers.Setup(
                    explainers.Spec("joint", "adapter"),
                    types.SimpleNamespace(instruct=types.SimpleNamespace(samples=samples)),
                    placeholder,
                    placeholder,
                    model,  # type: ignore[arg-type]
                )
            )

            def answer() -> int:
                found = explainers.answers(writer, cases, lambda _: None)
                return sum(one.tokens or 0 for one in found)

            return answer

        def rollout(soft: bool) -> Callable[[], int]:
            def answer() -> int:
                shared.__dict__["sampler"] = together  # as a run's own, but for what ends an answer
                actor = sides.actor
                vectors, actor.vectors = actor.vectors, actor.vectors * soft
                made = actor.answer(policy, states, sides.users, key=key, exploring=True)
                actor.vectors = vectors
                shared.texts(made.tokens, made.length)
                return int(made.length.sum())

            return answer

        self.work = {"prompt_tokens": float(prompts.length[states].mean()), "answers": len(states)}
        return {
            "rollout": rollout(True),
            "explain": explain(together),
            "explain, nothing shared": explain(whole),
            "no soft prompt": rollout(False),
        }

    def rollouts(self, repeats: int, count: int) -> dict[str, Any]:
        """Medians of all ways, which take turns."""
        results: dict[str, Any] = {}
        for name, ending in (("equal lengths", False), ("as they end", True)):
            sides = self.ways(count, ending=ending)
            passes: dict[str, list[tuple[float, float, int]]] = {side: [] for side in sides}
            for turn in range(repeats + 1):
                for side, answer in sides.items():
                    timer = Timer()
                    tokens = answer()
                    if turn:
                        passes[side].append((*timer.read(), tokens))
            entry: dict[str, Any] = dict(self.work)
            for side, found in passes.items():
                entry[side] = {
                    "tokens_per_second": statistics.median(t / s for s, _, t in found),
                    "tokens_per_process_second": statistics.median(t / p for _, p, t in found),
                    "seconds": [s for s, _, _ in found],
                    "tokens": found[0][2],
                }
            for side in passes:
                if side != "rollout":
                    # Passes of one turn stand beside each other in time.
                    ratios = [
                        (a[2] / a[0]) / (b[2] / b[0])
                        for a, b in zip(passes["rollout"], passes[side], strict=True)
                    ]
                    by_process = [
                        (a[2] / a[1]) / (b[2] / b[1])
                        for a, b in zip(passes["rollout"], passes[side], strict=True)
                    ]
                    entry[f"rollout_to_{side}"] = statistics.median(ratios)
                    entry[f"rollout_to_{side}_by_process"] = statistics.median(by_process)
            results[name] = entry
            for side in passes:
                ratio = entry.get(f"rollout_to_{side}")
                told = (
                    ""
                    if ratio is None
                    else (
                        f"; rollout {ratio:.2f} of it, "
                        f"{entry[f'rollout_to_{side}_by_process']:.2f} by process seconds"
                    )
                )
                rate = entry[side]["tokens_per_second"]
                print(f"  {name}, {side}: {rate:,.0f} tokens a second{told}", flush=True)
        return results


def tiny_run(folder: pathlib.Path) -> pathlib.Path:
    """Recommender and base of the config's :tiny variant."""
    from xrec_jax.api import run

    config = runpy.run_path(str(ROOT / "configs" / "recpie_world.py"))["get_config"]("tiny")
    config.stages = ("recommend", "pretrain")
    run.run(config, folder)
    return folder


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """See the module."""
    import jax

    from experiments.benchmarks import llm_work
    from xrec_jax.core.rundir import RunDir
    from xrec_jax.parallel.mesh import saved_mesh, use_mesh

    device = jax.devices()[0]
    setting: dict[str, Any] = {
        "machine": llm_work.machine(),
        "cores_pinned": sorted(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "device": f"{jax.device_count()} {device.device_kind}",
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        workdir = pathlib.Path(args.workdir) if args.workdir else tiny_run(folder / "run")
        config = read_config(RunDir(workdir))
        mesh = saved_mesh(config)
        with use_mesh(mesh):
            bench = Bench(copied(workdir, folder / "copy", args.seed), mesh, args.seed)
            setup, asked = bench.setup, bench.setup.shared.cfg
            setting["work"] = {
                "run": config.name,
                "parameters": setup.shared.base.model.config.matmul_parameters,
                "states": len(setup.states),
                "rollouts": asked.rollout.per_round,
                "prompt_tokens_longest": int(setup.prompts.ids.shape[1]),
                "prompt_tokens_mean": float(setup.prompts.length.mean()),
                "most_answer_tokens": setup.shared.size,
                "soft_vectors": asked.soft_prompt.vectors,
                "ppo_epochs": asked.ppo.epochs,
                "refresh": asked.cache.refresh,
                "first_round": bench.number + 1,
            }
            print(json.dumps(setting["work"]), flush=True)
            parts = args.parts.split(",")
            found: dict[str, Any] = {}
            if "round" in parts:
                found["round"] = bench.breakdown(args.repeats, profile=args.profile)
            if "prompts" in parts:
                found["prompts"] = bench.prompts(args.repeats)
                ratio = found["prompts"].get("apart_to_shared", 1.0)
                print(f"  apart to shared: {ratio:.2f}", flush=True)
            if "rollouts" in parts:
                bench.number = max(bench.number, 1)
                found["rollouts"] = bench.rollouts(args.rollout_repeats, args.answers)
    setting["machine"]["load_after"] = os.getloadavg()
    return {name: setting | part for name, part in found.items()}


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", default="", help="a run of recpie_world; default: :tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3, help="rounds after the first")
    parser.add_argument("--rollout-repeats", type=int, default=5)
    parser.add_argument("--answers", type=int, default=256, help="of a pass of rollouts, at most")
    parser.add_argument("--parts", default="round,prompts,rollouts")
    parser.add_argument("--cores", type=int, default=0, help="pin to so many; 0: as it is")
    parser.add_argument("--first-core", type=int, default=0)
    parser.add_argument("--profile", action="store_true", help="print where the host's time goes")
    parser.add_argument("--gpu", action="store_true", help="on the accelerator")
    parser.add_argument("--output", default="")
    args = parser.parse_args()
    if args.cores:
        os.sched_setaffinity(0, range(args.first_core, args.first_core + args.cores))
    if not args.gpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
    from xrec_jax.core.runtime.memory import keep_freed_memory

    keep_freed_memory()
    results = measure(args)
    path = pathlib.Path(args.output or ROOT / f"experiments/results/joint{'_gpu' * args.gpu}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {}
    # Parts that were not measured now stay, each with the work and machine it was measured on.
    path.write_text(json.dumps(before | results, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
