"""A user's own reward with its own evidence, and a control of one's own, each in one place."""

import copy
import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tests.joints import newest, opened, seed_run  # noqa: F401 (a fixture)
from tests.runs import joint  # noqa: F401 (a fixture)
from xrec_jax.core.errors import UserError
from xrec_jax.joint import config as joint_config
from xrec_jax.joint import rewards
from xrec_jax.joint.controls import registry
from xrec_jax.joint.controls.registry import Control
from xrec_jax.joint.controls.systems import Systems
from xrec_jax.joint.rewards import base
from xrec_jax.joint.round import roll_out
from xrec_jax.joint.scoring import score_rollouts
from xrec_jax.joint.state import on_host
from xrec_jax.report.sections.joint import controls as page

# Everything that a reward needs which reads more than the rollouts.
SHOWN = """import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.joint import rewards


def check(config, rundir):
    least = rewards.section(config, "shown").least
    if least < 1:
        raise UserError(f"joint.shown.least={least} must be at least 1")


def load(ctx):
    least = rewards.section(ctx.config, "shown").least
    prompts = [set(prompt.split()) for prompt in ctx.states.prompts]

    def measure(states, texts):
        pairs = zip(states, texts, strict=True)
        return np.array([len(prompts[s] & {*t.split()}) >= least for s, t in pairs], np.float32)

    return measure


@rewards.register(
    "shown", evidence=rewards.Evidence(load, check=check, section={"least": 2}), scale=1.0
)
def shown(scored, scale):
    return scale * scored.need("shown")
"""


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """The module of a user, imported as `config.imports` would."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "own_shown.py").write_text(SHOWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_shown", raising=False)
    return importlib.import_module("own_shown")


def test_a_reward_with_its_own_evidence_is_one_file(opened, joint, shown):  # noqa: F811
    weights = dict(log_prob_gain=0.0, shown=dict(weight=0.5, scale=3.0))
    one = seed_run(joint / "warm", dict(rewards=weights, shown=dict(least=1)))
    state = roll_out(one, newest(one)[0], 1)
    host = on_host(state)
    texts = one.shared.texts(host.buffer.tokens, host.buffer.length)
    frozen = one.recommender.frozen(one.alone.frozen, host.constants)
    score, parts = score_rollouts(one, state, host, texts, frozen, 1)
    prompts = opened.setup.states.prompts
    expected = [
        bool({*prompts[s].split()} & {*text.split()})
        for s, text in zip(host.buffer.state, texts, strict=True)
    ]
    assert list(parts) == ["shown"] and len({*expected}) > 0
    np.testing.assert_array_equal(parts["shown"], 3.0 * np.float32(expected))
    np.testing.assert_array_equal(score, np.float32(0.5) * parts["shown"])


def test_evidence_has_a_section_and_a_check(shown):
    """In the config where it is known before it, and with its defaults where it is not."""
    made = joint_config.joint()
    assert made.shown.least == 2 and made.judge.to_dict() == {
        "adapter": "",
        "reference": "template",
    }
    made.rewards = dict(shown=1.0)
    whole = SimpleNamespace(joint=made)
    evidence = rewards.evidence_of(made.rewards)
    assert list(evidence) == ["shown"]
    evidence["shown"].check(whole, None)
    made.shown.least = 0
    with pytest.raises(UserError, match=r"joint\.shown\.least=0 must be at least 1"):
        evidence["shown"].check(whole, None)
    del made.shown
    assert rewards.section(whole, "shown").least == 2
    made.shown = dict(lest=1)
    with pytest.raises(UserError, match=r"joint\.shown\.lest is no option; did you mean 'least'"):
        rewards.section(whole, "shown")


def test_a_control_is_one_entry(opened, monkeypatch):  # noqa: F811
    """What it reads, whether a run can have it, and its name on the page."""
    for name, exists in (("shouted", True), ("impossible", False)):
        control = Control(
            name,
            label=f"{name} texts",
            description="The joint texts in capital letters.",
            texts=lambda source: [text.upper() for text in source.texts("joint")],
            exists=lambda states, exists=exists: exists,
        )
        monkeypatch.setitem(registry.CONTROLS, name, control)
    systems = Systems(opened.one, opened.state)
    shared = copy.copy(opened.setup.shared)
    shared.cfg = shared.cfg.copy_and_resolve_references()
    shared.cfg.systems = ("shouted", "impossible")
    systems.shared = shared
    assert systems.names() == ["joint", "alone", "shouted"]
    loud = [text.upper() for text in systems.texts("joint")]
    assert systems._write_texts("shouted") == loud
    assert page.control("shouted").label == "shouted texts"
    assert page.control("unheard_of").label != page.control("shouted").label
