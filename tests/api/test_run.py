"""Whole runs of the tiny world: what they leave, skipping, evaluating again, other meshes."""

import contextlib
import json
import os
import shutil
import signal

import numpy as np
import pytest

from tests import runs, tiny
from tests.runs import finished  # noqa: F401 (a fixture)
from xrec_jax.api import restore, run
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter
from xrec_jax.core.rundir import RunDir
from xrec_jax.data import run_identity
from xrec_jax.data.run_data import prepare
from xrec_jax.llm.model import precision
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.run_config import read_config
from xrec_jax.training import recommender
from xrec_jax.training.loop import Interrupted
from xrec_jax.training.recommender import RecommenderTask

STEPS = {"bpr": 22, "lightgcn": 22, "sasrec": 4}
METRICS = [f"{name}@{k}" for name in ("recall", "hit", "ndcg", "mrr") for k in (5, 10, 20)]
GROUPS = ["valid", "valid_unmasked", "test", "test_unmasked"]


def evaluation(workdir):
    return json.loads((workdir / "evaluation.json").read_text())


def stamps(workdir):
    """Contents and times of the files that a run must not touch once it is done."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in workdir.rglob("*")
        if path.is_file() and path.name not in ("config.json", "evaluation.json")
    }


# What a run leaves


def test_every_file_of_the_run_directory(finished):  # noqa: F811
    assert {path.name for path in finished.iterdir()} == {
        "config.json",
        "data.json",
        "metrics.jsonl",
        "evaluation.json",
        "checkpoints",
        "per_user",
        "tensorboard",
        "done",
    }
    for name, steps in STEPS.items():
        folder = finished / "checkpoints" / "recommend" / name / "0"
        assert {path.name for path in folder.iterdir()} == {
            str(steps // 2),
            str(steps),
            "newest.json",
        }
        assert list((finished / "tensorboard" / "recommend" / name / "0").iterdir())
    assert not (finished / "checkpoints" / "recommend" / "popularity").exists()


def test_the_configuration_is_the_resolved_one(finished):  # noqa: F811
    config, resolved = json.loads((finished / "config.json").read_text()), tiny.config()
    assert resolved.data.split.kind == ""
    resolved.data.split.kind = "leave_one_out"  # what "" stands for where the data has no parts
    assert config == json.loads(json.dumps(resolved.to_dict()))
    assert read_config(RunDir(finished)).to_dict() == resolved.to_dict()


def test_a_generated_world_is_kept_as_digests(finished):  # noqa: F811
    found = json.loads((finished / "data.json").read_text())
    assert found["files"] == {} and found["users"]["count"] == 75
    config = read_config(RunDir(finished))
    assert run_identity.identify(config, tiny.data())["digest"] == found["digest"]
    config.data.world.seed += 1
    other = run_identity.identify(config, prepare(config.data))
    with pytest.raises(UserError, match=r"it is read otherwise.: other "):
        run_identity.compare(RunDir(finished), other)


def test_metrics_are_logged_once_an_epoch(finished):  # noqa: F811
    for name, steps in STEPS.items():
        lines = runs.metrics(finished, f"recommend/{name}/0")
        assert [line["step"] for line in lines] == [steps // 2, steps]
        for line in lines:
            assert {f"{group}/{metric}" for group in GROUPS[:2] for metric in METRICS} <= {*line}
            assert line["train/loss"] > 0 and line["train/grad_norm"] > 0
        assert lines[1]["train/loss"] < lines[0]["train/loss"]
    assert all("/" in key for line in runs.metrics(finished) for key in {*line} - {"stage", "step"})


def cold_users():
    """Users whose held-out item has no training event, by group."""
    split = tiny.data().split
    learned = set(split.train.item.tolist())
    return {
        group: sum(item not in learned for item in getattr(split, group).item.tolist())
        for group in ("valid", "test")
    }


def test_schema_of_the_evaluation(finished):  # noqa: F811
    found = evaluation(finished)
    assert found.keys() == {"recommend"}
    systems = found["recommend"]
    assert systems.keys() == {*tiny.MODELS, "upper_bound"}
    cold = cold_users()
    groups = [*GROUPS, *(f"{group}_cold" for group, users in cold.items() if users)]
    assert len(groups) > len(GROUPS)
    for name in tiny.MODELS:
        assert {*systems[name]} == {f"{group}/{metric}" for group in groups for metric in METRICS}
    for name, numbers in systems.items():
        for metric, entry in numbers.items():
            assert entry.keys() == {"value", "low", "high", "count"}, metric
            group = metric.partition("_cold/")[0]
            count = cold[group] if "_cold/" in metric else 75
            assert entry["count"] == count and 0 <= entry["value"] <= 1
            if name == "upper_bound" or count == 1:  # one value has no interval
                assert entry["low"] is None and entry["high"] is None
            else:
                assert 0 <= entry["low"] <= entry["value"] <= entry["high"] <= 1


def test_the_upper_bound_is_above_every_system(finished):  # noqa: F811
    systems = evaluation(finished)["recommend"]
    for metric, bound in systems["upper_bound"].items():
        assert metric.startswith("test/")
        for name in tiny.MODELS:
            assert systems[name][metric]["value"] < bound["value"], (name, metric)


def test_per_user_values_are_those_behind_the_evaluation(finished):  # noqa: F811
    systems, split = evaluation(finished)["recommend"], tiny.data().split
    for name in tiny.MODELS:
        arrays = runs.per_user(finished)[f"per_user/recommend/{name}/0.npz"]
        np.testing.assert_array_equal(arrays["test_users"], np.unique(split.test.user))
        np.testing.assert_array_equal(arrays["valid_users"], np.unique(split.valid.user))
        for metric, entry in systems[name].items():
            group, is_cold, _ = metric.partition("_cold/")
            rows = arrays[f"{group}_cold"] if is_cold else slice(None)
            values = arrays[metric.replace("_cold/", "/")]
            assert values.shape == (75,)
            # An interval's mean over few users is rounded otherwise.
            assert entry["value"] == pytest.approx(values[rows].mean(), abs=1e-9)


def test_the_best_epoch_is_what_is_evaluated(finished):  # noqa: F811
    systems = evaluation(finished)["recommend"]
    for name in STEPS:
        best = max(line["valid/ndcg@10"] for line in runs.metrics(finished, f"recommend/{name}/0"))
        assert systems[name]["valid/ndcg@10"]["value"] == pytest.approx(best, abs=1e-7)


# What is learned from, and what is measured


@pytest.mark.parametrize(
    ("name", "packing"), [("bpr", 0), ("lightgcn", 0), ("sasrec", 0), ("sasrec", 30)]
)
def test_no_held_out_event_is_trained_on(name, packing, tmp_path):
    """Every training event is a target, but the first of each history where those are read."""
    data, config = tiny.data(), tiny.config(name)
    if packing:
        config.recommend.sasrec.hparams.packing = packing
    task = RecommenderTask(config, name, data=data, mesh=tiny.mesh(), rundir=RunDir(tmp_path))
    train = [*zip(data.split.train.user.tolist(), data.split.train.item.tolist(), strict=True)]
    source, found = task.batch_source(0), []
    rows = source._rows
    batch = rows.rows(0, np.arange(rows.num_rows))
    if name == "sasrec":
        first = {user: (user, item) for user, item in reversed(train)}
        for event in first.values():
            train.remove(event)
        for row, column in np.argwhere(batch["weight"] > 0):
            window = row
            if packing:
                window = rows.member[rows.start[row] + batch["segment"][row, column] - 1]
            users = rows.windows.user if packing else rows.user
            found.append((int(users[window]), int(batch["target"][row, column])))
    else:
        found = [*zip(batch["user"].tolist(), batch["item"].tolist(), strict=True)]
    assert sorted(found) == sorted(train)
    assert (task.data.learned.item == data.split.train.item).all()


@pytest.mark.parametrize("packing", [0, 30])
def test_a_task_trains_on_the_latest_windows_alone(packing, tmp_path):
    config = tiny.config("sasrec")
    config.recommend.sasrec.hparams.update(dict(packing=packing, windows="latest"))
    rundir = RunDir(tmp_path)
    task = RecommenderTask(config, "sasrec", data=tiny.data(), mesh=tiny.mesh(), rundir=rundir)
    rows = task.batch_source(0)._rows
    weight = rows.rows(0, np.arange(rows.num_rows))["weight"]
    events = np.bincount(tiny.data().split.train.user)
    assert weight.sum() == np.clip(events - 1, 0, 9).sum() < (events[events > 0] - 1).sum()


def test_seeds_pack_the_same_windows_with_cuts_of_their_own(tmp_path):
    config = tiny.config("sasrec")
    config.recommend.sasrec.hparams.packing = 30
    rundir = RunDir(tmp_path)
    task = RecommenderTask(config, "sasrec", data=tiny.data(), mesh=tiny.mesh(), rundir=rundir)
    sources = [task.batch_source(seed)._rows for seed in (0, 1, 1)]
    assert sources[0].member is sources[1].member
    batches = [rows.rows(0, np.arange(rows.num_rows))["history"] for rows in sources]
    assert (batches[0] != batches[1]).any() and (batches[1] == batches[2]).all()


def test_epochs_are_chosen_on_validation_events(tmp_path, monkeypatch):
    data, mesh = tiny.data(), tiny.mesh()
    monkeypatch.setattr(recommender, "fit", lambda state, *_, evaluate, **options: evaluate(state))
    with use_mesh(mesh):
        task = RecommenderTask(
            tiny.config("bpr"), "bpr", data=data, mesh=mesh, rundir=RunDir(tmp_path)
        )
        state = task.initial_state(0)
        told = task.fit(0, MetricWriter(tmp_path))
        valid, test = (
            task.evaluate(part, state.params, state.frozen) for part in ("valid", "test")
        )
    assert valid.users.tolist() == data.split.valid.user.tolist()
    assert told["valid/ndcg@10"] == valid.masked["ndcg@10"].mean() != test.masked["ndcg@10"].mean()


def test_ranks_are_those_of_a_plain_loop(tmp_path):
    """What comes before the held-out event is masked: for the test the validation event too."""
    data, mesh = tiny.data(), tiny.mesh()
    with use_mesh(mesh):
        task = RecommenderTask(
            tiny.config("bpr"), "bpr", data=data, mesh=mesh, rundir=RunDir(tmp_path)
        )
        state = task.initial_state(5)
        found = {
            part: task.evaluate(part, state.params, state.frozen) for part in ("valid", "test")
        }
        tables = task.model.tables(state.params, state.frozen)
        items, users = (np.asarray(x, np.float64) for x in (tables.item, tables.user))
    split, count = data.split, data.dataset.num_items
    for part, before in (("valid", [split.train]), ("test", [split.train, split.valid])):
        held_out, masked, whole = getattr(split, part), [], []
        for user, target in zip(held_out.user.tolist(), held_out.item.tolist(), strict=True):
            scores = items[:count] @ users[user]
            ahead = {i for i in range(count) if i != target and scores[i] >= scores[target]}
            seen = {i for one in before for i in one.item[one.user == user].tolist()}
            for ranks, others in ((masked, ahead - seen), (whole, ahead)):
                ranks.append(1 / np.log2(2 + len(others)) if len(others) < 10 else 0.0)
        np.testing.assert_array_equal(found[part].users, held_out.user)
        np.testing.assert_allclose(found[part].masked["ndcg@10"], masked, atol=1e-6)
        np.testing.assert_allclose(found[part].unmasked["ndcg@10"], whole, atol=1e-6)
        assert masked != whole


# Running again


def test_a_second_run_changes_nothing(finished, capsys, tmp_path):  # noqa: F811
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    before, files = runs.contents(workdir), stamps(workdir)
    run.run(tiny.config(), workdir)
    assert runs.contents(workdir) == before
    assert stamps(workdir) == files
    assert "done in" not in capsys.readouterr().out


def test_only_the_missing_system_is_trained(finished, tmp_path):  # noqa: F811
    shutil.copytree(finished, tmp_path / "run")
    before = evaluation(tmp_path / "run")
    (tmp_path / "run" / "per_user" / "recommend" / "lightgcn" / "0.npz").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "recommend" / "lightgcn")
    kept = {path: stamp for path, stamp in stamps(tmp_path / "run").items() if "bpr" in str(path)}
    run.run(tiny.config(), tmp_path / "run")
    assert evaluation(tmp_path / "run") == before
    assert runs.metrics(tmp_path / "run", "recommend/lightgcn") == runs.metrics(
        finished, "recommend/lightgcn"
    )
    assert stamps(tmp_path / "run").items() >= kept.items()


def test_evaluate_gives_the_same_numbers(finished, tmp_path):  # noqa: F811
    shutil.copytree(finished, tmp_path / "run")
    expected = evaluation(tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").write_text("{}")
    run.evaluate(tmp_path / "run")
    assert evaluation(tmp_path / "run") == expected
    runs.assert_same_bits(runs.per_user(tmp_path / "run"), runs.per_user(finished))
    assert runs.metrics(tmp_path / "run") == runs.metrics(finished)


def test_several_seeds(tmp_path):
    """Frozen arrays (LightGCN's graph) outlive the first seed; popularity runs with one seed."""
    config = tiny.config("lightgcn", "popularity", epochs=1)
    config.seeds = (3, 8)
    run.run(config, tmp_path / "both")
    for seed in config.seeds:
        config.seeds = (seed,)
        run.run(config, tmp_path / str(seed))
    assert runs.per_user(tmp_path / "both").keys() == {
        "per_user/recommend/lightgcn/3.npz",
        "per_user/recommend/lightgcn/8.npz",
        "per_user/recommend/popularity/3.npz",
    }
    both = evaluation(tmp_path / "both")["recommend"]["lightgcn"]["test/ndcg@10"]
    single = [
        evaluation(tmp_path / str(seed))["recommend"]["lightgcn"]["test/ndcg@10"]["value"]
        for seed in (3, 8)
    ]
    assert single[0] != single[1]
    assert both["value"] == pytest.approx(np.mean(single), abs=1e-12)
    stage = "recommend/lightgcn/8"
    assert runs.metrics(tmp_path / "both", stage) == runs.metrics(tmp_path / "8", stage)


def test_the_same_seed_gives_the_same_run_and_another_does_not(finished, tmp_path):  # noqa: F811
    config = tiny.config("bpr")
    run.run(config, tmp_path / "again")
    config.seeds = (1,)
    run.run(config, tmp_path / "other")
    expected = runs.metrics(finished, "recommend/bpr")
    assert runs.metrics(tmp_path / "again") == expected
    losses = [line["train/loss"] for line in runs.metrics(tmp_path / "other")]
    assert all(a != b["train/loss"] for a, b in zip(losses, expected, strict=True))


def test_mesh_and_data_path_may_change_but_nothing_else(finished, tmp_path):  # noqa: F811
    shutil.copytree(finished, tmp_path / "run")
    config = tiny.config()
    config.mesh.update(fsdp=2, tensor=2)
    run.run(config, tmp_path / "run")
    assert read_config(RunDir(tmp_path / "run")).mesh.fsdp == 2
    config.ranking.resamples = 51
    with pytest.raises(UserError, match=r"ranking.resamples=50, not 51"):
        run.run(config, tmp_path / "run")


# Other meshes


def evaluate_on(mesh, workdir):
    """Per-user values of a finished run on a mesh."""
    config, found = read_config(RunDir(workdir)), {}
    with use_mesh(mesh):
        for name in config.recommend:
            task = RecommenderTask(
                config, name, data=tiny.data(), mesh=mesh, rundir=RunDir(workdir)
            )
            params, frozen = task.restore(0)
            found[name] = {group: task.evaluate(group, params, frozen) for group in GROUPS[::2]}
    return found


def test_evaluation_does_not_depend_on_the_devices(finished):  # noqa: F811
    one = evaluate_on(tiny.mesh(1), finished)
    many = evaluate_on(tiny.mesh(8, fsdp=2, tensor=2), finished)
    stored = runs.per_user(finished)
    for name, groups in one.items():
        arrays = stored[f"per_user/recommend/{name}/0.npz"]
        for group, result in groups.items():
            for metric, values in result.masked.items():
                np.testing.assert_array_equal(values, many[name][group].masked[metric])
                np.testing.assert_array_equal(values, arrays[f"{group}/{metric}"])


class Stopping(MetricWriter):
    """A metric log that sends SIGTERM to its own process at a step, and counts its lines."""

    def __init__(self, workdir, step):
        super().__init__(workdir)
        self.step, self.lines = step, 0

    def write(self, stage, step, metrics):
        super().write(stage, step, metrics)
        self.lines += 1
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("name", ["sasrec", "lightgcn"])
def test_a_run_cut_off_goes_on_on_meshes_of_other_shapes(name, tmp_path):
    """8 devices along the batch, then 2x2x2, then one, against one device throughout."""
    config = tiny.config(name, epochs=1 if name != "sasrec" else 6, log_every=1)
    meshes = [tiny.mesh(8), tiny.mesh(8, fsdp=2, tensor=2), tiny.mesh(1)]

    def go_on(folder, mesh, stop):
        folder.mkdir(exist_ok=True)
        writer = Stopping(folder, stop)
        try:
            with use_mesh(mesh), contextlib.suppress(Interrupted):
                task = RecommenderTask(
                    config, name, data=tiny.data(), mesh=mesh, rundir=RunDir(folder)
                )
                task.fit(0, writer)
        finally:
            writer.close()
        return writer.lines

    total = go_on(tmp_path / "still", tiny.mesh(1), None)
    trained = [go_on(tmp_path / "moved", *part) for part in zip(meshes, (4, 8, None), strict=True)]
    assert trained == [4, 4, total - 8]
    moved, still = runs.metrics(tmp_path / "moved"), runs.metrics(tmp_path / "still")
    assert [line["step"] for line in moved] == list(range(1, total + 1))
    for one, other in zip(moved, still, strict=True):
        for key in ("train/loss", "train/grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=2e-6), (one["step"], key)


def test_a_relative_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run.run(tiny.config("bpr"), "runs/a")
    first = (tmp_path / "runs/a/evaluation.json").read_text()
    run.run(tiny.config("bpr"), "runs/a")
    run.evaluate("runs/a")
    assert (tmp_path / "runs/a/evaluation.json").read_text() == first
    assert len(restore("runs/a").recommend(["u00003"], top_k=2)) == 2


def test_a_run_of_another_mesh_is_evaluated(tmp_path, monkeypatch):
    made = tiny.config("bpr")
    made.mesh.tensor = 2
    run.run(made, tmp_path / "w")
    saved = json.loads((tmp_path / "w/config.json").read_text())
    saved["mesh"] = {"data": 3, "fsdp": 1, "tensor": 1}  # as if this machine had three devices less
    (tmp_path / "w/config.json").write_text(json.dumps(saved))
    before = json.loads((tmp_path / "w/evaluation.json").read_text())
    run.evaluate(tmp_path / "w")
    after = json.loads((tmp_path / "w/evaluation.json").read_text())
    for name, value in before["recommend"]["bpr"].items():
        assert abs(value["value"] - after["recommend"]["bpr"][name]["value"]) < 1e-6


# What a key stands for


def test_a_run_keeps_the_dtype_that_auto_stood_for(tmp_path, monkeypatch):
    """Resumed where the processor is fast at something else, it goes on in its own."""
    for fast in (True, False):
        monkeypatch.setattr(precision, "multiplies_bfloat16", lambda fast=fast: fast)
        config = tiny.config("popularity")
        config.llm.dtype = "auto"
        run.run(config, tmp_path / "run")
        assert config.llm.dtype == read_config(RunDir(tmp_path / "run")).llm.dtype == "bfloat16"
    with pytest.raises(UserError, match=r"llm\.dtype='bfloat16', not 'float32'"):
        run.run(tiny.config("popularity"), tmp_path / "run")


def test_a_run_from_before_auto_was_settled_goes_on(tmp_path, monkeypatch):
    config = tiny.config("popularity")
    config.llm.dtype = "auto"
    with monkeypatch.context() as earlier:
        earlier.setattr(run, "settle_dtype", lambda rundir, config: None)
        run.run(config.copy_and_resolve_references(), tmp_path / "run")
    run.run(config, tmp_path / "run")
    assert read_config(RunDir(tmp_path / "run")).llm.dtype == "auto"
