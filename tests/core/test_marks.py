"""Marks of finished stages, and records that do not hold what they should."""

import json
import zipfile

import numpy as np
import pytest
from etils import epath

from xrec_jax.core import identity
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter, read_metrics
from xrec_jax.core.storage import arrays, files, schema
from xrec_jax.core.storage.marks import Marks

FIGURES = {"bpr": {"test/ndcg@10": {"value": 0.5, "low": 0.4, "high": 0.6, "count": 7}}}
LINES = [{"stage": "judge", "step": 1, "train/loss": 0.25}]


@pytest.fixture
def root(tmp_path):
    root = epath.Path(tmp_path)
    for name in ("judge/a.bin", "judge/inner/b.bin", "judge/.hidden", "pairs.jsonl"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    left = [root / "judge", root / "pairs.jsonl", root / "not made"]
    Marks(root).write("judge", left, evaluation={"judge": FIGURES}, metrics=LINES)
    return root


def one_line(call, *parts):
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message


# Marks


def test_a_mark_lists_what_a_stage_left(root):
    mark = json.loads((root / "done" / "judge.json").read_text())
    assert [*mark["files"]] == ["judge/a.bin", "judge/inner/b.bin", "pairs.jsonl"]
    assert mark["files"]["pairs.jsonl"]["bytes"] == len("pairs.jsonl")
    assert Marks(root).missing("judge", ["judge"]) == []
    assert Marks(root).missing("attributes", []) is None
    Marks(root).check_file(root / "judge" / "inner" / "b.bin")
    Marks(root).check_section("evaluation", "judge", json.loads(json.dumps(FIGURES)))
    Marks(root).check_section("metrics", "judge", LINES)
    Marks(root).check_section("evaluation", "somebody's own", {})


def test_a_file_in_place_of_the_marks_is_named(tmp_path):
    (tmp_path / "done").write_text("x")
    one_line(lambda: Marks(epath.Path(tmp_path)), f"{tmp_path / 'done'} is a file", "delete")


def test_what_is_gone_is_not_done(root):
    (root / "judge" / "inner" / "b.bin").unlink()
    assert Marks(root).missing("judge", []) == ["judge", "judge/inner/b.bin"]


@pytest.mark.parametrize(
    ("content", "what"), [(b"pairs.jsonx", "as before, but others"), (b"", "0 bytes instead of 11")]
)
def test_a_changed_file_is_named(root, content, what):
    (root / "pairs.jsonl").write_bytes(content)
    for call in (
        lambda: Marks(root).missing("judge", ["judge"]),
        lambda: Marks(root).check_file(root / "pairs.jsonl"),
    ):
        one_line(call, f"{root}/pairs.jsonl: changed since stage 'judge' wrote it", what, "delete")


def test_changed_figures_and_lines_are_named(root):
    other = json.loads(json.dumps(FIGURES).replace("0.5", "0.9"))
    one_line(
        lambda: Marks(root).check_section("evaluation", "judge", other),
        f"{root}/evaluation.json: its section 'judge'",
        "delete it and run `xrec evaluate`",
    )
    one_line(
        lambda: Marks(root).check_section("metrics", "judge", LINES * 2),
        f"{root}/metrics.jsonl: its lines of stage 'judge'",
    )
    timed = [{**LINES[0], "time/elapsed_seconds": 3.5}]
    Marks(root).check_section("metrics", "judge", timed)  # times are nobody's figures


def test_a_mark_that_is_removed_can_be_put_back(root):
    before = (root / "done" / "judge.json").read_text()
    text = Marks(root).text("judge")
    Marks(root).remove("judge")
    assert Marks(root).missing("judge", []) is None and Marks(root).text("judge") == ""
    Marks(root).put("judge", text)
    assert (root / "done" / "judge.json").read_text() == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"files": 3, "evaluation": {}, "metrics": {}}',
        '{"files": {"a": 1}, "evaluation": {}, "metrics": {}}',
        '{"files": {}, "evaluation": {"judge": 1}, "metrics": {}}',
    ],
)
def test_a_damaged_mark_is_named(root, text):
    (root / "done" / "judge.json").write_text(text)
    one_line(lambda: Marks(root).missing("judge", []), f"{root}/done/judge.json")


# Records


