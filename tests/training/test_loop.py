"""The training loop: logging, evaluation, early stopping, faults, SIGTERM and resumption."""

import errno
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import runs, tiny
from tests.training import toy
from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.disk import WriteError
from xrec_jax.parallel.mesh import put_batch, use_mesh
from xrec_jax.training import loop
from xrec_jax.training.checkpoint import Checkpoints
from xrec_jax.training.manifest import NAME
from xrec_jax.training.saving import BackgroundWrite
from xrec_jax.training.state import shardings_of


def terminate_at(step: int, evaluate=None):
    """An `evaluate` function that sends SIGTERM to this process after update `step`."""

    def run(state):
        if int(state.step) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(state) if evaluate else toy.scores(state)

    return run


def step_that_terminates_at(step: int):
    """A compiled step that sends SIGTERM to this process after update `step`."""

    def run(state, batch):
        state, metrics = toy.compiled()(state, batch)
        if int(state.step) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return state, metrics

    return run


class Counting:
    """The compiled step, counting how often it runs."""

    steps = 0

    def __call__(self, state, batch):
        self.steps += 1
        return toy.compiled()(state, batch)


class Scripted:
    """An `evaluate` function with given scores that keeps the parameters it saw."""

    def __init__(self, *scores: float):
        self.scores, self.seen = scores, []

    def __call__(self, state):
        self.seen.append(jax.device_get(state.params))
        return {"valid/score": self.scores[len(self.seen) - 1]}


# Logging


@pytest.mark.parametrize("checkpoint_every", [100, 3], ids=["no checkpoint", "checkpoints between"])
def test_logged_values_are_means_since_the_last_line(tmp_path, checkpoint_every):
    toy.train(tmp_path / "each")
    toy.train(tmp_path / "means", log_every=4, checkpoint_every=checkpoint_every)
    each = {line["step"]: line for line in runs.metrics(tmp_path / "each")}
    means = runs.metrics(tmp_path / "means")
    assert sorted(each) == list(range(1, 11))
    assert [line["step"] for line in means] == [4, 8, 10]
    for line, steps in zip(means, [range(1, 5), range(5, 9), range(9, 11)], strict=True):
        for name in ("train/loss", "train/noise", "train/batch"):
            expected = np.mean([each[step][name] for step in steps])
            np.testing.assert_allclose(line[name], expected, rtol=1e-12, err_msg=name)


def test_each_step_has_the_key_folded_with_its_number(tmp_path):
    toy.train(tmp_path)
    key = jax.random.wrap_key_data(toy.initial().key)
    expected = [
        float(jax.random.normal(jax.random.fold_in(key, step), (4,))[0]) for step in range(10)
    ]
    noise = [line["train/noise"] for line in runs.metrics(tmp_path)]
    np.testing.assert_allclose(noise, expected, rtol=1e-6)
    assert len(set(noise)) == 10


def test_lines_hold_stage_step_and_times(tmp_path):
    toy.train(tmp_path, total=2, evaluate=toy.scores, evaluate_every=2)
    first, last = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (first["stage"], first["step"], last["step"]) == (toy.STAGE, 1, 2)
    assert first["time/examples_per_second"] > 0
    assert last["time/elapsed_seconds"] >= last["time/evaluation_seconds"] >= 0
    assert "valid/score" in last and "valid/score" not in first


# Evaluation and early stopping


@pytest.mark.parametrize(
    ("every", "expected"), [(4, [4, 8, 10]), (5, [5, 10]), (20, [10]), (0, [])]
)
def test_evaluates_on_time_and_at_the_last_step(tmp_path, every, expected):
    steps = []

    def evaluate(state):
        steps.append(int(state.step))
        return toy.scores(state)

    toy.train(tmp_path, evaluate=evaluate, evaluate_every=every)
    assert steps == expected
    logged = [line["step"] for line in runs.metrics(tmp_path) if "valid/score" in line]
    assert logged == expected


