"""Forward passes of policy, reference and critic against plain ones, a row at a time."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.test_policy import (
    CRITIC_LORA,
    LENGTHS,
    LORA,
    MASK,
    MODEL,
    PLACEHOLDER,
    PROMPTS,
    SHAPE,
    SIZE,
    SIZES,
    TEMPERATURE,
    VECTORS,
    base_params,
    layout,
    log_probs_of,
    trained,
    values_of,
)
from xrec_jax.llm.model.llama import SoftPrompt
from xrec_jax.llm.model.lora import Adapter
from xrec_jax.training.rl.actor_critic import init_critic, init_policy, policy_log_probs
from xrec_jax.training.rl.kl import estimate


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def naive_states(tree, lora, batch, row):
    """All states of one row alone, without padding, soft vectors computed by numpy."""
    base, real = base_params(), batch["segments"][row] > 0
    soft = None
    if "projector" in tree:
        first, second = tree["projector"]["first"], tree["projector"]["second"]
        wide = gelu(batch["user"][row] @ first["kernel"] + first["bias"])
        change = (wide @ second["kernel"].reshape(8, -1)).reshape(VECTORS, -1) + second["bias"]
        places = batch["soft_positions"][row]
        vectors = (base["embed"]["table"][PLACEHOLDER] + change)[places >= 0]
        soft = SoftPrompt(places[None, places >= 0], vectors[None])
    adapter = Adapter(tree["lora"], lora) if "lora" in tree else None
    hidden = MODEL.hidden(base, batch["ids"][row, real][None], adapter=adapter, soft=soft)
    return np.asarray(hidden[0], np.float64)


@pytest.mark.parametrize("role", ["policy", "reference"])
def test_log_probs_and_entropy_are_the_naive_ones(role):
    tree, batch = (trained()["policy"] if role == "policy" else {}), layout()
    found, entropy = log_probs_of()(tree, base_params(), batch)
    assert found.dtype == entropy.dtype == jnp.float32
    expected, spread = np.zeros((2, 8, SIZE))
    for row in (0, 4) if tree else (6,):
        states = naive_states(tree, LORA, batch, row)
        logits = states @ np.asarray(base_params()["head"]["table"], np.float64).T / TEMPERATURE
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for t in range(LENGTHS[row]):
            column = PROMPTS[row] + t
            expected[row, t] = log_p[column - 1, batch["ids"][row, column]]
            spread[row, t] = -(np.exp(log_p[column - 1]) * log_p[column - 1]).sum()
    rows = [0, 3, 4] if tree else [3, 6]
    np.testing.assert_allclose(np.asarray(found)[rows], expected[rows], atol=2e-5)
    np.testing.assert_allclose(np.asarray(entropy)[rows], spread[rows], atol=2e-5)
    # A token with the id of padding counts as any other.
    assert batch["ids"][0, 6] == batch["ids"][4, 10] == 0
    assert found[0, 2] < -0.1 and found[4, 4] < -0.1


def test_values_are_the_naive_ones():
    batch, tree = layout(), trained()["critic"]
    found = np.asarray(values_of()(tree, base_params(), batch))
    for row in (0, 4):
        states = naive_states(tree, CRITIC_LORA, batch, row)
        expected = states @ tree["head"]["kernel"] + tree["head"]["bias"]
        before = slice(PROMPTS[row] - 1, PROMPTS[row] - 1 + LENGTHS[row])
        np.testing.assert_allclose(found[row, : LENGTHS[row]], expected[before], atol=2e-5)
    assert np.all(found[~MASK] == 0)
    fresh = nn.unbox(init_critic(jax.random.key(0), model=SHAPE, lora=CRITIC_LORA))
    assert np.all(np.asarray(values_of()(fresh, base_params(), batch)) == 0)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.7])
def test_a_fresh_policy_is_its_reference_at_every_temperature(temperature):
    fresh = nn.unbox(init_policy(jax.random.key(0), model=SHAPE, lora=LORA, **SIZES))
    of = log_probs_of(temperature)
    policy, reference = (of(tree, base_params(), layout())[0] for tree in (fresh, {}))
    for kind in ("k1", "k3"):
        assert np.all(np.asarray(estimate(policy, reference, kind=kind)) == 0)
    moved = of(trained()["policy"], base_params(), layout())[0]
    assert np.abs(moved - reference).max() > 0.1


def test_the_temperature_is_that_of_every_token():
    """Odds of the drawn tokens against the mode scale with 1 / temperature: entropies fall."""
    spreads = [
        np.asarray(log_probs_of(t)(trained()["policy"], base_params(), layout())[1])[MASK]
        for t in (0.3, 0.7, 1.7)
    ]
    assert np.all(spreads[0] < spreads[1]) and np.all(spreads[1] < spreads[2])


def test_padding_and_other_rows_are_not_read():
    batch = layout()
    noise = np.random.default_rng(3).integers(0, 64, size=batch["ids"].shape)
    changed = batch | {"ids": np.where(batch["segments"] == 0, noise, batch["ids"]).astype("int32")}
    changed["ids"][7] = 9
    changed["user"] = np.where(np.arange(8)[:, None] == 7, 100, batch["user"]).astype("float32")
    one, other = (
        log_probs_of()(trained()["policy"], base_params(), b)[0] for b in (batch, changed)
    )
    np.testing.assert_allclose(one[:7], other[:7], atol=1e-6)
    assert np.abs(one[7] - other[7]).max() > 0.1


def test_only_answer_columns_reach_the_output_layer():
    def read(tree, batch):
        return policy_log_probs(
            tree,
            base_params(),
            batch,
            model=MODEL,
            lora=LORA,
            temperature=1.0,
            answer_size=SIZE,
            placeholder=PLACEHOLDER,
        )

    traced = jax.make_jaxpr(read)(trained()["policy"], layout())
    shapes = {
        tuple(v.aval.shape)
        for eqn in _equations(traced.jaxpr)
        for v in eqn.outvars
        if v.aval.shape[-1:] == (SHAPE.vocab_size,)
    }
    assert shapes and max(np.prod(shape) for shape in shapes) == 8 * SIZE * SHAPE.vocab_size


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)
