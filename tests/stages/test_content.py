"""Runs with a content tower: vectors from a file, cold items apart, the tower kept and resumed."""

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import polars as pl
import pytest

from tests import runs, tiny
from tests.stages import test_next_place as check_ins
from xrec_jax import cli, defaults
from xrec_jax.api import encode, run
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files
from xrec_jax.data.histories import Histories
from xrec_jax.data.run_data import prepare
from xrec_jax.evaluation.faithfulness.counterfactual import counterfactual
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.recommenders import base as base_module
from xrec_jax.recommenders.mf import BPRMF
from xrec_jax.run_config import read_config
from xrec_jax.training.recommender import RecommenderTask

# Losses, layers and recommenders that must go on after a kill as if there had been none.
SYSTEMS = {
    "tower": {},
    "gbce": dict(objective="gbce", negatives=5, block="pre_norm"),
    "shared": dict(
        objective="sampled_softmax",
        negatives_per="batch",
        negatives=7,
        sampler="in_batch",
        packing=30,
        block="gated",
        positions="rotary",
    ),
    "popular": dict(objective="bce", negatives_per="batch", negatives=7, sampler="popularity"),
    "next_place": {},
}
COLD = ("p03", "p08", "p17")  # nobody visits them before the cut
LATE = "p08"  # somebody does, in validation


def events():
    """Check-ins in which a place is visited in validation and testing, but not in training."""
    cold = [row for row in check_ins.events() if row[1] not in COLD or row[2] >= check_ins.CUT]
    # Right before the cut: the first visit of this place of anybody.
    return [*cold, ["u01", LATE, check_ins.CUT - 1], ["u02", LATE, check_ins.CUT + 10]]


def config(folder):
    made = check_ins.config(folder)
    made.name, made.stages = "content", ("recommend", "explain", "assess", "report")
    made.explain.update(dict(explainers=("template",), systems=("tower", "gbce"), users=0))
    made.assess.update(dict(resamples=20, draws=2, groups=()))
    with made.ignore_type():
        made.instruct.template = dict(name="generic", item_columns=("name", "category"))
    made.data.columns.title = "name"
    made.data["item_vectors"] = str(folder / "vectors.parquet")
    made.ranking.update(dict(ks=(1, 3, 10), resamples=20, rows="event", mask_seen=True))
    made.data.filters.duplicates = "first"
    del made.recommend["next_place"]
    content = dict(mode="add", components=4, hidden=3, id_dropout=0.3)
    sizes = dict(dim=8, layers=1, inner=16, length=12)
    train = dict(batch_size=8, epochs=2, learning_rate=1e-2, embedding_weight_decay=0.1)
    train["checkpoint_every"] = 1
    for name, options in SYSTEMS.items():
        model = "next_place" if name == "next_place" else "sasrec"
        made.recommend[name] = defaults.system(model, **sizes, **options, train=train)
    made.recommend.tower.content.update(content)
    return made


def write_vectors(folder, seed=0, **columns):
    rng = np.random.default_rng(seed)
    ids = [f"p{n:02}" for n in range(check_ins.PLACES) if n != 5]
    made = {"item": ids, "vector": rng.normal(size=(len(ids), 6)).tolist(), **columns}
    pl.DataFrame(made, strict=False).write_parquet(folder / "vectors.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    def make(folder):
        check_ins.write(folder, events())
        write_vectors(folder)
        with runs.one_device():
            run.run(config(folder), folder / "run")

    return runs.once(tmp_path_factory, "content", make)


def test_cold_items_apart(folder):
    """NDCG of the events of cold items alone, by hand from the values of every event."""
    figures = files.read_json(folder / "run" / "evaluation.json")["recommend"]
    for system in ("tower", "gbce", "frequency"):
        arrays = runs.per_user(folder / "run")[f"per_user/recommend/{system}/0.npz"]
        cold = arrays["test_cold"]
        # Every first visit of such a place after the cut, and of no other one. A visit in
        # validation does not make a place known to the model.
        seen, expected = set(), 0
        for user, place, time in sorted(events(), key=lambda row: (row[0], row[2])):
            new = (user, place) not in seen
            expected += place in COLD and new and time >= check_ins.CUT
            seen.add((user, place))
        assert cold.sum() == expected > 0, system
        found = figures[system]["test_cold/ndcg@10"]
        assert found["value"] == pytest.approx(arrays["test/ndcg@10"][cold].mean(), rel=1e-6)
        assert found["count"] == len(set(arrays["test_users"][cold].tolist()))
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "NDCG@10, cold items" in page


def test_killed_and_resumed_to_the_same_bits(folder, tmp_path):
    for name in ("events.csv", "places.csv", "vectors.parquet"):
        shutil.copy(folder / name, tmp_path)
    with runs.one_device():
        for _ in SYSTEMS:  # each is cut off once
            with runs.cut_at_save(2):
                run.run(config(tmp_path), tmp_path / "run")
        run.run(config(tmp_path), tmp_path / "run")
    for name in SYSTEMS:
        first, other = (runs.last_checkpoint(f / "run", name) for f in (folder, tmp_path))
        runs.assert_same_bits(first["state"], other["state"])


def test_other_vectors_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace(str(folder), str(tmp_path)))
    write_vectors(tmp_path, seed=1)
    with runs.one_device(), pytest.raises(UserError, match="other item vectors"):
        run.evaluate(tmp_path / "run")