def test_best_parameters_are_kept_and_training_stops(tmp_path):
    # A tie is no improvement, so 0.5 at the fourth evaluation counts as bad.
    evaluate = Scripted(0.1, 0.5, 0.4, 0.5, 0.9)
    state, progress = toy.train(tmp_path, evaluate=evaluate, evaluate_every=2, patience=2)
    assert int(state.step) == 8
    assert progress == loop.LoopProgress(0.5, best_step=4, bad_evaluations=2, stopped=True)
    runs.assert_same_bits(jax.device_get(state.best_params), evaluate.seen[1])
    runs.assert_same_bits(jax.device_get(state.params), evaluate.seen[3])
    assert not np.array_equal(evaluate.seen[1]["w"], evaluate.seen[3]["w"])


def test_patience_counts_evaluations_in_a_row(tmp_path):
    evaluate = Scripted(0.1, 0.0, 0.2, 0.0, 0.3)
    _, progress = toy.train(tmp_path, evaluate=evaluate, evaluate_every=2, patience=2)
    assert progress == loop.LoopProgress(0.3, best_step=10)


def test_without_patience_training_never_stops(tmp_path):
    evaluate = Scripted(*np.linspace(1, 0, 10))
    state, progress = toy.train(tmp_path, evaluate=evaluate, evaluate_every=1)
    assert int(state.step) == 10 and not progress.stopped and progress.best_step == 1


def test_a_stopped_run_stays_stopped(tmp_path):
    first = toy.train(
        tmp_path, evaluate=Scripted(0.5, 0.4), evaluate_every=2, patience=1, checkpoint_every=3
    )
    before = runs.metrics(tmp_path)
    again = toy.train(tmp_path, evaluate=Scripted(), evaluate_every=2, patience=1)
    runs.assert_same_bits(*(jax.device_get(state.saved()) for state, _ in (first, again)))
    assert first[1] == again[1] and runs.metrics(tmp_path) == before


@pytest.mark.parametrize("evaluate", [None, toy.scores], ids=["no function", "every 0"])
def test_without_an_evaluation_the_last_parameters_are_the_best(tmp_path, evaluate):
    state, _ = toy.train(tmp_path, evaluate=evaluate, evaluate_every=0)
    runs.assert_same_bits(jax.device_get(state.best_params), jax.device_get(state.params))


def test_unknown_stopping_metric_is_named(tmp_path):
    with pytest.raises(UserError, match=r"'valid/other' is not among valid/score"):
        toy.train(tmp_path, evaluate=toy.scores, evaluate_every=1, metric="valid/other")


# Losses that are not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("log_every", [1, 5, 100])
def test_a_bad_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path, bad, log_every):
    with pytest.raises(UserError) as caught:
        toy.train(tmp_path, run_step=toy.compiled(7, bad), log_every=log_every, checkpoint_every=3)
    assert f"train/loss is {bad} at step 7" in str(caught.value)
    assert "last good checkpoint is step 6" in str(caught.value)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "6", NAME]
    state, data, _ = toy.saved(tmp_path)
    assert data == {"step": 6} and all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    assert all(line["step"] < 7 for line in runs.metrics(tmp_path))


def test_a_bad_loss_before_any_checkpoint(tmp_path):
    with pytest.raises(UserError, match="at step 2; stopped, no checkpoint was written yet"):
        toy.train(tmp_path, run_step=toy.compiled(2), log_every=4)


def test_the_run_goes_on_from_the_last_good_checkpoint(tmp_path):
    with pytest.raises(UserError):
        toy.train(tmp_path / "cut", run_step=toy.compiled(7), checkpoint_every=3)
    rerun = Counting()
    toy.train(tmp_path / "cut", run_step=rerun, checkpoint_every=3)
    assert rerun.steps == 4
    toy.train(tmp_path / "whole", checkpoint_every=3)
    assert runs.metrics(tmp_path / "cut") == runs.metrics(tmp_path / "whole")


