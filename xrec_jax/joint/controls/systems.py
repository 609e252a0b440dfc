"""Training and testing of joint and its controls, from the same recommender."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from xrec_jax.core import rng
from xrec_jax.core.logging import log
from xrec_jax.core.rng import Stream
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.core.storage import files
from xrec_jax.core.storage.arrays import write_npz
from xrec_jax.inference import run_records
from xrec_jax.joint.controls.registry import ALONE, CONTROLS, JOINT
from xrec_jax.joint.recommender.fitting import fit
from xrec_jax.joint.recommender.fused import FusedTask
from xrec_jax.joint.recommender.rows import another
from xrec_jax.joint.sides import Sides
from xrec_jax.joint.state import JointState
from xrec_jax.joint.states.base import PARTS, TEST
from xrec_jax.parallel.mesh import gather

Read = dict[str, np.ndarray]
Arrays = dict[str, np.ndarray]


class Trained(NamedTuple):
    """A recommender that reads: frozen arrays, parameters, and its NDCG of tracked users."""

    frozen: Any
    params: Any
    value: float


class Systems:
    """Trains and tests the systems of one seed.

    Every control starts from the same recommender and a fresh fusion, and gets as many updates as
    joint got at most; the best of its evaluations on the tracked validation users is tested. Joint
    goes on from its best round, and is trained anew on that round's texts as a control is; the
    better of the two on those users is tested, so that what spoils a recommender in the rounds,
    such as too few users to learn from, does not stand for the texts. `refit` is the second of them
    by itself: held against `sft` it is the texts alone that differ.

    Args:
      sides: both sides of the seed, with the warm start's policy.
      state: after the rounds.
    """

    def __init__(self, sides: Sides, state: JointState):
        self.sides, self.state = sides, state
        self.setup, self.shared = sides.setup, sides.shared
        states = self.states = self.setup.states
        self.rows = np.concatenate([self.setup.learned, sides.tracked, states.rows(TEST)])
        self.folder = sides.folder / "systems"

    def names(self) -> list[str]:
        """Systems of this run, joint first: others are made of its texts."""
        chosen = [name for entry in self.shared.cfg.systems for name in entry.split(",") if name]
        chosen = [name for name in chosen if CONTROLS[name].exists(self.states)]
        return list(dict.fromkeys([JOINT, ALONE, *chosen]))

    def test(self) -> dict[str, Arrays]:
        """Per-user test metrics of every system; what is done already is read from disk."""
        figures = {}
        for name in self.names():
            path = self.folder / f"{name}.npz"
            if not path.exists():
                arrays = self._measure(name)
                _write(path, arrays)
                if is_primary():
                    value = arrays[f"test/ndcg@{self.shared.best_k}"].mean()
                    log(f"{self.sides.stage}: {name}: NDCG@{self.shared.best_k} {value:.4f}")
            figures[name] = run_records.system_figures(self.shared.rundir, path)
        return figures

    def texts(self, name: str) -> list[str]:
        """Texts of a system for `rows`; made once and kept in a file. All processes call it."""
        path = self.folder / f"{name}.jsonl"
        same = not self.shared.sampling.temperature and not self.sides.recommender.reads_others
        if name == "untuned" and same:  # the same for every seed, but for a seed's own cases
            path = self.sides.folder.parent / "untuned.jsonl"
        known = path.exists()
        barrier(f"{name}.jsonl known")  # before anybody writes
        if not known:
            made = self._write_texts(name)
            records = [
                {"state": int(s), "text": text} for s, text in zip(self.rows, made, strict=True)
            ]
            if is_primary():
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_text(path, files.json_lines(records))
            barrier(f"{name}.jsonl")
        return run_records.state_texts(self.shared.rundir, path, self.rows)

    def _write_texts(self, name: str) -> list[str]:
        write = CONTROLS[name].texts
        assert write is not None, f"{name} has no texts of its own"
        return write(self)

    def best_answers(self) -> list[str]:
        """Answers of the best round's policy."""
        return self._answers(self.state.best["policy"], self.shared.cfg.rounds + 1)

    def warm_answers(self) -> list[str]:
        """Answers of the policy after the warm start."""
        return self._answers(self.sides.warm_policy, 0)

    def base_answers(self) -> list[str]:
        """Answers of the base model without an adapter."""
        return self._answers(None, 0)

    def _answers(self, policy: Any, number: int) -> list[str]:
        """Texts of a policy for `rows`, drawn as those of a round."""
        key = (self.sides.seed, Stream.EXPLANATIONS, number)
        answers = self.sides.actor.answer(policy, self.rows, self.sides.users, key=key)
        return self.shared.texts(answers.tokens, answers.length)

    def _read(self, name: str) -> Read:
        """What a system reads of every state."""
        control = CONTROLS[name]
        if control.features:
            return {"features": self.states.features}
        if control.history:
            return self.setup.history_reading()
        count, width = len(self.states), self.shared.encoder.width
        read = {
            "encoding": np.zeros((count, 2, width), np.float32),
            "present": np.zeros((count, 2), bool),
        }
        if not control.source:
            return read
        encoding, present = self.shared.encode(self.texts(control.source))
        read["encoding"][self.rows], read["present"][self.rows] = encoding, present
        if control.shuffled:
            # Within a split, so that nobody reads what was written at another time.
            part = self.states.part
            for number in range(len(PARTS)):
                rows = self.rows[part[self.rows] == number]
                key = rng.fold(self.sides.seed, Stream.SHUFFLED_CONTROL, number)
                other = rows[another(self.states.user[rows], key)]
                for array in read.values():
                    array[rows] = array[other]
        return read

    def _measure(self, name: str) -> Arrays:
        """Trains a system and tests it on every user."""
        control, sides, read = CONTROLS[name], self.sides, self._read(name)
        fused = sides.recommender
        # Another input takes another fusion; the base under it stays the same.
        if control.features:
            width = read["features"].shape[1]
            fused = type(fused)(self.setup, fused.task, width=width, features=True)
        elif control.side:
            width = self.shared.encoder.width
            fused = type(fused)(self.setup, fused.task, width=width, sides=control.side)
        if control.recommender == "joint":
            frozen, params, _ = self._joint
        elif control.recommender == "refit":
            frozen, params, _ = self._refit
        else:
            frozen = self._frozen(fused, read if control.standardised else None)
            state = fused.initial(sides.seed, sides.alone.params)
            if control.recommender == "alone":
                params = state.params
            else:
                params = fit(fused, state, frozen, read, steps=fused.steps, seed=sides.seed).params
        per_user = fused.evaluate("test", params, frozen, read)
        figures = {f"test/{key}": value for key, value in per_user.masked.items()}
        return figures | {"users": per_user.users}

    def _frozen(self, fused: FusedTask, read: Read | None) -> Any:
        """Frozen arrays that standardise what is read; None: as at the warm start."""
        constants = gather(self.state.constants)
        if read is not None:
            known = np.concatenate([self.setup.learned, self.sides.tracked])  # as those of joint
            constants |= fused.constants(read, known)  # the temperature is the recommender's
        return fused.frozen(self.sides.alone.frozen, constants)

    @functools.cached_property
    def _refit(self) -> Trained:
        """A recommender of the best explainer's texts, trained as those of controls are."""
        sides, read = self.sides, self._read(JOINT)
        state = sides.recommender.initial(sides.seed, sides.alone.params)
        frozen = self._frozen(sides.recommender, read)
        steps = sides.recommender.steps
        fitted = fit(sides.recommender, state, frozen, read, steps=steps, seed=sides.seed)
        return Trained(frozen, *fitted)

    @functools.cached_property
    def _joint(self) -> Trained:
        """The better of `_refit` and the best round's recommender after its last updates."""
        sides, frozen = self.sides, self._frozen(self.sides.recommender, None)
        best = jax.tree.map(jnp.copy, self.state.best["recommender"])
        state = sides.recommender.initial(sides.seed, sides.alone.params).replace(params=best)
        steps = self.shared.cfg.recommender.final_steps
        fitted = fit(
            sides.recommender, state, frozen, self._read(JOINT), steps=steps, seed=sides.seed
        )
        continued = Trained(frozen, *fitted)
        return continued if continued.value > self._refit.value else self._refit


def _write(path: epath.Path, arrays: Arrays) -> None:
    if is_primary():
        write_npz(path, arrays)
    barrier(str(path.name))
