r"""Logits of a GGUF file: ours against the loader of transformers, in float32.

    python -m experiments.parity.gguf_logits --gguf=FILE [--out=GOLDEN.npz] \
      [--json=experiments/results/gguf_parity.json]

Reads the file with both libraries, compares the logits of five prompts and the 64 greedy tokens
after each. With `--out` it writes the reference's results, a part of the logits only, as the golden
that `make test` compares with; `make parity` compares with both. Shapes stand [in brackets].
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import numpy as np
import torch
import transformers

from experiments.parity import ours
from xrec_jax.llm.io.gguf.model import open_model
from xrec_jax.llm.io.tokenizer import load_tokenizer
from xrec_jax.llm.language_model import load_llm

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "llm" / "io" / "gguf" / "golden" / "smollm2_logits.npz"
LIMIT = 1e-3  # of the range of a prompt's logits
GREEDY = 64
SAMPLED = 300  # logits of a prompt that the golden keeps
TOP = 20
# Plain texts and conversations, short ones and one of a few hundred tokens.
PROMPTS: tuple[Any, ...] = (
    [{"role": "user", "content": "Why might somebody who loves Alien enjoy The Thing?"}],
    [
        {"role": "system", "content": "You explain recommendations in one sentence."},
        {"role": "user", "content": "User likes: jazz, night trains. Item: Café Noir (1998)."},
    ],
    "The recommender suggested the film because",
    "def rank(scores, k=10):\n    ",
    "A user has watched: "
    + "; ".join(f"{n}. film number {n} ({1950 + n})" for n in range(1, 31))
    + ". The next film is",
)

Rows = Iterator[tuple[str, float]]


def prompt_ids(path: pathlib.Path) -> list[list[int]]:
    """Token ids of the prompts."""
    tokenizer = load_tokenizer(path)
    return [
        tokenizer.encode(prompt) if isinstance(prompt, str) else tokenizer.prompt(prompt)
        for prompt in PROMPTS
    ]


def reference(path: pathlib.Path) -> Any:
    """The model as transformers reads it."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def results(model: Any, ids: list[int]) -> tuple[np.ndarray, np.ndarray, float]:
    """Logits `[length, vocab]`, greedy tokens `[64]` and the least lead of one over the next."""
    tokens: list[int] = []
    least = float("inf")
    with torch.no_grad():
        out = model(torch.tensor([ids]), use_cache=True)
        logits = out.logits[0].numpy()
        while len(tokens) < GREEDY:
            best = torch.topk(out.logits[0, -1], 2)
            least = min(least, float(best.values[0] - best.values[1]))
            tokens.append(int(best.indices[0]))
            out = model(
                torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True
            )
    return logits, np.array(tokens), least


def golden_of(logits: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The part of a prompt's logits that the golden keeps."""
    rng = np.random.default_rng(seed)
    places = np.stack([rng.integers(0, size, SAMPLED) for size in logits.shape], axis=1)
    top = np.argsort(logits[-1])[::-1][:TOP]
    return {
        "places": places.astype(np.int32),  # [300, 2]: position and token
        "values": logits[places[:, 0], places[:, 1]],  # [300]
        "top": top.astype(np.int32),  # [20], after the last token
        "top_values": logits[-1, top],  # [20]
        "range": logits.max() - logits.min(),  # []
    }


def compared(path: pathlib.Path, golden: dict[str, np.ndarray] | None = None) -> Rows:
    """Differences of ours from transformers and from a golden; fills an empty golden.

    Differences of logits are in shares of their range.
    """
    rows = prompt_ids(path)
    lm = load_llm(path)
    model = reference(path)
    answers = lm.generate(rows, max_new_tokens=GREEDY)
    for number, ids in enumerate(rows):
        theirs, tokens, least = results(model, ids)
        mine = np.asarray(lm.logits([[*ids, *tokens[:-1]]]))[0]
        what = f"{path.name}: prompt {number}"
        scale = float(theirs.max() - theirs.min())
        yield f"{what} logits", ours.difference(mine[: len(ids)], theirs) / scale
        # With the reference's tokens before it, each must be the likeliest: then all are the same.
        wrong = (mine[len(ids) - 1 :].argmax(axis=1) != tokens).sum()
        yield f"{what} {GREEDY} greedy tokens that differ", float(wrong)
        # The sampler ends at the end-of-text token; the reference goes on.
        answer = answers[number]["ids"]
        unequal = sum(a != b for a, b in zip(answer, tokens, strict=False))
        short = len(answer) < GREEDY and answer[-1] not in lm.tokenizer.eos_ids
        yield f"{what} {len(answer)} sampled tokens that differ", float(unequal + short)
        if golden is not None:
            part = golden_of(theirs, number)
            part |= {"ids": np.array(ids, np.int32), "greedy": tokens.astype(np.int32)}
            part |= {"lead": np.array(least, np.float32)}
            for key, value in part.items():
                if f"{number}/{key}" not in golden:
                    golden[f"{number}/{key}"] = value
                elif key in ("values", "top_values"):
                    known = golden[f"{number}/{key}"]
                    yield f"{what} {key} of the golden", ours.difference(known, value) / scale
                elif key in ("ids", "greedy", "top"):
                    unequal = not np.array_equal(golden[f"{number}/{key}"], value)
                    yield f"{what} {key} of the golden differ", float(unequal)


def weights_differing(path: pathlib.Path) -> Rows:
    """Number of tensors that are not bit for bit those of transformers."""
    theirs = dict(reference(path).named_parameters())
    mine = open_model(path)
    wrong = 0
    for name, tensor in mine.tensors.items():
        rows = np.concatenate([rows for _, rows in tensor.chunks(0, tensor.shape[0])])
        wrong += not np.array_equal(rows, theirs[name].detach().numpy())
    yield f"{path.name}: {len(mine.tensors)} tensors that differ", float(wrong)


def main() -> None:
    """Compares, and writes the golden if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gguf", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, help="write the golden there")
    parser.add_argument("--json", type=pathlib.Path, help="write the differences there")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    golden: dict[str, np.ndarray] = {} if args.out else ours.arrays(GOLDEN)
    failed, start = 0, time.monotonic()
    differences: dict[str, float] = {}
    for rows in (weights_differing(args.gguf), compared(args.gguf, golden)):
        for text, value in rows:
            bad = not value < LIMIT
            failed += bad
            differences[text] = value
            print(f"{value:9.1e}  {text}{'   TOO LARGE' if bad else ''}", flush=True)
    print(f"{time.monotonic() - start:.0f} s")
    if args.json:
        packages = {p.__name__: p.__version__ for p in (torch, transformers, jax)}
        content = {"packages": packages, "differences": differences}
        args.json.write_text(json.dumps(content, indent=2) + "\n")
    if args.out:
        leads = [float(value) for key, value in golden.items() if key.endswith("/lead")]
        print(f"least lead of a greedy token: {min(leads):.4f}")
        np.savez_compressed(args.out, **golden)  # type: ignore[arg-type]
        print(f"{args.out.stat().st_size:,} bytes written to {args.out}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