def test_kinds_of_values():
    reason = schema.record_of({"value": schema.TEXT})
    fields = {
        "user": schema.TEXT,
        "rank": schema.or_null(schema.WHOLE),
        "score": schema.perhaps(schema.NUMBER),
        "reasons": schema.perhaps(schema.of_list(reason)),
    }
    good = {"user": "u", "rank": None, "reasons": [{"value": "a"}], "more": object()}
    assert schema.fault(good, fields) is None
    assert schema.fault(good | {"rank": 1, "score": 0.5, "reasons": None}, fields) is None
    for changed, said in (
        ({"user": 3}, "'user' is 3, not a text"),
        ({"rank": 1.5}, "'rank' is 1.5, not a whole number or null"),
        ({"rank": True}, "'rank' is True"),
        ({"score": float("nan")}, "'score' is nan, not a number"),
        ({"reasons": [{"value": "a"}, {}]}, "not a list, each entry a record with value"),
        ({"reasons": ["x" * 200]}, "..., not a list"),
    ):
        assert said in schema.fault(good | changed, fields)
    assert schema.fault({"user": "u"}, fields) == "there is no 'rank'"
    one_line(lambda: schema.check([1], fields, "a.jsonl, line 3"), "a.jsonl, line 3 is damaged")


@pytest.mark.parametrize(
    ("found", "place"),
    [
        ({"judge": 3}, "'judge'"),
        ({"judge": {"bpr": []}}, "'bpr'"),
        ({"judge": {"bpr": {"win/ratio": 0.5}}}, "judge, bpr, win/ratio"),
        ({"judge": {"bpr": {"win/ratio": {"value": "0.5"}}}}, "'value' is '0.5'"),
        ({"judge": {"bpr": {"win/ratio": {"low": 0.5}}}}, "no 'value'"),
        ({"judge": {"bpr": {"win/ratio": {"value": 1, "low": [1]}}}}, "'low' is [1]"),
    ],
)
def test_figures_of_another_form_are_named(found, place):
    one_line(lambda: schema.check_figures(found, "e.json", "delete it"), "e.json", place, "delete")


def test_lines_of_the_metric_log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "a", "step": 1, "x/y": null}\n{"stage": "a", "st')
    assert read_metrics(path) == [{"stage": "a", "step": 1, "x/y": None}]
    for line, said in (
        ('{"step": 1}', "no 'stage'"),
        ('{"stage": "a", "step": "1"}', "'step' is '1'"),
        ('{"stage": "a", "step": 1, "x/y": "high"}', "'x/y' is 'high'"),
    ):
        path.write_text('{"stage": "a", "step": 1}\n' + line + "\n")
        one_line(lambda: read_metrics(path), f"{path}, record 2 is damaged", said)
        one_line(lambda: MetricWriter(tmp_path).rewind("a", 0), f"{path}, record 2 is damaged")


# Arrays


def test_arrays_are_the_same_bytes_each_time(tmp_path):
    made = {"valid/a": np.arange(3.0), "users": np.arange(3)}
    arrays.write_npz(tmp_path / "new" / "a.npz", made)
    arrays.write_npz(tmp_path / "b.npz", made)
    assert (tmp_path / "new" / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = arrays.read_npz(tmp_path / "b.npz")
    assert found.keys() == made.keys() and all(np.array_equal(found[k], made[k]) for k in made)


def test_damage_to_arrays_is_one_line(tmp_path):
    path = tmp_path / "a.npz"
    arrays.write_npz(path, {"valid/a": np.arange(30.0)})
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        place = archive.infolist()[0].header_offset
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, a=np.array([object()], object))
    plain = tmp_path / "plain.npy"
    np.save(plain, np.arange(3))
    for content in (
        b"",
        good[:-30],
        good[:40],
        b"x" * 99,
        good[: place + 80] + b"\xff" + good[place + 81 :],
        pickled.read_bytes(),
        plain.read_bytes(),
    ):
        path.write_bytes(content)
        one_line(lambda: arrays.read_npz(path), f"{path} is damaged")
    one_line(lambda: arrays.read_npz(tmp_path / "none.npz"), "no such file")


# Identity


@pytest.mark.parametrize("text", ["[]", "{}", '{"base": 3}', '{"base": ""}', "{", "null"])
def test_a_damaged_identity_is_named(tmp_path, text):
    path = epath.Path(tmp_path / "identity.json")
    known = {"workdir": epath.Path("runs/a"), "started": "tuning"}
    assert not identity.is_known(path, {"base": "a"}, **known)
    files.write_json(path, {"base": "a", "set": "b"})
    assert identity.is_known(path, {"base": "a", "set": "b"}, **known)
    one_line(
        lambda: identity.is_known(path, {"base": "c", "set": "b"}, **known),
        "runs/a: tuning was started with another content of the base",
        str(path),
        "--workdir",
    )
    path.write_text(text)
    one_line(lambda: identity.is_known(path, {"base": "a"}, **known), str(path))
