"""Mistakes about language models end in one line that names them, before anything is written."""

import json
import pathlib
import shutil
import sys

import pytest

from tests import tiny
from tests.llm import models
from tests.stages.test_language import write_set
from tests.test_bad_input import refuses

CONFIG = """from tests import tiny


def get_config(arg=""):
    return tiny.language(*arg.split(","))
"""
LINES = {
    "json.jsonl": '{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n',
    "key.jsonl": '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completoin": "b"}\n',
    "empty.jsonl": "\n",
    "blank.jsonl": '{"prompt": "a", "completion": " "}\n',
    "list.jsonl": "[1, 2]\n",
    "role.jsonl": '{"messages": [{"role": "human", "content": "a"}]}\n',
    "last.jsonl": '{"messages": [{"role": "user", "content": "a"}]}\n',
    "one.jsonl": '{"prompt": "a", "completion": "b"}\n',
    "file": "no folder\n",
}
LLM, TUNE, BASE = "--config.llm.", "--config.instruct.", "--config.pretrain."


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with a model, a set and damaged ones; copied for every test."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "config.py").write_text(CONFIG)
    for name, text in LINES.items():
        (folder / name).write_text(text)
    _, texts = write_set(folder)
    long = {"prompt": "why " * 200, "completion": "it is near " * 40}
    (folder / "long.jsonl").write_text(
        "".join(json.dumps({**long, "prompt": long["prompt"] + str(n)}) + "\n" for n in range(8))
    )
    tiny.llama_directory(folder / "model", texts, num_layers=1)
    tiny.llama_directory(folder / "uneven", texts, num_layers=1, intermediate_size=25)
    (folder / "nothing").mkdir()
    for name in ("truncated", "other", "odd", "mute"):
        shutil.copytree(folder / "model", folder / name)
    weights = folder / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    models.rewrite(folder / "other" / "config.json", architectures=["GPT2LMHeadModel"])
    for file in (folder / "mute").glob("token*"):
        file.unlink()
    (folder / "odd" / "chat_template.jinja").unlink()
    models.write(folder / "foreign", models.CONFIG)
    for file in (folder / "model").glob("token*"):
        shutil.copy(file, folder / "foreign")
    return folder


