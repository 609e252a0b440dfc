"""The `assess` stage on template explanations of a tiny world."""

import shutil

import numpy as np
import pytest

from tests import tiny
from xrec_jax.api import run
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files
from xrec_jax.data.run_data import prepare
from xrec_jax.data.world import generate
from xrec_jax.data.world.config import WorldConfig
from xrec_jax.evaluation.faithfulness import planted
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.stages import Context, assess

STAGES = ("recommend", "explain", "assess")


def config():
    made = tiny.config("sasrec")
    made.stages = STAGES
    made.explain.update(dict(explainers=("template",), users=60))
    made.assess.update(dict(resamples=60, draws=2))
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xrec_jax.api.run.open_mesh", lambda config: use_mesh(tiny.mesh()))
        return run.run(config(), tmp_path_factory.mktemp("assess") / "run")


@pytest.fixture
def copy(finished, tmp_path):
    return RunDir(shutil.copytree(finished.path, tmp_path / "copy"))


def read(finished, name):
    return files.read_json_lines(finished.path / "explanations" / f"{name}.jsonl")


def test_figures_are_those_of_the_texts(finished):
    table = finished.evaluation()["assess"]["template"]
    pairs, records = read(finished, "pairs"), read(finished, "template")
    words = [len(record["text"].split()) for record in records]
    assert len(pairs) == 60
    assert table["text/words"]["value"] == pytest.approx(np.mean(words))
    assert table["text/words"]["low"] < np.mean(words) < table["text/words"]["high"]
    named = [pair["title"] in record["text"] for pair, record in zip(pairs, records, strict=True)]
    assert table["grounding/item_named"]["value"] == pytest.approx(np.mean(named))
    cited = [
        sum(entry["title"] in record["text"] for entry in pair["history"])
        for pair, record in zip(pairs, records, strict=True)
    ]
    assert table["grounding/history_cited"]["value"] == pytest.approx(np.mean(cited))
    assert table["grounding/hallucinated_titles"]["value"] == 0


def test_columns_of_lists_are_read_by_their_values():
    """Few genres have many combinations, and a text names genres."""
    rng = np.random.default_rng(0)
    genres = np.array([f"genre {n}" for n in range(9)])
    pairs = [
        {"attributes": {"genres": rng.permutation(genres)[:3].tolist(), "plot": [f"word {n}"]}}
        for n in range(100)
    ]
    assert len({str(pair["attributes"]["genres"]) for pair in pairs}) > 60
    assert assess._tells(pairs, "genres") and not assess._tells(pairs, "plot")
    assert not assess._tells([{"attributes": {"genres": ["war"]}}] * 3, "genres")


def test_planted_reasons_are_those_of_the_world(finished):
    """The truth comes from the world itself, not from what the stage before wrote."""
    world, data = generate(WorldConfig(**tiny.WORLD)), prepare(config().data)
    users = {str(name): row for row, name in enumerate(data.dataset.user_ids)}
    items = {str(name): row for row, name in enumerate(data.dataset.item_ids)}
    pairs, records = read(finished, "pairs"), read(finished, "template")
    visits = np.bincount(data.dataset.interactions.user)
    rows = [users[pair["user"]] for pair in pairs]
    reasons = world.reasons(
        np.array(rows), np.array([items[pair["item"]] for pair in pairs]), visits[rows]
    )
    scores = planted.score_texts([record["text"] for record in records], reasons)
    found = finished.evaluation()["assess"]["template"]
    for name in ("precision", "recall", "f1"):
        expected = getattr(scores, name).mean()
        assert 0 < expected < 1
        assert found[f"planted/{name}"]["value"] == pytest.approx(expected)


def test_citations_are_weighed_against_the_recommender(finished):
    found = finished.evaluation()["assess"]["template"]
    assert 0 < found["counterfactual/measured"]["value"] <= 1
    assert {"counterfactual/comprehensiveness", "counterfactual/sufficiency"} <= set(found)


