"""The transformers side of `explain.py`: answers its commands, one JSON line each.

Runs in an environment that has torch and transformers, in a process of its own on the same core.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time
import warnings
from typing import Any

import torch
import transformers
from llm_peer import serve

BATCHES = (8, 16, 32)
NEW_TOKENS = 64


class Peer:
    """One model, its tokenizer and the prompts of the other side."""

    def __init__(self, folder: pathlib.Path):
        base = folder / "run" / "base"
        self._prompts = json.loads((folder / "prompts.json").read_text())
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self._pad = self._tokenizer.pad_token_id or 0
        self._model.generation_config.pad_token_id = self._pad
        self._batch = 0

    def versions(self) -> dict[str, str]:
        """Versions of the libraries."""
        return {module.__name__: module.__version__ for module in (torch, transformers)}

    def _generate(self, rows: list[list[int]]) -> list[str]:
        """Greedy answers of one batch, padded on the left."""
        width = max(map(len, rows))
        ids = torch.tensor([[self._pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                max_new_tokens=NEW_TOKENS,
            )
        return self._tokenizer.batch_decode(
            out[:, width:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def loop(self, count: int) -> dict[str, Any]:
        """One prompt at a time."""
        start = time.perf_counter()
        texts = [self._generate([row])[0] for row in self._prompts[:count]]
        return {"seconds": time.perf_counter() - start, "pairs": count, "texts": texts}

    def _in_batches(self, count: int, batch: int) -> tuple[float, list[str]]:
        start = time.perf_counter()
        order = sorted(range(count), key=lambda place: len(self._prompts[place]))
        texts = [""] * count
        for first in range(0, count, batch):
            places = order[first : first + batch]
            answers = self._generate([self._prompts[place] for place in places])
            for place, text in zip(places, answers, strict=True):
                texts[place] = text
        return time.perf_counter() - start, texts

    def batched(self, count: int) -> dict[str, Any]:
        """In batches of similar lengths; the first call chooses their size."""
        if not self._batch:
            tried = {size: self._in_batches(count, size)[0] for size in BATCHES}
            self._batch = min(tried, key=lambda size: tried[size])
        seconds, texts = self._in_batches(count, self._batch)
        return {"seconds": seconds, "pairs": count, "texts": texts, "setting": self._batch}


def main() -> None:
    """Serves until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    serve(answers, Peer(args.folder))


if __name__ == "__main__":
    main()
