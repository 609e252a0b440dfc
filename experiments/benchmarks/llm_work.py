"""The work of `llm.py`: a random checkpoint, prompts and answer lengths that both sides read.

python experiments/benchmarks/llm_work.py --folder=FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import random
import sys
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # works without an installation, too

TINY: dict[str, Any] = dict(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=688,
    num_layers=4,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    max_positions=2048,
)
TARGETS = {"qv": ("q", "v"), "all": ("q", "k", "v", "o", "gate", "up", "down")}
HISTORY = 12  # films in a prompt that shares its beginning: about 350 tokens in all


def user_prompts(data: str, tokenizer_folder: pathlib.Path, users: int) -> tuple[list, str]:
    """LLMXRec's movie prompts, ten recommended items a user: token ids, and where they are from."""
    from xrec_jax.core.storage import files
    from xrec_jax.llm.io.bpe import train_bpe
    from xrec_jax.text.prompts.published import MOVIE
    from xrec_jax.text.prompts.render import render_prompt

    rng, begin, end = random.Random(0), "title and class:\n", "\n\nUse ONLY"
    if pathlib.Path(data).is_file():
        lines = files.read_records(data)
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
                MOVIE,
                item=rng.choice(items),
                history=rng.sample(items, rng.randint(8, 30)),
                user={"age": rng.randint(18, 60), "gender": "female", "occupation": "artist"},
            ).text
            for _ in range(300)
        ]
    tokenizer = train_bpe(texts, tokenizer_folder, vocab_size=TINY["vocab_size"])
    recommended = [text.split(begin)[1].split(end)[0] for text in texts]
    # Prompts of one user differ in the recommended item alone, which is what sharing is about.
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


def tuning_batch(ids: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """A batch as the training step takes it; labels as in transformers, -100 where none is trained.

    Args:
      ids: `[rows, length]`.
      labels: the same shape.
    """
    following = np.roll(labels, -1, axis=1)
    following[:, -1] = -100
    return {
        "ids": ids,
        "targets": np.maximum(following, 0).astype(np.int32),
        "weights": (following >= 0).astype(np.float32),
        "segments": np.ones_like(ids),
    }


def prepare(folder: pathlib.Path, args: argparse.Namespace) -> None:
    """Writes the checkpoint and the work that both sides read."""
    import jax
    from flax import linen as nn

    from xrec_jax.llm.io.hf_export import save_params
    from xrec_jax.llm.model.config import LlamaConfig
    from xrec_jax.llm.model.llama import Llama

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
        folder / "work.npz",
        check_ids=tokens(2, 64),
        tune_ids=tune,
        labels_full=tune,
        labels_completion=answers,
        generate_ids=tokens(16, 128),
        generate_new=64,
        mixed_ids=tokens(args.prompts, args.longest),
        limits_uniform=np.round(8 + 120 * spread).astype(np.int32),
        limits_loguniform=np.round(8 * 16**spread).astype(np.int32),
    )
    ids, source = user_prompts(args.data, folder / "tokenizer", args.users)
    (folder / "prompts.json").write_text(json.dumps({"ids": ids, "source": source}))


def machine() -> dict[str, Any]:
    """Description of the machine that the figures were measured on."""
    model = ""
    if pathlib.Path("/proc/cpuinfo").exists():
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "cores_of_machine": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": os.getloadavg(),
    }


def main() -> None:
    """Writes everything into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--prompts", type=int, default=512, help="of the mixed workload")
    parser.add_argument("--longest", type=int, default=128, help="tokens of its longest prompts")
    parser.add_argument("--users", type=int, default=16, help="of the shared prompts")
    parser.add_argument("--data", default="", help="LLMXRec's prompts, if there")
    args = parser.parse_args()
    prepare(args.folder, args)


if __name__ == "__main__":
    main()