def test_restored_scores_depend_on_the_vectors(folder):
    """The run's own tower, restored: another vector of an item is another score of that item."""
    made, rundir = config(folder), RunDir(folder / "run")
    data = prepare(made.data)
    values, present = data.item_vectors
    assert not present[5] and present.sum() == check_ins.PLACES - 1
    with runs.one_device(), use_mesh(tiny.mesh(1)):
        task = RecommenderTask(made, "tower", data=data, mesh=tiny.mesh(1), rundir=rundir)
        params, frozen = task.restore(0)
        table = task.model.tables(params, frozen).item
        changed = values.copy()
        changed[3] += 1.0
        frozen = {**frozen, **task.model.describe_content(changed, present).arrays}
        assert not np.allclose(task.model.tables(params, frozen).item[3], table[3])


def test_recommendations_of_a_tower_are_explained(folder):
    """What is explained is what the restored tower scores highest, and is assessed by it."""
    made, rundir = config(folder), RunDir(folder / "run")
    data = prepare(made.data)
    split, dataset = data.split, data.dataset
    history = Histories.of([split.train, split.valid, split.test], dataset.num_users)
    with runs.one_device(), use_mesh(tiny.mesh(1)):
        task = RecommenderTask(made, "tower", data=data, mesh=tiny.mesh(1), rundir=rundir)
        params, frozen = task.restore(0)
        tables = task.model.tables(params, frozen)
        best = {}
        for row, name in enumerate(dataset.user_ids):
            seen = history.items[history.start[row] : history.start[row + 1]]
            batch = {"history": seen[None, -12:], "length": np.array([min(len(seen), 12)])}
            state = task.model.user_state(params, tables, batch)
            scores = np.array(task.model.scores(state, tables.item))[0, : dataset.num_items]
            scores[seen] = -np.inf
            best[str(name)] = str(dataset.item_ids[scores.argmax()])
    pairs = files.read_json_lines(rundir.path / "explanations" / "pairs.jsonl")
    found = {pair["user"]: pair["item"] for pair in pairs if "tower" in pair["systems"]}
    assert found == best and len(set(best.values())) > 1
    # Weighed by the tower's own scores, too, and not by those of the other system.
    rows = {str(name): row for row, name in enumerate(dataset.user_ids)}
    items = {str(name): row for row, name in enumerate(dataset.item_ids)}
    texts = files.read_json_lines(rundir.path / "explanations" / "template.jsonl")
    shared = [[*both] for both in zip(pairs, texts, strict=True) if "tower" in both[0]["systems"]]
    users = [rows[pair["user"]] for pair, _ in shared]
    with runs.one_device():
        expected = counterfactual(
            task.model,
            params,
            frozen,
            users=users,
            items=[items[pair["item"]] for pair, _ in shared],
            histories=[history.items[history.start[u] : history.start[u + 1]] for u in users],
            cited=[
                [
                    items[e["item"]]
                    for e in pair["history"]
                    if re.search(rf"{e['title']}\b", text["text"])
                ]
                for pair, text in shared
            ],
            shown=[[items[e["item"]] for e in pair["history"]] for pair, _ in shared],
            mesh=tiny.mesh(1),
            draws=2,
        ).estimates(users=users, resamples=20)
    found = rundir.evaluation()["recommenders"]["template on tower"]
    assert expected["counterfactual/measured"]["value"] > 0
    for name, figure in expected.items():
        assert found[name]["value"] == pytest.approx(figure["value"], abs=1e-5), name


