"""Recommendations of a finished run, from Python and as files."""

import gzip
import json
import shutil
import types

import jax
import numpy as np
import polars as pl
import pytest

import xrec_jax
from tests import runs, tiny
from tests.runs import finished  # noqa: F401 (a fixture)
from xrec_jax.api import Run, recommend, run
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files
from xrec_jax.inference.recommendations import best_system
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.run_config import read_config
from xrec_jax.training.recommender import RecommenderTask

FIELDS = {"user": str, "rank": int, "item": str, "score": float, "system": str}


@pytest.fixture(scope="module")
def session(finished):  # noqa: F811
    return xrec_jax.restore(finished)


def by_user(records):
    """User to records, in the order in which they come."""
    groups = {}
    for record in records:
        groups.setdefault(record["user"], []).append(record)
    return groups


def seen():
    """User id to the ids of all items the user has an event with."""
    data = tiny.data().dataset
    found = {str(user): set() for user in data.user_ids}
    for user, item in zip(data.interactions.user, data.interactions.item, strict=True):
        found[str(data.user_ids[user])].add(str(data.item_ids[item]))
    return found


@pytest.mark.parametrize("system", tiny.MODELS)
def test_the_best_unseen_items_in_order(session, system):
    groups = by_user(session.recommend(top_k=3, system=system))
    assert list(groups) == [str(user) for user in tiny.data().dataset.user_ids]
    known = seen()
    for user, records in groups.items():
        assert [{key: type(value) for key, value in r.items()} for r in records] == [FIELDS] * 3
        assert [record["rank"] for record in records] == [1, 2, 3]
        scores = [record["score"] for record in records]
        assert scores == sorted(scores, reverse=True)
        items = [record["item"] for record in records]
        assert len({*items}) == 3 and not {*items} & known[user]
        assert {record["system"] for record in records} == {system}


def test_popularity_recommends_what_most_people_have(session):
    """An independent answer: counts of the training events, seen items left out."""
    data, split = tiny.data().dataset, tiny.data().split
    counts = np.bincount(split.train.item, minlength=data.num_items)
    known = seen()
    for user, records in by_user(session.recommend(top_k=5, system="popularity")).items():
        unseen = [n for n, i in enumerate(data.item_ids) if str(i) not in known[user]]
        best = sorted(counts[unseen], reverse=True)[:5]
        item_row = {str(name): row for row, name in enumerate(data.item_ids)}
        assert [counts[item_row[record["item"]]] for record in records] == best


def test_more_than_there_is_gives_every_unseen_item(session):
    known = seen()
    users = ["u00004", "u00001"]
    groups = by_user(session.recommend(users, top_k=1000, system="bpr"))
    assert list(groups) == users
    every = {str(item) for item in tiny.data().dataset.item_ids}
    for user, records in groups.items():
        assert {record["item"] for record in records} == every - known[user]
        assert [record["rank"] for record in records] == list(range(1, len(records) + 1))


def test_users_come_as_asked(session):
    users = ["u00007", "u00001", "u00007"]
    records = session.recommend(users, top_k=2, system="sasrec")
    assert [record["user"] for record in records] == [u for u in users for _ in range(2)]
    assert records[:2] == records[4:]
    everybody = by_user(session.recommend(top_k=2, system="sasrec"))
    for user in users:
        for one, other in zip(by_user(records)[user], everybody[user], strict=False):
            assert one["item"] == other["item"]
            assert one["score"] == pytest.approx(other["score"], rel=1e-5)
    assert session.recommend([], top_k=2) == []


def test_the_default_is_the_best_on_validation(session, finished):  # noqa: F811
    table = json.loads((finished / "evaluation.json").read_text())["recommend"]
    best = max(tiny.MODELS, key=lambda name: table[name]["valid/ndcg@10"]["value"])
    assert session.recommend(["u00000"], top_k=1)[0]["system"] == best


