"""Pre-training and tuning in whole runs: what they leave, skipping, resuming, other meshes."""

import contextlib
import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest

import xrec_jax
from tests import runs, tiny
from tests.data.test_packing import examples
from tests.llm import models
from tests.llm.io import hubs
from xrec_jax import cli
from xrec_jax.api import run
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter
from xrec_jax.core.rundir import RunDir
from xrec_jax.data.packing import PackedRows
from xrec_jax.data.run_data import prepare
from xrec_jax.inference.options import GenerationOptions
from xrec_jax.llm import run_base
from xrec_jax.llm.io.peft_io import base_of, load_adapter
from xrec_jax.llm.model.llama import Llama
from xrec_jax.llm.model.lora import LoraConfig
from xrec_jax.parallel import agreement
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.run_config import read_config, start_run
from xrec_jax.stages import Context, instruct, pretrain
from xrec_jax.tasks import instructions, pretraining
from xrec_jax.training import language as train_language
from xrec_jax.training.language import LanguageTask
from xrec_jax.training.loop import Interrupted

STAGES = ("pretrain", "instruct")
FIGURES = {"held_out/loss", "held_out/perplexity"}
GROUNDING = {
    f"grounding/{name}"
    for name in (
        "item_named",
        "history_cited",
        "absent_titles",
        "unknown_titles",
        "hallucinated_titles",
        "attributes",
        "attributes_of_item",
        "attributes_precision",
    )
}
TEXT_FIGURES = {"text/words", "text/within_75_words", "text/ended"}


def write_set(folder, count=24):
    """A set of instructions with short answers, and texts to train a tokenizer on."""
    records = [
        {"prompt": f"why place {n} for user {n % 5}?", "completion": f"it is near {n % 7}. " * 2}
        for n in range(count)
    ]
    path = folder / "set.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path, [f"{record['prompt']} {record['completion']}" for record in records]


def from_directory(folder, **train):
    """A config that only tunes a random model in a directory, on a file."""
    made = tiny.language("instruct")
    made.data.format = "none"
    made.llm.path = str(folder / "model")
    made.llm.chat_template = "no"
    made.instruct.update(dict(source="file", path=str(folder / "set.jsonl"), examples=0, length=96))
    made.instruct.update(dict(held_out=0.2, pack=False))
    made.instruct.samples.update(dict(during=0, final=0))
    settings = dict(batch_size=8, epochs=4, evaluate_every=2, checkpoint_every=2, log_every=1)
    made.instruct.train.update(settings | train)
    return made


def jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluation(workdir):
    return json.loads((workdir / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of all four stages on eight devices."""
    workdir = tmp_path_factory.mktemp("language") / "run"
    config = tiny.language()
    config.mesh.update(dict(fsdp=2, tensor=2))
    run.run(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A folder with a random model and a set to tune it on."""
    folder = tmp_path_factory.mktemp("set")
    _, texts = write_set(folder)
    tiny.llama_directory(folder / "model", texts, num_layers=1)
    return folder


# What a run leaves


def test_every_file_of_the_run_directory(finished):
    assert {path.name for path in finished.iterdir()} == {
        "config.json",
        "data.json",
        "metrics.jsonl",
        "evaluation.json",
        "checkpoints",
        "per_user",
        "tensorboard",
        "tokenizer",
        "base",
        "adapter",
        "instructions",
        "explanations",
        "plots",
        "done",
    }
    for stage in STAGES:
        found = {path.name for path in (finished / "checkpoints" / stage).iterdir()}
        assert str(runs.metrics(finished, stage)[-1]["step"]) in found
        assert list((finished / "tensorboard" / stage).iterdir())
    assert {path.name for path in (finished / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "xrec.json",
    }
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= {
        path.name for path in (finished / "base").iterdir()
    }
    assert {path.name for path in (finished / "explanations").iterdir()} == {
        "during_training.jsonl",
        "held_out.jsonl",
        "recommended.jsonl",
    }
    assert not [path for path in finished.rglob("*") if "tmp" in path.name]


def test_schema_of_the_evaluation(finished):
    found = evaluation(finished)
    assert found.keys() == {"recommend", "pretrain", "instruct"}
    assert found["pretrain"].keys() == {"base"} and found["pretrain"]["base"].keys() == FIGURES
    reference = found["instruct"].pop("reference")
    assert reference.keys() == TEXT_FIGURES | GROUNDING
    # A world's own explanations name nothing that their prompts do not show.
    assert reference["grounding/hallucinated_titles"]["value"] == 0.0
    assert found["instruct"].keys() == {"base", "tuned"}
    for row in found["instruct"].values():
        assert row.keys() == FIGURES | TEXT_FIGURES | GROUNDING
        assert row["held_out/loss"]["count"] == 3 and row["text/words"]["count"] == 2
        assert row["grounding/item_named"]["count"] == 2
    for row in (*found["pretrain"].values(), *found["instruct"].values()):
        for entry in row.values():
            assert entry.keys() == {"value", "low", "high", "count"}
        loss, perplexity = (row[name]["value"] for name in ("held_out/loss", "held_out/perplexity"))
        assert perplexity == pytest.approx(np.exp(loss))
    assert (
        found["instruct"]["tuned"]["held_out/loss"]["value"]
        < (found["instruct"]["base"]["held_out/loss"]["value"])
    )


def test_metrics_of_the_stages(finished):
    for stage in STAGES:
        lines = runs.metrics(finished, stage)
        assert lines[-1]["train/epoch"] == {"pretrain": 2, "instruct": 4}[stage]
        assert {"train/loss", "train/grad_norm", "train/tokens", "train/read_tokens"} <= {
            *lines[-1]
        }
        assert {"valid/loss", "valid/perplexity"} <= {*lines[-1]}
        assert lines[-1]["train/tokens"] < lines[-1]["train/read_tokens"]
        assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    assert runs.metrics(finished, "instruct")[-1].keys() >= {"samples/ended"}
    times = [r for r in jsonl(finished / "metrics.jsonl") if r["stage"] in STAGES]
    assert all(r["time/tokens_per_second"] > 0 and "time/mfu" not in r for r in times)


def test_the_best_adapter_is_the_one_that_is_kept(finished):
    """By the lowest held-out loss."""
    best = min(
        line["valid/loss"] for line in runs.metrics(finished, "instruct") if "valid/loss" in line
    )
    assert evaluation(finished)["instruct"]["tuned"]["held_out/loss"]["value"] == pytest.approx(
        best, abs=1e-6
    )


def test_samples_are_answers_to_held_out_prompts(finished):
    prompts = [record["prompt"] for record in jsonl(finished / "instructions" / "held_out.jsonl")]
    during = jsonl(finished / "explanations" / "during_training.jsonl")
    assert [(r["step"], r["prompt"]) for r in during] == [(4, prompts[0]), (8, prompts[0])]
    final = jsonl(finished / "explanations" / "held_out.jsonl")
    assert [record["prompt"] for record in final] == prompts[:2]
    for record in final:
        assert {"reference", "base", "tuned", "base_stop", "tuned_stop", "user", "item"} <= {
            *record
        }


def test_recommendations_are_explained(finished):
    records = jsonl(finished / "explanations" / "recommended.jsonl")
    assert [record["user"] for record in records] == ["u00000", "u00001", "u00002"]
    run_dir = xrec_jax.restore(finished)
    first = run_dir.recommend([record["user"] for record in records], top_k=1)
    for record, expected in zip(records, first, strict=True):
        assert record["item"] == expected["item"] and record["title"] in record["prompt"]
        assert {"base", "tuned", "reasons"} <= {*record}


def test_what_is_held_out_is_seen_nowhere(finished):
    """No held-out prompt among those tuned on, nor in any text the base was trained on."""
    train, held_out = (
        jsonl(finished / "instructions" / f"{name}.jsonl") for name in ("train", "held_out")
    )
    assert len(train) == 12 and len(held_out) == 3
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in held_out}
    config = read_config(RunDir(finished))
    texts = "\n".join(map(pretraining.plain, pretraining.world_texts(config, prepare(config.data))))
    for record in held_out:
        assert record["prompt"] not in texts and record["completion"] not in texts
        assert not [r for r in train if (r["user"], r["item"]) == (record["user"], record["item"])]


def test_no_event_of_validation_or_test_is_told_to_the_language_model(finished):
    """Neither in diaries, nor as a visit that is explained."""
    config = read_config(RunDir(finished))
    data = prepare(config.data)
    ids = data.dataset
    hidden = {
        (str(ids.user_ids[u]), str(ids.item_ids[i]))
        for part in (data.split.valid, data.split.test)
        for u, i in zip(part.user, part.item, strict=True)
    }
    for name in ("train", "held_out"):
        for record in jsonl(finished / "instructions" / f"{name}.jsonl"):
            assert (record["user"], record["item"]) not in hidden


def test_base_and_adapter_load_and_give_what_the_run_gave(finished):
    lm = xrec_jax.load_llm(finished / "base", finished / "adapter", batch=8)
    config, data = read_config(RunDir(finished)), prepare(read_config(RunDir(finished)).data)
    mesh = tiny.mesh(8, fsdp=2, tensor=2)
    with use_mesh(mesh):
        base = run_base.load_base(config, RunDir(finished), mesh)
        tuned = run_base.tuned_adapter(RunDir(finished), base)
        own = run_base.language_model(config, base, {"tuned": tuned})
        found = instructions.instructions(config, data, seed=0, tokenizer=base.tokenizer)
        rows = [
            e.ids for e in instructions.examples(base.tokenizer, found.held_out, template=False)
        ]
        expected = {name: np.asarray(own.logits(rows, adapter=name)) for name in (None, "tuned")}
    for name, other in ((None, None), ("default", "tuned")):
        logits = np.asarray(lm.logits(rows, adapter=name))
        for row, ours, theirs in zip(rows, logits, expected[other], strict=True):
            np.testing.assert_allclose(ours[: len(row)], theirs[: len(row)], rtol=0, atol=2e-5)
    assert np.abs(expected[None] - expected["tuned"]).max() > 1e-3
    mean = np.mean(
        [
            -jax.nn.log_softmax(expected["tuned"][n, k - 1])[e.ids[k]]
            for n, e in enumerate(
                instructions.examples(base.tokenizer, found.held_out, template=False)
            )
            for k in range(1, len(e.ids))
            if e.trained[k]
        ]
    )
    value = evaluation(finished)["instruct"]["tuned"]["held_out/loss"]["value"]
    assert value == pytest.approx(float(mean), abs=1e-5)
    said = jsonl(finished / "explanations" / "held_out.jsonl")
    for name, adapter in (("base", None), ("tuned", "default")):
        answers = lm.generate(
            [r["prompt"] for r in said], max_new_tokens=6, adapter=adapter, template=False
        )
        assert [a["text"] for a in answers] == [r[name] for r in said]


def test_the_adapter_knows_its_base(finished):
    found = base_of(finished / "adapter")
    assert found.path == str(finished / "base")
    assert found.fingerprint == run_base.open_model(finished / "base").fingerprint()
    config = json.loads((finished / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 4)
    assert config["base_model_name_or_path"] == str(finished / "base")


def test_checkpoints_of_the_adapter_hold_no_base(finished):
    shapes = runs_shapes(finished, "instruct")
    size = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    adapter = sum(n for name, n in size.items() if name.startswith("params/"))
    assert {name.split("/")[0] for name in size} == {
        "step",
        "params",
        "opt_state",
        "key",
        "best_params",
    }
    assert sum(size.values()) <= 4 * adapter + 8
    assert all(2 in shape for name, shape in shapes.items() if name.startswith("params/"))


def runs_shapes(workdir, stage):
    """Shapes of all arrays in the newest checkpoint."""
    from xrec_jax.training.checkpoint import Checkpoints, _shapes

    with Checkpoints(RunDir(workdir).checkpoints(stage), read_only=True) as checkpoints:
        metadata = checkpoints._checkpointer.checkpointables_metadata(checkpoints.latest)
        return _shapes(metadata.metadata["state"])


# Running again


def test_a_second_run_changes_nothing(finished, capsys):
    before = runs.contents(finished)
    trained = ("base", "adapter", "tokenizer", "instructions", "checkpoints", "metrics.jsonl")
    stamps = {
        path: path.stat().st_mtime_ns
        for name in trained
        for path in [finished / name, *(finished / name).rglob("*")]
    }
    config = tiny.language()
    config.mesh.update(dict(fsdp=2, tensor=2))
    run.run(config, finished)
    assert runs.contents(finished) == before
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    printed = capsys.readouterr().out
    assert "pretrain:" not in printed and "instruct:" not in printed


def test_evaluate_gives_the_same_figures(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    expected = evaluation(finished)["instruct"]
    (tmp_path / "run" / "evaluation.json").write_text("{}")
    (tmp_path / "run" / "explanations" / "held_out.jsonl").unlink()
    config = read_config(RunDir(tmp_path / "run"))
    mesh = tiny.mesh(1)  # and on one device
    with use_mesh(mesh):
        instruct.evaluate(Context(config, prepare(config.data), mesh, RunDir(tmp_path / "run")))
    found = evaluation(tmp_path / "run")["instruct"]
    for system, row in expected.items():
        for name, entry in row.items():
            assert found[system][name]["value"] == pytest.approx(entry["value"], rel=1e-5), name
    assert jsonl(tmp_path / "run" / "explanations" / "held_out.jsonl") == jsonl(
        finished / "explanations" / "held_out.jsonl"
    )


def test_paths_hold_from_another_folder(directory, tmp_path, monkeypatch):
    """`xrec evaluate` may be called elsewhere than `xrec run` was."""
    monkeypatch.chdir(directory)
    config = from_directory(directory)
    config.llm.path, config.instruct.path = "model", "set.jsonl"
    config.pretrain.files = ("set.jsonl+set.jsonl", "set.jsonl")
    start_run(RunDir(tmp_path / "run"), config)
    saved = read_config(RunDir(tmp_path / "run"))
    path = str(directory / "set.jsonl")
    assert (saved.llm.path, saved.instruct.path) == (str(directory / "model"), path)
    assert saved.pretrain.files == (f"{path}+{path}", path)


# Cut off and resumed


class Stopping(MetricWriter):
    """A metric log that sends SIGTERM to its own process at a step."""

    def __init__(self, workdir, step):
        super().__init__(workdir)
        self.step = step

    def write(self, stage, step, metrics):
        super().write(stage, step, metrics)
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def go_on(stage, config, workdir, *, mesh, stop=None):
    """Runs a stage, perhaps until SIGTERM at a step; returns whether it was cut off."""
    data, rundir = prepare(config.data), RunDir(workdir)
    start_run(rundir, config)
    writer = Stopping(workdir, stop)
    try:
        with use_mesh(mesh):
            stage.run(Context(config, data, mesh, rundir), writer)
    except Interrupted:
        return True
    finally:
        writer.close()
    return False


def test_pretraining_that_was_cut_off_ends_the_same(tmp_path):
    config = tiny.language("pretrain")
    config.llm.num_layers = 1
    config.pretrain.train.update(dict(log_every=1, accumulation=2, epochs=3))
    assert not go_on(pretrain, config, tmp_path / "whole", mesh=tiny.mesh(1))
    for stop in (1, 4):
        assert go_on(pretrain, config, tmp_path / "cut", mesh=tiny.mesh(1), stop=stop)
        assert not (tmp_path / "cut" / "base").exists()
    assert not go_on(pretrain, config, tmp_path / "cut", mesh=tiny.mesh(1))
    assert runs.metrics(tmp_path / "cut") == runs.metrics(tmp_path / "whole")
    whole, cut = (runs.contents(tmp_path / name) for name in ("whole", "cut"))
    same = ("base/", "tokenizer/", "evaluation.json")
    assert {k: v for k, v in whole.items() if k.startswith(same)} == {
        k: v for k, v in cut.items() if k.startswith(same)
    }


@pytest.fixture(scope="module")
def tuned(directory):
    """A run that only tunes, on one device, left alone; twelve steps with dropout."""
    workdir = directory / "whole"
    assert not go_on(instruct, from_directory(directory), workdir, mesh=tiny.mesh(1))
    lines = runs.metrics(workdir, "instruct")
    assert len(lines) == lines[-1]["step"] > 8
    return workdir


def test_a_gguf_file_is_a_base_as_its_directory_is(tuned, directory, tmp_path):
    """The same weights and tokenizer: the same losses and adapter, but an identity of its own."""
    file = tmp_path / "base.gguf"
    export = ["export-gguf", f"--base={directory / 'model'}", f"--output={file}", "--outtype=f32"]
    assert cli.main(export) == 0
    config = from_directory(directory)
    config.llm.path = str(file)
    assert not go_on(instruct, config, tmp_path / "run", mesh=tiny.mesh(1))
    assert runs.metrics(tmp_path / "run") == runs.metrics(tuned)
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tuned / name).read_bytes()
    base = base_of(tmp_path / "run" / "adapter")
    assert base.path == str(file) and base.fingerprint == run_base.open_model(file).fingerprint()
    # Other weights under the same name are noticed.
    export[2] = f"--output={tmp_path / 'half.gguf'}"
    assert cli.main([*export[:3], "--outtype=f16"]) == 0
    shutil.move(tmp_path / "half.gguf", file)
    loaded = run_base.load_base(config, RunDir(tmp_path / "run"), tiny.mesh(1))
    with pytest.raises(UserError, match="this adapter was tuned on other weights"):
        run_base.tuned_adapter(RunDir(tmp_path / "run"), loaded)


def test_tuning_that_was_cut_off_ends_the_same(tuned, directory, tmp_path):
    config = from_directory(directory)
    for stop in (1, 4, 7):
        assert go_on(instruct, config, tmp_path / "cut", mesh=tiny.mesh(1), stop=stop)
    assert not go_on(instruct, config, tmp_path / "cut", mesh=tiny.mesh(1))
    assert runs.metrics(tmp_path / "cut") == runs.metrics(tuned)
    for name in ("adapter/adapter_model.safetensors", "evaluation.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tuned / name).read_bytes(), name


def test_tuning_goes_on_on_another_mesh(tuned, directory, tmp_path):
    """Eight devices, then one: the same losses and adapter up to rounding."""
    config = from_directory(directory)
    many = tiny.mesh(8, fsdp=2, tensor=2)
    assert go_on(instruct, config, tmp_path / "moved", mesh=many, stop=5)
    assert not go_on(instruct, config, tmp_path / "moved", mesh=tiny.mesh(1))
    for one, other in zip(runs.metrics(tmp_path / "moved"), runs.metrics(tuned), strict=True):
        assert one.keys() == other.keys()
        for key in {"train/loss", "valid/loss"} & {*one}:
            assert one[key] == pytest.approx(other[key], rel=1e-5), (one["step"], key)
    shape = run_base.open_model(directory / "model").config
    moved, still = (load_adapter(w / "adapter", shape).params for w in (tmp_path / "moved", tuned))
    for (path, one), (_, other) in zip(runs.flat(moved), runs.flat(still), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4, err_msg=path)


def test_killed_while_tuning(directory):
    """SIGKILL of a real process after its first checkpoints; the rerun ends to the last bit."""
    config_file = directory / "config.py"
    config_file.write_text(
        "import pathlib\n\nfrom tests.stages.test_language import from_directory\n\n\n"
        "def get_config():\n    return from_directory(pathlib.Path(__file__).parent, epochs=40)\n"
    )

    def start(name):
        return runs.start("run", f"--config={config_file}", f"--workdir={directory / name}")

    process = start("killed")
    log = directory / "killed" / "metrics.jsonl"
    try:
        while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 20):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
    out, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"{out}\n{err}"
    assert not (directory / "killed" / "adapter").exists()
    both = [start("killed"), start("still")]
    for process in both:
        runs.finish(process)
    killed, still = directory / "killed", directory / "still"
    assert runs.metrics(killed) == runs.metrics(still)
    for name in ("adapter/adapter_model.safetensors", "evaluation.json"):
        assert (killed / name).read_bytes() == (still / name).read_bytes(), name
    assert not [path for path in killed.rglob("*") if "tmp" in path.name]


# Other bases and settings


def test_base_by_name(tuned, directory, tmp_path, monkeypatch):
    """Config and adapter keep the name, so the run goes on wherever the same weights are."""
    files = hubs.files_of(directory / "model")
    models.write(tmp_path / "other", run_base.open_model(directory / "model").config)
    other = files | {"model.safetensors": (tmp_path / "other/model.safetensors").read_bytes()}
    for place, content in (("cache", files), ("elsewhere", files), ("changed", other)):
        hubs.lay_out(tmp_path / place, "org/name", content, refs=("v1",))
    config = from_directory(directory)
    config.llm.path = "org/name@v1"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert not go_on(instruct, config, tmp_path / "run", mesh=tiny.mesh(1))
    adapter = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / adapter).read_bytes() == (tuned / adapter).read_bytes()
    rundir = RunDir(tmp_path / "run")
    stored = read_config(rundir)
    assert stored.llm.path == base_of(rundir.path / "adapter").path == "org/name@v1"
    options = GenerationOptions(base="org/name@v1")
    assert options.applied(stored, prepare(stored.data)).llm.path == "org/name@v1"
    for place in ("elsewhere", "changed"):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / place))
        base = run_base.load_base(stored, rundir, tiny.mesh(1))
        if place == "elsewhere":
            run_base.tuned_adapter(rundir, base)
            continue
        with pytest.raises(UserError, match="tuned on other weights"):
            run_base.tuned_adapter(rundir, base)


