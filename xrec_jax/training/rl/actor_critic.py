"""Actor (policy), reference and critic on one base: trained trees and forward passes.

All three share one copy of the base. The policy adds an adapter and soft prompts projected from the
user's state, the critic its own adapter and a value head; the reference is the base alone, or an
adapter of an earlier stage. Batches hold padded rows of a prompt with its answer:

    ids, segments `[n, L]` int32: prompt then answer, right-padded; segment 1 is real, 0 padding
    start `[n]` int32: column of the first answer token, at least 1
    length `[n]` int32: answer tokens including the final one; 0 for a row that only fills the batch
    soft_positions `[n, K]` int32: columns of soft vectors, -1 none; absent without soft prompts
    user `[n, D]` float32: input of the projector; absent without soft prompts

Arrays of answers are `[n, A]`: column t belongs to the token at `start + t`.

Answers to one prompt may share a row, so that the prompt is read once (GRPO reads a group of them):
n / G rows of G consecutive answers each. The prompt is then segment 1, and the answers are segments
2 to G + 1, which attend to the prompt and to themselves only; `start` and `length` have one entry
per answer, the others one per row. After a prompt of p tokens, each answer has the positions p,
p + 1, ...
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from xrec_jax.core.errors import UserError
from xrec_jax.llm.model import heads
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.llama import Llama, SoftPrompt, positions_of
from xrec_jax.llm.model.lora import Adapter, LoraConfig, init_params
from xrec_jax.llm.model.losses import chunk_columns
from xrec_jax.parallel.mesh import constrain
from xrec_jax.training.rl.advantages import answer_mask

Batch = dict[str, jax.Array]

ROWS = ("ids", "segments", "start", "length", "soft_positions", "user")


# The trained trees


def init_policy(
    key: jax.Array,
    *,
    model: LlamaConfig,
    lora: LoraConfig,
    user_dim: int = 0,
    vectors: int = 0,
    inner: int = 0,
) -> dict[str, Any]:
    """Initialises a policy that answers as the base does; arrays carry their logical axes.

    Args:
      key: key of the random initialisation.
      model: configuration of the base.
      lora: configuration of the adapter.
      user_dim: size of a user's state.
      vectors: soft vectors per prompt; 0 for no soft prompt and no projector.
      inner: hidden size of the projector; 0 takes the model's hidden size.

    Returns:
      `{"lora": ..., "projector": ...}`.
    """
    lora_key, projector_key = jax.random.split(key)
    tree: dict[str, Any] = {"lora": init_params(lora, model, lora_key)}
    if vectors:
        tree["projector"] = heads.init_projector(
            projector_key,
            user_dim=user_dim,
            inner=inner or model.hidden_size,
            vectors=vectors,
            hidden=model.hidden_size,
        )
    return tree


def init_critic(
    key: jax.Array,
    *,
    model: LlamaConfig,
    lora: LoraConfig,
    user_dim: int = 0,
    vectors: int = 0,
    inner: int = 0,
) -> dict[str, Any]:
    """Initialises a critic whose value estimates are all 0; arguments as in `init_policy`.

    Its soft prompt, if any, is not shared with the policy.

    Returns:
      `{"lora": ..., "head": ..., "projector": ...}`.
    """
    body = init_policy(key, model=model, lora=lora, user_dim=user_dim, vectors=vectors, inner=inner)
    return body | {"head": heads.init_value_head(key, hidden=model.hidden_size)}


# Forward passes


def _soft_prompt(tree: Any, base: Any, batch: Batch, placeholder: int) -> SoftPrompt | None:
    """Projects the users' states to soft vectors; None without a projector or positions."""
    if "projector" not in tree or "soft_positions" not in batch:
        return None
    projector, positions = tree["projector"], batch["soft_positions"]
    count = heads.num_vectors(projector)
    if positions.shape[1] != count:
        raise UserError(
            f"prompts have {positions.shape[1]} places for soft vectors, but the projector makes "
            f"{count}; use the number it was trained with"
        )
    table = base["embed"]["table"]
    if not 0 <= placeholder < table.shape[0]:
        raise UserError(
            f"placeholder={placeholder} is not a token of the vocabulary of {table.shape[0]}; "
            "soft prompts need the id of the token that they replace"
        )
    return SoftPrompt(positions, heads.soft_vectors(projector, table[placeholder], batch["user"]))


