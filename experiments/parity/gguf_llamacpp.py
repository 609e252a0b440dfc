"""Logits of tiny GGUF files: ours against llama.cpp's.

    python -m experiments.parity.gguf_llamacpp [--json=experiments/results/gguf_llamacpp.json]

Writes random models as the tests do, with the writer of the `gguf` package: plain, with the rotary
scaling of Llama 3.1, with linear scaling, tied with a SentencePiece vocabulary, and in every type
of weights. Compares log-probabilities after 40 tokens, in shares of their range, and greedy tokens.

llama.cpp multiplies quantised weights with activations that it rounds to 8 bits, float16 ones with
activations in float16. So only float32 files can agree to rounding; the others show that no block
is misread, which would move the logits by about their range. Needs xllamacpp.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import xllamacpp

from experiments.parity.gguf_tokenizers import LlamaCpp
from tests.llm import models
from tests.llm.io.gguf import files, vocabularies
from xrec_jax.llm.io.gguf.names import Key
from xrec_jax.llm.language_model import load_llm
from xrec_jax.llm.model.config import LlamaConfig, RopeScaling

LIMIT, ROUNDED_LIMIT = 1e-5, 0.05  # of float32 files and of the others
STDDEV = 0.12  # of weights: large enough to matter, small enough that rounding does not grow
PROMPT, GREEDY = 40, 16
LINEAR = {Key.ROPE_SCALING_TYPE: "linear", Key.ROPE_SCALING_FACTOR: 4.0}
BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")

Case = tuple[LlamaConfig, str, dict[str, Any]]


def cases() -> dict[str, Case]:
    """Model, type of its matrices, and further metadata, by name."""
    text, pieces = vocabularies.byte_level(), vocabularies.sentencepiece()
    plain = dataclasses.replace(files.CONFIG, vocab_size=len(text[Key.TOKENS]), max_positions=256)
    llama31 = RopeScaling(8.0, original_max_positions=16)
    tied = dataclasses.replace(plain, vocab_size=len(pieces[Key.TOKENS]), tie_embeddings=True)
    wide = dataclasses.replace(files.WIDE, vocab_size=plain.vocab_size, max_positions=256)
    named: dict[str, Case] = {
        "F32": (plain, "F32", text),
        "F32, scaled as Llama 3.1": (
            dataclasses.replace(plain, rope_theta=500.0, rope_scaling=llama31),
            "F32",
            text,
        ),
        "F32, linear scaling": (plain, "F32", text | LINEAR),
        "F32, tied, SentencePiece": (tied, "F32", pieces),
    }
    named |= {kind: (plain, kind, text) for kind in ("F16", "BF16", *BLOCKS)}
    return named | {kind: (wide, kind, text) for kind in K_QUANTS}


def llama_cpp(path: pathlib.Path) -> LlamaCpp:
    """llama.cpp with caches in float32 and its plain attention."""
    params = xllamacpp.CommonParams

    def precise() -> Any:
        made = params()
        made.cache_type_k = made.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        disabled = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        made.flash_attn_type = disabled
        return made

    xllamacpp.CommonParams = precise
    try:
        return LlamaCpp(path, context=256)
    finally:
        xllamacpp.CommonParams = params


def compared(path: pathlib.Path, case: Case) -> dict[str, float]:
    """Writes a file and compares what both make of it."""
    config, kind, metadata = case
    weights = {
        name: STDDEV * tensor if tensor.ndim > 1 else tensor
        for name, tensor in models.tensors(config).items()
    }
    more = metadata | {Key.VOCAB_SIZE: config.vocab_size}
    files.write(path, config, weights=weights, dtype=kind, metadata=more)
    ids = np.random.default_rng(1).integers(5, config.vocab_size, PROMPT).tolist()
    answer = llama_cpp(path).post(
        "/completion",
        prompt=ids,
        n_predict=GREEDY,
        temperature=0,
        n_probs=config.vocab_size,
        return_tokens=True,
        ignore_eos=True,
    )
    tokens = answer["tokens"]
    logits = load_llm(path).logits([[*ids, *tokens]])[0]
    ours = np.asarray(jax.nn.log_softmax(logits))[len(ids) - 1 : -1]
    theirs = answer["completion_probabilities"][0]["top_logprobs"]
    # The token that may not be chosen has no probability there.
    pairs = [(ours[0, t["id"]], t["logprob"]) for t in theirs if t["logprob"] > -1e3]
    worst = max(abs(a - b) for a, b in pairs)
    return {
        "log_prob_difference": float(worst / np.ptp(ours[0])),
        "greedy_tokens": len(tokens),
        "same_greedy_tokens": int((ours.argmax(axis=1) == tokens).sum()),
    }


def rows() -> Iterator[tuple[str, float]]:
    """Differences for `make parity`; of files that are no float32, what is beyond their limit."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, case) in enumerate(cases().items()):
            result = compared(pathlib.Path(folder) / f"{number}.gguf", case)
            difference, what = result["log_prob_difference"], f"GGUF of {name} in llama.cpp"
            if case[1] == "F32":
                yield f"{what}: log-probabilities", difference
                wrong = result["greedy_tokens"] - result["same_greedy_tokens"]
                yield f"{what}: greedy tokens that differ", float(wrong)
            else:
                beyond = max(0.0, difference - ROUNDED_LIMIT)
                yield f"{what}: log-probabilities beyond {ROUNDED_LIMIT}", beyond


def main() -> None:
    """Prints one line a file and exits with 1 if a difference is too large."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=pathlib.Path, help="also write the result there")
    args = parser.parse_args()
    results, failed = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, case) in enumerate(cases().items()):
            result = compared(pathlib.Path(folder) / f"{number}.gguf", case)
            exact = case[1] == "F32"
            bad = not result["log_prob_difference"] < (LIMIT if exact else ROUNDED_LIMIT)
            bad |= exact and result["same_greedy_tokens"] != result["greedy_tokens"]
            failed += bad
            same = f"{result['same_greedy_tokens']} of {result['greedy_tokens']} greedy tokens"
            mark = "   TOO LARGE" if bad else ""
            print(f"{result['log_prob_difference']:9.1e}  {name}, {same}{mark}", flush=True)
            results[name] = result
    if args.json:
        content = {"xllamacpp": xllamacpp.__version__, "files": results}
        args.json.write_text(json.dumps(content, indent=2) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