@pytest.mark.parametrize("lower_is_better", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_a_deciding_score_that_is_not_finite_stops(tmp_path, bad, lower_is_better):
    with pytest.raises(UserError) as caught:
        toy.train(
            tmp_path,
            evaluate=Scripted(1.0, bad, 2.0),
            evaluate_every=3,
            checkpoint_every=3,
            lower_is_better=lower_is_better,
        )
    assert f"toy: valid/score is {bad} at step 6; stopped" in str(caught.value)
    assert "last good checkpoint is step 3" in str(caught.value)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", NAME]
    assert toy.saved(tmp_path)[2]["best"] == 1.0


def test_a_first_score_that_is_not_finite_never_becomes_the_best(tmp_path):
    with pytest.raises(UserError, match=r"valid/score is nan at step 2; .* no checkpoint"):
        toy.train(tmp_path, evaluate=Scripted(float("nan")), evaluate_every=2)
    assert not any((tmp_path / "checkpoints").iterdir())


def test_a_saved_best_score_that_is_nan_is_beaten_by_any_other(tmp_path):
    """Such checkpoints were written once."""
    toy.train(tmp_path, total=4, evaluate=toy.scores, evaluate_every=4)
    restore = Checkpoints.restore

    def as_once(checkpoints, state):
        state, data, progress = restore(checkpoints, state)
        return state, data, progress | {"best": float("nan")}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "restore", as_once)
        state, progress = toy.train(tmp_path, total=6, evaluate=toy.scores, evaluate_every=2)
    assert progress.best_step == 6 and np.isfinite(progress.best)
    assert jnp.array_equal(state.best_params["w"], state.params["w"])


@pytest.mark.parametrize("step", [3, 10], ids=["between", "last"])
def test_parameters_that_are_not_finite_are_never_saved(tmp_path, step):
    """An update may overflow though its loss and gradient are finite."""

    def run(state, batch):
        state, metrics = toy.compiled()(state, batch)
        if int(state.step) == step:
            state = state.replace(params={"w": state.params["w"].at[2].set(jnp.inf)})
        return state, metrics

    with pytest.raises(UserError, match=rf"parameters are not finite \(w\) at step {step}; "):
        toy.train(tmp_path, run_step=run, checkpoint_every=1)
    assert f"{step}" not in {p.name for p in (tmp_path / "checkpoints").iterdir()}


# SIGTERM and resumption


