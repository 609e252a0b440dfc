"""Explanations of what several recommenders recommend: `configs/ml100k_explained.py:tiny`."""

import importlib.util
import json

import numpy as np
import pytest

from tests import runs, tiny
from xrec_jax.api import run
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files
from xrec_jax.data.run_data import prepare
from xrec_jax.evaluation.faithfulness import planted
from xrec_jax.inference.recommendations import recommend_records
from xrec_jax.stages import Context, explain

SYSTEMS = ("bpr", "sasrec", "lightgcn")


def config(name="ml100k_explained"):
    path = tiny.CHECKOUT / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.get_config("tiny")
    made.explain.users = 12
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    def make(folder):
        with runs.one_device():
            run.run(config(), folder / "run")

    return RunDir(runs.once(tmp_path_factory, "recommenders", make) / "run")


@pytest.fixture(scope="module")
def pairs(finished):
    return files.read_json_lines(finished.path / "explanations" / "pairs.jsonl")


def test_pairs_are_each_recommenders_first_ones(finished, pairs):
    made, mesh = config(), tiny.mesh(1)
    data = prepare(made.data)
    rows = {str(name): row for row, name in enumerate(data.dataset.user_ids)}
    users = np.array([rows[user] for user in dict.fromkeys(pair["user"] for pair in pairs)])
    expected: dict = {}
    for system in SYSTEMS:
        for record in recommend_records(
            made, data, finished, mesh, users=users, top_k=1, system=system
        ):
            expected.setdefault((record["user"], record["item"]), {})[system] = record["rank"]
    assert {(pair["user"], pair["item"]): pair["systems"] for pair in pairs} == expected
    assert len(expected) == len(pairs)  # what two recommend stands once
    assert len(users) == 12 and {pair["system"] for pair in pairs} <= set(SYSTEMS)
    # All of a user together.
    order = [pair["user"] for pair in pairs]
    assert order == sorted(order, key=list(dict.fromkeys(order)).index)


def test_figures_are_of_each_recommenders_own(finished, pairs):
    found = finished.evaluation()
    texts = files.read_json_lines(finished.path / "explanations" / "template.jsonl")
    for system in SYSTEMS:
        own = [n for n, pair in enumerate(pairs) if system in pair["systems"]]
        figures = found["recommenders"][f"template on {system}"]
        words = [len(texts[n]["text"].split()) for n in own]
        assert figures["text/words"]["value"] == pytest.approx(np.mean(words))
        assert figures["text/usr"]["count"] == len(own)
        scores = planted.score_texts(
            [texts[n]["text"] for n in own], [pairs[n]["planted"] for n in own]
        )
        assert figures["planted/f1"]["value"] == pytest.approx(scores.f1.mean())
        # Each recommender is asked about its own; over all of them together nobody can be.
        assert figures["counterfactual/measured"]["count"] == len(own)
        for explainer in ("base", "tuned"):
            assert f"{explainer} on {system}" in found["recommenders"]
    assert "counterfactual/measured" not in found["assess"]["template"]
    assert found["assess"]["template"]["text/usr"]["count"] == len(pairs)


def test_the_report_has_a_row_for_each(finished):
    page = (finished.path / "report.html").read_text()
    start = page.index('id="recommenders"')
    section = page[start : page.index("</section>", start)]
    for system in SYSTEMS:
        # template, base, tuned and the chance level
        assert section.count(f'<th scope="row">{system}</th>') == 4
    value = finished.evaluation()["recommenders"]["template on bpr"]["text/words"]["value"]
    assert f'value="{value!r}"' in section


def test_a_finished_stage_is_not_done_again(finished):
    mark = json.loads((finished.path / "done" / "assess.json").read_text())
    assert "recommenders" in json.dumps(mark)


@pytest.mark.parametrize(
    ("systems", "system", "says"),
    [
        (("bpr", "sasrek"), "", "explain.systems='sasrek' is no system of the run; did you mean"),
        (("bpr", "bpr"), "", "explain.systems names 'bpr' twice"),
        (("bpr",), "sasrec", "give one of them"),
    ],
)
def test_wrong_recommenders_are_refused(systems, system, says, tmp_path):
    made = config()
    made.explain.update(dict(systems=systems, system=system))
    context = Context(made, prepare(made.data), tiny.mesh(1), RunDir(tmp_path))
    with pytest.raises(UserError) as caught:
        explain.check(context)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "name", ["llmxrec_smollm2", "llmxrec_smollm2_judge", "llmxrec_smollm2_attributes"]
)
def test_variants_of_the_real_base_need_neither_it_nor_files(name):
    made = config(name)
    assert made.llm.path == "" and made.stages[0] == "pretrain"
    for stage in ("instruct", "judge", "attributes"):
        assert made[stage].source == "world" and made[stage].path == ""