def test_runs_from_before_towers_go_on(folder, tmp_path):
    """A stored config without the keys of a tower is one without a tower."""
    shutil.copytree(folder / "run", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    stored = json.loads(path.read_text())
    for system in stored["recommend"].values():
        assert system.pop("content")
        system["hparams"].pop("positions", None)  # an option that came later, too
    path.write_text(json.dumps(stored))
    rundir = RunDir(tmp_path / "run")
    rundir.marks.write_settings(None)
    known = read_config(rundir).recommend["gbce"]
    assert known.content.mode == "" and known.hparams.positions == "learned"
    assert known.hparams.block == "pre_norm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windowed(BPRMF):
    """An extension with a hyper-parameter that has no default."""

    window: int


def test_a_stored_system_of_an_extension(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(base_module._REGISTRY, "windowed", Windowed)
    shutil.copytree(folder / "run", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    stored = json.loads(path.read_text())
    stored["recommend"]["gbce"] |= {"model": "windowed", "hparams": {"window": 3}}
    path.write_text(json.dumps(stored))
    rundir = RunDir(tmp_path / "run")
    rundir.marks.write_settings(None)
    assert dict(read_config(rundir).recommend["gbce"].hparams)["window"] == 3


GOOD = [[1.0, 2.0]] * (check_ins.PLACES - 1)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (dict(vector=["a"] * len(GOOD)), "column 'vector' holds String, not lists of numbers"),
        (
            dict(vector=[*GOOD[:-1], [1.0]]),
            "row 22: a vector of 1 numbers, but that of row 1 has 2",
        ),
        (dict(vector=[*GOOD[:2], None, *GOOD[3:]]), "row 3: a vector of 0 numbers"),
        (dict(vector=[[], *GOOD[1:]]), "row 1: no vector; leave out"),
        (dict(vector=[*GOOD[:4], [math.nan, 1.0], *GOOD[5:]]), "row 5: a vector with NaN"),
        (dict(vector=[*GOOD[:4], [None, 1.0], *GOOD[5:]]), "row 5: a vector with NaN"),
        (
            dict(item=["p01", "p01", *(f"x{n}" for n in range(20))]),
            "row 2, column 'item': 'p01' stands twice",
        ),
        (dict(item=[f"x{n}" for n in range(22)]), r"no item id is that of the data \(here 'x0'"),
    ],
)
def test_damaged_vectors(folder, tmp_path, columns, message):
    made = config(folder)
    write_vectors(tmp_path, **columns)
    made.data["item_vectors"] = str(tmp_path / "vectors.parquet")
    with pytest.raises(UserError, match=message):
        prepare(made.data)


def test_missing_columns_and_files(folder, tmp_path):
    made = config(folder)
    made.data["item_vectors"] = str(tmp_path / "vectors.parquet")
    with pytest.raises(UserError, match=r"vectors\.parquet"):
        prepare(made.data)
    pl.DataFrame({"item": ["p01"], "values": [[1.0]]}).write_parquet(tmp_path / "vectors.parquet")
    with pytest.raises(UserError, match=r"no column 'vector' \(it has item, values\)"):
        prepare(made.data)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return tiny.llama_directory(folder / "model", ["Place 7, a cafe", "a park, a gym"])


def test_encode(folder, base, tmp_path, capsys):
    """Vectors of the texts that a format string makes, by the encoder called one by one."""
    table = pl.read_csv(folder / "places.csv").with_columns(
        pl.when(pl.col("item") == "p02").then(None).otherwise(pl.col("name")).alias("name"),
        pl.when(pl.col("item") == "p02").then(None).otherwise(pl.col("category")).alias("category"),
    )
    table.write_csv(tmp_path / "places.csv")
    output = tmp_path / "v.parquet"
    arguments = f"encode --items={tmp_path}/places.csv --base={base} --output={output}"
    arguments = [*arguments.split(), "--dtype=float32", "--text={name}, a {category}"]
    assert cli.main(arguments) == 0
    assert "1 items have no text" in capsys.readouterr().out
    frame = pl.read_parquet(output)
    assert frame["item"].to_list() == [f"p{n:02}" for n in range(check_ins.PLACES) if n != 2]
    lm = encode.load_llm(base)
    encoder = encode.TextEncoder(lm.model, lm.params, batch=1)
    for row in (0, 7, 21):
        number = int(frame["item"][row][1:])
        text = f"Place {number}, a {['cafe', 'gym', 'park'][number % 3]}"
        expected, _ = encoder([lm.tokenizer.encode(text, bos=False)])
        np.testing.assert_allclose(
            frame["vector"][row].to_list(), expected[0], rtol=1e-4, atol=1e-5
        )
    cut = [*arguments, "--max_tokens=3", "--layer=embedding"]
    assert cli.main(cut) == 0 and "22 texts cut to 3 tokens" in capsys.readouterr().out
    encoder = encode.TextEncoder(lm.model, lm.params, layer="embedding")
    expected, _ = encoder([lm.tokenizer.encode("Place 0, a cafe", bos=False)[:3]])
    found = pl.read_parquet(output)["vector"][0].to_list()
    np.testing.assert_allclose(found, expected[0], rtol=1e-4, atol=1e-5)
    made = config(folder)
    made.data["item_vectors"] = str(output)
    # Arrays of one length, as other tools write them, are lists as well.
    width = tiny.LLAMA.hidden_size
    fixed = pl.read_parquet(output).with_columns(pl.col("vector").cast(pl.Array(pl.Float32, width)))
    fixed.write_parquet(output)
    assert prepare(made.data).item_vectors.values.shape == (
        check_ins.PLACES,
        tiny.LLAMA.hidden_size,
    )


def test_texts_of_items(tmp_path):
    columns = pl.DataFrame({"name": ["A", None, None], "kind": ["x", "y", None]})
    made = encode.item_texts(columns, "", tmp_path)
    assert made == ["name: A; kind: x", "kind: y", ""]
    assert encode.item_texts(columns, "{kind}: {name}", tmp_path) == ["x: A", "y", ""]
    dotted = pl.DataFrame({"geo.lat": [1.5], "0": [2]})
    assert encode.item_texts(dotted, "{geo.lat}/{0}", tmp_path) == ["1.5/2"]
    for text, message in {
        "{nam}": "no column 'nam'.*'name'",
        "{name": "is no format string",
        "plain": "must name columns",
        "{name:>9}": "must name columns",
    }.items():
        with pytest.raises(UserError, match=message):
            encode.item_texts(columns, text, tmp_path)
