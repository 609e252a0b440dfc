"""Joint runs that cannot work or go wrong: one clear line, or a guard that stops and says why."""

import json
import pathlib
import shutil
import sys

import pytest

from tests import runs, tiny
from tests.joints import newest, seed_run
from tests.runs import joint  # noqa: F401 (a fixture)
from tests.test_bad_input import refuses
from xrec_jax import cli
from xrec_jax.core.errors import UserError
from xrec_jax.joint.guards import GuardState
from xrec_jax.joint.rewards import base as rewards
from xrec_jax.joint.round import learn, roll_out
from xrec_jax.parallel.mesh import use_mesh

CONFIG = """import pathlib

from tests import tiny


def get_config(arg=""):
    made = tiny.joint(pathlib.Path(__file__).parent / "model")
    if arg == "popularity":
        made.recommend = tiny.config("popularity").recommend
    return made
"""
# What a user would write, with its faults.
REWARDS = """import jax.numpy as jnp

from xrec_jax.joint import rewards


@rewards.register("broken_part")
def broken_part(scored):
    return jnp.where(scored.length > 3, jnp.float32(float("nan")), 0.0)


@rewards.register("wrong_shape")
def wrong_shape(scored):
    return jnp.zeros(3)
"""


@pytest.fixture
def folder(joint, tmp_path, monkeypatch) -> pathlib.Path:  # noqa: F811
    """The base, a config that names it, and a module of rewards; copied for every test."""
    for name in ("config_config", "own_rewards"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(rewards, "_REGISTRY", dict(rewards._REGISTRY))
    shutil.copytree(joint / "model", tmp_path / "folder" / "model")
    (tmp_path / "folder" / "config.py").write_text(CONFIG)
    (tmp_path / "folder" / "own_rewards.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(str(tmp_path / "folder"))
    return tmp_path / "folder"


JOINT = "--config.joint."
CASES = {
    # Of the whole
    "unknown recommender": ([JOINT + "system=sasrce"], "joint.system='sasrce'", "'sasrec'"),
    "no recommend stage": (["--config.stages=joint"], "'recommend'"),
    "base with no stage to make it": (["--config.llm.path="], "'joint'", "llm.path"),
    "granularity": ([JOINT + "granularity=usr"], "joint.granularity='usr'", "'user'"),
    "negative rounds": ([JOINT + "rounds=-1"], "joint.rounds=-1", "at least 0"),
    "control": ([JOINT + "systems=null,shufled"], "'shufled'", "did you mean 'shuffled'"),
    # Of the states
    "source": ([JOINT + "states.source=wrold"], "joint.states.source='wrold'", "world, file"),
    "file without a path": ([JOINT + "states.source=file"], "joint.states.path"),
    "template about a place": (
        [JOINT + "states.template=places"],
        "joint.states.template='places'",
        "'tastes'",
    ),
    "no such template": ([JOINT + "states.template=tsates"], "'tsates'", "did you mean 'tastes'"),
    "group": ([JOINT + "states.group=gendre"], "joint.states.group='gendre'", "'gender'"),
    "nobody is old enough": ([JOINT + "states.min_history=99"], "joint.states.min_history"),
    "no event is explained": ([JOINT + "states.train_states=0"], "joint.states.train_states=0"),
    # Of the explainer
    "too many examples": ([JOINT + "sft.examples=500"], "joint.sft.examples=500"),
    "prompt too long": (
        [JOINT + "explain.max_new_tokens=400"],
        "512",
        "joint.explain.max_new_tokens",
    ),
    "no answer": ([JOINT + "explain.max_new_tokens=0"], "joint.explain.max_new_tokens=0"),
    "placeholder": ([JOINT + "soft_prompt.placeholder=xylophone"], "joint.soft_prompt.placeholder"),
    "no parts of a batch": ([JOINT + "sft.train.accumulation=0"], "joint.sft.train.accumulation=0"),
    "no epoch": ([JOINT + "sft.train.epochs=0"], "joint.sft.train.epochs=0"),
    "rank": ([JOINT + "lora.rank=0"], "lora.rank=0"),
    # Of rewards and guards
    "reward": ([JOINT + "rewards.log_prob_gian=1.0"], "log_prob_gian"),
    "no reward": ([JOINT + "rewards.log_prob_gain=0.0"], "no part has a weight"),
    "weight": ([JOINT + "rewards.log_prob_gain=nan"], "log_prob_gain", "finite"),
    "guard": ([JOINT + "guards.max_reward=-1.0"], "max_reward=-1.0"),
    "patience": ([JOINT + "guards.patience=0"], "patience=0"),
    "gain": (
        [JOINT + "guards.gain_metric=valid/gian"],
        "joint.guards.gain_metric='valid/gian'",
        "did you mean 'valid/gain'",
    ),
    # Of PPO
    "estimator": ([JOINT + "ppo.estimator=gea"], "joint.ppo.estimator='gea'", "'gae'"),
    "groups that a batch cannot hold": (
        [
            JOINT + "rollout.group_size=8",
            JOINT + "ppo.batch_size=4",
            JOINT + "rollout.per_round=16",
        ],
        "joint.ppo.batch_size=4",
        "joint.ppo.share_prompts=False",
    ),
    "a kernel that shares nothing": (
        [JOINT + "rollout.group_size=2", "--config.llm.attention=splash"],
        "llm.attention='splash'",
        "joint.ppo.share_prompts=False",
    ),
    "a gain that is not measured there": (
        [
            JOINT + "guards.gain_metric=valid/log_prob_gain",
            JOINT + "granularity=user_item",
            JOINT + "states.template=candidate",
        ],
        "joint.guards.gain_metric='valid/log_prob_gain'",
        "joint.granularity='user_item'",
    ),
    "a group of one": ([JOINT + "ppo.estimator=group"], "joint.rollout.group_size"),
    "rollouts that fill no batch": (
        [JOINT + "rollout.per_round=20"],
        "joint.rollout.per_round=20",
        "batch_size=8",
    ),
    "rollouts that fill no group": (
        [JOINT + "rollout.group_size=5"],
        "joint.rollout.per_round=16",
        "group_size=5",
    ),
    "no temperature": ([JOINT + "rollout.temperature=0.0"], "temperature"),
    "clip": ([JOINT + "ppo.clip=-0.1"], "clip"),
    "reference": ([JOINT + "kl.reference=sft"], "joint.kl.reference='sft'", "warm_start"),
    "kind of KL": ([JOINT + "kl.kind=k4"], "joint.kl.kind='k4'"),
    "refresh": ([JOINT + "cache.refresh=1.5"], "joint.cache.refresh=1.5"),
    "nearly none held out": (
        [JOINT + "rollout.held_out=0.01"],
        "joint.rollout.held_out=0.01",
        "no user",
    ),
    "missing EOS": ([JOINT + "ppo.missing_eos=nan"], "joint.ppo.missing_eos=nan"),
    # Of the fused recommender
    "side": ([JOINT + "recommender.sides=whynot"], "joint.recommender", "did you mean 'why_not'"),
    "null dropout": ([JOINT + "recommender.null_dropout=1.5"], "null_dropout=1.5"),
    "components": (
        [JOINT + "recommender.components=-1"],
        "joint.recommender.components=-1",
        "at least 0",
    ),
    "all held out": ([JOINT + "rollout.held_out=1.0"], "joint.rollout.held_out=1.0"),
    "about": (["--config.data.world.about_share=0.0"], "data.world.about_share=0", "tastes"),
    "teacher": ([JOINT + "sft.teacher=treu"], "joint.sft.teacher='treu'", "did you mean 'true'"),
    "teacher of cases": (
        [
            JOINT + "sft.teacher=stated",
            JOINT + "granularity=user_item",
            JOINT + "states.template=candidate",
        ],
        "joint.sft.teacher='stated'",
        "joint.granularity",
    ),
    "temperature of scores": (
        [JOINT + "recommender.temperature=-1.0"],
        "joint.recommender.temperature=-1.0",
    ),
    "critic": ([JOINT + "critic.dropout=0.1"], "joint.critic.dropout=0.1"),
    "schedule of the recommender": (
        [JOINT + "recommender.train.schedule=cosine"],
        "joint.recommender.train.schedule='cosine'",
        "'constant'",
    ),
    "warm-up of the recommender": (
        [JOINT + "recommender.train.warmup=0.1"],
        "joint.recommender.train.warmup=0.1",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_command_line(case, folder, capsys):
    overrides, *named = case
    arguments = ["run", f"--config={folder / 'config.py'}", f"--workdir={folder}/w", *overrides]
    with runs.one_device():
        refuses(capsys, folder, arguments, *named)


def test_a_recommender_that_learns_nothing(folder, capsys):
    arguments = ["run", f"--config={folder / 'config.py'}:popularity", f"--workdir={folder}/w"]
    refuses(capsys, folder, arguments, "joint.system='popularity'", "learns nothing")


def test_readings_need_reviews(folder, capsys):
    arguments = [
        "run",
        f"--config={folder / 'config.py'}",
        f"--workdir={folder}/w",
        "--config.llm.path=",
        "--config.stages=recommend,pretrain,joint",
        JOINT + "readings=50",
        "--config.data.world.review_share=0.0",
        "--config.llm.max_positions=512",
    ]
    refuses(capsys, folder, arguments, "joint.readings", "review_share")


# Runs that go wrong on their way


def begun(joint, workdir, **changed):  # noqa: F811
    """A copy of the run before its first round, as if it had been started with changed values."""
    shutil.copytree(joint / "warm", workdir)
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    for key, value in changed.items():
        *parts, last = key.split("__")
        place = config
        for part in parts:
            place = place[part]
        place[last] = value
    path.write_text(json.dumps(config))
    (workdir / "done" / "config.json").unlink()  # else the other value is refused
    return workdir


def go_on(workdir):
    """Runs `xrec run` with the config that a run directory holds."""
    config = workdir.parent / "saved_config.py"
    config.write_text(
        "from xrec_jax.core.rundir import RunDir\n"
        "from xrec_jax.run_config import read_config\n"
        "def get_config(arg=''):\n"
        f"    return read_config(RunDir({str(workdir)!r}, allow_imports=True))\n"
    )
    with runs.one_device():
        return cli.main(["run", f"--config={config}", f"--workdir={workdir}"])


def one_line(capsys, *named):
    error = capsys.readouterr().err
    assert error.startswith("xrec: error: ") and error.count("\n") == 1, error
    assert "Traceback" not in error and len(error) < 600
    for name in named:
        assert name in error, error


def test_rewards_that_nothing_can_be_learned_from(joint, folder, capsys):  # noqa: F811
    workdir = begun(
        joint, folder / "run", imports=["own_rewards"], joint__rewards={"broken_part": 0.5}
    )
    assert go_on(workdir) == 2
    one_line(capsys, "reward part 'broken_part'", "NaN", "joint.rewards")
    assert "joint" not in json.loads((workdir / "evaluation.json").read_text())
    rounds = (workdir / "joint" / "0" / "rounds.jsonl").read_text().splitlines()
    assert len(rounds) == 1  # the warm start; no round was written
    with use_mesh(tiny.mesh(1)):
        one = seed_run(joint / "warm")
        state = roll_out(one, newest(one)[0], 1)
        for weights, *named in (
            ({"wrong_shape": 1.0}, "'wrong_shape'", "float32[3]", "float32[16]"),
            ({"log_prob_gain": 1e9}, "wrong reward scale", "log_prob_gain", "max_reward"),
        ):
            one.setup.shared.cfg.rewards = weights
            with pytest.raises(UserError) as error:
                learn(one, state, GuardState(), 1)
            assert "\n" not in str(error.value)
            assert not [name for name in named if name not in str(error.value)], error.value


def test_another_base_under_a_run(joint, folder, capsys, tmp_path):  # noqa: F811
    """Of the same shape, at the same place or at another one."""
    texts = ["Why: you like bars.\nWhy not: you avoid gyms."] * 3
    tiny.llama_directory(tmp_path / "other", texts, seed=1, num_layers=1, max_positions=512)
    for file in (joint / "model").glob("token*"):
        shutil.copy(file, tmp_path / "other")
    shutil.copy(joint / "model" / "generation_config.json", tmp_path / "other")
    workdir = begun(joint, folder / "run", llm__path=str(tmp_path / "other"))
    before = runs.contents(workdir / "checkpoints")
    assert go_on(workdir) == 2
    one_line(capsys, "joint/0", "another content of the base", "--workdir")
    assert runs.contents(workdir / "checkpoints") == before
    path = workdir / "joint" / "0" / "identity.json"
    kept = json.loads(path.read_text())
    for name in ("prompts", "warm start's texts", "recommender"):
        config = json.loads((workdir / "config.json").read_text())
        config["llm"]["path"] = str(joint / "model")
        (workdir / "config.json").write_text(json.dumps(config))
        path.write_text(json.dumps({**kept, name: "0" * 64}))
        assert go_on(workdir) == 2
        one_line(capsys, f"another content of the {name}")


def test_a_judge_of_another_base(joint, folder, capsys):  # noqa: F811
    """An adapter that belongs to other weights is refused before anything is written."""
    shutil.copytree(joint / "run" / "adapter_joint" / "0", folder / "judge")
    path = folder / "judge" / "xrec.json"
    saved = json.loads(path.read_text())
    text = json.dumps(saved)
    for value in _strings(saved):
        if len(value) >= 32 and all(c in "0123456789abcdef" for c in value):
            text = text.replace(value, "0" * len(value))
    assert text != json.dumps(saved)
    path.write_text(text)
    arguments = [
        "run",
        f"--config={folder / 'config.py'}",
        f"--workdir={folder}/w",
        JOINT + "rewards.log_prob_gain=1.0",
        JOINT + f"judge.adapter={folder / 'judge'}",
    ]
    config = folder / "config.py"
    config.write_text(
        config.read_text().replace("return made", "made.joint.rewards.judge = 0.5\n    return made")
    )
    with runs.one_device():
        refuses(capsys, folder, arguments, "judge", "base")


def _strings(value):
    if isinstance(value, dict):
        return [text for one in value.values() for text in _strings(one)]
    return [value] if isinstance(value, str) else []


def test_answers_that_do_not_end_stop_the_run_and_the_start_is_kept(joint, folder, capsys):  # noqa: F811
    """A token is too few for any answer: the first round stops, loudly, and round 0 is kept."""
    config = folder / "config.py"
    config.write_text(
        config.read_text().replace(
            "return made", "made.joint.guards.min_ended = 0.1\n    return made"
        )
    )
    workdir = folder / "w"
    shutil.copytree(joint / "warm", workdir)
    for name in ("joint", "checkpoints/joint"):
        shutil.rmtree(workdir / name)
    (workdir / "config.json").unlink()
    with runs.one_device():
        assert (
            cli.main(
                [
                    "run",
                    f"--config={config}",
                    f"--workdir={workdir}",
                    JOINT + "systems=null",
                    JOINT + "explain.max_new_tokens=1",
                    JOINT + "rounds=5",
                ]
            )
            == 0
        )
    rounds = [
        json.loads(line)
        for line in (workdir / "joint" / "0" / "rounds.jsonl").read_text().splitlines()
    ]
    assert [one["round"] for one in rounds] == [0, 1]
    assert rounds[1]["stopped"] == 1 and rounds[1]["rollout/ended"] < 0.1
    assert "ended" in rounds[1]["verdict"] and "best round 0 is kept" in rounds[1]["verdict"]
    assert rounds[1]["verdict"] in capsys.readouterr().out
    logged = [line for line in runs.metrics(workdir, "joint/0") if line["stage"] == "joint/0"]
    assert logged[-1]["rollout/ended"] == rounds[1]["rollout/ended"]
    found = json.loads((workdir / "evaluation.json").read_text())["joint"]
    assert found["rounds"]["guards/stopped"]["value"] == 1
    assert found["rounds"]["valid/best_gain"]["value"] == rounds[0]["valid/gain"]
    assert {"joint", "alone", "null"} <= found.keys()
