"""Errors, atomic files, JSON lines, the metric log and pytree helpers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from xrec_jax.core import errors, trees
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.logging import MetricWriter, Progress
from xrec_jax.core.storage import files
from xrec_jax.parallel.mesh import put_replicated, sharding


def test_did_you_mean_names_the_nearest():
    assert did_you_mean("item_idd", ["user_id", "item_id"]) == "; did you mean 'item_id'?"
    assert did_you_mean("zzz", ["user_id", "item_id"]) == "; valid: user_id, item_id"
    assert did_you_mean("zzz", range(4), limit=2) == "; valid: 0, 1, ..."
    assert did_you_mean("zzz", range(2), limit=2) == "; valid: 0, 1"
    assert did_you_mean("zzz", []) == ""
    assert not issubclass(errors.UserError, ValueError)


def test_write_text_replaces_the_whole_file(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    files.write_text(path, "first, and long")
    files.write_text(path, "second")
    assert path.read_text() == "second"
    assert [p.name for p in path.parent.iterdir()] == ["c.txt"]


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file.json"
    path.write_text("old")

    def half(temporary):
        with open(temporary, "w") as file:
            file.write("ne")
        assert path.read_text() == "old"
        raise error("no")

    with pytest.raises(UserError if error is OSError else error):
        files.write_atomic(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_a_part(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(temporary):
        with open(temporary, "w") as file:
            file.write("new")
            file.flush()
            assert path.read_text() == "old"

    with path.open() as reader:
        files.write_atomic(path, write)
        assert reader.read() == "old"  # whoever had the file open keeps the whole old one
    assert path.read_text() == "new"


def test_a_path_that_cannot_be_written_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        files.write_text(tmp_path, "a folder stands there")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        files.write_text(tmp_path / "file" / "below.txt", "a file is no folder")


def test_is_local():
    assert files.is_local("/tmp/a") and files.is_local("a:b")
    assert not files.is_local("gs://bucket/a")


@pytest.mark.parametrize("scheme", ["gs", "s3", "az", "hf", "https", "foo"])
def test_no_remote_path_asks_the_network(monkeypatch, scheme):
    """Without its package an object store is refused, and what is no object store always is."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("socket.socket.connect", None)
    monkeypatch.setattr("socket.getaddrinfo", None)
    path = f"{scheme}://bucket/file.jsonl"
    for read in (
        files.absolute,
        files.read_json,
        files.read_json_lines,
        files.read_records,
        lambda p: files.check_file(p, "--output"),
    ):
        with pytest.raises(UserError, match=rf"^{path}: {scheme}:// (needs the package|is not)"):
            read(path)


def test_plain_is_json():
    value = {
        3: np.float32(0.5),
        "nan": float("nan"),
        "inf": np.inf,
        "int": np.int64(7),
        "jax": jnp.float32(-0.25),
        "list": (np.bool_(True), [np.float64("-inf")]),
        "none": None,
    }
    assert files.plain(value) == {
        "3": 0.5,
        "nan": None,
        "inf": None,
        "int": 7,
        "jax": -0.25,
        "list": [True, [None]],
        "none": None,
    }


def test_json_round_trip(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"é": np.arange(3)[1], "b": [0.1, None]})
    assert files.read_json(path) == {"é": 1, "b": [0.1, None]}
    assert path.read_text().endswith("}\n")


def test_read_json_names_file_and_line(tmp_path):
    with pytest.raises(UserError, match=r"missing\.json: no such file"):
        files.read_json(tmp_path / "missing.json")
    path = tmp_path / "bad.json"
    path.write_text('{"a": 1,\n"b": }')
    with pytest.raises(UserError, match=r"bad\.json, line 2: not valid JSON"):
        files.read_json(path)


RECORDS = [{"a": 0.5}, {"name": "Zoë, 東京"}, {"b": [1, None]}, {"é": "ü"}]


def test_every_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "lines.jsonl"
    whole = files.json_lines(RECORDS).encode()
    assert files.read_json_lines(path) == []
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = whole[:size].count(b"\n")
        # A line that lacks nothing but its line break is whole too.
        kept += size + 1 <= len(whole) and whole[size : size + 1] == b"\n"
        assert files.read_json_lines(path) == RECORDS[:kept], whole[:size]


def test_a_torn_middle_line_is_an_error(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"b": \n{"c": 3}\n')
    with pytest.raises(UserError, match=r"lines\.jsonl, line 2"):
        files.read_json_lines(path)
    path.write_text('{"a": 1}\n{"b": \n')  # broken, but not by a kill in mid-write
    with pytest.raises(UserError, match="line 2"):
        files.read_json_lines(path)


def logged(folder):
    text = (folder / "metrics.jsonl").read_text()
    return [(r["stage"], r["step"], r["x/y"]) for r in map(json.loads, text.splitlines())]


def test_metric_writer_rewinds_one_stage(tmp_path):
    writer = MetricWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write("a", step, {"x/y": np.float32(step / 2)})
        writer.write("b", step, {"x/y": -step})
    writer.rewind("a", 1)
    assert logged(tmp_path) == [("a", 1, 0.5), ("b", 1, -1), ("b", 2, -2), ("b", 3, -3)]
    writer.write("a", 2, {"x/y": float("nan")})
    writer.close()
    assert logged(tmp_path)[-1] == ("a", 2, None)
    assert {p.name for p in (tmp_path / "tensorboard").iterdir()} == {"a", "b"}


def test_metric_writer_goes_on_after_a_kill_in_mid_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "a", "step": 1, "x/y": 2.5}\n{"stage": "a"')
    writer = MetricWriter(tmp_path)
    writer.rewind("a", 1)
    writer.write("a", 2, {"x/y": 3})
    writer.close()
    assert logged(tmp_path) == [("a", 1, 2.5), ("a", 2, 3)]


def test_metric_writer_of_other_processes_is_silent(tmp_path):
    writer = MetricWriter(tmp_path, enabled=False)
    writer.rewind("a", 0)
    writer.write("a", 1, {"x/y": 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_progress_prints_plain_lines(capsys):
    for enabled in (True, False):
        bar = Progress("train", 10, initial=4, enabled=enabled, every_s=0.0)
        bar.advance(2, "loss 0.5")
        bar.close()
        out = capsys.readouterr().out
        assert out.startswith("train: 6/10 steps, ") == enabled
        assert out.endswith("s left, loss 0.5\n") == enabled
        assert bool(out) == enabled


def test_tree_sizes():
    mesh = tiny.mesh(8, 2)
    tree = {"a": {"b": np.zeros((8, 3), np.float32)}, "c": np.zeros((), np.int32)}
    assert trees.num_parameters(tree) == 25
    split = jax.device_put(tree["a"]["b"], sharding(mesh, "table_rows", None))
    placed = {"a": {"b": split}, "c": put_replicated(tree["c"], mesh), "host": tree["c"]}
    assert trees.device_bytes(placed) == {
        "a/b": dict.fromkeys(range(8), 12),
        "c": dict.fromkeys(range(8), 4),
    }
    np.testing.assert_array_equal(trees.host_value(placed["c"]), 0)