def answer_states(
    tree: Any,
    base: Any,
    batch: Batch,
    *,
    model: Llama,
    lora: LoraConfig | None,
    answer_size: int,
    placeholder: int,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hidden states before each answer token `[n, A, hidden]`, its id and the mask `[n, A]`.

    Args:
      tree: trained tree of a policy or critic; empty or None for the base alone.
      base: parameters of the base.
      batch: see the module.
      model: functions of the base.
      lora: configuration of the adapter in `tree`.
      answer_size: A.
      placeholder: id of the token that soft vectors replace.
      key: key of the adapter's dropout; None for none.

    Raises:
      UserError: if `tree` has an adapter without a configuration, or soft prompts do not fit.
    """
    tree = tree or {}
    adapter = None
    if "lora" in tree:
        if lora is None:
            raise UserError("an adapter needs its LoraConfig")
        adapter = Adapter(tree["lora"], lora)
    ids, segments, start = batch["ids"], batch["segments"], batch["start"]
    rows, width = ids.shape
    each, short = divmod(len(start), rows)  # answers of a row
    if short:
        raise ValueError(f"{len(start)} answers do not fill {rows} rows")
    shared = each > 1
    hidden = model.hidden(
        base,
        ids,
        segments=segments,
        adapter=adapter,
        key=key,
        shared=shared,
        positions=_shared_positions(segments) if shared else None,
        soft=_soft_prompt(tree, base, batch, placeholder),
    )
    # The state that predicts a token is the one a column before it.
    columns = start[:, None] + jnp.arange(answer_size)
    before = columns - 1
    if shared:  # there the column before a first token is padding or another answer
        prompt = jnp.repeat(jnp.sum(segments == 1, axis=1), each)
        before = before.at[:, 0].set(prompt - 1)

    # Only the answers' columns go on to the output layer: logits of prompts would be wasted.
    def gather(source, columns):  # [n, A, ...]
        places = jnp.clip(columns, 0, width - 1).reshape(rows, -1)
        places = places.reshape(*places.shape, *[1] * (source.ndim - 2))
        gathered = jnp.take_along_axis(source, places, axis=1)
        return gathered.reshape(len(start), answer_size, *source.shape[2:])

    mask = answer_mask(batch["length"], answer_size)
    states, tokens = gather(hidden, before), gather(ids, columns)
    return constrain(states, "batch", None, None), jnp.where(mask, tokens, 0), mask


def _shared_positions(segments: jax.Array) -> jax.Array:
    """Positions `[n, L]` of rows with a shared prompt: each answer continues from its end."""
    prompt = jnp.sum(segments == 1, axis=1, keepdims=True)
    return positions_of(segments) + jnp.where(segments > 1, prompt, 0)


def _read_out(
    states: jax.Array, table: jax.Array, tokens: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each token and entropy of its distribution: `[n, A]` float32 each.

    Logits exist for one chunk of columns at a time and are recomputed for the gradient.
    """
    rows, length, width = states.shape
    chunk = chunk_columns(rows, length, table.shape[0])

    def pieces(x):  # [pieces, rows, chunk, ...]
        padded = jnp.pad(x, ((0, 0), (0, -length % chunk), *[(0, 0)] * (x.ndim - 2)))
        return padded.reshape(rows, -1, chunk, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def piece(columns):
        states, tokens = columns
        logits = jax.lax.dot_general(
            states.reshape(-1, width),
            table.astype(states.dtype),
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        logits = constrain(logits.reshape(rows, chunk, -1), "batch", None, "vocab") / temperature
        partition = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1) - partition
        shares = jnp.exp(logits - partition)
        return chosen[..., 0], partition[..., 0] - jnp.sum(shares * logits, axis=-1)

    def whole(x):
        return x.swapaxes(0, 1).reshape(rows, -1)[:, :length]

    log_p, entropy = jax.lax.map(piece, (pieces(states), pieces(tokens)))
    return whole(log_p), whole(entropy)


def policy_log_probs(
    trained_policy: Any,
    base: Any,
    batch: Batch,
    *,
    model: Llama,
    lora: LoraConfig | None,
    temperature: float,
    answer_size: int,
    placeholder: int = -1,
    entropy: bool = False,
    key: jax.Array | None = None,
) -> Any:
    """Log-probabilities of answer tokens under a policy or the reference.

    Rollouts, updates and the reference use this one function with different arguments, so that
    equal parameters give equal bits.

    Args:
      trained_policy: `{"lora": ..., "projector": ...}`; `{}` or None is the base itself. Without a
        projector, soft positions keep the embeddings of their tokens.
      base: parameters of the base.
      batch: see the module; other entries are not read.
      model: functions of the base.
      lora: configuration of the adapter; None without an adapter.
      temperature: divisor of the logits.
      answer_size: A.
      placeholder: id of the token that soft vectors replace.
      entropy: whether to return the entropy, too.
      key: key of the adapter's dropout; None for none.

    Returns:
      `[n, A]` float32 in nats, 0 beyond an answer's length; with `entropy` a pair of such arrays,
      log-probability and entropy.
    """
    states, tokens, mask = answer_states(
        trained_policy,
        base,
        batch,
        model=model,
        lora=lora,
        answer_size=answer_size,
        placeholder=placeholder,
        key=key,
    )
    outputs = _read_out(states, model.table(base), tokens, temperature)
    log_p, spread = (jnp.where(mask, x, 0.0) for x in outputs)
    return (log_p, spread) if entropy else log_p


def critic_values(
    trained_critic: Any,
    base: Any,
    batch: Batch,
    *,
    model: Llama,
    lora: LoraConfig | None,
    answer_size: int,
    placeholder: int = -1,
) -> jax.Array:
    """Value estimates before each answer token: `[n, A]` float32, 0 beyond the length.

    Args:
      trained_critic: `{"lora": ..., "head": ...}`, and a projector if it reads soft prompts.
      base: parameters of the base.
      batch: see the module.
      model: functions of the base.
      lora: configuration of the adapter.
      answer_size: A.
      placeholder: id of the token that soft vectors replace.
    """
    states, _, mask = answer_states(
        trained_critic,
        base,
        batch,
        model=model,
        lora=lora,
        answer_size=answer_size,
        placeholder=placeholder,
    )
    return jnp.where(mask, heads.state_values(trained_critic["head"], states), 0.0)
