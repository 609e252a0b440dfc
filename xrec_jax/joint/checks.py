"""Validation of the `joint` stage before anything is written."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xrec_jax import recommenders
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rundir import RunDir
from xrec_jax.data.run_data import RunData, need_events
from xrec_jax.joint.controls.registry import ALONE, CONTROLS, JOINT
from xrec_jax.joint.granularity import GRANULARITIES, granularity_of
from xrec_jax.joint.guards import GuardOptions
from xrec_jax.joint.recommender.fused import HPARAMS, system_of
from xrec_jax.joint.rewards import evidence_of, read_weights
from xrec_jax.joint.setup import cut_off
from xrec_jax.joint.states.base import TEST, VALID, JointStates
from xrec_jax.joint.states.setup import check_lengths, prompts_of, states_of
from xrec_jax.llm import run_base
from xrec_jax.llm.encoder import LAYERS
from xrec_jax.llm.generation.sampling import Sampling
from xrec_jax.llm.io.checkpoint import open_model
from xrec_jax.llm.io.tokenizer import load_tokenizer
from xrec_jax.parallel.mesh import batch_divisor
from xrec_jax.recommenders.explained.build import fuse
from xrec_jax.training import language as train_language
from xrec_jax.training.optimizers import optimizer
from xrec_jax.training.recommender import build_model
from xrec_jax.training.rl import kl
from xrec_jax.training.rl.advantages import ESTIMATORS, AdvantageOptions
from xrec_jax.training.rl.losses import PolicyOptions

TEACHERS = ("true", "stated")


def check(config: ConfigDict, *, data: RunData, mesh: Mesh, rundir: RunDir) -> None:
    """Validates config, data and mesh of the stage before anything is written.

    Raises:
      UserError: names the key, the value and what is valid.
    """
    cfg = config.joint
    need_events(data, "joint")
    run_base.check(config, mesh, rundir)
    run_base.need_base(config, rundir, "joint")
    if "recommend" not in config.stages:
        raise UserError("stage 'joint' needs 'recommend' before it in config.stages")
    name = system_of(config)
    kind = recommenders.get(config.recommend[name].model).batches
    if kind == "none":
        raise UserError(
            f"joint.system={name!r} learns nothing, so nothing can be fused with it; choose another"
        )
    if cfg.granularity not in GRANULARITIES:
        raise UserError(
            f"joint.granularity={cfg.granularity!r} is not valid"
            f"{did_you_mean(cfg.granularity, GRANULARITIES)}"
        )
    if cfg.encoder not in LAYERS:
        raise UserError(
            f"joint.encoder={cfg.encoder!r} is not valid{did_you_mean(cfg.encoder, LAYERS)}"
        )
    _check_teacher(config)
    read_weights(cfg.rewards)
    GuardOptions.of(cfg.guards)
    controls = [name for name in CONTROLS if name not in (JOINT, ALONE)]
    for entry in cfg.systems:
        for control in entry.split(","):
            if control and control not in controls:
                raise UserError(
                    f"joint.systems: no control {control!r}{did_you_mean(control, controls)}"
                )
    _check_counts(cfg, mesh)
    # Answers that share a row need a mask that those kernels do not have.
    shared = cfg.ppo.share_prompts and cfg.rollout.group_size > 1
    if shared and config.llm.attention.startswith("splash"):
        raise UserError(
            f"llm.attention={config.llm.attention!r} cannot share a prompt between the answers of "
            "a group; use 'auto', or joint.ppo.share_prompts=False"
        )
    _check_rules(cfg, mesh)
    _check_fusion(config, name, data)
    for evidence in evidence_of(cfg.rewards).values():
        if evidence.check is not None:
            evidence.check(config, rundir)
    states = states_of(config, data)
    _check_states(config, states)
    # Prompts can only be measured where states are fixed and the base has a tokenizer.
    granularity = granularity_of(config)
    granularity.check(config, data)
    if config.llm.path and granularity.fixed:  # what `pretrain` makes has no tokenizer yet
        prompts = prompts_of(config, states, load_tokenizer(config.llm.path))
        check_lengths(config, prompts, open_model(config.llm.path).config.max_positions)


def _check_teacher(config: Any) -> None:
    teacher = config.joint.sft.teacher
    if teacher not in TEACHERS:
        raise UserError(
            f"joint.sft.teacher={teacher!r} is not valid{did_you_mean(teacher, TEACHERS)}; "
            f"valid: {', '.join(TEACHERS)}"
        )
    if teacher != TEACHERS[0] and (
        config.joint.states.source != "world" or not granularity_of(config).fixed
    ):
        raise UserError(
            f"joint.sft.teacher={teacher!r} is for users of a world "
            "(joint.states.source='world', joint.granularity='user'); elsewhere leave 'true'"
        )


def _check_counts(cfg: ConfigDict, mesh: Mesh) -> None:
    minimum = {
        "rounds": 0,
        "readings": 0,
        "candidates": 2,
        "valid_users": 0,
        "samples": 0,
        "states.history": 1,
        "states.train_states": 1,
        "states.min_history": 0,
        "states.max_users": 0,
        "soft_prompt.vectors": 0,
        "soft_prompt.inner": 0,
        "explain.max_new_tokens": 1,
        "rollout.per_round": 1,
        "rollout.group_size": 1,
        "states.reach": 1,
        "sft.examples": 1,
        "ppo.epochs": 1,
        "ppo.batch_size": 1,
        "ppo.accumulation": 1,
        "ppo.critic_warmup": 0,
        "recommender.warm_steps": 0,
        "recommender.steps": 0,
        "recommender.final_steps": 0,
        "recommender.train.batch_size": 1,
        "recommender.components": 0,
    }
    for key, low in minimum.items():
        value = cfg
        for part in key.split("."):
            value = value[part]
        if value < low:
            raise UserError(f"joint.{key}={value} must be at least {low}")
    if not 0.0 <= cfg.rollout.held_out < 1.0:
        raise UserError(
            f"joint.rollout.held_out={cfg.rollout.held_out} must be a share, from 0 to below 1"
        )
    if not 0.0 <= cfg.cache.refresh <= 1.0:
        raise UserError(f"joint.cache.refresh={cfg.cache.refresh} must be a share, from 0 to 1")
    temperature = cfg.recommender.temperature
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(
            f"joint.recommender.temperature={temperature} must be a positive number, or 0 to fit it"
        )
    # Rollouts fill whole groups and whole batches, and batches fill the devices.
    n, size, group = cfg.rollout.per_round, cfg.ppo.batch_size, cfg.rollout.group_size
    together = group if cfg.ppo.share_prompts else 1
    parts = batch_divisor(mesh) * cfg.ppo.accumulation * together
    if n % size:
        raise UserError(
            f"joint.rollout.per_round={n} must be divisible by joint.ppo.batch_size={size}"
        )
    if n % group:
        raise UserError(
            f"joint.rollout.per_round={n} must be divisible by joint.rollout.group_size={group}"
        )
    if cfg.ppo.estimator == "group" and group < 2:
        raise UserError(
            "joint.ppo.estimator='group' compares answers to one prompt: set "
            "joint.rollout.group_size to 2 or more"
        )
    trained = cfg.recommender.train.batch_size
    for key, value in (("ppo.batch_size", size), ("recommender.train.batch_size", trained)):
        needs = parts if key.startswith("ppo") else batch_divisor(mesh)
        if value % needs:
            raise UserError(
                f"joint.{key}={value} must be divisible by {needs}: the devices along the batch"
                + (" times joint.ppo.accumulation" if key.startswith("ppo") else "")
                + (
                    " times joint.rollout.group_size; or set joint.ppo.share_prompts=False"
                    if key.startswith("ppo") and together > 1
                    else ""
                )
            )


def _check_rules(cfg: ConfigDict, mesh: Mesh) -> None:
    if cfg.ppo.estimator not in ESTIMATORS:
        raise UserError(
            f"joint.ppo.estimator={cfg.ppo.estimator!r} is not valid"
            f"{did_you_mean(cfg.ppo.estimator, ESTIMATORS)}"
        )
    if cfg.kl.kind not in kl.KINDS:
        raise UserError(
            f"joint.kl.kind={cfg.kl.kind!r} is not valid{did_you_mean(cfg.kl.kind, kl.KINDS)}"
        )
    if cfg.kl.reference not in ("warm_start", "base"):
        raise UserError(
            f"joint.kl.reference={cfg.kl.reference!r} is not valid; valid: warm_start, base"
        )
    # Built only for the checks of their own constructors.
    ppo = cfg.ppo
    AdvantageOptions(discount=ppo.discount, lam=ppo.lam)
    PolicyOptions(
        temperature=cfg.rollout.temperature,
        clip=ppo.clip,
        value_clip=ppo.value_clip,
        value_weight=ppo.value_weight,
        entropy_weight=ppo.entropy_weight,
        kl_stop=ppo.kl_stop,
    )
    kl.adapt(kl.controller(cfg.kl.beta), 0.0, target=cfg.kl.target, gain=cfg.kl.gain)
    Sampling(temperature=cfg.explain.temperature)
    train_language.lora_config(cfg.lora)
    train_language.lora_config(cfg.critic)
    if cfg.critic.dropout:
        raise UserError(
            f"joint.critic.dropout={cfg.critic.dropout}: the critic has no dropout; use 0"
        )
    optimizer(ppo.policy, 1)
    optimizer(ppo.critic, 1)
    optimizer(cfg.recommender.train, 1)
    for key, value in (("schedule", "constant"), ("warmup", 0.0)):
        if (setting := cfg.recommender.train[key]) != value:
            raise UserError(
                f"joint.recommender.train.{key}={setting!r} must be {value!r}: the recommender is "
                "updated in pieces, whose last begins anew at the best round"
            )
    if not 0.0 <= ppo.missing_eos < float("inf"):
        raise UserError(f"joint.ppo.missing_eos={ppo.missing_eos} must be a number from 0")
    train_language.check(cfg.sft.train, "joint.sft.train", mesh)
    if cfg.lora.dropout and not 0 <= cfg.lora.dropout < 1:
        raise UserError(f"joint.lora.dropout={cfg.lora.dropout} must be from 0 to below 1")


def _check_fusion(config: ConfigDict, name: str, data: RunData) -> None:
    """Refuses values of the fused recommender, which is built only after the recommender alone."""
    cfg = config.joint.recommender
    model = build_model(config.recommend[name], data)
    try:
        fuse(
            model,
            encoding=max(1, cfg.components, cfg.match),
            components=cfg.components,
            match=cfg.match,
            sides=cfg.sides,
            **{key: cfg[key] for key in HPARAMS},
        )
    except UserError as error:
        raise UserError(f"joint.recommender: {error}") from error


def _check_states(config: Any, states: JointStates) -> None:
    """Refuses states that leave nobody to roll out, to choose a round by, or to test."""
    states.divided(config.joint.rollout.held_out)
    taught = states.user[sorted(states.teacher)]
    for part, what in ((VALID, "valid"), (TEST, "test")):
        if np.isin(states.user[states.rows(part)], taught).all():
            raise UserError(
                f"joint: no user with a {what} state is left beside those that the warm start is "
                "taught with; lower joint.sft.examples or raise joint.states.max_users"
            )
    gains = ["valid/gain", f"valid/ndcg@{cut_off(config)}"]
    gains += ["valid/planted_f1"] if states.planted is not None else []
    gains += ["valid/log_prob_gain"] if config.joint.granularity == "user" else []
    # The best round is chosen by what rounds measure, never by what is tested.
    chosen = config.joint.guards.gain_metric
    if chosen not in gains:
        where = ""
        if chosen == "valid/log_prob_gain":
            where = f" with joint.granularity={config.joint.granularity!r}"
        raise UserError(
            f"joint.guards.gain_metric={chosen!r} is not measured{where}"
            f"{did_you_mean(chosen, gains)}"
        )