def test_groups_are_compared_with_a_correction(finished):
    found = finished.evaluation()["bias"]["template"]
    assert {name.partition("/")[0].partition("=")[0] for name in found} == {"gender", "age_band"}
    for name, one in found.items():
        if name.endswith("_p"):
            assert 0 < one["value"] <= 1
            effect = found[name[:-2]]
            assert effect["low"] <= effect["value"] <= effect["high"]


def test_tuned_texts_stand_beside_themselves_shuffled_and_the_others():
    true = {"for": [{"attribute": "kind", "value": "cafe", "phrase": "likes cafes"}], "against": []}
    other = {"for": [{"attribute": "kind", "value": "bar", "phrase": "likes bars"}], "against": []}
    pairs = [{"planted": true}, {"planted": other}] * 4
    texts = {
        "base": ["It is a place in Harbour."] * 8,
        "tuned": ["You like cafes, and this is one of them.", "You enjoy bars."] * 4,
    }
    table = assess.planted_tables(pairs, texts, resamples=20)
    assert table["tuned"]["planted/f1"]["value"] == 1 and table["base"]["planted/f1"]["value"] == 0
    assert table["tuned shuffled"]["planted/f1"]["value"] < 1
    assert table["tuned vs base"]["planted/f1_difference"]["value"] == 1
    assert table["tuned vs base"]["planted/p"]["value"] == pytest.approx(2 / 2**8)
    assert assess.planted_tables([{"planted": None}], {"tuned": ["x"]}, resamples=0) == {}
    users = ["u", "u", "v", "v", "w", "w", "x", "x"]  # two pairs each are one observation
    table = assess.planted_tables(pairs, texts, users=users, resamples=20)
    assert table["tuned"]["planted/f1"]["count"] == 4
    assert table["tuned vs base"]["planted/p"] == {
        "value": 2 / 2**4,
        "low": None,
        "high": None,
        "count": 4,
    }


def test_overlap_with_the_held_out_references(tmp_path):
    rundir = RunDir(tmp_path)
    assert assess.held_out_tables(rundir, resamples=0) == {}
    folder = tmp_path / "explanations"
    folder.mkdir()
    records = [
        {
            "reference": f"the quiet cafe number {n} is near you",
            "base": "no idea",
            "tuned": f"the quiet cafe number {n} is near you",
        }
        for n in range(3)
    ]
    (folder / "held_out.jsonl").write_text(files.json_lines(records))
    table = assess.held_out_tables(rundir, resamples=0)
    assert table["tuned"]["held_out/bleu"]["value"] == pytest.approx(100)
    assert table["base"]["held_out/rouge_1"]["value"] == 0
    assert table["tuned"]["held_out/control_shuffled_bleu"]["value"] < 100


def test_what_is_done_is_not_done_again(copy, monkeypatch):
    monkeypatch.setattr(assess, "evaluate", lambda *a, **k: pytest.fail("measured again"))
    assess.run(Context(config(), None, None, copy), None)


def test_mistakes_are_named(copy):
    data, mesh = prepare(config().data), tiny.mesh()

    def checked(**changed):
        made = config()
        made.assess.update(changed)
        assess.check(Context(made, data, mesh, copy))

    with pytest.raises(UserError, match=r"assess.groups names 'gendre'.*gender"):
        checked(groups=("gendre",))
    with pytest.raises(UserError, match=r"assess.draws=0 must be positive"):
        checked(draws=0)
    with pytest.raises(UserError, match=r"assess.resamples=-1"):
        checked(resamples=-1)
    (copy.path / "explanations" / "template.jsonl").write_text("")
    with pytest.raises(UserError, match=r"template.jsonl: changed since stage 'explain' wrote it"):
        assess.read_explanations(config(), copy)
    copy.marks.remove("explain")  # as in a run of an earlier version
    with pytest.raises(UserError, match=r"has no explanation; .*run the stage 'explain' again"):
        assess.read_explanations(config(), copy)
    (copy.path / "explanations" / "pairs.jsonl").unlink()
    with pytest.raises(UserError, match=r"no pair; run stage 'explain' first"):
        assess.read_explanations(config(), copy)
    made = config()
    made.stages = ("recommend", "assess")
    with pytest.raises(UserError, match=r"needs stage 'explain' before it"):
        assess.check(Context(made, data, mesh, copy))