OPTIONS = dict(log_every=4, checkpoint_every=4, evaluate_every=6, evaluate=toy.scores, patience=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with `OPTIONS` that nothing cuts off."""
    workdir = tmp_path_factory.mktemp("whole")
    toy.train(workdir, **OPTIONS)
    return workdir


@pytest.mark.parametrize("cut", [1, 4, 6, 7, 9])
def test_sigterm_saves_and_the_rerun_is_equal_to_the_last_bit(tmp_path, whole, cut):
    with pytest.raises(loop.Interrupted, match=f"toy: saved at step {cut} after SIGTERM"):
        toy.train(tmp_path, run_step=step_that_terminates_at(cut), **OPTIONS)
    assert toy.saved(tmp_path)[1] == {"step": cut}
    rerun = Counting()
    toy.train(tmp_path, run_step=rerun, **OPTIONS)
    assert rerun.steps == 10 - cut
    runs.assert_same_bits(toy.saved(tmp_path)[0], toy.saved(whole)[0])
    assert toy.saved(tmp_path)[1:] == toy.saved(whole)[1:]


def test_a_run_that_falls_back_is_equal_to_the_last_bit(tmp_path, whole, capsys):
    """The newest checkpoint has a flipped bit: the run goes on from the one before."""
    with pytest.raises(loop.Interrupted):
        toy.train(tmp_path, run_step=step_that_terminates_at(7), **OPTIONS)
    array = next((tmp_path / "checkpoints" / "7" / "state" / "d").iterdir())
    data = bytearray(array.read_bytes())
    data[-20] ^= 1
    array.write_bytes(data)
    rerun = Counting()
    toy.train(tmp_path, run_step=rerun, **OPTIONS)
    assert "; going on from step 4; it was renamed to 7.damaged\n" in capsys.readouterr().out
    assert rerun.steps == 6
    runs.assert_same_bits(toy.saved(tmp_path)[0], toy.saved(whole)[0])
    assert toy.saved(tmp_path)[1:] == toy.saved(whole)[1:]
    assert runs.metrics(tmp_path) == runs.metrics(whole)


def test_a_write_that_fails_in_the_background_ends_training_at_the_next_step(tmp_path, monkeypatch):
    """Not at the next save, which may be hours away."""

    def broken(self):
        self.error = OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(BackgroundWrite, "run", broken)
    steps = Counting()
    with pytest.raises(WriteError, match=r"cannot write the checkpoint of step 4 to .*: No space"):
        toy.train(tmp_path, run_step=steps, checkpoint_every=4, total=10)
    assert steps.steps in (4, 5)  # the thread may need a moment


@pytest.mark.parametrize("cut", [1, 4, 6, 7])
def test_a_rerun_after_sigterm_logs_the_same_means(tmp_path, whole, cut):
    with pytest.raises(loop.Interrupted):
        toy.train(tmp_path, run_step=step_that_terminates_at(cut), **OPTIONS)
    toy.train(tmp_path, **OPTIONS)
    assert runs.metrics(tmp_path) == runs.metrics(whole)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 143), (signal.SIGTERM, 143)]
)
def test_every_signal_that_ends_saves_first(tmp_path, number, status):
    def run(state, batch):
        state, metrics = toy.compiled()(state, batch)
        if int(state.step) == 3:
            os.kill(os.getpid(), number)
        return state, metrics

    with pytest.raises(loop.Interrupted, match=f"saved at step 3 after {number.name}") as caught:
        toy.train(tmp_path, run_step=run)
    assert caught.value.status == status and toy.saved(tmp_path)[1] == {"step": 3}


def test_sigterm_in_an_evaluation_is_honoured_after_it(tmp_path):
    with pytest.raises(loop.Interrupted):
        toy.train(tmp_path, evaluate=terminate_at(3), evaluate_every=3)
    assert [line["step"] for line in runs.metrics(tmp_path) if "valid/score" in line] == [3]


def test_sigterm_at_the_last_step_is_not_forgotten(tmp_path):
    """Otherwise a run of several systems would train the next one."""
    with pytest.raises(loop.Interrupted):
        toy.train(tmp_path, run_step=step_that_terminates_at(10))
    state, _ = toy.train(tmp_path)
    assert int(state.step) == 10


def test_the_earlier_signal_handler_comes_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    toy.train(tmp_path, total=2)
    assert signal.getsignal(signal.SIGTERM) is before


def test_lines_after_the_checkpoint_are_forgotten(tmp_path):
    """A kill leaves lines past the checkpoint, other stages' lines, and half a line."""
    toy.train(tmp_path / "whole", checkpoint_every=4, total=10)
    with pytest.raises(loop.Interrupted):
        toy.train(tmp_path / "cut", run_step=step_that_terminates_at(4), checkpoint_every=4)
    log = tmp_path / "cut" / "metrics.jsonl"
    other = '{"stage": "other", "step": 99}\n'
    wrong = '{"stage": "toy", "step": 5, "train/loss": 7.0}\n'
    log.write_text(other + log.read_text() + wrong + '{"stage": "toy", "st')
    toy.train(tmp_path / "cut", checkpoint_every=4)
    assert runs.metrics(tmp_path / "cut", "toy") == runs.metrics(tmp_path / "whole")
    assert runs.metrics(tmp_path / "cut", "other") == [{"stage": "other", "step": 99}]


def test_without_a_checkpoint_the_run_starts_again(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "toy", "step": 5}\n')
    toy.train(tmp_path, total=3)
    assert [line["train/batch"] for line in runs.metrics(tmp_path)] == [0, 1, 2]


# The compiled step


def test_the_state_is_donated_and_keeps_its_shardings():
    mesh = tiny.mesh(8, fsdp=2, tensor=2)
    with use_mesh(mesh):
        state = toy.initial(mesh)
        shardings = shardings_of(state)
        compiled = loop.compile_step(toy.step, state)
        after, metrics = compiled(state, put_batch(next(toy.Batches()), mesh))
        jax.block_until_ready(after)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.saved()))
    assert shardings_of(after) == shardings
    assert int(after.step) == 1 and jnp.isfinite(metrics["train/loss"])
