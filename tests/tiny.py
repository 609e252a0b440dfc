"""The tiny world and the tiny configurations that tests share."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import pytest
from ml_collections import ConfigDict

from xrec_jax import defaults
from xrec_jax.data.run_data import RunData, prepare
from xrec_jax.joint.config import shrink
from xrec_jax.llm.io.bpe import train_bpe
from xrec_jax.llm.io.hf import Generation
from xrec_jax.llm.io.hf_export import save_params
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.llama import Llama
from xrec_jax.parallel.mesh import make_mesh

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
SHARED = CHECKOUT.parent / "shared" / "data"

needs_shared_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs the real data in ../shared/data, which is not here"
)

# Odd sizes on purpose: tables are padded, batches do not divide evenly.
WORLD = dict(seed=3, num_users=75, num_items=61, mean_visits=11.0)

MODELS = {
    "popularity": {},
    "bpr": dict(dim=12, l2=0.01, negatives=2),
    "lightgcn": dict(dim=12, layers=2, stddev=0.1),
    "sasrec": dict(dim=12, layers=2, heads=2, inner=20, length=9, dropout=0.2),
}


def config(*models: str, **train: object) -> ConfigDict:
    """A config of the tiny world that trains `models` for two epochs."""
    made = defaults.base()
    made.name = "tiny"
    made.data.world.update(WORLD)
    settings = dict(batch_size=64, epochs=2, learning_rate=0.01, checkpoint_every=1) | train
    for model in models or MODELS:
        made.recommend[model] = defaults.system(model, train=settings, **MODELS[model])
    made.ranking.resamples = 50
    return made


@functools.cache
def data() -> RunData:
    """The tiny world's data."""
    return prepare(config("popularity").data)


@functools.cache
def mesh(devices: int = 1, fsdp: int = 1, tensor: int = 1):
    """A mesh on the first `devices` fake devices."""
    return make_mesh(-1, fsdp, tensor, devices=jax.devices()[:devices])


# Every axis splits over a mesh of 2x2x2; random weights large enough that logits differ.
LLAMA = LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    max_positions=64,
    initializer_range=0.3,
)


@functools.cache
def llama_params(config: LlamaConfig = LLAMA, seed: int = 0) -> Any:
    """Random parameters, on the host: whatever mesh is current at the first call."""
    with jax.ensure_compile_time_eval():  # it may come from a function being traced
        made = jax.jit(lambda key: nn.unbox(Llama(config).init(key)))(jax.random.key(seed))
        return jax.device_get(made)


def llama_directory(
    path: pathlib.Path, texts: Sequence[str], *, ends: float = 1.0, seed: int = 0, **sizes: Any
) -> pathlib.Path:
    """Writes a random `LLAMA` with a tokenizer of its own as a Hugging Face directory.

    Args:
      path: where to.
      texts: of the tokenizer.
      ends: how far the logit of the ending token swings beside those of other tokens.
      seed: of the parameters.
      **sizes: other than those of `LLAMA`.
    """
    tokenizer = train_bpe(texts, path.with_name(path.name + "-tokenizer"), vocab_size=320)
    shape = LlamaConfig(**(LLAMA.__dict__ | dict(vocab_size=320, max_positions=256) | sizes))
    params = llama_params(shape, seed)
    table = params["head"]["table"].copy()
    table[list(tokenizer.eos_ids)] *= ends
    generation = Generation(tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id)
    save_params(
        path,
        {**params, "head": {"table": table}},
        shape,
        generation=generation,
        tokenizer_dir=path.with_name(path.name + "-tokenizer"),
    )
    return path


def language(*stages: str) -> ConfigDict:
    """A config of a smaller world that pre-trains and tunes a minuscule LLaMA."""
    made = config("popularity")
    made.name = "tiny language"
    made.stages = stages or ("recommend", "pretrain", "instruct", "showcase")
    made.data.world.update(dict(num_users=20, num_items=16, mean_visits=8.0))
    made.ranking.ks = (5, 10)
    shape = dict(num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, hidden_size=16)
    made.llm.update(shape | dict(vocab_size=512, intermediate_size=24, max_positions=512))
    made.llm.generation_batch = 8
    made.pretrain.update(dict(copies=1, described=1, talk=10, held_out=0.1, length=96))
    made.pretrain.train.update(dict(batch_size=16, epochs=2, learning_rate=0.01))
    instruct = made.instruct
    instruct.update(dict(examples=12, history=1, length=464, held_out=0.25))
    instruct.lora.update(dict(rank=2, alpha=4.0))
    instruct.train.update(dict(batch_size=8, epochs=4, evaluate_every=2, learning_rate=0.01))
    instruct.samples.update(dict(during=1, final=2, max_new_tokens=6))
    return made


def joint(model: pathlib.Path) -> ConfigDict:
    """A config of a small world with reviews, and a joint stage on the LLaMA in `model`."""
    made = config("sasrec", epochs=1)
    made.name = "tiny joint"
    made.stages = ("recommend", "joint")
    made.recommend.sasrec.layers = 1
    made.data.world.update(dict(num_users=26, num_items=22, mean_visits=7.0))
    made.ranking.ks = (5, 10)
    made.llm.path, made.llm.generation_batch = str(model), 16
    shrink(made)
    made.data.world.update(dict(review_share=0.7, about_share=0.4))  # short prompts
    asked = made.joint
    asked.update(dict(rounds=2, valid_users=11, samples=2))
    asked.systems = (
        "null",
        "features",
        "content",
        "shuffled",
        "template",
        "sft",
        "refit",
        "untuned",
        "masked_titles",
        "stated",
        "planted",
    )
    asked.states.update(dict(history=2, max_users=19, reach=2))
    asked.explain.max_new_tokens = 9
    asked.lora.update(dict(rank=2, alpha=4.0))
    asked.critic.update(dict(rank=2, alpha=4.0))
    asked.soft_prompt.vectors = 2
    asked.sft.examples = 8
    asked.sft.train.epochs = 1
    asked.recommender.update(dict(bottleneck=4, hidden=8, match=5))
    asked.recommender.update(dict(warm_steps=3, steps=2, final_steps=5))
    asked.recommender.train.learning_rate = 0.1  # so few steps must change a ranking
    return made
