"""Policy, critic and reference on one base, and the steps that train them."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import runs, tiny
from xrec_jax.core.errors import UserError
from xrec_jax.llm.language_model import shardings
from xrec_jax.llm.model.llama import Llama
from xrec_jax.llm.model.lora import LoraConfig
from xrec_jax.parallel.mesh import put_batch, put_sharded, use_mesh
from xrec_jax.training.loop import compile_step
from xrec_jax.training.rl.advantages import whiten
from xrec_jax.training.rl.losses import METRICS, PolicyOptions
from xrec_jax.training.rl.ppo import (
    critic_values,
    init_critic,
    init_policy,
    minibatches,
    policy_log_probs,
    policy_optimizer,
    ppo_step,
    sft_step,
)
from xrec_jax.training.state import TrainState, initializer

SHAPE = dataclasses.replace(tiny.LLAMA, num_layers=1)
MODEL = Llama(SHAPE)
LORA, CRITIC_LORA = LoraConfig(rank=2, alpha=4.0), LoraConfig(rank=2, alpha=2.0, targets=("q", "v"))
USERS, VECTORS, PLACEHOLDER, SIZE, COLUMNS = 5, 2, 3, 6, 15
SIZES = dict(user_dim=USERS, vectors=VECTORS, inner=8)
TEMPERATURE = 0.7
OPTIONS = PolicyOptions(
    temperature=TEMPERATURE, value_weight=0.3, entropy_weight=0.01, placeholder=PLACEHOLDER
)
LIMITED = dataclasses.replace(OPTIONS, kl_stop=0.1)
SGD = policy_optimizer(optax.sgd(0.5), optax.sgd(0.2))
ADAM = policy_optimizer(optax.adam(0.001), optax.adam(0.001))
QUICK = {"xla_backend_optimization_level": 0}  # to compile
# Ragged, one answer empty, one as long as can be; every second row has fewer soft vectors.
PROMPTS = np.array([4, 7, 9, 5, 6, 8, 4, 9])
LENGTHS = np.array([6, 1, 3, 0, 5, 2, 6, 4])
TOKENS = LENGTHS.sum()


def layout(seed=0):
    """What every role reads; pads have id 0, which answers hold too."""
    rng = np.random.default_rng(seed)
    column, total = np.arange(COLUMNS), (PROMPTS + LENGTHS)[:, None]
    ids = rng.integers(4, 64, size=(8, COLUMNS))
    ids = np.where(column < total, ids, 0)
    ids[0, 6], ids[6, 4], ids[4, 10] = 0, 0, 0  # in the middle, at the start, at the end
    positions = np.tile([1, 3], (8, 1))
    positions[::2, 1] = -1
    for row, places in enumerate(positions):
        ids[row, places[places >= 0]] = PLACEHOLDER
    return {
        "ids": ids.astype(np.int32),
        "segments": (column < total).astype(np.int32),
        "start": PROMPTS.astype(np.int32),
        "length": LENGTHS.astype(np.int32),
        "soft_positions": positions.astype(np.int32),
        "user": rng.normal(size=(8, USERS)).astype(np.float32),
    }


MASK = np.arange(SIZE) < LENGTHS[:, None]


def init(key):
    keys = jax.random.split(key)
    policy = init_policy(keys[0], model=SHAPE, lora=LORA, **SIZES)
    return {"policy": policy, "critic": init_critic(keys[1], model=SHAPE, lora=CRITIC_LORA)}


@functools.cache
def trained(shift=0.05):
    """Trees in which every array has a gradient."""
    fresh = jax.jit(lambda key: nn.unbox(init(key)), compiler_options=QUICK)(jax.random.key(1))
    return jax.device_get(jax.tree.map(lambda x: x + shift, fresh))


def base_params():
    return tiny.llama_params(SHAPE)


@functools.cache
def log_probs_of(temperature=TEMPERATURE, lora=LORA):
    return jax.jit(
        functools.partial(
            policy_log_probs,
            model=MODEL,
            lora=lora,
            temperature=temperature,
            answer_size=SIZE,
            placeholder=PLACEHOLDER,
            entropy=True,
        ),
        compiler_options=QUICK,
    )


@functools.cache
def values_of():
    return jax.jit(
        functools.partial(critic_values, model=MODEL, lora=CRITIC_LORA, answer_size=SIZE),
        compiler_options=QUICK,
    )


@functools.cache
def rollout(drift=0.2):
    """A batch as after a rollout whose policy and critic were a little different."""
    rng = np.random.default_rng(5)
    batch = layout()
    noise = lambda: rng.normal(size=MASK.shape) * MASK * drift  # noqa: E731
    old = log_probs_of()(trained()["policy"], base_params(), batch)[0] + noise()
    values = values_of()(trained()["critic"], base_params(), batch)
    advantages = whiten(rng.normal(size=MASK.shape), MASK)
    batch |= {"log_probs": old, "values": values + noise(), "advantages": advantages}
    batch["returns"] = values + rng.normal(size=MASK.shape) * 0.7 * MASK
    return {
        k: np.asarray(v, v.dtype if v.dtype == np.int32 else "float32") for k, v in batch.items()
    }


def state_of(optimizer=SGD, params=None):
    params = trained() if params is None else params
    return TrainState(
        step=jnp.int32(3),
        params=params,
        opt_state=optimizer.init(params),
        key=jax.random.key_data(jax.random.key(9)),
        frozen={"base": base_params()},
    )


@functools.cache
def step_of(accumulation=1, options=OPTIONS, optimizer=SGD):
    return jax.jit(
        functools.partial(
            ppo_step,
            model=MODEL,
            policy_lora=LORA,
            critic_lora=CRITIC_LORA,
            optimizer=optimizer,
            options=options,
            accumulation=accumulation,
        ),
        compiler_options=QUICK,
    )


def one_step(batch, state=None, **kind):
    state = state_of(kind.get("optimizer", SGD)) if state is None else state
    state, metrics = step_of(**kind)(state, batch, jax.random.key(2))
    return jax.device_get(state), {name: float(value) for name, value in metrics.items()}


def assert_close(left, right, tolerance):
    for (path, one), (_, other) in zip(runs.flat(left), runs.flat(right), strict=True):
        scale = max(1e-3, float(np.abs(other).max()))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale, err_msg=path)


# The PPO step


def naive_loss(params, batch):
    """The mean loss, in the plainest form."""
    log_p, entropy = policy_log_probs(
        params["policy"],
        base_params(),
        batch,
        model=MODEL,
        lora=LORA,
        answer_size=SIZE,
        temperature=TEMPERATURE,
        placeholder=PLACEHOLDER,
        entropy=True,
    )
    values = critic_values(
        params["critic"], base_params(), batch, model=MODEL, lora=CRITIC_LORA, answer_size=SIZE
    )
    ratio, advantages = jnp.exp(log_p - batch["log_probs"]), batch["advantages"]
    gain = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.8, 1.2) * advantages)
    old, target = batch["values"], batch["returns"]
    near = jnp.clip(values, old - 0.2, old + 0.2)
    error = jnp.maximum((values - target) ** 2, (near - target) ** 2)
    return jnp.sum((-gain + 0.3 * 0.5 * error - 0.01 * entropy)[MASK]) / TOKENS


def test_the_step_moves_along_the_gradient_of_the_mean_loss():
    batch = rollout()
    grads = jax.jit(jax.grad(naive_loss), compiler_options=QUICK)(trained(), batch)
    state, metrics = one_step(batch)
    expected = {
        name: jax.tree.map(lambda p, g, rate=rate: p - rate * g, trained()[name], grads[name])
        for name, rate in (("policy", 0.5), ("critic", 0.2))
    }
    assert_close(state.params, expected, 2e-6)
    assert all(np.abs(leaf).max() > 1e-5 for leaf in jax.tree.leaves(grads))
    assert int(state.step) == 4
    for name in ("policy", "critic"):
        norm = float(optax.tree.norm(grads[name]))
        assert metrics[f"ppo/grad_norm_{name}"] == pytest.approx(norm, rel=1e-4)


def test_every_metric_is_documented_and_as_numpy_says():
    batch = rollout()
    _, found = one_step(batch)
    assert found.keys() == METRICS.keys()
    log_p, entropy = log_probs_of()(trained()["policy"], base_params(), batch)
    difference = np.asarray(log_p - batch["log_probs"], np.float64)[MASK]
    ratio, advantages = np.exp(difference), batch["advantages"][MASK]
    values = np.asarray(values_of()(trained()["critic"], base_params(), batch))[MASK]
    old, target = batch["values"][MASK], batch["returns"][MASK]
    free, near = (values - target) ** 2, (old + np.clip(values - old, -0.2, 0.2) - target) ** 2
    cut = np.clip(ratio, 0.8, 1.2) * advantages
    expected = {
        "policy_loss": -np.minimum(ratio * advantages, cut).mean(),
        "value_loss": 0.5 * np.maximum(free, near).mean(),
        "entropy": np.asarray(entropy)[MASK].mean(),
        "kl_old": (ratio - 1 - difference).mean(),
        "ratio_mean": ratio.mean(),
        "ratio_max": ratio.max(),
        "clip_fraction": (ratio * advantages > cut + 1e-7).mean(),
        "value_clip_fraction": (near > free + 1e-6).mean(),  # more than rounding
        "explained_variance": 1 - (target - old).var() / target.var(),
        "tokens": TOKENS,
        "stopped": 0.0,
    }
    found = {name.removeprefix("ppo/"): value for name, value in found.items()}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=2e-4, abs=1e-6)
    assert 0 < expected["clip_fraction"] < 1 and 0 < expected["value_clip_fraction"] < 1


def test_the_first_update_sees_ratios_of_one():
    batch = rollout(drift=0.0)
    _, metrics = one_step(batch)
    # Sampled and trained in programs of their own, whose float32 sums round differently.
    for name in ("ppo/ratio_max", "ppo/ratio_mean"):
        assert metrics[name] == pytest.approx(1.0, abs=1e-6)
    assert metrics["ppo/kl_old"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["ppo/clip_fraction"] == 0.0
    assert metrics["ppo/value_clip_fraction"] == 0.0


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_changes_nothing_beyond_rounding(accumulation):
    batch = rollout()
    whole, logged = one_step(batch)
    parts, other = one_step(batch, accumulation=accumulation)
    assert_close(parts.params, whole.params, 2e-6)
    assert other == pytest.approx(logged, rel=1e-5, abs=1e-6)


@functools.cache
def on_the_way():
    """A state whose moments are not zero."""
    return one_step(rollout(), optimizer=ADAM, options=LIMITED)[0]


def test_while_the_critic_warms_up_the_policy_does_not_move():
    """No bit of it, nor of its moments and counts; the critic learns as it does otherwise."""
    start, kind = on_the_way(), dict(optimizer=ADAM, options=LIMITED)
    batch = rollout() | {"train_policy": np.float32(0)}
    state, metrics = one_step(batch, start, **kind)
    for one, other in ((state.params, start.params), (state.opt_state, start.opt_state)):
        runs.assert_same_bits(one["policy"], other["policy"])
    usual, _ = one_step(batch | {"train_policy": np.float32(1)}, start, **kind)
    runs.assert_same_bits(state.params["critic"], usual.params["critic"])
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), usual.params["policy"], start.params["policy"]
    )
    assert all(value > 1e-5 for value in jax.tree.leaves(moved))
    assert int(state.step) == int(start.step) + 1 and metrics["ppo/stopped"] == 0


def test_a_step_beyond_the_kl_limit_changes_no_bit():
    start = on_the_way()
    state, metrics = one_step(rollout(drift=1.0), start, optimizer=ADAM, options=LIMITED)
    assert metrics["ppo/stopped"] == 1 and metrics["ppo/kl_old"] > 0.1
    runs.assert_same_bits(jax.device_get(state.saved()), jax.device_get(start.saved()))
    state, metrics = one_step(rollout(), start, optimizer=ADAM, options=LIMITED)
    assert metrics["ppo/stopped"] == 0 and 0.005 < metrics["ppo/kl_old"] < 0.1
    assert int(state.step) == int(start.step) + 1


def test_a_policy_without_a_critic_or_a_soft_prompt():
    """GRPO of a plain adapter: no values are read, and no metric pretends that there are any."""
    params = {"policy": {"lora": trained()["policy"]["lora"]}, "critic": {}}
    unread = ("values", "returns", "soft_positions", "user")
    batch = {name: x for name, x in rollout().items() if name not in unread}
    clipped = policy_optimizer(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)), optax.adam(0.01)
    )
    state, metrics = one_step(batch, state_of(clipped, params), optimizer=clipped)
    assert state.params["critic"] == {}
    assert metrics.keys() < METRICS.keys() and "ppo/value_loss" not in metrics
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, params)
    assert all(value > 1e-5 for value in jax.tree.leaves(moved))


def test_norms_are_clipped_a_part():
    clip = optax.clip_by_global_norm
    rule = policy_optimizer(clip(1.0), clip(2.0))
    grads = {"policy": {"a": jnp.full(4, 30.0)}, "critic": {"a": jnp.full(4, 0.3)}}
    updates, _ = rule.update(grads, rule.init(grads), grads)
    np.testing.assert_allclose(updates["policy"]["a"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(updates["critic"]["a"], 0.3, rtol=1e-6)


# Devices


def train_on(mesh, *, accumulation=1, steps=10):
    """Parameters and metrics after Adam steps on a mesh."""
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.003))
    optimizer = policy_optimizer(rule, rule)
    batch = jax.tree.map(lambda x: np.concatenate([x, x[::-1]]), rollout())
    batch["advantages"] *= np.where(np.arange(16) < 8, 1.0, -0.4)[:, None].astype(np.float32)
    with use_mesh(mesh):
        base = put_sharded(jax.device_get(base_params()), shardings(MODEL, mesh))
        state = initializer(init, optimizer, mesh=mesh)(4)
        state = state.replace(frozen={"base": base})
        split = jax.tree.map(lambda x: x.sharding, state.params)
        step = compile_step(
            functools.partial(
                ppo_step,
                model=MODEL,
                policy_lora=LORA,
                critic_lora=CRITIC_LORA,
                optimizer=optimizer,
                options=OPTIONS,
                accumulation=accumulation,
            ),
            state,
        )
        # One switch a row, as a batch that is split needs it; the critic warms up for two steps.
        placed, logged = put_batch(batch, mesh), []
        switches = [put_batch({"train_policy": np.full(16, on, np.float32)}, mesh) for on in (0, 1)]
        for number in range(steps):
            state, metrics = jax.block_until_ready(step(state, placed | switches[number > 1]))
            logged.append({name: float(value) for name, value in metrics.items()})
        assert jax.tree.map(lambda x: x.sharding, state.params) == split
    return jax.device_get(state.params), logged, state


def test_eight_devices_train_as_one_does():
    one, logged, _ = train_on(tiny.mesh(1))
    many, found, state = train_on(tiny.mesh(8, fsdp=2, tensor=2), accumulation=2)
    for left, right in zip(logged, found, strict=True):
        assert left == pytest.approx(right, rel=2e-4, abs=2e-5)
    # Nothing of the policy moves while the critic warms up, and all afterwards.
    assert len({row["ppo/policy_loss"] for row in logged}) == 8
    for (path, left), (_, right) in zip(runs.flat(one), runs.flat(many), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=2e-5, err_msg=path)
    axes = {axis for leaf in jax.tree.leaves(state.params) for axis in leaf.sharding.spec if axis}
    assert {"fsdp", "tensor"} <= axes


# The warm start


def test_the_warm_start_minimises_the_mean_over_answer_tokens():
    tree, batch = trained()["policy"], layout()
    state = state_of(optax.sgd(0.5), tree)

    def mean(tree):
        return (
            -policy_log_probs(
                tree,
                base_params(),
                batch,
                model=MODEL,
                lora=LORA,
                temperature=1.0,
                answer_size=SIZE,
                placeholder=PLACEHOLDER,
            ).sum()
            / TOKENS
        )

    loss, grads = jax.jit(jax.value_and_grad(mean), compiler_options=QUICK)(tree)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, tree, grads)
    step = functools.partial(
        sft_step,
        model=MODEL,
        lora=LORA,
        optimizer=optax.sgd(0.5),
        answer_size=SIZE,
        placeholder=PLACEHOLDER,
        accumulation=4,
    )
    after, metrics = jax.jit(step, compiler_options=QUICK)(state, batch, jax.random.key(0))
    assert_close(after.params, expected, 3e-6)
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {
            "train/loss": float(loss),
            "train/grad_norm": float(optax.tree.norm(grads)),
            "train/tokens": TOKENS,
            "train/read_tokens": (PROMPTS + LENGTHS).sum(),
        },
        rel=2e-5,
    )
    assert np.abs(grads["projector"]["first"]["kernel"]).max() > 1e-5


# Minibatches


def test_every_epoch_reads_every_row_once():
    found = minibatches(24, 8, epochs=3, key=jax.random.key(1))
    assert found.shape == (3, 3, 8)
    orders = found.reshape(3, 24)
    assert all(sorted(order) == list(range(24)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    data = jax.random.key_data(jax.random.key(1))
    np.testing.assert_array_equal(found, minibatches(24, 8, epochs=3, key=data))
    np.testing.assert_array_equal(found[:2], minibatches(24, 8, epochs=2, key=data))
    assert not np.array_equal(found, minibatches(24, 8, epochs=3, key=jax.random.key(2)))


# Mistakes


def _read(**changed):
    arguments = dict(
        model=MODEL, lora=LORA, temperature=1.0, answer_size=SIZE, placeholder=PLACEHOLDER
    )
    batch = layout() | changed.pop("batch", {})
    return policy_log_probs(trained()["policy"], base_params(), batch, **arguments | changed)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: minibatches(10, 4, epochs=1, key=jax.random.key(0)), "10 rollouts .* of 4"),
        (lambda: _read(placeholder=-1), "placeholder=-1"),
        (lambda: _read(placeholder=64), "vocabulary of 64"),
        (lambda: _read(batch={"soft_positions": np.zeros((8, 3), np.int32)}), "3 places"),
        (lambda: _read(lora=None), "LoraConfig"),
        (lambda: one_step(rollout(), accumulation=3), "accumulation=3 must divide the 8 rows"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
