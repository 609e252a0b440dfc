"""The sides of `smollm2.py`, each a process of its own that answers commands, one JSON line each.

python experiments/benchmarks/smollm2_sides.py --side=ours --folder=FOLDER --threads=2
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import pathlib
import resource
import sys
import time
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # works without an installation, too

BATCH = 32  # rows that a side generates at once
MODULES = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]


class Side:
    """What all sides read: prompts, and rows of ids with labels (-100: not trained)."""

    def __init__(self, folder: pathlib.Path, threads: int):
        self.folder, self.threads = folder, threads
        self.prompts: list[list[int]] = json.loads((folder / "prompts.json").read_text())
        self.work = dict(np.load(folder / "work.npz"))

    def memory(self) -> dict[str, float]:
        """Peak resident memory of this process."""
        return {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


class Ours(Side):
    """This package; a base is loaded once for each dtype."""

    def _base(self, dtype: str) -> tuple[Any, Any]:
        import jax
        import jax.numpy as jnp

        from xrec_jax.llm.io.checkpoint import open_model
        from xrec_jax.llm.model.llama import Llama

        opened = open_model((self.folder / "path.txt").read_text())
        kind = jnp.dtype(dtype)
        params = jax.tree.map(jnp.asarray, opened.load_params(dtype=kind))
        return Llama(opened.config, dtype=kind), params

    def versions(self) -> dict[str, str]:
        """Versions of the libraries."""
        import jax

        return {"jax": jax.__version__}

    def tune(self, dtype: str, steps: int) -> dict[str, Any]:
        """Times LoRA steps; the first call of a dtype compiles."""
        import jax

        from experiments.benchmarks.llm_ours import lora_training, no_compilation
        from experiments.benchmarks.llm_work import TARGETS, tuning_batch
        from xrec_jax.parallel.mesh import make_mesh, put_batch, use_mesh

        mesh = make_mesh(devices=jax.devices()[:1])
        batch = tuning_batch(self.work["ids"], self.work["labels"])
        with use_mesh(mesh):
            state, step = lora_training(*self._base(dtype), TARGETS["all"], mesh)
            losses = []
            for _ in range(2):
                state, metrics = step(state, put_batch(batch, mesh))
                losses.append(float(metrics["train/loss"]))
            start = time.perf_counter()
            with no_compilation():
                for _ in range(steps):
                    state, metrics = step(state, put_batch(batch, mesh))
                    float(metrics["train/loss"])
        seconds = (time.perf_counter() - start) / steps
        return {"seconds": seconds, "tokens": batch["ids"].size, "first_loss": losses[0]}

    def generate(self, dtype: str, count: int, new: int) -> dict[str, Any]:
        """Times greedy answers of a fixed length, all prompts queued at once."""
        from experiments.benchmarks.llm_ours import no_compilation
        from xrec_jax.llm.generation.sampler import Sampler
        from xrec_jax.llm.generation.schedule import Request

        requests = [Request(ids, new) for ids in self.prompts[:count]]
        if getattr(self, "_sampler_of", None) != dtype:
            self._sampler = Sampler(*self._base(dtype), eos=(), batch=BATCH)
            self._sampler_of = dtype
            self._sampler.generate(requests)  # compiles
        start = time.perf_counter()
        with no_compilation():
            answers = self._sampler.generate(requests)
        seconds = time.perf_counter() - start
        work = self._sampler.work
        return {
            "seconds": seconds,
            "tokens": sum(len(answer.ids) for answer in answers),
            "prompt_tokens": work.prompt_tokens,
            "shared_tokens": work.shared_tokens,
        }


class Transformers(Side):
    """transformers, with PEFT for tuning."""

    def _model(self, dtype: str) -> Any:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(self.threads)
        path = pathlib.Path((self.folder / "path.txt").read_text())
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=getattr(torch, dtype)
        )
        model.generation_config.pad_token_id = 2
        return model

    def versions(self) -> dict[str, str]:
        """Versions of the libraries."""
        import peft
        import torch
        import transformers

        return {module.__name__: module.__version__ for module in (torch, transformers, peft)}

    def tune(self, dtype: str, steps: int) -> dict[str, Any]:
        """Times LoRA steps."""
        import peft
        import torch

        settings = peft.LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.0, target_modules=MODULES, task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(self._model(dtype), settings).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=3e-4, weight_decay=0.01)
        ids, labels = (torch.from_numpy(self.work[name]).long() for name in ("ids", "labels"))
        losses = []
        for number in range(steps + 1):
            if number == 1:
                start = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        seconds = (time.perf_counter() - start) / steps
        return {"seconds": seconds, "tokens": ids.numel(), "first_loss": losses[0]}

    def generate(self, dtype: str, count: int, new: int) -> dict[str, Any]:
        """Times greedy answers in batches, sorted by length so that padding is small."""
        import torch

        if getattr(self, "_generator_of", None) != dtype:
            self._generator, self._generator_of = self._model(dtype).eval(), dtype
        prompts = sorted(self.prompts[:count], key=len)
        start = time.perf_counter()
        tokens = 0
        for first in range(0, len(prompts), BATCH):
            rows = prompts[first : first + BATCH]
            width = max(map(len, rows))
            ids = torch.tensor([[2] * (width - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
            with torch.inference_mode():
                out = self._generator.generate(
                    ids,
                    attention_mask=mask,
                    do_sample=False,
                    min_new_tokens=new,
                    max_new_tokens=new,
                    eos_token_id=None,
                )
            tokens += out[:, width:].numel()
        return {"seconds": time.perf_counter() - start, "tokens": tokens}


class LlamaCpp(Side):
    """llama.cpp's server with parallel slots, on the quantised file as it is."""

    def versions(self) -> dict[str, str]:
        """Version of the library."""
        import xllamacpp

        return {"xllamacpp": xllamacpp.__version__}

    def generate(self, dtype: str, count: int, new: int) -> dict[str, Any]:
        """Times greedy answers, as many requests at once as there are slots."""
        from experiments.parity.gguf_tokenizers import LlamaCpp as Server

        del dtype  # the file's own
        if not hasattr(self, "_server"):
            longest = max(map(len, self.prompts)) + 128
            path = pathlib.Path((self.folder / "path.txt").read_text())
            options = {"threads": self.threads, "n_parallel": BATCH, "n_batch": 2048}
            self._server = Server(path, longest * BATCH, **options)
            self._server.post("/completion", prompt=self.prompts[0], n_predict=2)

        def answer(ids: list[int]) -> int:
            reply = self._server.post(
                "/completion",
                prompt=ids,
                n_predict=new,
                temperature=0.0,
                ignore_eos=True,
                cache_prompt=False,
            )
            return int(reply["tokens_predicted"])

        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(BATCH) as pool:
            tokens = sum(pool.map(answer, self.prompts[:count]))
        return {"seconds": time.perf_counter() - start, "tokens": tokens}


SIDES = {"ours": Ours, "transformers": Transformers, "llamacpp": LlamaCpp}


def main() -> None:
    """Calls the method that each line of standard input names, until it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=SIDES, required=True)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    if args.side == "ours":
        from xrec_jax.core.runtime.memory import keep_freed_memory

        keep_freed_memory()  # as every command of ours does before JAX is first used
    side = SIDES[args.side](args.folder, args.threads)
    for line in sys.stdin:
        command = json.loads(line)
        begin, busy = time.perf_counter(), time.process_time()
        answer = getattr(side, command.pop("do"))(**command)
        answer["cpu_share"] = (time.process_time() - busy) / (time.perf_counter() - begin)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
