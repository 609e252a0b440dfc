"""Tiny random LLaMAs as Hugging Face checkpoints, and what transformers computes with them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import torch
import transformers

MIN_MARGIN = 1e-3  # between the best two logits of a greedy token: 10 times what may differ
NEW_TOKENS = 64
PROMPT = 16
EAGER: dict[str, Any] = {"attn_implementation": "eager"}  # the reference's plainest code

_LLAMA31_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# `length` is that of the compared sequences, `shard` the largest file.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "llama2": dict(
        config=dict(
            vocab_size=113,
            hidden_size=36,
            intermediate_size=70,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=3,
            max_position_embeddings=96,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        length=29,
        shard="5GB",
    ),
    "llama3": dict(
        config=dict(
            vocab_size=127,
            hidden_size=40,
            intermediate_size=54,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=96,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        ),
        length=31,
        shard="60KB",
    ),
    # head_dim 20: wavelengths on both sides of, and between, the scaling's two borders (8 and 32).
    "llama31": dict(
        config=dict(
            vocab_size=101,
            hidden_size=40,
            intermediate_size=62,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            rms_norm_eps=1e-5,
            rope_parameters={**_LLAMA31_ROPE, "rope_theta": 500000.0},
        ),
        length=80,
        shard="5GB",
    ),
    "llama32": dict(
        config=dict(
            vocab_size=119,
            hidden_size=44,
            intermediate_size=58,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=256,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            rope_parameters={**_LLAMA31_ROPE, "factor": 32.0, "rope_theta": 500000.0},
        ),
        length=45,
        shard="5GB",
    ),
    # Of sequences up to max_position_embeddings; beyond them "dynamic" depends on their length.
    "linear": dict(
        config=dict(
            vocab_size=83,
            hidden_size=32,
            intermediate_size=38,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        ),
        length=70,
        shard="5GB",
    ),
    "dynamic": dict(
        config=dict(
            vocab_size=79,
            hidden_size=32,
            intermediate_size=34,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=96,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 20000.0},
        ),
        length=96,
        shard="5GB",
    ),
}
AS_TRANSFORMERS_4 = ("llama31", "linear")  # with the older of two spellings of the scaling


def build(name: str, seed: int) -> transformers.LlamaForCausalLM:
    """A model with random weights, large enough that the logits of tokens are far apart."""
    settings = {**CHECKPOINTS[name]["config"], "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.LlamaConfig(**settings, **EAGER)
    model = transformers.LlamaForCausalLM(config).float().eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for key, weight in sorted(model.named_parameters()):
            drawn = rng.standard_normal(tuple(weight.shape), dtype=np.float32)
            if "norm" in key:
                drawn = 1 + 0.2 * drawn
            else:
                drawn *= 0.1 if "embed" in key else 0.2
            weight.copy_(torch.from_numpy(drawn))
    return model


@torch.no_grad()
def greedy(model: Any, prompt: np.ndarray) -> tuple[np.ndarray, float]:
    """The tokens that `generate` appends to a prompt, and the smallest lead of any of them."""
    start = torch.from_numpy(prompt)[None]
    model.generation_config = transformers.GenerationConfig(  # without an EOS nothing ends it
        max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    ids = model.generate(start, attention_mask=torch.ones_like(start))
    assert ids.shape[1] == len(prompt) + NEW_TOKENS
    best = model(ids).logits[0, len(prompt) - 1 : -1].topk(2)
    tokens = ids[0, len(prompt) :]
    assert torch.equal(best.indices[:, 0], tokens)
    return tokens.numpy(), float((best.values[:, 0] - best.values[:, 1]).min())


@torch.no_grad()
def logits_of(model: Any, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Logits [batch, length, vocab]; those of padding, which mean nothing, are 0."""
    if mask is None:
        mask = np.ones_like(ids)
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    out = model(
        torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        position_ids=torch.from_numpy(positions),
    ).logits
    return out.numpy() * mask[:, :, None].astype(np.float32)


def write_checkpoint(name: str, out: pathlib.Path, seed: int) -> dict[str, Any]:
    """Writes one checkpoint and its goldens; tries seeds until no greedy token is a close call."""
    length, vocab = CHECKPOINTS[name]["length"], CHECKPOINTS[name]["config"]["vocab_size"]
    while True:
        model = build(name, seed)
        rng = np.random.default_rng(seed + 1)
        prompt = rng.integers(3, vocab, PROMPT)
        tokens, margin = greedy(model, prompt)
        if margin > MIN_MARGIN and len(set(tokens.tolist())) > NEW_TOKENS // 3:  # no short loop
            break
        seed += 1000
    model.save_pretrained(out, max_shard_size=CHECKPOINTS[name]["shard"])
    (out / "generation_config.json").unlink()
    if name in AS_TRANSFORMERS_4:
        _as_transformers_4(out / "config.json")
    model = transformers.LlamaForCausalLM.from_pretrained(out, **EAGER)
    ids = rng.integers(3, vocab, (2, length))
    mask = np.ones_like(ids)
    mask[0, : length // 3], mask[1, :2] = 0, 0
    padded = np.where(mask, rng.integers(3, vocab, ids.shape), 0)
    np.savez_compressed(
        out / "goldens.npz",
        ids=ids,  # [2, length]
        logits=logits_of(model, ids),  # [2, length, vocab]
        padded_ids=padded,  # [2, length]
        padded_mask=mask,  # [2, length]
        padded_logits=logits_of(model, padded, mask),  # [2, length, vocab]
        prompt=prompt,  # [16]
        greedy=tokens,  # [64]
    )
    return {"seed": seed, "smallest_greedy_margin": round(margin, 6)}


def _as_transformers_4(path: pathlib.Path) -> None:
    """Rewrites the rotary settings the way the published Llama 3.1 checkpoints have them."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    config["torch_dtype"] = config.pop("dtype")
    del config["head_dim"], config["transformers_version"]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