def test_a_figure_without_a_value_is_never_the_best(finished, tmp_path):  # noqa: F811
    workdir = tmp_path / "run"
    workdir.mkdir()
    shutil.copy(finished / "config.json", workdir)
    figures = json.loads((finished / "evaluation.json").read_text())["recommend"]
    config = read_config(RunDir(workdir))
    best = best_system(config, RunDir(finished))
    for systems in ([best], list(config.recommend)):
        for name in systems:
            for metric in figures[name].values():
                metric["value"] = None
        (workdir / "evaluation.json").write_text(json.dumps({"recommend": figures}))
        if systems == [best]:
            assert best_system(config, RunDir(workdir)) not in ("", best)
    with pytest.raises(UserError, match=r"no recommender has a value of valid/.*--system"):
        best_system(config, RunDir(workdir))


def test_the_best_system_of_a_run_without_ndcg_at_10(tmp_path):
    config = tiny.config("popularity", "bpr", epochs=1, metric="valid/recall@5")
    config.recommend.popularity.train.metric = "valid/recall@5"
    config.ranking.ks = (5,)
    run.run(config, tmp_path)
    records = xrec_jax.restore(tmp_path).recommend(["u00000"], top_k=1)
    assert records[0]["system"] in ("popularity", "bpr")


def test_an_open_iteration_leaves_no_mesh_behind(session):
    """Code between two records runs under the caller's mesh, not under the run's."""
    records = session.iter_recommend(["u00000", "u00001"], top_k=2)
    next(records)
    assert jax.sharding.get_abstract_mesh().empty
    assert len(list(records)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(users=["u0000"]), r"'u0000'.*did you mean 'u000"),
        (dict(top_k=0), "top_k=0"),
        (dict(system="bprr"), r"'bprr'.*did you mean 'bpr'"),
    ],
)
def test_mistakes_are_named(session, arguments, message):
    with pytest.raises(UserError, match=message):
        session.recommend(**arguments)


def test_an_unfinished_run(finished, tmp_path):  # noqa: F811
    """A run in training can be opened: its newest checkpoint answers, and is left alone."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    (workdir / "evaluation.json").unlink()
    shutil.rmtree(workdir / "per_user")
    writing = workdir / "checkpoints" / "recommend" / "bpr" / "0" / "33.orbax-checkpoint-tmp"
    writing.mkdir()
    (writing / "part").write_text("half of it")
    session = xrec_jax.restore(workdir)
    with pytest.raises(UserError, match="no recommender is finished"):
        session.recommend()
    before = runs.contents(workdir)
    found = session.recommend(["u00003"], top_k=3, system="bpr")
    assert found == xrec_jax.restore(finished).recommend(["u00003"], top_k=3, system="bpr")
    assert runs.contents(workdir) == before


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        xrec_jax.restore(tmp_path)


def test_scores_are_those_of_the_restored_model(session, finished):  # noqa: F811
    """BPR's score is an inner product: recomputed with NumPy from the checkpoint."""
    data, mesh = tiny.data().dataset, tiny.mesh()
    with use_mesh(mesh):
        task = RecommenderTask(
            read_config(RunDir(finished)),
            "bpr",
            data=tiny.data(),
            mesh=mesh,
            rundir=RunDir(finished),
        )
        params = jax.device_get(task.restore(0)[0])
    rows = {str(name): row for row, name in enumerate(data.item_ids)}
    scores = params["user"]["embedding"][2] @ params["item"]["embedding"].T
    for record in session.recommend([str(data.user_ids[2])], top_k=4, system="bpr"):
        assert record["score"] == pytest.approx(float(scores[rows[record["item"]]]), rel=1e-5)


# Files


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):  # noqa: F811
    """Function from the `--users` argument to the records of a JSONL file."""
    folder = tmp_path_factory.mktemp("exported")

    def make(users: str, name: str = "o.jsonl") -> list[dict]:
        path = folder / name
        recommend.recommend(str(finished), users=users, top_k=3, output=str(path), system="bpr")
        if path.suffix == ".parquet":
            return pl.read_parquet(path).to_dicts()
        return files.read_json_lines(path)

    make.folder = folder
    return make


def test_jsonl_and_parquet_hold_the_same_records(exported, session):
    expected = session.recommend(top_k=3, system="bpr")
    assert exported("all") == expected
    assert exported("all", "o.parquet") == expected


