"""A contextual bandit, solved with the real functions by a real, minuscule language model.

A prompt of two tokens names a context, an answer has two tokens, and every pair of context and
token has a fractional reward. A random policy earns 55 % of what the best answers earn.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.llama import Llama
from xrec_jax.llm.model.lora import Adapter, LoraConfig
from xrec_jax.training.rl.advantages import (
    AdvantageOptions,
    advantages_of,
    answer_mask,
    token_rewards,
)
from xrec_jax.training.rl.losses import PolicyOptions
from xrec_jax.training.rl.ppo import (
    critic_values,
    init_critic,
    init_policy,
    policy_log_probs,
    policy_optimizer,
    ppo_step,
)
from xrec_jax.training.state import TrainState

SHAPE = LlamaConfig(
    vocab_size=8,
    hidden_size=32,
    intermediate_size=40,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=8,
    initializer_range=0.3,
)
MODEL, LORA = Llama(SHAPE), LoraConfig(rank=8, alpha=16.0)
CONTEXTS, ANSWER, ROWS, EPOCHS, ROUNDS, TEMPERATURE = 4, 2, 256, 2, 60, 1.5
OPTIONS = PolicyOptions(temperature=TEMPERATURE, entropy_weight=0.4)
RATE = optax.linear_schedule(0.015, 0.0, ROUNDS * EPOCHS)
OPTIMIZER = policy_optimizer(
    optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE)), optax.adam(RATE)
)
# [context, place, token]: what a token earns.
TABLE = np.random.default_rng(0).uniform(0.0, 0.5, (CONTEXTS, ANSWER, SHAPE.vocab_size))
BEST = TABLE.max(-1).sum(-1).mean()


def draw(policy, base, context, key):
    """Prompts of some contexts, and answers drawn token by token at the temperature."""
    zeros = jnp.zeros((len(context), ANSWER), jnp.int32)
    ids = jnp.concatenate([jnp.ones_like(context)[:, None], context[:, None] + 2, zeros], axis=1)
    for column in range(2, 2 + ANSWER):
        logits = MODEL.logits(base, ids, adapter=Adapter(policy["lora"], LORA))[:, column - 1]
        token = jax.random.categorical(jax.random.fold_in(key, column), logits / TEMPERATURE)
        ids = ids.at[:, column].set(token)
    return {
        "ids": ids,
        "segments": jnp.ones_like(ids),
        "start": jnp.full_like(context, 2),
        "length": jnp.full_like(context, ANSWER),
    }


def earned(batch, context):
    """`[n]` float32 rewards."""
    table = jnp.asarray(TABLE, jnp.float32)
    return sum(table[context, place, batch["ids"][:, 2 + place]] for place in range(ANSWER))


def one_round(state, key, *, estimator):
    """Rollouts, rewards, advantages and the updates on them; the mean score."""
    base, policy, critic = state.frozen["base"], state.params["policy"], state.params["critic"]
    context = jnp.arange(ROWS, dtype=jnp.int32) % CONTEXTS
    batch = draw(policy, base, context, key)
    roles = dict(model=MODEL, lora=LORA, answer_size=ANSWER)
    old = policy_log_probs(policy, base, batch, temperature=TEMPERATURE, **roles)
    reference = policy_log_probs({}, base, batch, temperature=TEMPERATURE, **roles)
    mask, score = answer_mask(batch["length"], ANSWER), earned(batch, context)
    rewards = token_rewards(score, old, reference, mask, beta=0.002, kind="k1")
    values = critic_values(critic, base, batch, **roles) if critic else None
    advantages, returns = advantages_of(
        estimator, rewards, values, mask, context, options=AdvantageOptions(lam=0.95)
    )
    batch |= {"log_probs": old, "advantages": advantages, "returns": returns}
    batch |= {"values": values} if critic else {}
    for _ in range(EPOCHS):
        state, _ = ppo_step(
            state,
            batch,
            key,
            model=MODEL,
            policy_lora=LORA,
            critic_lora=LORA,
            optimizer=OPTIMIZER,
            options=OPTIONS,
        )
    return state, score.mean()


@pytest.mark.parametrize("estimator", ["gae", "group"])
def test_it_is_solved(estimator):
    @jax.jit
    def solve(seed):
        policy_key, critic_key, base_key, key = jax.random.split(jax.random.key(seed), 4)
        sizes = dict(model=SHAPE, lora=LORA)
        critic = init_critic(critic_key, **sizes) if estimator == "gae" else {}
        params = nn.unbox({"policy": init_policy(policy_key, **sizes), "critic": critic})
        state = TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state=OPTIMIZER.init(params),
            key=jax.random.key_data(key),
            frozen={"base": nn.unbox(MODEL.init(base_key))},
        )
        step = functools.partial(one_round, estimator=estimator)
        return jax.lax.scan(step, state, jax.random.split(key, ROUNDS))[1]

    shares = np.asarray(solve(0)) / BEST
    assert shares[0] < 0.6
    assert shares[-5:].mean() >= 0.95
