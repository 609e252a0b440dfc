"""The transformers and PEFT side of `llm.py`: answers its commands, one JSON line each.

Runs in an environment that has torch, transformers and peft, in a process of its own beside ours,
on the same cores with the same number of threads. Every choice that changes speed and not results
(attention implementation, kind of cache) is tried while warming up, and the fastest is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import sys
import time
import warnings
from typing import Any

import numpy as np
import peft
import torch
import transformers

MODULES = {"qv": ["q_proj", "v_proj"]} | {
    "all": [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
}


class Peer:
    """Holds the work and whatever is warm."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._work = dict(np.load(folder / "work.npz"))
        self._base: dict[str, Any] = {}
        self._tuned: dict[str, Any] = {}
        self._warm: set[tuple[int, int]] = set()
        self._cache: str | None = None
        self._attention = "sdpa"

    def _load(self, attention: str) -> Any:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            self._folder / "model", dtype=torch.float32, attn_implementation=attention
        )
        model.generation_config.pad_token_id = 0
        return model

    def _model(self) -> Any:
        if self._attention not in self._base:
            self._base = {self._attention: self._load(self._attention).eval()}
        return self._base[self._attention]

    def versions(self) -> dict[str, str]:
        """Versions of the libraries."""
        modules = (torch, transformers, peft)
        return {module.__name__: module.__version__ for module in modules}

    def matmul(self, size: int, repeats: int) -> dict[str, Any]:
        """float32 FLOP/s of a square product."""
        a, b = torch.rand(size, size), torch.rand(size, size)
        out = torch.empty(size, size)
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            seconds.append(time.perf_counter() - start)
        return {"flops": 2 * size**3 / float(np.median(seconds[1:]))}

    def logits(self) -> dict[str, Any]:
        """Writes the logits of some random tokens into a file."""
        with torch.inference_mode():
            out = self._model()(torch.from_numpy(self._work["check_ids"]).long()).logits
        np.save(self._folder / "peer_logits.npy", out.numpy())
        return {}

    def _step(self, attention: str, targets: str, labels: Any) -> Any:
        torch.manual_seed(0)
        settings = peft.LoraConfig(
            r=8,
            lora_alpha=16,
            lora_dropout=0.0,
            target_modules=MODULES[targets],
            bias="none",
            task_type="CAUSAL_LM",
        )
        model = peft.get_peft_model(self._load(attention), settings).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=3e-4, weight_decay=0.01)
        ids = torch.from_numpy(self._work["tune_ids"]).long()

        def step() -> float:
            optimizer.zero_grad(set_to_none=True)
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    def tune(self, targets: str, loss: str, steps: int) -> dict[str, Any]:
        """Times LoRA steps; the first call chooses the attention and returns the first loss."""
        name, first = f"{targets}/{loss}", None
        if name not in self._tuned:
            labels = torch.from_numpy(self._work[f"labels_{loss}"]).long()
            tried = {}
            for attention in ("sdpa", "eager"):
                step = self._step(attention, targets, labels)
                first = step()
                step()
                start = time.perf_counter()
                for _ in range(3):
                    step()
                tried[attention] = (time.perf_counter() - start, step)
            fastest = min(tried, key=lambda key: tried[key][0])
            self._tuned[name] = (fastest, tried[fastest][1])
        attention, step = self._tuned[name]
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return {
            "seconds": (time.perf_counter() - start) / steps,
            "first_loss": first,
            "setting": attention,
        }

    def _generate(self, ids: np.ndarray, new: int) -> np.ndarray:
        tokens = torch.from_numpy(ids).long()
        with torch.inference_mode():
            out = self._model().generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                num_beams=1,
                min_new_tokens=new,
                max_new_tokens=new,
                use_cache=True,
                cache_implementation=self._cache,
                eos_token_id=None,
            )
        return out[:, ids.shape[1] :].numpy()

    def generate(self) -> dict[str, Any]:
        """Times one static batch; the first call chooses the attention and the cache."""
        ids, new = self._work["generate_ids"], int(self._work["generate_new"])
        if not self._base or self._cache is None:
            tried = {}
            for attention in ("sdpa", "eager"):
                for cache in ("dynamic", "static"):
                    self._attention, self._cache = attention, cache
                    self._generate(ids, new)
                    start = time.perf_counter()
                    self._generate(ids, new)
                    tried[attention, cache] = time.perf_counter() - start
            self._attention, self._cache = min(tried, key=lambda key: tried[key])
        start = time.perf_counter()
        out = self._generate(ids, new)
        seconds = time.perf_counter() - start
        np.save(self._folder / "peer_tokens.npy", out)
        setting = f"{self._attention}, {self._cache} cache"
        return {"seconds": seconds, "tokens": out.size, "setting": setting}

    def mixed(
        self, limits: str, batch: int, order: str, prompt: int, share: float
    ) -> dict[str, Any]:
        """Times batches that each run to their longest answer, and counts what was asked for.

        Args:
          limits: which distribution of answer lengths.
          batch: prompts at once.
          order: "known" sorts by length first, "unknown" takes prompts as they come.
          prompt: tokens to read.
          share: of the batches that are really run, evenly spread.
        """
        if self._cache is None:
            self.generate()
        ids, new_tokens = self._work["mixed_ids"][:, :prompt], self._work[f"limits_{limits}"]
        if (batch, prompt) not in self._warm:
            self._warm.add((batch, prompt))
            self._generate(ids[:batch], 4)
        chosen = np.arange(len(ids))
        if order == "known":
            chosen = np.argsort(-new_tokens, kind="stable")
        batches = [chosen[i : i + batch] for i in range(0, len(chosen), batch)]
        number = max(1, round(len(batches) * share))
        places = (np.arange(number) * len(batches) / number + len(batches) / number / 2).astype(int)
        picked = [batches[place] for place in places]
        start = time.perf_counter()
        for rows in picked:
            self._generate(ids[rows], int(new_tokens[rows].max()))
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "tokens": int(sum(new_tokens[rows].sum() for rows in picked)),
            "prompts": int(sum(map(len, picked))),
        }

    def memory(self) -> dict[str, float]:
        """Peak resident memory of this process."""
        return {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def serve(answers: Any, worker: Any) -> None:
    """Calls the worker's method named by each line of standard input."""
    for line in sys.stdin:
        command = json.loads(line)
        begin, busy = time.perf_counter(), time.process_time()
        answer = getattr(worker, command.pop("do"))(**command)
        answer["cpu_share"] = (time.process_time() - busy) / (time.perf_counter() - begin)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Serves until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    serve(answers, Peer(args.folder))


if __name__ == "__main__":
    main()
