"""Mistakes about explanations, their judges and raters end in one line, before anything is written.

Nothing is trained here: the run has a recommender that needs no training, and texts by hand.
"""

import json
import pathlib
import shutil
import sys

import polars as pl
import pytest

from tests import tiny
from tests.rating.test_rate import explained
from tests.test_bad_input import refuses
from tests.test_bad_language import CONFIG
from xrec_jax import cli
from xrec_jax.core.rundir import RunDir
from xrec_jax.run_config import start_run
from xrec_jax.text.records.explanations import join

GOOD = '{"user": "u00001", "item": "p00001"}\n'
JUDGE = """number = 3
def few(prompts, first, second):
    return [0.5]
def words(prompts, first, second):
    return ["good"] * len(prompts)
def breaks(prompts, first, second):
    raise ValueError("no such\\nmodel")
def percent(prompts, first, second):
    return [70.0] * len(prompts)
"""
FILES = {
    "file": "no folder\n",
    "none.jsonl": "",
    "torn.jsonl": GOOD + GOOD[:-9],
    "list.jsonl": "[1, 2]\n",
    "latin.jsonl": '{"user": "Jos\xe9"}\n'.encode("latin-1"),
    "key.jsonl": '{"uesr": "u00001", "item": "p00001"}\n',
    "id.jsonl": '{"user": "u00001", "item": "p9"}\n',
    "rank.jsonl": '{"user": "u00001", "item": "p00001", "rank": "first"}\n',
    "far.jsonl": '{"user": "u00001", "item": "p00001", "rank": 1000000000000}\n',
    "score.jsonl": '{"user": "u00001", "item": "p00001", "score": [0.5]}\n',
    "system.jsonl": '{"user": "u00001", "item": "p00001", "system": 3}\n',
    "text.parquet": GOOD,
    "zip.jsonl.gz": GOOD,
    "prompts.jsonl": '{"prompt_id": [1], "prompt": "why?"}\n',
    "answers.jsonl": '{"prompt_id": 1, "model": "a", "completion": "so"}\n',
    "turns.jsonl": '{"messages": []}\n',
    "better.jsonl": '{"prompt": "p", "first": "a", "second": "b", "better": 1.0}\n',
    "header.csv": "item,model,reasonability\n",
    "bad_judge.py": JUDGE,
    "bad_syntax.py": "def judge(:\n",
    "key.json": '{"format": "xrec-ratings-key", "version": 1}\n',
    "config.py": CONFIG,
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run, two others with texts by hand, a kit with an answered sheet; copied for every test."""
    folder = tmp_path_factory.mktemp("kept")
    for name, text in FILES.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    pl.DataFrame({"usr": ["u00001"], "item": ["p00001"]}).write_parquet(folder / "key.parquet")
    (folder / "d.jsonl").mkdir()
    config = tiny.language("recommend")
    for name in ("run", "one", "two"):
        start_run(RunDir(folder / name), config)
        done = {"popularity": {"valid/ndcg@10": {"value": 0.1, "low": 0.1, "high": 0.1}}}
        RunDir(folder / name).write_evaluation("recommend", done)
    explained(folder / "one")
    explained(folder / "two")
    make = ["rate", "make", f"--workdir={folder / 'one'}", "--pairs=3", "--gold=1"]
    assert cli.main([*make, f"--output={folder / 'kit'}"]) == 0
    assert cli.main([*make, f"--output={folder / 'other'}", "--seed=5"]) == 0
    (folder / "ann.json").write_text(json.dumps(answered(folder / "kit" / "KEY.json")))
    return folder


def answered(path):
    """What the one sheet of a key saves when all of it is answered, as `sheet.js` writes it."""
    key = json.loads(path.read_text())
    ((name, sheet),) = key["sheets"].items()
    answers = {
        step: {
            "values": dict.fromkeys(key["questions"], 7)
            if "system" in meaning
            else {"preference": "tie"},
            "seconds": 3.5,
        }
        for step, meaning in sheet["steps"].items()
    }
    return {
        "format": "xrec-ratings",
        "version": 1,
        "sheet": name,
        "rater": "ann",
        "complete": True,
        "place": len(answers),
        "answers": answers,
    }


@pytest.fixture
def folder(kept, tmp_path, monkeypatch) -> pathlib.Path:
    for name in ("config_config", "bad_judge"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    copy = shutil.copytree(kept, tmp_path / "folder")
    monkeypatch.syspath_prepend(str(copy))
    return copy


EXPLAIN = ["explain", "--workdir={folder}/run", "--explainer=template", "--output={folder}/o.jsonl"]
PAIRS = "--pairs={folder}/"
COMPARE = ["compare", "--workdir={folder}/one", "--workdir={folder}/two"]
MAKE = ["rate", "make", "--output={folder}/new", "--pairs=1", "--gold=0"]
COLLECT = ["rate", "collect", "--key={folder}/kit/KEY.json", "--answers={folder}/ann.json"]
AUDIT = ["audit", "--config={folder}/config.py:recommend", "--config.data.format=none"]

CASES = {
    # What is explained, and where to
    "output that is a directory": (
        [*EXPLAIN[:3], "--output={folder}/d.jsonl"],
        "d.jsonl",
        "is a directory",
    ),
    "output below a file": ([*EXPLAIN[:3], "--output={folder}/file/o.jsonl"], "file is a file"),
    "temperature": ([*EXPLAIN, "--temperature=nan"], "--temperature=nan"),
    "pairs of users": ([*EXPLAIN, PAIRS + "torn.jsonl", "--users=u00001"], "--users"),
    "no pair": ([*EXPLAIN, PAIRS + "none.jsonl"], "none.jsonl", "no pair"),
    "torn pairs": ([*EXPLAIN, PAIRS + "torn.jsonl"], "torn.jsonl, line 2"),
    "pairs that are lists": ([*EXPLAIN, PAIRS + "list.jsonl"], "line 1", "not a JSON object"),
    "pairs in another encoding": ([*EXPLAIN, PAIRS + "latin.jsonl"], "line 1", "not UTF-8"),
    "pairs without users": ([*EXPLAIN, PAIRS + "key.jsonl"], "line 1", "no 'user'"),
    "unknown item": ([*EXPLAIN, PAIRS + "id.jsonl"], "line 1", "'p9'"),
    "rank in words": ([*EXPLAIN, PAIRS + "rank.jsonl"], "line 1", "'rank'", "'first'"),
    "rank beyond all items": ([*EXPLAIN, PAIRS + "far.jsonl"], "line 1", "'rank'"),
    "score that is none": ([*EXPLAIN, PAIRS + "score.jsonl"], "line 1", "'score'"),
    "system that is a number": ([*EXPLAIN, PAIRS + "system.jsonl"], "line 1", "'system'"),
    "no Parquet": ([*EXPLAIN, PAIRS + "text.parquet"], "text.parquet", "Parquet"),
    "column of Parquet": ([*EXPLAIN, PAIRS + "key.parquet"], "'user'", "did you mean 'usr'"),
    # Who judges
    "no module": ([*COMPARE, "--judge=bad_jugde:few"], "'bad_jugde'"),
    "module with a fault": ([*COMPARE, "--judge=bad_syntax:judge"], "bad_syntax", "SyntaxError"),
    "no function": ([*COMPARE, "--judge=bad_judge:number"], "'number'", "few"),
    "judge that breaks": ([*COMPARE, "--judge=bad_judge:breaks"], "breaks failed", "no such model"),
    "judge of too few": ([*COMPARE, "--judge=bad_judge:few"], "shape [1]"),
    "judge in words": ([*COMPARE, "--judge=bad_judge:words"], "'good'"),
    "judge in percent": ([*COMPARE, "--judge=bad_judge:percent"], "0 to 1"),
    "comparison to a directory": ([*COMPARE, "--output={folder}/d.jsonl"], "is a directory"),
    # What people are asked and what they say
    "unknown explainer": (
        [*MAKE, "--workdir={folder}/one", "--system=tempalte"],
        "--system",
        "'template'",
    ),
    "prompt id that is a list": (
        [*MAKE, "--explanations={folder}/prompts.jsonl+{folder}/answers.jsonl"],
        "prompt_id",
    ),
    "explanations without a prompt": (
        [*MAKE, "--explanations={folder}/answers.jsonl"],
        "line 1",
        "'prompt'",
    ),
    "no gzip": ([*MAKE, "--explanations={folder}/zip.jsonl.gz"], "zip.jsonl.gz"),
    "key of other sheets": (
        ["rate", "collect", "--key={folder}/other/KEY.json", "--answers={folder}/ann.json"],
        "ann.json",
        "does not know",
    ),
    "key without sheets": (
        ["rate", "collect", "--key={folder}/key.json", "--answers={folder}/ann.json"],
        "key.json",
        "damaged",
    ),
    "answers as key": (
        ["rate", "collect", "--key={folder}/ann.json", "--answers={folder}/ann.json"],
        "KEY.json",
    ),
    "result to a directory": ([*COLLECT, "--output={folder}"], "must end in .json"),
    "table without a line": (["rate", "collect", "--ratings={folder}/header.csv"], "no rating"),
    # What is audited
    "messages without one": (
        [*AUDIT, "--config.audit.instructions={folder}/turns.jsonl"],
        "line 1",
        "messages",
    ),
    "findings below a file": ([*AUDIT, "--output={folder}/file/a.json"], "file is a file"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_command_line(case, folder, capsys):
    arguments, *named = case
    capsys.readouterr()
    refuses(capsys, folder, [text.format(folder=folder) for text in arguments], *named)


def first(**changed):
    """Changes the first record of a file; None drops a key."""

    def change(text):
        line, rest = text.split("\n", 1)
        record = {k: v for k, v in {**json.loads(line), **changed}.items() if v is not None}
        return json.dumps(record) + "\n" + rest

    return change


TEXTS, EVALUATION = "explanations/quokka.jsonl", "evaluation.json"
DAMAGE = {
    "first line cut": (TEXTS, lambda t: t[:40] + t[t.index("\n") :], "quokka.jsonl, line 1"),
    "last line lost": (TEXTS, lambda t: t[: t[:-1].rindex("\n") + 1], "quokka", "'p10'", "delete"),
    "last line cut": (TEXTS, lambda t: t[:-20], "quokka.jsonl"),
    "empty": (TEXTS, lambda t: "", "quokka.jsonl"),
    "line that is a list": (TEXTS, lambda t: "[1]\n" + t, "quokka.jsonl, line 1"),
    "line twice": (TEXTS, lambda t: t + t[: t.index("\n") + 1], "quokka.jsonl", "twice"),
    "no hash": (TEXTS, first(prompt_hash=None), "line 1", "'prompt_hash'"),
    "another prompt": (TEXTS, first(prompt_hash="0" * 32), "quokka", "'p0'", "another prompt"),
    "no text": (TEXTS, first(text=None), "line 1", "'text'"),
    "text that is a number": (TEXTS, first(text=3), "line 1", "'text'"),
    "user of elsewhere": (TEXTS, first(user="u9"), "quokka.jsonl", "'u9'"),
    "pair without a prompt": ("explanations/pairs.jsonl", first(prompt=None), "pair", "'prompt'"),
}


@pytest.mark.parametrize("verb", ["compare", "rate"])
@pytest.mark.parametrize("case", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_explanations(case, verb, folder, capsys):
    name, change, *named = case
    path = folder / "one" / name
    path.write_bytes(change(path.read_bytes().decode()).encode())
    both = {"compare": [*COMPARE, "--judge=bad_judge:few"], "rate": [*MAKE, COMPARE[1]]}
    refuses(capsys, folder, [text.format(folder=folder) for text in both[verb]], *named)


RUN = {
    "config.json": ("[1]", "config.json"),
    EVALUATION: ("[1]", EVALUATION),
    "./evaluation.json": ('{"recommend": 3}', EVALUATION, "'recommend'"),
    "audit.json": ("[1]", "audit.json"),
    "ratings.json": ("[1]", "ratings.json"),
    "metrics.jsonl": ("[1]\n", "metrics.jsonl, line 1"),
    "explanations/pairs.jsonl": ("[1]\n", "pairs.jsonl, line 1"),
    "./explanations/pairs.jsonl": ('{"user": "a"}\n', "pairs.jsonl, line 1", "'item'"),
}


@pytest.mark.parametrize(("name", "case"), RUN.items(), ids=RUN.keys())
def test_report_of_a_damaged_run(name, case, folder, capsys):
    text, *named = case
    (folder / "one" / name).write_text(text)
    refuses(capsys, folder, ["report", f"--workdir={folder / 'one'}"], *named)


ANSWERS = {
    "mark that is a list": ("reasonability", [1], "reasonability is [1]"),
    "mark that is no number": ("reasonability", float("nan"), "NaN"),
    "mark beyond the scale": ("reasonability", 11, "11"),
    "two preferences": ("preference", ["first"], "preference is ['first']"),
    "sheet that is a list": ("sheet", [1], "sheet [1]"),
    "rater who is a number": ("rater", 3, "who rated"),
}


@pytest.mark.parametrize("case", ANSWERS.values(), ids=ANSWERS.keys())
def test_damaged_answers(case, folder, capsys):
    key, value, *named = case
    record = json.loads((folder / "ann.json").read_text())
    if key in record:
        record[key] = value
    else:
        step = next(a for a in record["answers"].values() if key in a["values"])
        step["values"][key] = value
    (folder / "ann.json").write_text(json.dumps(record))
    refuses(capsys, folder, [text.format(folder=folder) for text in COLLECT], "ann.json", *named)


STAGES = {
    "explainer that is a number": ("explain.explainers=(3,)", "explainer '3'"),
    "files that are a number": ("judge.explanations=(3,)", "judge.explanations: 3"),
    "judgement of a half": ("judge.path={folder}/better.jsonl", "better=1.0"),
    "share of nothing": ("attributes.held_out=nan", "attributes.held_out=nan"),
    "near to nothing": ("attributes.within=nan", "attributes.within=nan"),
    "row of nothing": ("attributes.length=0", "attributes.length=0"),
    "answer beyond the model": ("attributes.max_new_tokens=9999", "max_new_tokens=9999"),
}


@pytest.mark.parametrize("case", STAGES.values(), ids=STAGES.keys())
def test_values_of_stages(case, folder, capsys):
    override, *named = case
    stages = "recommend,pretrain,explain,judge,attributes"
    source = "--config.judge.source=" + ("file" if "judge.path" in override else "world")
    arguments = [
        "run",
        f"--config={folder / 'config.py'}:{stages}",
        f"--workdir={folder}/w",
        "--config.explain.explainers=('template',)",
        "--config.judge.examples=12",
        "--config.judge.length=512",
        source,
        f"--config.{override.format(folder=folder)}",
    ]
    refuses(capsys, folder, arguments, *named)


def test_a_user_named_twice_is_explained_once(folder):
    arguments = [text.format(folder=folder) for text in EXPLAIN]
    assert cli.main([*arguments, "--users=u00001,u00002,u00001", "--top_k=2"]) == 0
    found = [json.loads(line) for line in (folder / "o.jsonl").read_text().splitlines()]
    assert [one["user"] for one in found] == ["u00001"] * 2 + ["u00002"] * 2


def test_a_file_is_named_where_texts_and_pairs_disagree():
    pairs = [{"user": "a", "item": "1", "prompt": "", "prompt_hash": "0"}]
    with pytest.raises(Exception, match=r"^there\.jsonl: user 'a' with item '1' has no"):
        join(pairs, [], where="there.jsonl")


LATER = {"judge": "judge.length=24", "attributes": "attributes.length=24"}


@pytest.mark.parametrize(("stage", "override"), LATER.items(), ids=LATER.keys())
def test_rows_too_short_are_told_before_the_base_is_trained(stage, override, folder, capsys):
    """Only the tokenizer knows how long texts are; it comes first, and hours of training after."""
    arguments = [
        "run",
        f"--config={folder / 'config.py'}:pretrain,{stage}",
        f"--workdir={folder}/w",
        "--config.judge.examples=12",
        f"--config.{override}",
    ]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "24" in error and stage in error and "Traceback" not in error
    assert not (folder / "w" / "base").exists() and not (folder / "w" / "checkpoints").exists()
