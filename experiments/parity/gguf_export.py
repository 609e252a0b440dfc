"""A tuned model exported: greedy answers of ours, llama.cpp on the GGUF file, and PEFT.

    python -m experiments.parity.gguf_export --base=FILE.gguf [--output=RESULT.json]

Puts a random LoRA adapter on the base, large enough to change every answer, and generates greedily
from five prompts in the base's chat template: here with base and adapter; in llama.cpp with what
`xrec export-gguf` wrote in each type; in transformers with the base that `xrec export-hf` wrote and
the adapter in PEFT. llama.cpp keeps keys and values in float32 and computes attention plainly, so
that the float32 file is compared in float32 throughout; float16 and Q8_0 files are rounded, so
their answers may leave ours where two tokens are nearly as likely. The same in float32 with small
random models, of other shapes, scalings of RoPE and kinds of tokenizers. Exit status 1 if an answer
in float32 differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import sys
import tempfile
import zlib
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # float32 there is float32
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import numpy as np
import peft
import torch
import transformers
import xllamacpp

from experiments.parity.gguf_tokenizers import (
    LlamaCpp,
    byte_level_vocabulary,
    differing,
    golden_lines,
    sentencepiece_model,
    sentencepiece_vocabulary,
)
from xrec_jax.api import convert
from xrec_jax.llm.io import checkpoint, hf_export, peft_io
from xrec_jax.llm.io.gguf.tokenizer import build_tokenizer, read_vocabulary
from xrec_jax.llm.language_model import LanguageModel, load_llm
from xrec_jax.llm.model import layout, lora
from xrec_jax.llm.model.config import LlamaConfig, RopeScaling

PROMPTS = (
    "Why might somebody who liked Heat (1995) and Ronin (1998) enjoy Collateral (2004)?",
    "Explain in two sentences why a hiker would visit the Harz mountains in October.",
    "I read 12 crime novels last year. Recommend one more and say why.",
    "Name three reasons to listen to Björk's album Homogenic 🎧.",
    "Write one short, friendly sentence about a café that opens at 7:30.",
)
NEW_TOKENS = 64
CONTEXT = 512
OUT_TYPES = ("f32", "f16", "q8_0")
Ids = list[list[int]]


def random_adapter(config: LlamaConfig, seed: int, size: float) -> lora.Adapter:
    """An adapter of all projections; `size` is the standard deviation of both factors."""
    adapter = lora.init(lora.LoraConfig(rank=4, alpha=8.0), config, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    drawn = [size * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def ours(lm: LanguageModel, adapter: str | None = "default") -> Ids:
    """Greedy answers of this package, without the token that ends them."""
    records = lm.generate(list(PROMPTS), max_new_tokens=NEW_TOKENS, adapter=adapter)
    return [_until(list(record["ids"]), lm.tokenizer.eos_ids) for record in records]


def llama_cpp(path: pathlib.Path, prompts: Ids, ends: tuple[int, ...]) -> Ids:
    """Greedy answers of llama.cpp to prompts given as token ids."""
    kind = xllamacpp.ggml_type.GGML_TYPE_F32
    plain = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = LlamaCpp(path, CONTEXT, cache_type_k=kind, cache_type_v=kind, flash_attn_type=plain)
    answers = [
        server.post(
            "/completion",
            prompt=ids,
            n_predict=NEW_TOKENS,
            temperature=0.0,
            top_k=1,
            cache_prompt=False,
            return_tokens=True,
        )["tokens"]
        for ids in prompts
    ]
    return [_until(ids, ends) for ids in answers]


def with_peft(folder: pathlib.Path, adapter: pathlib.Path, prompts: Ids, end: int) -> Ids:
    """Greedy answers of transformers and PEFT."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, adapter).eval()
    answers = []
    for ids in prompts:
        with torch.inference_mode():
            row = model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=end,
            )
        answers.append(_until(row[0, len(ids) :].tolist(), (end,)))
    return answers


def templates_differ(path: pathlib.Path, lm: LanguageModel) -> int:
    """Prompts that llama.cpp renders with the file's chat template otherwise than we do."""
    server = LlamaCpp(path, CONTEXT)
    rendered = [
        server.post("/apply-template", messages=[{"role": "user", "content": prompt}])["prompt"]
        for prompt in PROMPTS
    ]
    return sum(
        ids != lm.tokenizer.prompt(prompt)
        for ids, prompt in zip(server.encode(rendered), PROMPTS, strict=True)
    )


