"""Every script and notebook of `examples/` runs, in tiny sizes."""

import importlib
import json
import re
import sys

import jax
import pytest
from ml_collections import ConfigDict

from tests import runs, tiny
from tests.runs import joint  # noqa: F401 (a fixture)
from xrec_jax.inference.explainers import base as explainers
from xrec_jax.inference.judges import base as judges
from xrec_jax.joint.rewards import base as rewards
from xrec_jax.llm.io.peft_io import Base, save_adapter
from xrec_jax.llm.model import lora
from xrec_jax.recommenders import base as recommenders

FOLDER = tiny.CHECKOUT / "examples"
TESTED = {  # by the test below that runs each
    "train_and_explain": "test_train_and_explain",
    "restore_run": "test_restore_run",
    "own_data": "test_own_data",
    "own_recommender": "test_own_recommender",
    "own_reward": "test_own_reward",
    "own_explainer": "test_own_explainer",
    "own_judge": "test_own_judge",
    "generate": "test_generate",
}


def test_every_example_is_tested_and_listed():
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert names == set(TESTED)
    assert set(TESTED.values()) <= set(globals())
    listed = set(re.findall(r"\]\(([\w.]+)\)", (FOLDER / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".ipynb")}


REGISTRIES = (explainers._REGISTRY, judges._REGISTRY, rewards._REGISTRY, recommenders._REGISTRY)


@pytest.fixture(autouse=True)
def as_scripts(monkeypatch, tmp_path):
    """Examples are imported by name, work in an empty folder, and leave nothing registered."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.chdir(tmp_path)
    kept = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, before in zip(REGISTRIES, kept, strict=True):
        registry.clear()
        registry.update(before)
    for name in TESTED:
        sys.modules.pop(name, None)


def example(name):
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run of the first example."""
    folder = tmp_path_factory.mktemp("examples") / "run"
    with pytest.MonkeyPatch.context() as patch, runs.one_device():
        patch.syspath_prepend(FOLDER)
        example("train_and_explain").main(folder, users=60, epochs=1)
    return folder


def test_train_and_explain(trained):
    texts = (trained / "explanations" / "template.jsonl").read_text().splitlines()
    assert len(texts) == 60
    assert (trained / "report.html").exists()


def test_restore_run(trained, capsys):
    example("restore_run").main(trained)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("bpr: NDCG@10 ")
    assert [line.split()[0] for line in printed[1:5]] == ["u00000"] * 2 + ["u00001"] * 2
    assert len(printed) == 9


def test_own_explainer(tmp_path, capsys):
    with runs.one_device():
        example("own_explainer").main(tmp_path / "run", users=60, epochs=1)
    printed = capsys.readouterr().out.splitlines()[-4:]
    assert printed[0].startswith("template: ") and " goes well with " in printed[2]
    assert "last visit" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8").lower()


def test_own_judge(tmp_path, capsys):
    with runs.one_device():
        example("own_judge").main(tmp_path / "run", users=60, epochs=1)
    printed = capsys.readouterr().out.splitlines()[-2:]
    assert printed == ["template: 1.000 [1.000, 1.000]", "last_visit: 0.000 [0.000, 0.000]"]


def test_own_data(tmp_path, capsys):
    with runs.one_device():
        example("own_data").main(tmp_path / "run", customers=40, epochs=2)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-3:]] == list("123")


def test_own_data_is_learned_from(tmp_path):
    """The shop has structure: with the example's own number of epochs the shelf is found."""
    with runs.one_device():
        example("own_data").main(tmp_path / "run", customers=60)
    figures = json.loads((tmp_path / "run" / "evaluation.json").read_text())["recommend"]["bpr"]
    assert figures["test/hit@10"]["value"] > 0.4  # of 52 left, 7 on the right shelf; .19 by chance


def test_own_recommender(tmp_path, capsys):
    with runs.one_device():
        example("own_recommender").main(tmp_path / "run", users=60, epochs=1)
    figures = json.loads((tmp_path / "run" / "evaluation.json").read_text())["recommend"]
    assert {"popularity", "last_item"} <= set(figures)
    assert len(capsys.readouterr().out.splitlines()[-3:]) == 3


def test_own_reward(joint, tmp_path, capsys):  # noqa: F811 (the fixture)
    """In its own config, and trained with in the smaller one whose programs other tests share."""
    module = example("own_reward")
    assert module.tiny().joint.rewards.brief.weight == 0.1
    config = tiny.joint(joint / "model")
    config.joint.update(dict(rounds=1, systems=()))
    config.joint.rewards.brief = ConfigDict(dict(weight=0.1, limit=4))
    with runs.one_device():
        module.main(tmp_path / "run", config)
    printed = capsys.readouterr().out.splitlines()[-1]
    assert "brief" in printed


def test_generate(tmp_path, capsys):
    texts = ["Why would this user like this place?", "It is near."]
    model = tiny.llama_directory(tmp_path / "model", texts, num_layers=1)
    shape = runs.llama_config(model)
    adapter = lora.init(lora.LoraConfig(rank=2, alpha=2.0), shape, jax.random.key(0))
    save_adapter(tmp_path / "adapter", adapter, base=Base(str(model)))
    example("generate").main(str(model), str(tmp_path / "adapter"), new_tokens=4)
    starts = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"next token", "greedy", "sampled", "base"} <= set(starts)


def test_notebook(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    book = json.loads((FOLDER / "tour.ipynb").read_text(encoding="utf-8"))
    names: dict = {}
    with runs.one_device():
        for cell in book["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code":
                assert cell["outputs"] or "print" not in source, "the notebook shows its results"
                source = source.replace("USERS = 300", "USERS = 60").replace(
                    "epochs=20", "epochs=1"
                )
                exec(compile(source, cell["id"], "exec"), names)
    assert "planted/f1" in capsys.readouterr().out
