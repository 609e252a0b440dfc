"""One round through the real stage: what is paid for becomes likelier, and by what rule."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.joints import newest, seed_run
from tests.runs import joint  # noqa: F401 (a fixture)
from xrec_jax.joint.actor import PolicyTask
from xrec_jax.joint.guards import GuardState
from xrec_jax.joint.rewards import base as parts
from xrec_jax.joint.round import learn, roll_out
from xrec_jax.joint.state import part_of
from xrec_jax.joint.trainer import ready
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.training.rl.kl import controller

GROUP, ANSWERS, BETA, GAIN = 4, 16, 0.05, 0.1
MISSING_EOS = 0.7
SGD = dict(optimizer="sgd", learning_rate=0.3, b1=0.0, clip_norm=0.0, weight_decay=0.0)


def paid_token(buffer):
    """The token that most answers hold of those that differ within a group; none that ends."""
    last = np.maximum(buffer.length - 1, 0)
    mask = np.arange(buffer.tokens.shape[1]) < (last + ~buffer.ended)[:, None]
    holds = {
        int(token): (mask & (buffer.tokens == token)).any(axis=1)
        for token in np.unique(buffer.tokens[mask])
    }
    split = {
        token: rows.reshape(-1, GROUP).std(axis=1).astype(bool).sum()
        for token, rows in holds.items()
    }
    most = max(split.values())
    return max((token for token in holds if split[token] == most), key=lambda t: holds[t].sum())


def learned(workdir, estimator, **changes):
    """A round whose reward is 1 for answers that hold a token, and 0 for the others."""
    paid = SimpleNamespace(token=-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_REGISTRY", dict(parts._REGISTRY))

        @parts.register("pays")
        def pays(scored):
            holds = (scored.need("answer") == paid.token) & scored.need("answer_mask")
            return holds.any(axis=1).astype(jnp.float32)

        one = seed_run(
            workdir,
            dict(
                rewards=dict(log_prob_gain=0.0, pays=1.0),
                rollout=dict(group_size=GROUP, per_round=ANSWERS),
                ppo=dict(
                    estimator=estimator,
                    batch_size=ANSWERS,
                    epochs=1,
                    missing_eos=MISSING_EOS,
                    scale=False,
                    policy=SGD,
                    critic=SGD,
                ),
                **changes,
            ),
        )
        saved = newest(seed_run(workdir))[0]
        one = ready(one, saved, saved.best["policy"])
        before = one.actor.initial(0, one.warm_policy)
        start = jax.device_get(before.params)
        state = saved.replace(policy=part_of(before), controller=controller(BETA))
        state = roll_out(one, state, 1)
        buffer = jax.device_get(state.buffer)
        paid.token = paid_token(buffer)
        update, batches = PolicyTask.update, []

        def kept(self, trained, batch, *, number):
            batches.append(batch)
            return update(self, trained, batch, number=number)

        patch.setattr(PolicyTask, "update", kept)
        after, _, found, verdict = learn(one, state, GuardState(), 1)
        assert not verdict.stop
        [batch] = batches
        reference = {} if one.setup.shared.cfg.kl.reference == "base" else one.warm_policy
        said = [
            one.actor.assess(jax.device_put(params), reference, batch)
            for params in (start, jax.device_get(after.policy["params"]))
        ]
    return SimpleNamespace(
        one=one,
        buffer=buffer,
        batch=batch,
        found=found,
        after=after,
        said=said,
        token=paid.token,
        mask=np.arange(buffer.tokens.shape[1]) < buffer.length[:, None],
    )


@pytest.fixture(scope="module")
def rounds(joint):  # noqa: F811
    """A round with a critic, and one that compares groups."""
    with use_mesh(tiny.mesh(1)):
        yield {
            "gae": learned(joint / "warm", "gae", kl=dict(beta=BETA, target=0.5, gain=GAIN)),
            "group": learned(
                joint / "warm",
                "group",
                kl=dict(beta=BETA, target=1e-3, gain=GAIN, reference="base"),
            ),
        }


def scores_of(made):
    """What every answer earned, by hand."""
    scores = []
    for row, (tokens, length) in enumerate(
        zip(made.buffer.tokens, made.buffer.length, strict=True)
    ):
        score = float(made.token in tokens[:length].tolist())
        scores.append(score if made.buffer.ended[row] else score - MISSING_EOS)
    return scores


@pytest.mark.parametrize("estimator", ["gae", "group"])
def test_a_token_that_is_paid_for_becomes_likelier(rounds, estimator):
    made = rounds[estimator]
    before, after = (said["log_probs"] for said in made.said)
    drawn = made.mask & (made.buffer.tokens == made.token)
    holds = drawn.any(axis=1).reshape(-1, GROUP)
    assert (holds.any(axis=1) & ~holds.all(axis=1)).sum() > 1
    rise = (after - before)[drawn]
    assert rise.mean() > 1e-3 and rise.mean() > (after - before)[made.mask & ~drawn].mean()


@pytest.mark.parametrize("estimator", ["gae", "group"])
def test_rollouts_are_drawn_from_the_policy(rounds, estimator):
    """Of tokens drawn from a distribution the mean of `-log p` is its entropy."""
    made = rounds[estimator]
    tokens, mask = made.buffer.tokens, made.mask
    answers = [tuple(row[:n]) for row, n in zip(tokens.tolist(), made.buffer.length, strict=True)]
    for first in range(0, ANSWERS, GROUP):
        assert len({*answers[first : first + GROUP]}) > 1
    surprise, entropy = -made.said[0]["log_probs"][mask], made.said[0]["entropy"][mask]
    error = (surprise - entropy).std() / np.sqrt(mask.sum())
    assert abs((surprise - entropy).mean()) < 4 * error < entropy.mean()
    np.testing.assert_allclose(made.buffer.log_probs[mask], -surprise, atol=1e-3)
    assert made.found["ppo/entropy"] == pytest.approx(entropy.mean(), rel=1e-5)


def test_answers_are_compared_with_those_to_the_same_prompt(rounds):
    """The reward of each, less what it lacks for not ending; the KL to come is taken off."""
    made, scores = rounds["group"], scores_of(rounds["group"])
    ended = made.buffer.ended.reshape(-1, GROUP)
    assert (made.buffer.state.reshape(-1, GROUP) == made.buffer.state[::GROUP, None]).all()
    assert (ended.any(axis=1) & ~ended.all(axis=1)).any()
    apart = made.said[0]["log_probs"] - made.said[0]["reference"]
    assert np.abs(apart[made.mask]).max() > 0.01
    for row in range(ANSWERS):
        first = row - row % GROUP
        own = scores[first : first + GROUP]
        compared = scores[row] - np.mean(own)
        length = made.buffer.length[row]
        for t in range(length):
            expected = compared - BETA * apart[row, t:length].sum()
            assert made.batch["advantages"][row, t] == pytest.approx(expected, abs=1e-4)


def test_a_critic_is_told_what_answers_earned(rounds):
    """Returns of GAE by hand, from the values at the rollout and the rewards."""
    made, scores = rounds["gae"], scores_of(rounds["gae"])
    lam, raw = made.one.setup.shared.cfg.ppo.lam, np.zeros(made.mask.shape)
    values = made.batch["values"]
    for row, length in enumerate(made.buffer.length.tolist()):
        ahead, value_ahead = 0.0, 0.0
        for t in reversed(range(length)):
            reward = scores[row] if t == length - 1 else 0.0  # the reference is the policy itself
            ahead = reward + value_ahead - values[row, t] + lam * ahead
            value_ahead = values[row, t]
            raw[row, t] = ahead
            assert made.batch["returns"][row, t] == pytest.approx(ahead + value_ahead, abs=1e-4)
    real = raw[made.mask]
    white = (real - real.mean()) / real.std()
    np.testing.assert_allclose(made.batch["advantages"][made.mask], white, atol=1e-3)


def test_the_weight_of_the_kl_follows_its_target(rounds):
    """At the reference it falls; beyond the target it rises; the next round reads it."""
    for estimator, change in (("gae", 1 - GAIN * 0.2), ("group", 1 + GAIN * 0.2)):
        made = rounds[estimator]
        answer = made.found["ppo/kl"] * made.mask.sum() / ANSWERS
        target = made.one.setup.shared.cfg.kl.target
        assert (answer < 0.8 * target) == (estimator == "gae")
        assert made.found["ppo/kl_beta"] == pytest.approx(BETA)
        assert float(made.after.controller.beta) == pytest.approx(BETA * change)