def test_hosts_with_different_commits(directory, tmp_path, monkeypatch):
    """A branch that moved between two downloads."""
    hubs.lay_out(tmp_path, "org/name", hubs.files_of(directory / "model"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = from_directory(directory)
    config.llm.path, rundir = "org/name", RunDir(tmp_path / "run")
    run_base.check(config, tiny.mesh(1), rundir)
    monkeypatch.setattr(agreement, "texts_of_all", lambda text: ["", text, hubs.OTHER])
    with pytest.raises(UserError, match=f"different commits.*: org/name@{hubs.COMMIT}"):
        run_base.check(config, tiny.mesh(1), rundir)


def test_an_int8_base_is_tuned(tuned, directory, tmp_path):
    config = from_directory(directory, epochs=2)
    config.llm.quantization = "int8"
    assert not go_on(instruct, config, tmp_path / "int8", mesh=tiny.mesh(1))
    table, exact = evaluation(tmp_path / "int8")["instruct"], evaluation(tuned)["instruct"]
    assert table["tuned"]["held_out/loss"]["value"] < table["base"]["held_out/loss"]["value"]
    difference = table["base"]["held_out/loss"]["value"] - exact["base"]["held_out/loss"]["value"]
    assert 0 < abs(difference) < 0.05
    lm = xrec_jax.load_llm(directory / "model", tmp_path / "int8" / "adapter", quantization="int8")
    assert np.isfinite(np.asarray(lm.logits([[5, 6, 7]]))).all()


@pytest.mark.parametrize("scores", [[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]], ids=["middle", "first"])
def test_the_lowest_loss_is_the_best(directory, tmp_path, monkeypatch, scores):
    """`valid/loss` decides, and lower is better; patience counts from there."""
    seen = []

    def score(self, trained, base, lora):
        seen.append(jax.device_get(trained))
        return scores[len(seen) - 1]

    monkeypatch.setattr(train_language.HeldOutLoss, "__call__", score)
    params = task_of(directory, tmp_path, epochs=3, evaluate_every=1, patience=1)
    best = int(np.argmin(scores))
    assert len(seen) == best + 2
    runs.assert_same_bits(jax.device_get(params), seen[best])


def task_of(directory, workdir, *, lora=LoraConfig(rank=2), **train):  # noqa: B008
    """Trains a random model on random rows; returns the best parameters."""
    shape = run_base.open_model(directory / "model").config
    settings = from_directory(directory, **train).instruct.train
    rows = PackedRows(examples([9] * 16), length=16, together=False)
    mesh, workdir = tiny.mesh(1), workdir / "task"
    workdir.mkdir()
    writer = MetricWriter(workdir)
    with use_mesh(mesh), contextlib.closing(writer):
        task = LanguageTask(
            "instruct" if lora else "pretrain",
            model=Llama(shape),
            lora=lora,
            base=tiny.llama_params(shape) if lora else None,
            train=settings,
            rows=rows,
            held_out=rows,
            mesh=mesh,
            rundir=RunDir(workdir),
        )
        return task.fit(0, writer)


@pytest.mark.parametrize(("lora", "flops"), [(LoraConfig(rank=2), 4), (None, 6)], ids=["4N", "6N"])
def test_utilisation_counts_flops_of_all_tokens_that_are_read(
    directory, tmp_path, monkeypatch, lora, flops
):
    monkeypatch.setattr(train_language, "peak_flops", lambda: 1e9)
    task_of(directory, tmp_path, lora=lora, epochs=1, log_every=2)
    (line,) = jsonl(tmp_path / "task" / "metrics.jsonl")
    shape = run_base.open_model(directory / "model").config
    layer = 16 * (2 * 16 + 2 * 8) + 3 * 16 * 24
    assert shape.matmul_parameters == layer + 320 * 16
    rate = line["time/tokens_per_second"]
    assert line["time/mfu"] == pytest.approx(rate * flops * shape.matmul_parameters / 1e9)
    assert line["train/read_tokens"] == 8 * 9
    assert rate == pytest.approx(line["time/examples_per_second"] * 9)
