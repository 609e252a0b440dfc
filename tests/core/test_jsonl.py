"""The reader and writer of JSON: where lines end, and what is refused by file and line."""

import gzip
import io
import json

import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage import files, jsonl

# Each is a line end to str.splitlines or to Python's universal newlines, and none to JSON.
ENDS = "a\u2028b\u2029c\u0085d"
DEEP = "[" * 101 + "]" * 101


def test_a_text_with_other_line_ends_stays_one_record(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes('{"text": "a\u2028b\u2029c\u0085d"}\r\n\n{"text": "e"}\n'.encode())
    for read in (files.read_records, files.read_json_lines):
        if read is files.read_json_lines:
            path.write_bytes(path.read_bytes().replace(b"\r\n\n", b"\n"))
        assert read(path) == [{"text": ENDS}, {"text": "e"}]


def test_what_is_written_has_no_line_end_but_its_own():
    records = [{"text": ENDS + "\v\f\x1c\x1d\x1e\r\n"}, {"Zoë": "東京"}]
    text = files.json_lines(records)
    assert len(text.splitlines()) == 2
    assert [json.loads(line) for line in text.splitlines()] == records
    assert "Zoë" in text  # others stay readable


def test_files_are_utf8_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "text_encoding", lambda *_: "ascii")  # what open() asks for a default
    files.write_json(tmp_path / "a.json", {"é": "東"})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"é": "東"}
    assert files.read_json(tmp_path / "a.json") == {"é": "東"}


WRONG = {
    "deep": ('{"a": ' + DEEP + "}", "nested more than 100 levels"),
    "so deep that Python gives up": ('{"a": ' + "[" * 100_000, "nested more than 100 levels"),
    "digits": ('{"a": ' + "7" * 5000 + "}", "a number of 5,000 digits"),
    "negative digits": ('{"a": -' + "7" * 400 + "}", "a number of 401 digits"),
    "large": ('{"a": 1e999}', "1e999 is larger than any number"),
    "nan": ('{"a": NaN}', "NaN is no number"),
    "infinity": ('{"a": [-Infinity]}', "-Infinity is no number"),
    "half a pair": ('{"a": "cut \\ud83d"}', r"\\ud83d is half a surrogate pair"),
    "the other half": ('{"a": "\\\\\\uDE00 cut"}', r"\\uDE00 is half a surrogate pair"),
    "two first halves": ('{"a": "\\ud83d\\ud83d\\ude00"}', "half a surrogate pair"),
    "half a key": ('{"\\udfff": 1}', "half a surrogate pair"),
    "nul": ('{"a": "\\u0000"}', r"\\u0000 is no character"),
    "no json": ('{"a": }', "Expecting value"),
    "nothing but a text": ('"a"', None),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path, name):
    text, what = WRONG[name]
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": "\\ud83d\\ude00", "b": "\\\\ud83d"}\n\n' + text + "\n")
    for read in (files.read_records, files.read_json_lines):
        with pytest.raises(UserError, match=what or "not a JSON object") as error:
            read(path)
        assert str(error.value).startswith(f"{path}, line 3: ")
        assert len(str(error.value)) < 300 and "\n" not in str(error.value)
    if what is None:
        return
    path.write_text('{"c": "\\ud83d\\ude00",\n"b":\n' + text + "}")
    where = "" if "deep" in name else ", line 3"
    with pytest.raises(UserError, match=rf"lines\.jsonl{where}: not valid JSON .*{what}"):
        files.read_json(path)


def test_a_key_that_stands_twice_in_a_record_is_refused(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": {"é": 1, "b": 2, "é": 1}}\n')
    with pytest.raises(UserError, match=r"line 1: not valid JSON \(key 'é' stands twice\)"):
        files.read_records(path)


def test_large_and_small_numbers_that_hold_stay(tmp_path):
    path = tmp_path / "lines.jsonl"
    nested = "[" * 99 + "]" * 99
    path.write_text(f'{{"a": [1e308, 1e-999, -0.0, {"9" * 308}]}}\n{{"a": {nested}}}')
    first, second = files.read_records(path)
    assert first["a"] == [1e308, 0.0, 0.0, int("9" * 308)]
    assert json.dumps(second).count("[") == 99


@pytest.mark.parametrize("data", [b'{"a": "\xff"}', b'{"a": "\xed\xa0\xbd"}', b'{"a": "\xc3'])
def test_bytes_that_are_no_text_are_named_by_line(tmp_path, data):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n' + data + b"\n")
    for read in (files.read_records, files.read_json_lines, files.read_json):
        with pytest.raises(UserError, match=r"lines\.jsonl, line 2: not UTF-8 text"):
            read(path)


def test_a_torn_end_is_for_a_run_to_mend_and_for_people_to_see(tmp_path):
    path = tmp_path / "lines.jsonl"
    for torn in (b'{"a', b"\0\0\0", b"\xff", b"[" * 3000, b"12"):
        path.write_bytes(b'{"a": 1}\n' + torn)
        assert files.read_json_lines(path) == [{"a": 1}]
        with pytest.raises(UserError, match="line 2"):
            files.read_records(path)


def test_files_are_read_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MOST_BYTES", 1 << 20)
    path = tmp_path / "lines.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' + b" " * (1 << 20) + b'{"a": 2}\n'))
    with pytest.raises(UserError, match="line 2: longer than 1 MiB"):
        files.read_records(path)


@pytest.mark.parametrize("cut", [slice(0, 3), slice(0, 25), slice(5, None)])
def test_a_damaged_gzip_file_is_named(tmp_path, cut):
    path = tmp_path / "lines.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"b": 2}\n', mtime=0)[cut])
    with pytest.raises(UserError, match=r"lines\.jsonl\.gz: cannot be read"):
        files.read_records(path)


def test_half_a_surrogate_pair_is_never_written(tmp_path):
    path = tmp_path / "a.json"
    for write in (files.write_json, lambda p, v: files.write_text(p, files.json_lines([v]))):
        with pytest.raises(UserError, match=r"half a surrogate pair .*\\ud83d"):
            write(path, {"a": "cut \ud83d"})
    assert list(tmp_path.iterdir()) == []
