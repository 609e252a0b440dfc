"""A run keeps which data it was started on; whatever opens it refuses other data by name."""

import gzip
import json
import pathlib
import shutil

import pytest

from tests import runs, tiny
from xrec_jax import cli
from xrec_jax.api import compare, restore, run
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.data import run_identity
from xrec_jax.data.run_data import prepare
from xrec_jax.data.run_identity import identify

EVENTS = """user_id,item_id,timestamp
ann,a,1
ann,b,2
ann,c,3
ben,b,1
ben,c,2
ben,d,3
cat,a,1
cat,d,2
cat,e,3
"""
ITEMS = "item_id,title,kind\na,Ash,tree\nb,Bay,tree\nc,Cod,fish\nd,Dab,fish\ne,Eel,fish\n"


def config(folder: pathlib.Path, *stages: str):
    made = tiny.config("popularity")
    made.stages = stages or ("recommend",)
    made.data.format, made.data.path = "csv", str(folder / "e.csv")
    made.data["items"] = str(folder / "i.csv")
    made.explain.explainers, made.explain.users = ("template",), 0
    with made.ignore_type():
        made.instruct.template = dict(name="generic", item_columns=("title", "kind"))
    made.assess.groups = ()
    return made


def _explained(folder: pathlib.Path) -> None:
    (folder / "e.csv").write_text(EVENTS)
    (folder / "i.csv").write_text(ITEMS)
    with runs.one_device():
        run.run(config(folder, "recommend", "explain"), folder / "w")


@pytest.fixture(scope="module")
def explained(tmp_path_factory) -> pathlib.Path:
    """Files and a finished run `w` on them that explains."""
    return runs.once(tmp_path_factory, "explained", _explained)


@pytest.fixture
def folder(explained, tmp_path) -> pathlib.Path:
    """A copy of `explained`, whose run reads the copied files."""
    shutil.copytree(explained, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "w" / "config.json"
    path.write_text(path.read_text().replace(str(explained), str(tmp_path)))
    return tmp_path


VERBS = {
    "run": None,
    "evaluate": "evaluate --workdir={0}/w",
    "recommend": "recommend --workdir={0}/w --output={0}/o.jsonl",
    "explain": "explain --workdir={0}/w --output={0}/o.jsonl",
    "compare": "compare --workdir={0}/w --workdir={0}/v --output={0}/o.json",
    "compare with": "compare --workdir={0}/v --workdir={0}/w --output={0}/o.json",
    "audit": "audit --workdir={0}/w --output={0}/o.json",
    "report": "report --workdir={0}/w",
    "rate make": "rate make --workdir={0}/w --output={0}/kit --pairs=1 --gold=0",
    "rate collect": "rate collect --workdir={0}/w --key={0}/KEY.json {0}/answers.json",
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_other_data_before_it_writes(verb, folder, capsys):
    if verb.startswith("compare"):
        shutil.copytree(folder / "w", folder / "v")
        (folder / "v" / "data.json").unlink()
    (folder / "e.csv").write_text(EVENTS.replace(",a,", ",zz,"))
    (folder / "i.csv").write_text(ITEMS.replace("a,Ash", "zz,Ash"))
    before = runs.contents(folder)
    if verb == "run":
        with pytest.raises(UserError) as failed:
            run.run(config(folder, "recommend", "explain"), folder / "w")
        error = str(failed.value)
    else:
        assert cli.main(VERBS[verb].format(folder).split()) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
    assert f"{folder}/w: the data changed since the run was started (e.csv, i.csv changed)" in error
    assert "other items (5 then, 5 now), " in error
    assert runs.contents(folder) == before


CHANGES = {
    "a further event": ("e.csv", EVENTS + "cat,b,4\n", r"e.csv changed.: other train events .3 th"),
    "a further user": ("e.csv", EVENTS + "dan,b,4\n", r"other users .3 then, 4 now."),
    "a renamed user": ("e.csv", EVENTS.replace("ben", "bob"), "other users .3 then, 3 now."),
    "another order": (
        "e.csv",
        EVENTS.replace("ann,b,2", "ann,b,9"),
        "other valid events .3 then, 3 now., test",
    ),
    "another time": ("e.csv", EVENTS.replace("ann,a,1", "ann,a,0"), "other train events"),
    "another title": ("i.csv", ITEMS.replace("Bay", "Oak"), "i.csv changed.: other descriptions o"),
}


@pytest.mark.parametrize("case", CHANGES.values(), ids=CHANGES)
def test_any_change_that_a_run_could_see_is_named(case, folder):
    name, text, named = case
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=named):
        restore(folder / "w")


def test_what_a_run_cannot_see_may_change_and_is_said(folder, capsys):
    rows = EVENTS.splitlines()
    text = "\r\n".join(f"{row},{number}" for number, row in enumerate([rows[0], *rows[:0:-1]]))
    (folder / "e.csv").write_bytes(gzip.compress(text.encode()))
    (folder / "i.csv").write_text(ITEMS + "x,Xiphias,fish\n")
    found = restore(folder / "w").recommend(["ann"], top_k=1)
    assert found[0]["item"] == "d"
    assert "e.csv, i.csv changed since" in capsys.readouterr().out


def test_data_may_move(folder, capsys):
    (folder / "elsewhere").mkdir()
    for name in ("e.csv", "i.csv"):
        (folder / name).rename(folder / "elsewhere" / name)
    kept = (folder / "w" / "data.json").read_bytes()
    made = config(folder / "elsewhere", "recommend", "explain")
    with runs.one_device():
        run.run(made, folder / "w")
    assert "changed" not in capsys.readouterr().out
    assert (folder / "w" / "data.json").read_bytes() == kept
    assert restore(folder / "w").data.dataset.num_users == 3


def test_verbs_that_need_no_data_work_without_it(folder, capsys):
    (folder / "e.csv").unlink()
    assert cli.main(VERBS["rate make"].format(folder).split()) == 0
    assert cli.main(VERBS["report"].format(folder).split()) == 0
    assert "not at hand" in capsys.readouterr().out


def test_a_run_without_a_record_opens_as_before(folder):
    (folder / "w" / "data.json").unlink()
    (folder / "e.csv").write_text(EVENTS + "dan,b,4\n")
    assert restore(folder / "w").data.dataset.num_users == 4
    run.run(config(folder, "recommend", "explain"), folder / "w")
    assert not (folder / "w" / "data.json").exists()  # nobody knows what it was started on


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}'])
def test_a_damaged_record_is_named(folder, text):
    (folder / "w" / "data.json").write_text(text)
    with pytest.raises(UserError, match=r"data\.json"):
        restore(folder / "w")


