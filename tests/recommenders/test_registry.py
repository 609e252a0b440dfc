"""The registry: names, hyper-parameters, and a recommender of one's own in a few lines."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from xrec_jax import recommenders
from xrec_jax.core.errors import UserError
from xrec_jax.core.trees import device_bytes
from xrec_jax.data.dataset import Interactions
from xrec_jax.evaluation.ranking.evaluator import RankingEvaluator
from xrec_jax.parallel.mesh import padded_rows, put_batch, use_mesh
from xrec_jax.recommenders import base
from xrec_jax.training.loop import compile_step
from xrec_jax.training.state import initializer
from xrec_jax.training.steps import recommend_step


def test_names():
    assert {"bpr", "lightgcn", "popularity", "sasrec"} <= set(recommenders.names())
    assert recommenders.names() == sorted(recommenders.names())
    for name in recommenders.names():
        assert issubclass(recommenders.get(name), recommenders.Recommender)


def test_hyperparameters_are_the_fields():
    assert recommenders.hyperparameters("popularity") == {}
    known = recommenders.hyperparameters("bpr")
    assert known == {"dim": 64, "stddev": 0.1, "l2": 0.0, "negatives": 1}
    for name in recommenders.names():
        model = recommenders.create(name, {}, num_users=7, num_items=5)
        for key, value in recommenders.hyperparameters(name).items():
            assert getattr(model, key) == value
    model = recommenders.create("bpr", {"dim": 12, "l2": 0.25}, num_users=7, num_items=5)
    assert (model.dim, model.l2, model.negatives, model.num_users, model.num_items) == (
        12,
        0.25,
        1,
        7,
        5,
    )


def test_models_are_values():
    make = functools.partial(recommenders.create, "sasrec", num_users=7, num_items=5)
    assert make({"dim": 12}) == make({"dim": 12}) != make({"dim": 16})
    assert hash(make({"dim": 12})) == hash(make({"dim": 12}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        make({}).dim = 3


@pytest.mark.parametrize(
    ("name", "hparams", "message"),
    [
        ("sasrek", {}, "no recommender 'sasrek'; did you mean 'sasrec'"),
        ("xyz", {}, "no recommender 'xyz'; valid: .*popularity"),
        ("sasrec", {"drop_out": 0.1}, "no hyper-parameter 'drop_out'; did you mean 'dropout'"),
        ("bpr", {"zzzz": 1}, "no hyper-parameter 'zzzz'; valid: dim, stddev, l2, negatives"),
        ("bpr", {"num_items": 3}, "no hyper-parameter 'num_items'"),
        ("lightgcn", {"propagation": "spars"}, "did you mean 'sparse'"),
        ("bpr", {"dim": "twelve"}, "dim='twelve'"),
    ],
)
def test_mistakes_name_the_nearest(name, hparams, message):
    with pytest.raises(UserError, match=message):
        recommenders.create(name, hparams, num_users=7, num_items=5)


@pytest.fixture
def fourth():
    @recommenders.register("bias")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Bias(recommenders.Recommender):
        """One learned score an item, the same for every user."""

        scale: float = 1.0

        def init(self, key):
            value = jax.random.normal(key, (padded_rows(self.num_items), 1)) * self.scale
            return {"item": nn.LogicallyPartitioned(value, ("table_rows", "features"))}

        def loss(self, params, frozen, batch, key):
            return -jnp.mean(jax.nn.log_softmax(params["item"][:, 0])[batch["item"]]), {}

        def tables(self, params, frozen):
            return recommenders.Tables(item=params["item"])

        def user_state(self, params, tables, batch):
            return jnp.ones((batch["user"].shape[0], 1))

    yield Bias
    base._REGISTRY.pop("bias")


def test_a_fourth_recommender_trains_and_ranks(fourth):
    assert "bias" in recommenders.names()
    assert recommenders.hyperparameters("bias") == {"scale": 1.0}
    model = recommenders.create("bias", {"scale": 0.25}, num_users=5, num_items=11)
    assert isinstance(model, fourth)
    mesh, rule = tiny.mesh(8, 2, 2), optax.sgd(50.0)
    user, item = np.arange(8, dtype=np.int32) % 5, np.full(8, 7, np.int32)
    seen = Interactions(np.arange(5, dtype=np.int32), np.arange(5, dtype=np.int32))
    held_out = Interactions(np.arange(5, dtype=np.int32), np.full(5, 7, np.int32))
    evaluator = RankingEvaluator(model, seen=[seen], held_out=held_out, mesh=mesh, ks=(1, 10))
    with use_mesh(mesh):
        state = initializer(model.init, rule, mesh=mesh)(2)
        assert device_bytes(state.params)["item"] == dict.fromkeys(range(8), 64 * 4 // 8)
        scores = np.asarray(state.params["item"])[:11, 0]
        before = evaluator(state.params, state.frozen)
        rank = 1 + (scores > scores[7]).sum()
        np.testing.assert_array_equal(before.unmasked["mrr@10"], np.full(5, rank <= 10) / rank)
        step = compile_step(functools.partial(recommend_step, model=model, optimizer=rule), state)
        batch = put_batch({"user": user, "item": item}, mesh)
        state, metrics = jax.block_until_ready(step(state, batch))
        assert metrics["train/loss"] > 0 and int(state.step) == 1
        after = evaluator(state.params, state.frozen)
    assert rank > 1 and after.masked["ndcg@1"].tolist() == [1.0] * 5


def test_the_fourth_is_gone():
    assert "bias" not in recommenders.names()
