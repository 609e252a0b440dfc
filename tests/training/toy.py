"""A four-parameter problem for the training loop: cheap, random by key, exact to replay."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests import tiny
from xrec_jax.core.logging import MetricWriter
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.training.checkpoint import Checkpoints
from xrec_jax.training.loop import LoopOptions, LoopProgress, compile_step, fit
from xrec_jax.training.state import TrainState, initializer

STAGE = "toy"
OPTIMIZER = optax.adam(0.1)


class Batches:
    """Global batches `[8, 4]` as a function of the step, with the loop's iterator interface."""

    def __init__(self) -> None:
        self.step = 0

    def __next__(self) -> dict[str, np.ndarray]:
        values = np.sin(np.arange(32, dtype=np.float32).reshape(8, 4) + 7 * self.step)
        batch = {"x": values, "number": np.full(8, self.step, np.int32)}
        self.step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        return {"step": self.step}

    def set_state(self, state: dict[str, int]) -> None:
        self.step = state["step"]


def step(state, batch, key, *, bad_at: int = 0, bad: float = float("nan")):
    """Pulls `w` towards the batch plus noise; update `bad_at` has a loss of `bad`."""
    noise = jax.random.normal(key, (4,))

    def loss_fn(params):
        loss = jnp.mean(jnp.square(params["w"] + noise - batch["x"]))
        return loss * jnp.where(state.step + 1 == bad_at, bad, 1.0)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
    metrics = {"train/loss": loss, "train/noise": noise[0], "train/batch": batch["number"][0]}
    return state.replace(
        step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state
    ), metrics


@functools.cache
def _initializer(mesh) -> Callable[[int], TrainState]:
    return initializer(lambda key: {"w": jax.random.normal(key, (4,))}, OPTIMIZER, mesh=mesh)


def initial(mesh=None) -> TrainState:
    """The state before the first step."""
    return _initializer(mesh or tiny.mesh())(5)


@functools.cache
def compiled(bad_at: int = 0, bad: float = float("nan")):
    """`step`, compiled once for all tests."""
    mesh = tiny.mesh()
    with use_mesh(mesh):
        return compile_step(functools.partial(step, bad_at=bad_at, bad=bad), initial(mesh))


def train(
    workdir: pathlib.Path,
    *,
    total: int = 10,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    run_step: Callable[..., Any] | None = None,
    **options: Any,
) -> tuple[TrainState, LoopProgress]:
    """Runs `fit` on the problem in `workdir`, resuming what is there."""
    workdir.mkdir(exist_ok=True)
    mesh = tiny.mesh()
    writer = MetricWriter(workdir)
    settings = dict(log_every=1, checkpoint_every=100, metric="valid/score") | options
    try:
        with use_mesh(mesh), Checkpoints(workdir / "checkpoints") as checkpoints:
            return fit(
                initial(mesh),
                run_step or compiled(),
                Batches(),
                stage=STAGE,
                mesh=mesh,
                options=LoopOptions(total_steps=total, **settings),
                checkpoints=checkpoints,
                writer=writer,
                evaluate=evaluate,
            )
    finally:
        writer.close()


def saved(workdir: pathlib.Path) -> tuple[dict[str, Any], Any, Any]:
    """The newest checkpoint: state on the host, data position, progress."""
    with use_mesh(tiny.mesh()), Checkpoints(workdir / "checkpoints") as checkpoints:
        state, data, progress = checkpoints.restore(initial())
    return jax.device_get(state.saved()), data, progress


def scores(state: TrainState) -> dict[str, float]:
    """A score that depends on the parameters and not on anything else."""
    return {"valid/score": -float(jnp.sum(jnp.square(state.params["w"])))}
