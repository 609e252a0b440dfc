"""The check itself sees what it is for: a crash, a hang, a long message, lost memory."""

import json
import time

import pytest

from tests.fuzz import mutate
from xrec_jax.core.errors import UserError

DATA = b'{"a": [1, 2, 3]}\n{"b": "text"}\n'


def test_mutants_depend_on_seed_and_index_only():
    first = [mutate.mutant(DATA, 1, index) for index in range(50)]
    assert first == [mutate.mutant(DATA, 1, index) for index in range(50)]
    assert first != [mutate.mutant(DATA, 2, index) for index in range(50)]
    changed = [damaged for _, damaged in first if damaged != DATA]
    assert len(set(changed)) > 35


def test_a_crash_is_reported_with_its_seed(tmp_path):
    def read(path):
        return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]

    with pytest.raises(AssertionError, match=r"mutant\(data, 5, [0-9]+\), .*Error"):
        mutate.survives(read, DATA, tmp_path / "x", seed=5)


def test_a_refusal_is_counted(tmp_path):
    def read(path):
        if path.read_bytes() != DATA:
            raise UserError(f"{path}: damaged")

    assert mutate.survives(read, DATA, tmp_path / "x", count=40) > 30


def test_a_message_of_two_lines_a_hang_and_a_wrong_result_are_faults(tmp_path):
    def two_lines(path):
        if path.read_bytes() != DATA:
            raise UserError("one\ntwo")

    def hang(path):
        try:
            time.sleep(0 if path.read_bytes() == DATA else 60)
        except Exception:
            return

    def check(result):
        assert result == DATA

    for match, read, after in (
        ("not one line", two_lines, lambda _: None),
        ("no end within", hang, lambda _: None),
        ("assert", lambda path: path.read_bytes(), check),
    ):
        with pytest.raises(AssertionError, match=match):
            mutate.survives(read, DATA, tmp_path / "x", count=3, seconds=0.05, check=after)
