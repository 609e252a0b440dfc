"""A finished run on a planted world with a small random LLaMA as its base, for experiments.

Weights are random because nothing but speed and bookkeeping is looked at; the tokenizer is trained
on the world's own prompts, so their lengths are those of a real run.
"""

from __future__ import annotations

import pathlib
from typing import Any

from xrec_jax import defaults
from xrec_jax.api import run
from xrec_jax.core.rundir import RunDir
from xrec_jax.llm.io.bpe import train_bpe
from xrec_jax.llm.io.hf import Generation
from xrec_jax.llm.io.hf_export import save_params
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.tasks.requests import RequestBuilder, UserItem

_TEXTS = 400  # prompts that the tokenizer is trained on


def make(
    workdir: pathlib.Path,
    *,
    users: int,
    items: int,
    visits: float,
    history: int,
    max_new_tokens: int,
    batch: int,
    sizes: dict[str, Any],
    seed: int = 0,
) -> RunDir:
    """Trains a BPR for two epochs and puts a random base beside it.

    Args:
      workdir: new run directory.
      users: number of users of the world.
      items: number of items of the world.
      visits: mean number of visits of a user.
      history: entries of a prompt.
      max_new_tokens: longest answer.
      batch: rows that generate at once.
      sizes: keywords of `LlamaConfig`; `vocab_size` is the most that the tokenizer may have.
      seed: seed of world and weights.
    """
    import flax.linen as nn
    import jax

    config = defaults.base()
    config.name = "explained world"
    config.data.world.update(
        dict(seed=seed, num_users=users, num_items=items, mean_visits=float(visits))
    )
    config.recommend.bpr = defaults.system(
        "bpr", dim=16, train=dict(batch_size=4096, epochs=2, learning_rate=0.01)
    )
    config.ranking.resamples = 100
    config.instruct.update(dict(history=history, max_prompt_tokens=0))
    config.instruct.samples.max_new_tokens = max_new_tokens
    config.llm.generation_batch = batch
    rundir = run.run(config, workdir)
    from xrec_jax.data.run_data import prepare
    from xrec_jax.llm.model.llama import Llama

    # The tokenizer learns from a sample of the run's own prompts; no text is trained on.
    builder = RequestBuilder(config, prepare(config.data))
    step = max(1, users // _TEXTS)
    texts = [builder(UserItem(user, user % items)).prompt for user in range(0, users, step)]
    folder = workdir / "tokenizer"
    tokenizer = train_bpe(texts, folder, vocab_size=sizes["vocab_size"])
    # Rounded up, as a vocabulary that devices may split.
    vocabulary = -(-len(tokenizer) // 64) * 64
    shape = LlamaConfig(**{**sizes, "vocab_size": vocabulary})
    params = jax.device_get(
        jax.jit(lambda key: nn.unbox(Llama(shape).init(key)))(jax.random.key(seed))
    )
    save_params(
        workdir / "base",
        params,
        shape,
        tokenizer_dir=folder,
        generation=Generation(tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id),
    )
    return rundir
