"""The language-model step: exact under packing, accumulation and sharding; the base never moves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import runs, tiny
from tests.data.test_packing import examples
from xrec_jax.data.packing import Example, PackedRows
from xrec_jax.llm.language_model import shardings
from xrec_jax.llm.model import lora
from xrec_jax.llm.model.llama import Llama
from xrec_jax.parallel.mesh import put_batch, put_sharded, use_mesh
from xrec_jax.training.checkpoint import Checkpoints
from xrec_jax.training.instruct import instruct_step, summed_loss
from xrec_jax.training.loop import compile_step
from xrec_jax.training.state import TrainState, initializer

SHAPE = dataclasses.replace(tiny.LLAMA, num_layers=1)
MODEL = Llama(SHAPE)
LORA = lora.LoraConfig(rank=2, alpha=4.0)
SGD = optax.sgd(0.5)
QUICK = {"xla_backend_optimization_level": 0}  # to compile
# Ragged: a row alone may hold 1 trained token or 23.
LENGTHS = [24, 3, 9, 2, 16, 21, 7, 5]


@functools.cache
def adapter_params():
    """An adapter whose `b` is not zero, so that `a` has a gradient."""
    with jax.ensure_compile_time_eval():
        fresh = lora.init(LORA, SHAPE, jax.random.key(1)).params
        return jax.device_get(jax.tree.map(lambda x: x + 0.05, fresh))


def base_params():
    return tiny.llama_params(SHAPE)


def rows_of(made, *, together=False, length=24):
    """All rows of some examples as one batch."""
    rows = PackedRows(made, length=length, together=together)
    return rows.rows(0, np.arange(rows.num_rows))


@functools.cache
def loss_and_grads(config=LORA):
    """Compiled summed loss and its gradient, of the adapter or of the model."""

    def loss(trained, batch):
        base = base_params() if config else None
        return summed_loss(trained, base, batch, None, model=MODEL, lora=config)

    return jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)


def state_of(params, base, optimizer=SGD):
    """A state as the loop has it."""
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(params),
        key=jax.random.key_data(jax.random.key(9)),
        frozen={} if base is None else {"base": base},
    )


@functools.cache
def step_of(accumulation=1, config=LORA, optimizer=SGD):
    """A compiled step."""
    return jax.jit(
        functools.partial(
            instruct_step, model=MODEL, lora=config, optimizer=optimizer, accumulation=accumulation
        ),
        compiler_options=QUICK,
    )


def one_step(batch, *, accumulation=1, config=LORA):
    """State and metrics after a step from the same beginning."""
    trained, base = adapter_params(), base_params()
    state = state_of(*((trained, base) if config else (base, None)))
    return step_of(accumulation, config)(state, batch, jax.random.key(2))


def assert_close(left, right, tolerance):
    for (path, one), (_, other) in zip(runs.flat(left), runs.flat(right), strict=True):
        scale = max(1e-3, float(np.abs(other).max()))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale, err_msg=path)


def naive_sum(made, tuned):
    """`-log p` summed over trained tokens in float64, one example at a time, nothing packed."""
    logits_of = jax.jit(lambda ids: MODEL.logits(base_params(), ids, adapter=tuned))
    total = 0.0
    for one in made:
        padded = np.pad(one.ids, (0, 24 - len(one.ids)))[None]
        logits = np.asarray(logits_of(padded)[0], np.float64)
        log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
        total -= sum(log_p[k - 1, one.ids[k]] for k in range(1, len(one.ids)) if one.trained[k])
    return total


# The loss


@pytest.mark.parametrize("config", [LORA, None], ids=["adapter", "model"])
@pytest.mark.parametrize("together", [True, False], ids=["packed", "rows"])
def test_the_loss_is_the_naive_one(config, together):
    made = examples(LENGTHS)
    trained = adapter_params() if config else base_params()
    found, _ = loss_and_grads(config)(trained, rows_of(made, together=together))
    tuned = lora.Adapter(adapter_params(), LORA) if config else None
    assert float(found) == pytest.approx(naive_sum(made, tuned), rel=1e-6)


@pytest.mark.parametrize("config", [LORA, None], ids=["adapter", "model"])
def test_packing_changes_neither_loss_nor_gradient(config):
    made = examples(LENGTHS)
    packed, single = rows_of(made, together=True), rows_of(made)
    assert packed["segments"].max() > 2 and len(packed["ids"]) < len(single["ids"])
    trained = adapter_params() if config else base_params()
    loss, grads = loss_and_grads(config)(trained, packed)
    expected, expected_grads = loss_and_grads(config)(trained, single)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert_close(grads, expected_grads, 2e-6)


def test_gradients_are_those_of_the_naive_loss():
    made = examples(LENGTHS)
    batch = rows_of(made)

    def naive(params):
        logits = MODEL.logits(
            base_params(),
            batch["ids"],
            segments=batch["segments"],
            adapter=lora.Adapter(params, LORA),
        )
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)
        return -jnp.sum(chosen[..., 0] * batch["weights"])

    expected = jax.jit(jax.grad(naive), compiler_options=QUICK)(adapter_params())
    _, found = loss_and_grads()(adapter_params(), batch)
    assert_close(found, expected, 1e-5)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(found))


# What is trained


def test_what_the_prompt_predicts_does_not_matter():
    """Targets and weights of columns that are not trained may be anything."""
    batch = rows_of(examples(LENGTHS))
    untrained = batch["weights"] == 0
    changed = batch | {"targets": np.where(untrained, 7, batch["targets"])}
    assert (changed["targets"] != batch["targets"]).sum() > 20
    for one, other in zip(
        *(loss_and_grads()(adapter_params(), b) for b in (batch, changed)), strict=True
    ):
        runs.assert_same_bits(one, other)


def test_every_end_of_an_answer_is_trained():
    """Two answers of a conversation, each ended by id 1: both ends count, each by itself."""
    ids = np.array([3, 9, 8, 1, 9, 9, 7, 6, 1], np.int32)
    trained = np.array([0, 0, 1, 1, 0, 0, 1, 1, 1], bool)
    batch = rows_of([Example(ids, trained)] * 8)
    ends = np.flatnonzero(batch["targets"][0] == 1)
    assert ends.tolist() == [2, 7] and batch["weights"][0, ends].tolist() == [1, 1]
    whole = float(loss_and_grads()(adapter_params(), batch)[0])
    for end in ends:
        weights = np.array(batch["weights"])
        weights[:, end] = 0
        without = float(loss_and_grads()(adapter_params(), batch | {"weights": weights})[0])
        assert 0.1 < whole - without < whole


def test_padding_is_not_read():
    batch = rows_of(examples(LENGTHS))
    noise = np.random.default_rng(0).integers(0, 64, size=batch["ids"].shape)
    changed = batch | {"ids": np.where(batch["segments"] == 0, noise, batch["ids"]).astype("int32")}
    one, other = (loss_and_grads()(adapter_params(), b) for b in (batch, changed))
    assert float(one[0]) == pytest.approx(float(other[0]), rel=1e-7)
    assert_close(one[1], other[1], 1e-6)


# One step


def fractional(batch):
    """Weights that are no whole numbers, and none at all in some rows."""
    factors = np.random.default_rng(5).uniform(0.1, 2.5, size=batch["weights"].shape)
    weights = (batch["weights"] * factors).astype(np.float32)
    weights[[1, 4]] = 0
    return batch | {"weights": weights}


@pytest.mark.parametrize("change", [dict, fractional], ids=["ragged", "fractional weights"])
@pytest.mark.parametrize("config", [LORA, None], ids=["adapter", "model"])
def test_accumulation_changes_nothing_beyond_rounding(config, change):
    batch = change(rows_of(examples(LENGTHS)))
    whole, logged = one_step(batch, config=config)
    per_row = batch["weights"].sum(axis=1)
    assert per_row.max() > 4 * per_row.min()
    start = adapter_params() if config else base_params()
    moved = jax.tree.map(
        lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), whole.params, start
    )
    assert all(value > 1e-4 for value in jax.tree.leaves(moved))
    for accumulation in (2, 4) if config else (4,):
        parts, other = one_step(batch, accumulation=accumulation, config=config)
        assert_close(parts.params, whole.params, 2e-6)
        assert other.keys() == logged.keys()
        for name, value in logged.items():
            assert float(other[name]) == pytest.approx(float(value), rel=3e-6), name


def test_the_step_moves_along_the_mean_gradient():
    batch = fractional(rows_of(examples(LENGTHS)))
    loss, grads = loss_and_grads()(adapter_params(), batch)
    tokens = float(batch["weights"].sum())
    state, metrics = one_step(batch)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g / tokens, adapter_params(), grads)
    assert_close(state.params, expected, 1e-6)
    assert int(state.step) == 1
    squares = sum(float(jnp.sum(jnp.square(g / tokens))) for g in jax.tree.leaves(grads))
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {
            "train/loss": float(loss) / tokens,
            "train/grad_norm": squares**0.5,
            "train/tokens": tokens,
            "train/read_tokens": sum(LENGTHS),
        },
        rel=1e-6,
    )


def test_a_batch_without_a_trained_token_moves_nothing():
    batch = rows_of(examples(LENGTHS))
    state, metrics = one_step(batch | {"weights": np.zeros_like(batch["weights"])})
    runs.assert_same_bits(jax.device_get(state.params), jax.device_get(adapter_params()))
    assert float(metrics["train/loss"]) == 0


def test_dropout_draws_by_step_and_part():
    dropping = lora.LoraConfig(rank=2, alpha=4.0, dropout=0.5)
    batch = rows_of(examples([9]) * 8)
    state = state_of(adapter_params(), base_params())

    def loss(batch, key):
        step = step_of(2, dropping)
        return float(step(state, batch, jax.random.key(key))[1]["train/loss"])

    assert loss(batch, 1) == loss(batch, 1) != loss(batch, 2)
    # Equal rows, of which only those of one part count.
    parts = [batch["weights"] * (np.arange(8) % 2 == part)[:, None] for part in (0, 1)]
    first, second = (loss(batch | {"weights": weights}, 1) for weights in parts)
    assert first != pytest.approx(second, rel=1e-6)


# Devices


def train_on(mesh, config, *, accumulation=1, steps=3):
    """Adapter or model after some AdamW steps on a mesh, its losses, and the base."""
    optimizer = optax.adamw(0.01)
    batch = rows_of(examples(LENGTHS * 2))
    with use_mesh(mesh):
        base = put_sharded(jax.device_get(base_params()), shardings(MODEL, mesh))

        def init(key):
            return lora.init_params(LORA, SHAPE, key) if config else MODEL.init(key)

        state = initializer(init, optimizer, mesh=mesh)(4)
        state = state.replace(frozen={"base": base} if config else {})
        split = jax.tree.map(lambda x: x.sharding, state.params)
        step = compile_step(
            functools.partial(
                instruct_step,
                model=MODEL,
                lora=config,
                optimizer=optimizer,
                accumulation=accumulation,
            ),
            state,
        )
        losses = []
        for _ in range(steps):
            state, metrics = jax.block_until_ready(step(state, put_batch(batch, mesh)))
            losses.append(float(metrics["train/loss"]))
        assert jax.tree.map(lambda x: x.sharding, state.params) == split
    return jax.device_get(state.params), losses, base, state


@pytest.mark.parametrize("config", [LORA, None], ids=["adapter", "model"])
def test_eight_devices_train_as_one_does(config):
    one, losses, *_ = train_on(tiny.mesh(1), config)
    mesh = tiny.mesh(8, fsdp=2, tensor=2)
    many, found, base, state = train_on(mesh, config, accumulation=2 if config else 1)
    assert losses == pytest.approx(found, abs=1e-5) and len(set(losses)) == 3
    for (path, left), (_, right) in zip(runs.flat(one), runs.flat(many), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-5, err_msg=path)
    # Adapter kernels are split as the base's are, over both axes.
    axes = {axis for leaf in jax.tree.leaves(state.params) for axis in leaf.sharding.spec if axis}
    assert {"fsdp", "tensor"} <= axes
    if config:
        runs.assert_same_bits(jax.device_get(base), jax.device_get(base_params()))
        assert state.frozen["base"] is base


# What is saved


def test_only_what_is_trained_is_saved(tmp_path):
    """Adapter, the best one, two moments, step and key; a base a hundred times larger is not."""
    wide = dataclasses.replace(SHAPE, vocab_size=1 << 16)
    base, mesh = tiny.llama_params(wide), tiny.mesh(1)
    with use_mesh(mesh):
        init = initializer(
            lambda key: lora.init_params(LORA, wide, key), optax.adamw(0.01), mesh=mesh
        )
        state = init(0).replace(frozen={"base": base})
        with Checkpoints(tmp_path / "saved") as checkpoints:
            checkpoints.save(state, {"step": 0}, {"best": None})
            checkpoints.wait()
            names = checkpoints._checkpointer.checkpointables_metadata(0).metadata["state"]
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    saved = jax.tree_util.tree_leaves_with_path(state.saved())
    assert sum(leaf.size for _, leaf in saved) == 4 * size + 4  # count, step and the key's two
    assert names.keys() == {"step", "params", "opt_state", "key", "best_params"}
    on_disk = sum(path.stat().st_size for path in (tmp_path / "saved").rglob("*") if path.is_file())
    assert 4 * size < on_disk < sum(leaf.nbytes for leaf in jax.tree.leaves(base)) / 20