@pytest.fixture
def folder(kept, tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    return shutil.copytree(kept, tmp_path / "folder")


def refuse(capsys, folder, stages, overrides, *named):
    arguments = [
        "run",
        f"--config={folder / 'config.py'}:{stages}",
        f"--workdir={folder}/w",
        *(text.format(folder=folder) for text in overrides),
    ]
    refuses(capsys, folder, arguments, *named)


NONE = "--config.data.format=none"
FILE = [NONE, TUNE + "source=file", TUNE + "examples=0"]
SET = [*FILE, TUNE + "path={folder}/set.jsonl"]
MODEL = [*SET, LLM + "path={folder}/model", TUNE + "length=96"]
FILES = [NONE, BASE + "source=files"]
CSV = ["--config.data.format=csv", "--config.data.path={folder}/events.csv"]

TUNING = {
    # Of the base
    "no base": ([], "'instruct'", "llm.path", "pretrain"),
    "missing base": ([*SET, LLM + "path={folder}/modle"], "modle", "no such directory"),
    "empty base": ([*SET, LLM + "path={folder}/nothing"], "nothing", "config.json"),
    "unknown architecture": ([*SET, LLM + "path={folder}/other"], "GPT2LMHeadModel"),
    "truncated base": ([*SET, LLM + "path={folder}/truncated"], "model.safetensors"),
    "base without tokenizer": ([*MODEL, LLM + "path={folder}/mute"], "mute", "tokenizer"),
    "base with another tokenizer": (
        [*MODEL, LLM + "path={folder}/foreign", TUNE + "length=64"],
        "belong together",
    ),
    "no template to use": (
        [*MODEL, LLM + "path={folder}/odd", LLM + "chat_template=yes"],
        "chat template",
    ),
    "base that is a file": ([*SET, LLM + "path={folder}/file"], "/file"),
    "mesh that splits no kernel": (
        [*MODEL, LLM + "path={folder}/uneven", "--config.mesh.tensor=2"],
        "25",
        "tensor",
        "mesh",
    ),
    # Of its use
    "dtype": ([*MODEL, LLM + "dtype=float23"], "'float23'", "did you mean 'float32'"),
    "quantisation": ([*MODEL, LLM + "quantization=int4"], "llm.quantization='int4'", "int8"),
    "attention": ([*MODEL, LLM + "attention=cudn"], "llm.attention='cudn'", "cudnn"),
    "remat": ([*MODEL, LLM + "remat=ful"], "llm.remat='ful'", "did you mean 'full'"),
    "chat template": ([*MODEL, LLM + "chat_template=y"], "llm.chat_template='y'"),
    "generation batch": ([*MODEL, LLM + "generation_batch=0"], "generation_batch=0"),
    "generation batch not divisible": (
        [*MODEL, LLM + "generation_batch=6"],
        "generation_batch=6",
        "8",
    ),
    # Of the instructions
    "source": ([*MODEL, TUNE + "source=fiel"], "instruct.source='fiel'", "world, file"),
    "no path": ([*FILE, LLM + "path={folder}/model"], "instruct.path"),
    "missing path": ([*MODEL, TUNE + "path={folder}/ste.jsonl"], "ste.jsonl", "no such file"),
    "no JSON": ([*MODEL, TUNE + "path={folder}/json.jsonl"], "json.jsonl, line 2"),
    "missing key": (
        [*MODEL, TUNE + "path={folder}/key.jsonl"],
        "line 2",
        "did you mean 'completoin'",
    ),
    "no record": ([*MODEL, TUNE + "path={folder}/empty.jsonl"], "empty.jsonl"),
    "blank answer": ([*MODEL, TUNE + "path={folder}/blank.jsonl"], "line 1", "completion"),
    "no object": ([*MODEL, TUNE + "path={folder}/list.jsonl"], "list.jsonl, line 1"),
    "unknown role": ([*MODEL, TUNE + "path={folder}/role.jsonl"], "line 1", "'human'"),
    "no answer": ([*MODEL, TUNE + "path={folder}/last.jsonl"], "line 1", "assistant"),
    "too many examples": ([*MODEL, TUNE + "examples=99"], "examples=99", "set.jsonl"),
    "negative examples": ([*MODEL, TUNE + "examples=-1"], "-1"),
    "nothing held out": ([*MODEL, TUNE + "held_out=0.0"], "held_out"),
    "one prompt only": ([*MODEL, TUNE + "path={folder}/one.jsonl"], "held"),
    "all held out": ([*MODEL, TUNE + "held_out=1.0"], "1.0"),
    "no such key to stratify by": ([*MODEL, TUNE + "stratify=kidn"], "'kidn'"),
    "world source without a world": (
        [NONE, LLM + "path={folder}/model"],
        "instruct.source",
        "world",
    ),
    # Of lengths
    "example that does not fit": ([*MODEL, TUNE + "length=8"], "8 of a row", "length"),
    "rows longer than the model takes": ([*MODEL, TUNE + "length=999"], "length=999", "256"),
    "prompt too long": (
        [*MODEL, TUNE + "length=256", TUNE + "samples.max_new_tokens=250"],
        "max_new_tokens",
    ),
    # Of the adapter, the samples, the training
    "rank": ([*MODEL, TUNE + "lora.rank=0"], "lora.rank=0"),
    "target": ([*MODEL, TUNE + "lora.targets=('q', 'dwon')"], "'dwon'", "did you mean 'down'"),
    "no target": ([*MODEL, TUNE + "lora.targets=()"], "lora.targets"),
    "dropout": ([*MODEL, TUNE + "lora.dropout=1.0"], "lora.dropout=1.0"),
    "alpha nan": ([*MODEL, TUNE + "lora.alpha=nan"], "lora.alpha"),
    "temperature": ([*MODEL, TUNE + "samples.temperature=-0.5"], "temperature=-0.5"),
    "top_p": ([*MODEL, TUNE + "samples.top_p=0.0"], "top_p=0.0"),
    "top_k": ([*MODEL, TUNE + "samples.top_k=-2"], "top_k=-2"),
    "no new token": ([*MODEL, TUNE + "samples.max_new_tokens=0"], "max_new_tokens=0"),
    "samples": ([*MODEL, TUNE + "samples.during=-1"], "samples.during=-1"),
    "metric": ([*MODEL, TUNE + "train.metric=valid/los"], "'valid/los'", "'valid/loss'"),
    "batch not divisible": ([*MODEL, TUNE + "train.batch_size=12"], "batch_size=12", "8 devices"),
    "parts that do not divide": (
        [*MODEL, TUNE + "train.accumulation=3"],
        "batch_size=8",
        "24",
        "3 parts",
    ),
    "no part": ([*MODEL, TUNE + "train.accumulation=0"], "accumulation=0"),
    "no epoch": ([*MODEL, TUNE + "train.epochs=0"], "epochs=0"),
    "optimiser": ([*MODEL, TUNE + "train.optimizer=adamv"], "'adamv'", "did you mean"),
    "schedule": ([*MODEL, TUNE + "train.schedule=cosin"], "'cosin'", "did you mean 'cosine'"),
    "learning rate": ([*MODEL, TUNE + "train.learning_rate=-1.0"], "learning_rate=-1.0"),
    "unknown key": ([*MODEL, TUNE + "lora.rnak=2"], "rnak", "rank"),
    "text for a number": ([*MODEL, TUNE + "lora.rank=two"], "rank", "two"),
}


@pytest.mark.parametrize("case", TUNING.values(), ids=TUNING.keys())
def test_tuning(case, folder, capsys):
    overrides, *named = case
    refuse(capsys, folder, "instruct", overrides, *named)


WORLD = {
    "template": ([TUNE + "template=place"], "'place'", "did you mean 'places'"),
    "examples 0": ([TUNE + "examples=0"], "examples=0"),
    "more examples than visits": ([TUNE + "examples=5000"], "instruct.examples", "visits"),
    "negative history": ([TUNE + "history=-1"], "history", "-1"),
    "share to hold out": ([TUNE + "held_out=-0.5"], "held_out", "-0.5"),
    "budget too small for any prompt": ([TUNE + "max_prompt_tokens=-5"], "-5"),
    "rows longer than the model takes": ([TUNE + "length=513"], "length=513", "512"),
    "generation batch not divisible": ([LLM + "generation_batch=6"], "generation_batch=6"),
}


@pytest.mark.parametrize("case", WORLD.values(), ids=WORLD.keys())
def test_tuning_in_a_world(case, folder, capsys):
    overrides, *named = case
    refuse(capsys, folder, "pretrain,instruct", overrides, *named)


PRETRAINING = {
    "with a base": ([LLM + "path={folder}/model"], "llm.path", "pretrain"),
    "source": ([BASE + "source=wrold"], "pretrain.source='wrold'", "world, files"),
    "world without a world": ([NONE], "pretrain.source", "world"),
    "no files": (FILES, "pretrain.files"),
    "missing file": ([*FILES, BASE + "files=('{folder}/ste.jsonl',)"], "ste.jsonl", "no such file"),
    "missing second file": (
        [*FILES, BASE + "files=('{folder}/set.jsonl+{folder}/ste.jsonl',)"],
        "ste.jsonl",
    ),
    "malformed file": ([*FILES, BASE + "files=('{folder}/json.jsonl',)"], "json.jsonl, line 2"),
    "no such field": (
        [*FILES, BASE + "files=('{folder}/set.jsonl',)", BASE + "fields=('text',)"],
        "text",
    ),
    "nothing kept": (
        [*FILES, BASE + "files=('{folder}/set.jsonl',)", BASE + "keep.field=kind"],
        "kind",
    ),
    "no copy": ([BASE + f"{key}=0" for key in ("copies", "described", "talk")], "pretrain"),
    "negative copies": ([BASE + "copies=-1"], "copies=-1"),
    "row of one token": ([BASE + "length=1"], "length=1"),
    "row beyond the model": ([BASE + "length=513"], "length=513", "512"),
    "nothing held out": ([BASE + "held_out=0.0"], "held_out=0.0"),
    "all held out": ([BASE + "held_out=1.0"], "held_out=1.0"),
    "vocabulary smaller than the bytes": ([LLM + "vocab_size=200"], "vocab_size=200", "263"),
    "odd heads": ([LLM + "head_dim=3"], "head_dim=3"),
    "heads that do not divide": ([LLM + "num_kv_heads=3"], "num_kv_heads=3"),
    "no layer": ([LLM + "num_layers=0"], "num_layers=0"),
    "sizes that the mesh does not split": (
        [LLM + "intermediate_size=25", "--config.mesh.tensor=2"],
        "25",
        "tensor",
    ),
    "batch not divisible": ([BASE + "train.batch_size=12"], "batch_size=12", "8 devices"),
    "metric": ([BASE + "train.metric=loss"], "'loss'"),
    "accumulation": ([BASE + "train.accumulation=-2"], "accumulation=-2"),
    "dtype": ([LLM + "dtype=fp16"], "'fp16'"),
    "theta": ([LLM + "rope_theta=0.0"], "rope_theta"),
}


@pytest.mark.parametrize("case", PRETRAINING.values(), ids=PRETRAINING.keys())
def test_pretraining(case, folder, capsys):
    overrides, *named = case
    refuse(capsys, folder, "pretrain", overrides, *named)


ORDERS = {
    "instruct,pretrain": ("pretrain",),
    "showcase,recommend": ("recommend",),
    "recommend,showcase,pretrain,instruct": ("instruct",),
    "recommend,instruct,showcase": ("no base",),
    "pretrain,showcase": ("recommend",),
    "recommend,instrcut": ("'instrcut'", "did you mean 'instruct'"),
}


@pytest.mark.parametrize(("stages", "named"), ORDERS.items(), ids=ORDERS.keys())
def test_order_of_stages(stages, named, folder, capsys):
    refuse(capsys, folder, stages, [], *named)


def test_recommending_without_data(folder, capsys):
    refuse(capsys, folder, "recommend", [NONE], "'recommend'", "data.format")


def test_explaining_items_without_a_table(folder, capsys):
    """Prompts for recommendations need titles; the first stages must not run in vain."""
    lines = [f"u{n % 4},i{(n * 7) % 23},{n}" for n in range(40)]
    (folder / "events.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
    overrides = [*CSV, *MODEL[1:], TUNE + "train.epochs=1"]
    refuse(capsys, folder, "recommend,instruct,showcase", overrides, "table of items")


def test_examples_longer_than_a_row(folder, capsys):
    overrides = [*MODEL, TUNE + "path={folder}/long.jsonl", TUNE + "length=256"]
    refuse(capsys, folder, "instruct", overrides, "instruct", "256 of a row")