IDS = ("ann", " ben", "cat ", "d, e", "\u00a0f\u2028g", "all", "users.txt")


@pytest.fixture
def with_odd_ids():
    """A stand-in for a run whose users have blanks, commas and other separators in their ids."""
    return types.SimpleNamespace(
        data=types.SimpleNamespace(dataset=types.SimpleNamespace(user_ids=np.array(IDS)))
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfann\r\n ben\r\n", ["ann", " ben"]),  # as an editor on Windows saves it
        (b"ann\rcat \r", ["ann", "cat "]),
        (b" ben\ncat \n ann \n\n \t\nann", [" ben", "cat ", "ann"]),
        ("d, e\n\u00a0f\u2028g\nall\n".encode(), ["d, e", "\u00a0f\u2028g", "all"]),
        (gzip.compress(b"ann\n"), ["ann"]),
    ],
    ids=["byte order mark", "carriage returns", "blanks", "separators", "gzip"],
)
def test_a_file_of_users(with_odd_ids, tmp_path, content, expected):
    path = tmp_path / ("u.gz" if content.startswith(b"\x1f\x8b") else "u, v+w.txt")
    path.write_bytes(content)
    assert recommend.wanted_users(with_odd_ids, str(path)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ann, ben", ["ann", " ben"]),
        ("all, ann ,", ["all", "ann"]),
        ("d, e", ["d, e"]),
        ("users.txt", ["users.txt"]),
        ("all", None),
    ],
)
def test_listed_users(with_odd_ids, text, expected):
    assert recommend.wanted_users(with_odd_ids, text) == expected


def test_a_wrong_id_is_told_from_a_missing_file(with_odd_ids, tmp_path):
    path = tmp_path / "u.txt"
    path.write_text("ann\nnobody\n")
    for text, named in (
        (str(path), r"u\.txt, line 2: no user 'nobody' in the data; valid: [^;]*$"),
        ("ann,nobody", "--users=ann,nobody: no user 'nobody' in the data; valid: [^;]*$"),
        ("usr.txt", "no user 'usr.txt'.*'users.txt'.; there is no such file either"),
        (str(tmp_path), "there is no such file either"),
        ("ann," * 2000 + "x", "no user 'x' in the data"),  # longer than any path
    ):
        with pytest.raises(UserError, match=named):
            recommend.wanted_users(with_odd_ids, text)
    path.write_bytes("ann\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"u\.txt.*UTF-8"):
        recommend.wanted_users(with_odd_ids, str(path))


def test_users_all_from_a_file_or_listed(exported, session, tmp_path):
    (tmp_path / "users.txt").write_text("u00005\n\n u00002 \n")
    expected = session.recommend(["u00005", "u00002"], top_k=3, system="bpr")
    assert exported(str(tmp_path / "users.txt")) == expected
    assert exported("u00005, u00002") == expected
    assert exported("u00005") == expected[:3]


def test_an_output_file_is_replaced_whole(finished, tmp_path, capsys):  # noqa: F811
    path = tmp_path / "deep" / "o.jsonl"
    for users in ("u00001,u00002", "u00003"):
        recommend.recommend(str(finished), users=users, top_k=2, output=str(path))
    assert [json.loads(line)["user"] for line in path.read_text().splitlines()] == ["u00003"] * 2
    assert [file.name for file in path.parent.iterdir()] == ["o.jsonl"]
    assert "2 recommendations for 1 users written to" in capsys.readouterr().out


def test_a_file_without_a_recommendation_has_its_columns(exported, monkeypatch):
    """Nothing is left to recommend to users who have seen everything."""
    exported("all", "full.parquet")
    monkeypatch.setattr(Run, "iter_recommend", lambda *_, **__: iter(()))
    assert exported("all", "empty.parquet") == [] and exported("all", "empty.jsonl") == []
    columns = pl.read_parquet_schema(exported.folder / "empty.parquet")
    assert columns == recommend.SCHEMA == pl.read_parquet_schema(exported.folder / "full.parquet")
