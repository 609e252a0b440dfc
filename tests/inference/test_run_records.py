"""Files of a run that somebody edited or cut: one line that names the file, never other figures."""

import contextlib
import copy
import io
import json
import random
import shutil

import numpy as np
import pytest

from tests import tiny
from tests.report import test_page as test_report
from tests.runs import finished  # noqa: F401 (a fixture)
from xrec_jax.api import rate, run
from xrec_jax.api.report import report
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files
from xrec_jax.core.storage.arrays import read_npz, write_npz
from xrec_jax.evaluation.ratings.ratings import PREFERENCE
from xrec_jax.inference import run_records
from xrec_jax.rating import answers as rating_answers
from xrec_jax.rating.forms import SHARES
from xrec_jax.report.page import write_report
from xrec_jax.run_config import read_config, start_run

ODD = [None, 3, -1, 1e30, "x", "", [], {}, [1], {"a": 1}, True, "\u2028", 0.5, [[]], {"value": "x"}]
REPORTED = [
    "config.json",
    "evaluation.json",
    "audit.json",
    "ratings.json",
    "metrics.jsonl",
    "explanations/pairs.jsonl",
    "explanations/tuned.jsonl",
    "judge/verdicts.jsonl",
    "joint/0/rounds.jsonl",
    "joint/0/samples.jsonl",
]


def one_line(call, *parts):
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and all(str(part) in message for part in parts), message


def places(value, place=()):
    """Where there is something in a JSON value."""
    if not isinstance(value, (dict, list)):
        return
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*place, key)
        yield from places(child, (*place, key))


def changed(value, draw):
    """A JSON value with one part missing, or something odd in its place."""
    value = copy.deepcopy(value)
    *way, last = draw.choice([*places(value)])
    inside = value
    for key in way:
        inside = inside[key]
    if draw.random() < 0.25:
        del inside[last]
    else:
        inside[last] = draw.choice(ODD)
    return value


def damaged(text, lines, draw):
    """The text of a file with one change."""
    if not lines:
        return json.dumps(changed(json.loads(text), draw))
    records = [json.loads(line) for line in text.split("\n") if line]
    place = draw.randrange(len(records))
    records[place] = draw.choice(ODD) if draw.random() < 0.1 else changed(records[place], draw)
    return "".join(json.dumps(record) + "\n" for record in records)


def survives(path, read, count, seed=0):
    """Lets something read a file after each of many changes; how many of them were refused."""
    good, draw, refused = path.read_text(), random.Random(f"{path.name} {seed}"), 0
    try:
        for _ in range(count):
            path.write_text(damaged(good, path.suffix == ".jsonl", draw))
            try:
                read()
            except UserError as error:
                assert "\n" not in str(error)
                refused += 1
    finally:
        path.write_text(good)
    return refused


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A run directory, made by hand, with every file that a report reads."""
    folder = test_report.full_run(tmp_path_factory.mktemp("reported") / "run")
    rounds = [{"round": n, "valid/gain": 0.1 * n, "verdict": "on", "stopped": 0} for n in range(3)]
    test_report.write_lines(folder / "joint/0/rounds.jsonl", rounds)
    planted = {"for": [{"attribute": "kind", "value": "bar", "phrase": "bars"}], "against": []}
    said = [{"round": n, "user": "u1", "text": "bars", "planted": planted} for n in range(3)]
    test_report.write_lines(folder / "joint/0/samples.jsonl", said)
    return folder


@pytest.mark.parametrize("name", REPORTED)
def test_a_report_of_edited_files_ends_in_a_page_or_a_line(reported, name):
    assert survives(reported / name, lambda: report(reported), count=8) > 0


def test_one_bad_line_does_not_drop_the_texts_after_it(reported, tmp_path):
    folder = shutil.copytree(reported, tmp_path / "run")
    path = folder / "explanations" / "tuned.jsonl"
    first, rest = path.read_text().split("\n", 1)
    path.write_text(f"{first[:-9]}\n{rest}")
    one_line(lambda: write_report(RunDir(folder)), f"{path}, line 1")
    path.write_text(f"{first}\n{rest[:-9]}")  # cut at its end, too
    one_line(lambda: write_report(RunDir(folder)), f"{path}, line 3")


def answered(reported, folder):
    """Sheets made from a run, and one rater's answers to them."""
    rate.make(str(reported), output=folder, pairs=3, gold=0)
    key = json.loads((folder / "KEY.json").read_text())
    [(sheet, made)] = key["sheets"].items()
    answers = {
        step: {"seconds": 3, "values": dict.fromkeys(key["questions"], 5)}
        if "system" in meaning
        else {"seconds": 3, "values": {PREFERENCE: next(iter(SHARES))}}
        for step, meaning in made["steps"].items()
    }
    export = {"format": rating_answers.EXPORT_FORMAT, "sheet": sheet, "rater": "anna"}
    files.write_json(folder / "anna.json", {**export, "answers": answers})


@pytest.mark.parametrize("name", ["KEY.json", "anna.json"])
def test_edited_keys_and_answers_of_raters(reported, tmp_path, name):
    answered(reported, tmp_path / "sheets")
    key, export = tmp_path / "sheets" / "KEY.json", tmp_path / "sheets" / "anna.json"

    def collect():
        with contextlib.redirect_stdout(io.StringIO()):
            rate.collect([export], key=key, resamples=2, partial=True)

    collect()
    assert survives(tmp_path / "sheets" / name, collect, count=12) > 0


# A run with marks