def compared(answers: Ids, reference: Ids) -> dict[str, Any]:
    """Number of equal answers, and how far the others agree."""
    return {
        "equal_answers": sum(a == b for a, b in zip(answers, reference, strict=True)),
        "equal_tokens_from_the_start": [
            next(
                (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                min(map(len, (a, b))),
            )
            for a, b in zip(answers, reference, strict=True)
        ],
        "answer_tokens": [len(a) for a in answers],
    }


def random_parameter(parameter: layout.Parameter) -> np.ndarray:
    """A parameter that depends on its name alone, `parameter.shape`."""
    rng = np.random.default_rng(zlib.crc32(parameter.name.encode()))
    normal = rng.normal(size=parameter.shape).astype(np.float32)
    if parameter.path[-1] == "scale":
        return 1 + 0.2 * normal
    # Outputs as large as the inputs, so that rounding errors do not grow from layer to layer.
    return normal / np.float32(math.sqrt(parameter.hf_shape[-1]))


def small_models(scratch: pathlib.Path) -> dict[str, Any]:
    """Small random models exported in float32: tokens of llama.cpp that differ from ours."""
    lines = golden_lines()
    byte_level = byte_level_vocabulary([line for line in lines if "<|" not in line])
    byte_level |= {"tokenizer.ggml.pre": "llama-bpe"}
    pieces = sentencepiece_vocabulary(sentencepiece_model(lines))
    result = {}
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "Llama 3.1, scaled RoPE": (byte_level, {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 64)}),
        "linear scaling": (byte_level, {"rope_scaling": RopeScaling(4.0, kind="linear")}),
        "SentencePiece, tied": (pieces, {"tie_embeddings": True, "rope_theta": 1e4}),
        "own head size": (pieces, {"head_dim": 24, "num_kv_heads": 4}),
    }
    for name, (vocabulary, changes) in cases.items():
        folder = scratch / name.replace(" ", "_")
        config = LlamaConfig(
            vocab_size=len(vocabulary["tokenizer.ggml.tokens"]),
            hidden_size=64,
            intermediate_size=96,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            max_positions=CONTEXT,
            rope_theta=5e5,
        )
        config = dataclasses.replace(config, **changes)
        hf_export.save_params(folder, layout.build(config, random_parameter), config)
        tokenizer = build_tokenizer(read_vocabulary(vocabulary, name), name)
        tokenizer.save_pretrained(str(folder))
        path = folder.with_suffix(".gguf")
        convert.export_gguf(str(folder), str(path), out_type="f32")

        # Long prompts: at the first positions no scaling shows.
        lm = load_llm(folder)
        begins = [line for line in lines if line[:1].isalpha()][:5]
        texts = [begin + " ".join(lines[3 * n : 3 * n + 25]) for n, begin in enumerate(begins)]
        prompts = [lm.tokenizer.encode(text)[:200] for text in texts]
        records = lm.generate(prompts, max_new_tokens=NEW_TOKENS)
        answers = [_until(list(record["ids"]), lm.tokenizer.eos_ids) for record in records]
        peer = llama_cpp(path, prompts, lm.tokenizer.eos_ids)
        result[name] = compared(peer, answers) | {
            "prompt_tokens": [len(ids) for ids in prompts],
            "prompts_encoded_otherwise": differing(
                LlamaCpp(path).encode(texts, bos=True), lm.tokenizer.encode_batch(texts)
            ),
        }
    return result


def run(base: pathlib.Path, scratch: pathlib.Path, *, seed: int, size: float) -> dict[str, Any]:
    """All comparisons.

    Args:
      base: a model with a chat template.
      scratch: a folder for the exports.
      seed: of the adapter.
      size: of the adapter; see `random_adapter`.
    """
    model = checkpoint.open_model(base)
    adapter = scratch / "adapter"
    made = random_adapter(model.config, seed, size)
    peft_io.save_adapter(adapter, made, base=peft_io.Base(str(base), model.fingerprint()))

    lm = load_llm(base, adapter)
    prompts = [lm.tokenizer.prompt(prompt) for prompt in PROMPTS]
    tuned, plain = ours(lm), ours(lm, None)
    texts = [lm.tokenizer.decode(ids) for ids in tuned]
    result: dict[str, Any] = {
        "versions": {
            package.__name__: package.__version__.split("+")[0]
            for package in (jax, torch, transformers, peft, xllamacpp)
        },
        "base": base.name,
        "prompts": list(PROMPTS),
        "new_tokens": NEW_TOKENS,
        "adapter": {"rank": 4, "alpha": 8.0, "seed": seed, "size": size},
        "answers": texts,
        "answers_that_the_adapter_changes": sum(a != b for a, b in zip(tuned, plain, strict=True)),
    }
    for out_type in OUT_TYPES:
        path = scratch / f"{out_type}.gguf"
        convert.export_gguf(str(base), str(path), adapter=str(adapter), out_type=out_type)
        ends = lm.tokenizer.eos_ids
        peer = llama_cpp(path, prompts, ends)
        rounded = ours(load_llm(path))
        result[f"llama.cpp, {out_type}"] = {
            "bytes": path.stat().st_size,
            **compared(peer, tuned),
            "equal_answers_of_ours_on_the_file": compared(peer, rounded)["equal_answers"],
            "prompts_rendered_otherwise": templates_differ(path, lm),
        }
        path.unlink()
    convert.export_hf(str(base), str(scratch / "hf"), dtype="float32")
    peer = with_peft(scratch / "hf", adapter, prompts, lm.tokenizer.eos_id)
    result["transformers and PEFT"] = compared(peer, tuned)
    result["llama.cpp, f32, small models"] = small_models(scratch)
    return result


def _until(ids: list[int], ends: tuple[int, ...]) -> list[int]:
    """Ids before the first that ends an answer."""
    stops = np.flatnonzero(np.isin(ids, ends))
    return [int(n) for n in ids[: int(stops[0]) if len(stops) else len(ids)]]


def main() -> None:
    """Prints and writes the comparisons; exits with 1 if an answer in float32 differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=float, default=0.03)
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = run(args.base, pathlib.Path(name), seed=args.seed, size=args.size)
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    small = result["llama.cpp, f32, small models"].values()
    exact = (result["llama.cpp, f32"], result["transformers and PEFT"], *small)
    sys.exit(any(each["equal_answers"] < len(PROMPTS) for each in exact))


if __name__ == "__main__":
    main()
