"""The judge in the rewards of a joint run: a random adapter on a minuscule model."""

import math
import shutil

import jax
import numpy as np
import pytest

from tests import tiny
from tests.runs import joint  # noqa: F401 (a fixture)
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.data.histories import Histories
from xrec_jax.data.run_data import prepare
from xrec_jax.joint import checks
from xrec_jax.joint.granularity import open_setup
from xrec_jax.joint.rewards import EvidenceContext
from xrec_jax.joint.rewards import judge as joint_judge
from xrec_jax.joint.rewards.judge import RewardJudge, reward_judge
from xrec_jax.joint.round import roll_out
from xrec_jax.joint.scoring import score_rollouts
from xrec_jax.joint.setup import JointSetup
from xrec_jax.joint.sides import open_sides
from xrec_jax.joint.state import on_host
from xrec_jax.joint.states.base import JointStates
from xrec_jax.joint.trainer import state_shape
from xrec_jax.llm import run_base
from xrec_jax.llm.io.peft_io import save_adapter
from xrec_jax.llm.language_model import load_llm
from xrec_jax.llm.model import lora
from xrec_jax.llm.model.lora import Adapter, LoraConfig
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.run_config import read_config
from xrec_jax.text.records.judgements import ASK, judge_prompt
from xrec_jax.training.checkpoint import Checkpoints
from xrec_jax.training.recommender import RecommenderTask

WORDS = "cafe park museum bar quiet lively cheap far near good poor".split()
TEMPLATE = [f"Why: you like a {word}.\nWhy not: you avoid a bar." for word in WORDS[:5]]
TEACHER = {1: "Why: quiet.\nWhy not: far."}
PROMPTS = [f"Visits:\n1: {WORDS[n]}\n2: {WORDS[n + 3]} good\n\n" for n in range(5)]
PARTS = [0, 0, 0, 1, 2]


def states(prompts=PROMPTS):
    count = len(prompts)
    zeros = np.zeros(count, np.int64)
    return JointStates(
        user=zeros,
        before=zeros,
        target=zeros,
        part=np.array(PARTS, np.int8),
        history=Histories(zeros[:0], np.zeros(count + 1, np.int64)),
        prompts=prompts,
        teacher=TEACHER,
        planted=None,
        template=TEMPLATE,
        summary=TEMPLATE,
        features=np.zeros((count, 1)),
        item_features=np.zeros((1, 1)),
        titles=[""],
    )


def config(folder, **judge):
    made = tiny.language("joint")
    made.llm.path, made.llm.chat_template = str(folder / "model"), "no"
    made.judge.update(dict(length=200, batch=6))
    made.joint.rewards = dict(log_prob_gain=1.0, judge=0.5)
    made.joint.judge.update(dict(adapter=str(folder / "judge")) | judge)
    made.joint.explain.max_new_tokens = 20
    return made


