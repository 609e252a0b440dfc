"""Our side of `llm.py`: answers its commands, one JSON line each."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # works without an installation, too

from experiments.benchmarks.llm_work import TARGETS, tuning_batch  # noqa: E402


def lora_training(model: Any, base: Any, targets: tuple[str, ...], mesh: Any) -> tuple[Any, Any]:
    """The state and the compiled step of the `instruct` stage; for use inside `use_mesh(mesh)`.

    Args:
      model: the model's functions.
      base: its frozen parameters.
      targets: projections that get an adapter, of rank 8.
      mesh: of one device.
    """
    import optax

    from xrec_jax.llm.model import lora
    from xrec_jax.training.instruct import instruct_step
    from xrec_jax.training.loop import compile_step
    from xrec_jax.training.state import initializer

    config = lora.LoraConfig(targets=targets)
    optimizer = optax.adamw(3e-4, weight_decay=0.01)  # all else is as in torch by itself
    init = functools.partial(lora.init_params, config, model.config)
    state = initializer(init, optimizer, mesh=mesh)(0).replace(frozen={"base": base})
    step = functools.partial(
        instruct_step, model=model, lora=config, optimizer=optimizer, accumulation=1
    )
    return state, compile_step(step, state)


@contextlib.contextmanager
def no_compilation() -> Iterator[None]:
    """Refuses compilation inside, where the clock runs."""
    import jax

    compiled: list[str] = []

    def note(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    if compiled:
        raise AssertionError(f"{len(compiled)} compilations while the clock ran")


class Ours:
    """Answers the same commands as `llm_peer.Peer`."""

    def __init__(self, folder: pathlib.Path):
        import jax

        from xrec_jax.llm.generation import schedule
        from xrec_jax.llm.io import hf
        from xrec_jax.llm.model.llama import Llama
        from xrec_jax.parallel.mesh import make_mesh

        self._folder = folder
        self._work = dict(np.load(folder / "work.npz"))
        opened = hf.open_model(folder / "model")
        self._model = Llama(opened.config)
        self._params = jax.tree.map(jax.numpy.asarray, opened.load_params())
        self._mesh = make_mesh(devices=jax.devices()[:1])
        self._tuned: dict[str, Any] = {}
        self._samplers: dict[Any, Any] = {}
        self._warm: set[Any] = set()
        self._sorted = schedule.Run._ordered

    def versions(self) -> dict[str, str]:
        """Versions of the libraries."""
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
        """Writes the logits of some random tokens into a file."""
        import jax

        out = jax.jit(self._model.logits)(self._params, self._work["check_ids"])
        np.save(self._folder / "ours_logits.npy", np.asarray(out))
        return {}

    def tune(self, targets: str, loss: str, steps: int) -> dict[str, Any]:
        """Times steps of the `instruct` stage; the first call compiles and returns its loss."""
        from xrec_jax.parallel.mesh import put_batch, use_mesh

        name, first = f"{targets}/{loss}", None
        batch = tuning_batch(self._work["tune_ids"], self._work[f"labels_{loss}"])
        with use_mesh(self._mesh):
            if name not in self._tuned:
                state, step = lora_training(self._model, self._params, TARGETS[targets], self._mesh)
                for _ in range(2):
                    state, metrics = step(state, put_batch(batch, self._mesh))
                    first = float(metrics["train/loss"]) if first is None else first
                self._tuned[name] = (state, step)
            state, step = self._tuned.pop(name)
            start = time.perf_counter()
            with no_compilation():
                for _ in range(steps):
                    state, metrics = step(state, put_batch(batch, self._mesh))
                    float(metrics["train/loss"])  # as the peer, which looks at every loss
            seconds = time.perf_counter() - start
            self._tuned[name] = (state, step)
        return {"seconds": seconds / steps, "first_loss": first}

    def _sampler(self, batch: int, schedule: str, **options: Any) -> Any:
        from xrec_jax.llm.generation.sampler import Sampler

        key = (batch, schedule, *options.items())
        if key not in self._samplers:
            self._samplers[key] = Sampler(
                self._model, self._params, eos=(), batch=batch, schedule=schedule, **options
            )
        return self._samplers[key]

    def _requests(self, ids: Any, limits: Any) -> list[Any]:
        from xrec_jax.llm.generation.schedule import Request

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

    def _warm_up(self, sampler: Any, requests: Any, batch: int) -> None:
        """Compiles what any run of these requests may need: the first refill of every size.

        Sizes are powers of two. An answer is stopped at the first look for stop strings.
        """
        longest = max(requests, key=lambda request: request.max_new_tokens)
        count = 1
        while count <= batch:
            rows = [*requests[: count - 1], longest]
            sampler.generate(rows, stop=len)
            count *= 2

    def mixed(
        self, limits: str, batch: int, order: str, prompt: int, schedule: str
    ) -> dict[str, Any]:
        """Times the whole mixed workload; the first call of a kind also warms up.

        Args:
          limits: which distribution of answer lengths.
          batch: rows.
          order: "known" lets the schedule sort by length, "unknown" takes prompts as they come.
          prompt: tokens to read.
          schedule: "continuous" or "static".
        """
        from xrec_jax.llm.generation.schedule import Run

        new_tokens = self._work[f"limits_{limits}"]
        requests = self._requests(self._work["mixed_ids"][:, :prompt], new_tokens)
        sampler = self._sampler(batch, schedule)
        if (kind := (limits, batch, prompt)) not in self._warm:
            self._warm.add(kind)
            self._warm_up(sampler, requests, batch)
        # The schedule sorts by `max_new_tokens`, which here stands for a length nobody knows yet.
        Run._ordered = self._sorted if order == "known" else lambda self, group: group  # type: ignore[method-assign]
        start = time.perf_counter()
        with no_compilation():
            answers = sampler.generate(requests)
        seconds = time.perf_counter() - start
        Run._ordered = self._sorted  # type: ignore[method-assign]
        if [len(answer.ids) for answer in answers] != new_tokens.tolist():
            raise AssertionError("an answer has not the length that was asked for")
        return {
            "seconds": seconds,
            "tokens": int(new_tokens.sum()),
            "prompts": len(requests),
            "steps": sampler.work.steps,
        }

    def shared(self, share: bool, batch: int, new: int) -> dict[str, Any]:
        """Times ten prompts a user, with what they share read once or every time."""
        ids = json.loads((self._folder / "prompts.json").read_text())["ids"]
        requests = self._requests(ids, [new] * len(ids))
        sampler = self._sampler(batch, "continuous", share_prefixes=share)
        if (kind := (share, batch, new)) not in self._warm:
            self._warm.add(kind)
            sampler.generate(requests)
        start = time.perf_counter()
        with no_compilation():
            answers = sampler.generate(requests)
        seconds = time.perf_counter() - start
        tokens = sum(len(a.ids) for a in answers)
        work = sampler.work
        return {
            "seconds": seconds,
            "tokens": tokens,
            "answers": hash(str([a.ids for a in answers])),
            "prompt_tokens": work.prompt_tokens,
            "shared_tokens": work.shared_tokens,
            "mean_prompt": sum(map(len, ids)) / len(ids),
            "prompts": len(ids),
        }

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
        answer = getattr(ours, command.pop("do"))(**command)
        answer["cpu_share"] = (time.process_time() - busy) / (time.perf_counter() - begin)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Serves until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    args = parser.parse_args()
    from xrec_jax.core.runtime.memory import keep_freed_memory

    keep_freed_memory()
    serve(args.folder)


if __name__ == "__main__":
    main()
