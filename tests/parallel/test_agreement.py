"""What processes compare before they begin, with threads in the place of processes."""

import threading

import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.parallel import agreement


def together(monkeypatch, function, *arguments):
    """What a function of each process raises, "" for nothing; one process an argument."""
    count, local = len(arguments), threading.local()
    barrier, table, said = threading.Barrier(count, timeout=20), {}, [""] * count

    def texts_of_all(text):
        table[local.number] = text
        barrier.wait()
        found = [table[number] for number in range(count)]
        barrier.wait()
        return found

    monkeypatch.setattr(agreement, "texts_of_all", texts_of_all)
    monkeypatch.setattr(agreement, "is_primary", lambda: local.number == 0)
    monkeypatch.setattr(agreement.jax, "process_count", lambda: count)

    def run(number):
        local.number = number
        try:
            function(arguments[number])
        except UserError as error:
            said[number] = str(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_the_same_is_fine(monkeypatch):
    check = lambda value: agreement.same("data", value, way_out="copy it")  # noqa: E731
    assert together(monkeypatch, check, "a", "a", "a") == [""] * 3
    assert together(monkeypatch, agreement.same_config, {"a": 1}, {"a": 1}) == [""] * 2


def test_other_data_is_named_on_all(monkeypatch):
    check = lambda value: agreement.same("data", value, way_out="copy it")  # noqa: E731
    line = "process 2 has another data than process 0; copy it"
    assert together(monkeypatch, check, "a", "a", "b") == [line] * 3


def test_another_config_is_named_by_its_key(monkeypatch):
    line = "process 1 has train.epochs=3 and process 0 train.epochs=2; "
    said = together(
        monkeypatch,
        agreement.same_config,
        {"name": "x", "train.epochs": 2},
        {"name": "x", "train.epochs": 3},
    )
    assert said[0] == said[1] and said[0].startswith(line)
    said = together(monkeypatch, agreement.same_config, {"a": 1}, {"a": 1, "b": 2})
    assert "process 1 has b=2 and process 0 b=None" in said[0]


def test_a_directory_that_all_see_is_left_as_it_was(monkeypatch, tmp_path):
    (tmp_path / "run").mkdir()
    paths = [tmp_path / "run"] * 3
    assert together(monkeypatch, agreement.same_directory, *paths) == [""] * 3
    assert not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize("there", [True, False])
def test_a_directory_that_one_does_not_see_ends_all_and_leaves_nothing(
    there, monkeypatch, tmp_path
):
    monkeypatch.setattr(agreement, "_SEEN_S", 0.3)
    mine, theirs = tmp_path / "a", tmp_path / "b"
    if there:
        mine.mkdir()
    said = together(monkeypatch, agreement.same_directory, mine, mine, theirs)
    for line, path in zip(said, (mine, mine, theirs), strict=True):
        assert line.startswith(f"process 2 does not see the run directory of process 0, {path};")
    assert mine.exists() == there and not theirs.exists()
    assert not there or not any(mine.iterdir())


def test_a_directory_that_cannot_be_made_ends_all(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    paths = [tmp_path / "file" / "run"] * 2
    said = together(monkeypatch, agreement.same_directory, *paths)
    assert said[0] == said[1] and "process 0 cannot write to" in said[0]


def test_one_process_compares_nothing(tmp_path):
    agreement.same_directory(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert agreement.texts_of_all("ü") == ["ü"]