def random_adapter(path, model, base, seed=0):
    """Changes the model: `b` is not zero."""
    made = lora.init(LoraConfig(rank=2, alpha=4.0), model, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: 0.5 * rng.standard_normal(leaf.shape).astype(np.float32), made.params
    )
    save_adapter(path, Adapter(params, made.config), base=base.identity())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model and a random judge of it."""
    made = tmp_path_factory.mktemp("joint judge")
    tiny.llama_directory(made / "model", [ASK, *TEMPLATE, *PROMPTS, " ".join(WORDS)], num_layers=1)
    with use_mesh(tiny.mesh()) as mesh:
        base = run_base.load_base(config(made), RunDir(made / "run"), mesh)
        random_adapter(made / "judge", base.model.config, base)
    return made


def loaded(made, folder, *, devices=1, **changed):
    mesh = tiny.mesh(devices)
    with use_mesh(mesh):
        base = run_base.load_base(made, RunDir(folder / "run"), mesh)
        own = changed.get("states", states())
        judge = reward_judge(EvidenceContext(made, own, base, mesh, RunDir(folder / "run")))
    return judge, mesh, base


def test_probabilities_are_those_of_both_orders(folder):
    """Read once more, row by row, by the public model with the saved adapter."""
    asked = np.array([0, 2, 0, 1, 1])
    texts = [
        "Why: a bar, cheap.\nWhy not: far.",
        "Why: near",
        "Why: poor and far and lively",
        TEMPLATE[1],
        "Why: near",
    ]
    lm = load_llm(folder / "model", folder / "judge")
    one, two = (lm.tokenizer.encode(answer, bos=False)[-1] for answer in "12")

    def p(state, first, second):
        ids = lm.tokenizer.encode(judge_prompt(PROMPTS[state], first, second))
        logits = np.asarray(lm.logits([ids]))[0, -1]
        return 1 / (1 + math.exp(logits[two] - logits[one]))

    for reference, devices in (("template", 1), ("teacher", 2)):
        judge, mesh, _ = loaded(config(folder, reference=reference), folder, devices=devices)
        with use_mesh(mesh):
            found = judge(asked, texts)
        assert found.dtype == np.float32 and found.shape == (5,)
        known = {**dict(enumerate(TEMPLATE)), **(TEACHER if reference == "teacher" else {})}
        expected = [
            (p(s, text, known[s]) + 1 - p(s, known[s], text)) / 2
            for s, text in zip(asked.tolist(), texts, strict=True)
        ]
        if reference == "template":
            assert found[3] == 0.5  # the reference itself
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert np.ptp(found) > 0.01


def test_equal_texts_are_asked_once_and_unreadable_ones_are_worth_nothing():
    calls = []

    def judge(prompts, first, second):
        calls.append(list(zip(prompts, first, second, strict=True)))
        unread = ["long" in a + b for a, b in zip(first, second, strict=True)]
        return np.where(unread, math.nan, np.array([len(text) for text in first]) / 100)

    made = RewardJudge(judge, ["p", "q"], ["abc", "d"], {1: "defgh"})
    texts = ["ab", "ab ", "long", "abc\n", "ab"]
    found = made(np.array([0, 0, 0, 0, 1]), texts)
    assert calls == [
        [
            ("p", "ab", "abc"),
            ("p", "long", "abc"),
            ("q", "ab", "defgh"),
            ("p", "abc", "ab"),
            ("p", "abc", "long"),
            ("q", "defgh", "ab"),
        ]
    ]
    # (p(text first) + 1 - p(reference first)) / 2
    np.testing.assert_allclose(found, [0.495, 0.495, 0.0, 0.5, 0.485], atol=1e-6)
    assert made(np.array([1, 0]), ["defgh", "abc"]).tolist() == [0.5, 0.5] and len(calls) == 1


def test_the_base_is_not_loaded_twice_and_another_base_is_refused(folder, tmp_path):
    judge, _, base = loaded(config(folder), folder)
    assert judge._judge._reader._params is base.params
    other = tiny.llama_directory(tmp_path / "model", [*TEMPLATE, " ".join(WORDS)], num_layers=2)
    with use_mesh(tiny.mesh()) as mesh:
        made = config(folder)
        made.llm.path = str(other)
        base = run_base.load_base(made, RunDir(tmp_path / "run"), mesh)
        with pytest.raises(UserError, match="this adapter was tuned on other weights"):
            reward_judge(EvidenceContext(made, states(), base, mesh, RunDir(tmp_path / "run")))
    with pytest.raises(UserError, match="this adapter was tuned on another base"):
        joint_judge.check(made, RunDir(tmp_path / "run"))


def test_prompts_without_room_for_an_answer_are_refused(folder):
    made = config(folder)
    made.joint.explain.max_new_tokens = 150
    with pytest.raises(UserError, match=r"an answer of 150 tokens do not fit judge\.length=200"):
        loaded(made, folder)
    # A state that no rollout asks about may be long.
    long = [*PROMPTS[:4], PROMPTS[4] * 20]
    loaded(config(folder), folder, states=states(long))
    made.joint.explain.max_new_tokens = 20
    with pytest.raises(UserError, match=r"do not fit judge\.length=200"):
        loaded(made, folder, states=states([PROMPTS[4] * 20, *PROMPTS[1:]]))


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(reference="teachers"), "reference='teachers' is not valid; did you mean 'teacher'"),
        (dict(adapter=""), "joint.rewards.judge needs joint.judge.adapter"),
        (dict(adapter="nowhere"), "joint.judge.adapter=nowhere: no adapter"),
        (dict(adapter="run"), "joint.judge.adapter='run' needs stage 'judge'"),
    ],
)
def test_judges_that_cannot_be_asked_are_refused(folder, tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        joint_judge.check(config(folder, **changed), RunDir(tmp_path / "run"))


def test_the_stage_checks_its_judge(folder, tmp_path, monkeypatch):
    made = config(folder, adapter="run")
    made.stages = ("recommend", "joint")
    made.recommend = {"bpr": tiny.config("bpr").recommend.bpr}
    monkeypatch.setattr(checks, "states_of", lambda config, data: states())
    monkeypatch.setattr(checks, "_check_states", lambda config, states: None)
    mesh, data = tiny.mesh(), prepare(made.data)

    def check():
        checks.check(made, data=data, mesh=mesh, rundir=RunDir(tmp_path / "run"))

    with pytest.raises(UserError, match=r"joint\.judge\.adapter='run' needs stage 'judge'"):
        check()
    made.stages = ("recommend", "judge", "joint")
    check()
    made.judge.source = "planted"
    with pytest.raises(UserError, match="which makes no adapter"):
        check()
    del made.joint.rewards["judge"]
    check()


def test_a_round_is_rewarded_by_its_judge(joint, tmp_path):  # noqa: F811
    """The run's own judge, asked about the rollouts of a round."""
    shutil.copytree(joint / "warm", tmp_path / "run")
    rundir = RunDir(tmp_path / "run")
    made = read_config(rundir)
    made.joint.rewards = dict(log_prob_gain=1.0, judge=0.25)
    made.joint.judge.adapter = "run"
    made.judge.update(dict(length=500, max_prompt_tokens=100))  # leaves the latest visit
    with use_mesh(tiny.mesh()) as mesh:
        data, base = prepare(made.data), run_base.load_base(made, rundir, mesh)
        random_adapter(tmp_path / "run" / "judge", base.model.config, base)
        setup = open_setup(JointSetup(made, data, base, mesh=mesh, rundir=rundir))
        task = RecommenderTask(made, "sasrec", data=data, mesh=mesh, rundir=rundir)
        one = open_sides(setup, task, 0)
        with Checkpoints(rundir.checkpoints("joint/0/rounds")) as checkpoints:
            state, _, _ = checkpoints.restore(state_shape(one))
        host = on_host(roll_out(one, state, 1))
        buffer = host.buffer
        texts = setup.shared.texts(buffer.tokens, buffer.length)
        frozen = one.recommender.frozen(one.alone.frozen, host.constants)
        score, parts = score_rollouts(one, state, host, texts, frozen, 1)
        better = setup.evidence["judge"](buffer.state, texts)
    assert np.ptp(better) > 0.001 and len(better) == made.joint.rollout.per_round
    np.testing.assert_allclose(parts["judge"], better - 0.5, atol=1e-6)
    np.testing.assert_allclose(score, parts["log_prob_gain"] + 0.25 * parts["judge"], atol=1e-6)