def test_a_run_that_never_started_keeps_nothing(folder):
    """The record is written first; a kill behind it leaves no run."""
    rundir = RunDir(folder / "new")
    run_identity.record(rundir, {"files": {}, "users": {}, "items": {}, "split": {}})
    with runs.one_device():
        run.run(config(folder), folder / "new")
    assert run_identity.recorded(rundir)["users"]["count"] == 3


def test_the_record_names_content_counts_and_one_digest(folder):
    made = config(folder)
    found = json.loads((folder / "w" / "data.json").read_text())
    assert found["files"].keys() == {"events", "items"}
    assert found["files"]["events"]["bytes"] == len(EVENTS)
    assert [found["split"][part]["events"] for part in ("train", "valid", "test")] == [3, 3, 3]
    assert found["notes"]["duplicates_dropped"] == 0
    data = prepare(made.data)
    made.data.split.kind = data.split.kind
    assert identify(made, data)["digest"] == found["digest"]
    (folder / "i.csv").write_text(ITEMS.replace("Eel", "eel"))
    assert identify(made, prepare(made.data))["digest"] != found["digest"]


def test_texts_that_are_judged_may_not_change_behind_the_figures(folder):
    made = config(folder)
    made.stages = ("recommend", "judge")
    for name in ("p+q.jsonl", "a.jsonl"):
        (folder / name).write_text('{"prompt_id": 1}\n')
    made.judge.explanations = (f"{folder}/p+q.jsonl+{folder}/a.jsonl",)
    before = identify(made, prepare(made.data))
    assert {*before["files"]} == {"events", "items", "judge.explanations 1", "judge.explanations 2"}
    (folder / "w" / "data.json").write_text(json.dumps(before))
    (folder / "a.jsonl").write_text('{"prompt_id": 2}\n')
    now = identify(made, prepare(made.data))
    run_identity.compare(RunDir(folder / "w"), now, texts=False)
    with pytest.raises(UserError, match=r"a.jsonl changed.: other texts of judge.explanations;"):
        run_identity.compare(RunDir(folder / "w"), now)


# Comparison of runs.


def differences(folder: pathlib.Path, *workdirs: pathlib.Path) -> dict[str, object]:
    found = compare.compare([folder / "w", *workdirs])["figures"]["recommend"]["popularity"]
    rows = {part: found[f"{part}/ndcg@10"]["differences"] for part in ("valid", "test")}
    return {part: next(iter(row.values())) for part, row in rows.items()}


def other_run(folder: pathlib.Path, events: str) -> pathlib.Path:
    (folder / "other").mkdir()
    (folder / "other" / "e.csv").write_text(events)
    made = config(folder / "other")
    made.data["items"] = ""
    with runs.one_device():
        run.run(made, folder / "other" / "w")
    return folder / "other" / "w"


def test_runs_on_other_users_or_items_are_not_paired(folder, capsys):
    other = other_run(folder, EVENTS.replace("ann", "kim").replace("ben", "lea"))
    assert differences(folder, other) == {"valid": None, "test": None}
    assert "tested other users or items; not paired" in capsys.readouterr().out
    for workdir in (folder / "w", other):  # runs of an earlier time: their files tell
        (workdir / "data.json").unlink()
    assert differences(folder, other) == {"valid": None, "test": None}


def test_runs_that_tested_the_same_are_paired_whatever_they_learned_from(folder):
    other = other_run(folder, EVENTS.replace("cat,a,1\n", "cat,b,0\ncat,a,1\n"))
    found = differences(folder, other)
    assert found["test"]["count"] == 3 and found["valid"]["count"] == 3


def test_only_the_part_that_agrees_is_paired(folder):
    other = other_run(folder, EVENTS.replace("cat,d,2", "cat,c,2"))
    found = differences(folder, other)
    assert found["test"]["count"] == 3 and found["valid"] is None


def test_a_record_that_says_nothing_pairs_nothing(folder):
    shutil.copytree(folder / "w", folder / "v")
    for name in "wv":
        (folder / name / "data.json").write_text(
            '{"files": {"events": 3}, "users": {}, "items": {"sha256": 1}, "split": {"test": []}}'
        )
    for name in ("e.csv", "i.csv"):
        (folder / name).unlink()
    assert differences(folder, folder / "v") == {"valid": None, "test": None}


def test_pairing_looks_at_ids_not_rows():
    one = {"users": {"sha256": "u"}, "items": {"sha256": "i"}, "split": {"test": {"pairs": "p"}}}
    assert run_identity.same_tested(one, one, "test")
    assert not run_identity.same_tested(one, one, "valid")  # nothing is known of it
    for key in ("users", "items"):
        assert not run_identity.same_tested(one, one | {key: {"sha256": "x"}}, "test")