@pytest.fixture
def marked(finished, tmp_path):  # noqa: F811
    return RunDir(shutil.copytree(finished, tmp_path / "run"))


def test_other_values_of_users_are_no_figures(marked):
    path = marked.per_user("recommend/bpr/0")
    arrays = read_npz(path)
    write_npz(path, {**arrays, "test/ndcg@10": 1.0 - arrays["test/ndcg@10"]})
    for call in (
        lambda: run_records.per_user(marked, "recommend/bpr/0"),
        lambda: run.run(tiny.config(), marked.path),
    ):
        one_line(call, path, "changed since stage 'recommend' wrote it", "delete")
    path.unlink()
    one_line(lambda: run_records.per_user(marked, "recommend/bpr/0"), path, "no such file")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda a: {**a, "test/ndcg@10": a["test/ndcg@10"][:-1]}, "74 values for 75 users"),
        (lambda a: {**a, "test/ndcg@10": a["test/ndcg@10"] * np.nan}, "no numbers"),
        (lambda a: {**a, "test/ndcg@10": np.array("x")}, "no row of numbers"),
        (lambda a: {k: v for k, v in a.items() if k != "test_users"}, "no users"),
        (lambda a: {"test_users": a["test_users"]}, "no metric"),
    ],
)
def test_values_of_users_that_do_not_fit(marked, change, what):
    """In a run of an earlier version, which no mark protects."""
    marked.marks.remove("recommend")
    path = marked.per_user("recommend/bpr/0")
    write_npz(path, change(read_npz(path)))
    one_line(lambda: run_records.per_user(marked, "recommend/bpr/0"), path, what)


def test_seeds_that_do_not_go_together(tmp_path):
    one = {"test_users": np.arange(3), "test/a": np.zeros(3)}
    for other in ({**one, "test_users": np.arange(3) + 1}, {**one, "test/b": np.zeros(3)}):
        one_line(
            lambda other=other: run_records.stacked([one, other], tmp_path), tmp_path, "file 2"
        )
    assert run_records.stacked([one, one], tmp_path)["test/a"].shape == (2, 3)


def test_other_figures_are_refused_until_they_are_made_again(marked):
    path = marked.evaluation_path
    good = path.read_text()
    found = json.loads(good)
    found["recommend"]["bpr"]["test/ndcg@10"]["value"] = 0.99
    path.write_text(json.dumps(found))
    for call in (marked.evaluation, lambda: run.run(tiny.config(), marked.path)):
        one_line(call, path, "'recommend'", "xrec evaluate")
    path.write_text(json.dumps(json.loads(good)))  # the same figures, written otherwise
    assert marked.evaluation() == json.loads(good)


def test_a_config_that_no_verb_could_open_starts_no_run(tmp_path):
    made = tiny.config("popularity")
    with made.ignore_type():
        made.instruct.template = dict(name="generic", item_columns=("title",))
    start_run(RunDir(tmp_path / "w"), made)
    assert read_config(RunDir(tmp_path / "w")).instruct.template.item_columns == ("title",)
    with made.ignore_type():
        made.ranking.resamples = "50"
    with pytest.raises(UserError, match=r"--config: ranking\.resamples='50' is not a whole number"):
        start_run(RunDir(tmp_path / "v"), made)
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("ranking.resamples", 51, "=51 was 50 when the run was started"),
        ("seeds", [1], "seeds=[1] was [0]"),
        ("ranking.ks", "ten", "ranking.ks='ten' is not a list"),
        ("ranking.ks", [5, "x"], "not a list, each entry a whole number"),
        ("llm", None, "llm=None is not a group of keys"),
        ("recommend.bpr.train.epochs", "2", "epochs='2' is not a whole number"),
        ("recommend.bpr.train.learning_rate", [], "learning_rate=[] is not a number"),
        ("recommend.bpr", 3, "recommend.bpr=3 is not a group of keys"),
        ("llm.tie_embeddings", 1, "llm.tie_embeddings=1 is not true or false"),
    ],
)
def test_an_edited_config_is_named_with_its_key(marked, key, value, what):
    config = json.loads(marked.config_path.read_text())
    *way, last = key.split(".")
    inside = config
    for part in way:
        inside = inside[part]
    inside[last] = value
    marked.config_path.write_text(json.dumps(config))
    one_line(lambda: read_config(marked), marked.config_path, what)


def test_paths_in_a_config_may_be_edited(marked):
    config = json.loads(marked.config_path.read_text())
    config["data"]["path"] = "/elsewhere"
    config["mesh"]["data"] = 3
    marked.config_path.write_text(json.dumps(config))
    assert read_config(marked).data.path == "/elsewhere"


def test_other_lines_of_the_metric_log_draw_no_curves(marked):
    path = marked.path / "metrics.jsonl"
    good = path.read_text()
    path.write_text(good.replace('"train/loss": 0', '"train/loss": 1', 1))
    one_line(lambda: write_report(marked), path, "stage 'recommend'")
    path.write_text(good + '{"stage": "recommend/bpr/0", "st')  # a kill in mid-write
    write_report(marked)


def test_a_directory_of_an_earlier_version_is_done_by_what_is_there(marked, capsys):
    shutil.rmtree(marked.path / "done")
    before = marked.evaluation_path.read_bytes()
    run.run(tiny.config(), marked.path)
    assert "done in" not in capsys.readouterr().out
    assert marked.evaluation_path.read_bytes() == before
    assert {path.name for path in (marked.path / "done").iterdir()} == {
        "config.json",
        "recommend.json",
    }
