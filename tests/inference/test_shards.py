"""The engine behind bulk explanations, with explainers that cost nothing: shards, kills, copies."""

import json
import os
import shutil
import signal

import polars as pl
import pytest

from tests import runs, tiny
from xrec_jax.core.errors import UserError
from xrec_jax.inference import bulk, explainers
from xrec_jax.inference.explainers import Written
from xrec_jax.inference.shards import Parts
from xrec_jax.tasks.requests import RequestBuilder, UserItem
from xrec_jax.text.records.explanations import EXPLANATION_COLUMNS
from xrec_jax.training.loop import Interrupted


@pytest.fixture(scope="module")
def builder():
    return RequestBuilder(tiny.config("popularity"), tiny.data())


def jsonl(path):
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


class Echo:
    """Writes how often it was asked; out of order."""

    name, base, adapter = "echo", None, None

    def __init__(self, *, repeats=True, stop_at=None, signal_at=None):
        self.repeats, self.asked = repeats, []
        self._stop_at, self._signal_at = stop_at, signal_at

    def write(self, cases):
        for place in reversed(range(len(cases))):
            self.asked.append(cases[place].prompt)
            if len(self.asked) == self._stop_at:
                raise RuntimeError("the power failed")
            if len(self.asked) == self._signal_at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield place, Written(cases[place].prompt[-9:] + str(place), 1, -0.5, "eos")


class Template(Echo):
    """An explainer without numbers; its texts are odd."""

    def write(self, cases):
        for place, _ in enumerate(cases):
            yield place, Written(f'"é"\u2028\n{{{place}}}, \\ ', None, None, "eos")


def test_the_same_prompt_is_answered_once(builder):
    cases = builder.many(
        [UserItem(2, 5), UserItem(1, 5), UserItem(2, 5), UserItem(2, 4), UserItem(2, 5)]
    )
    counted = []
    echo = Echo()
    found = explainers.answers(echo, cases, counted.append)
    assert sorted(echo.asked) == sorted({case.prompt for case in cases})
    assert len({found[0], found[2], found[4]}) == 1 and len({*found}) == 3
    assert sorted(counted) == [1, 1, 3]
    drawing = Echo(repeats=False)  # draws at random: every pair gets its own
    assert len({*explainers.answers(drawing, cases, counted.append)}) == 5


# Shards


def produced(builder, output, echo, users=range(9), shard=4, **identity):
    """Runs the engine with a fake explainer over two pairs a user."""
    pairs = [UserItem(u, i, i, u + i / 7, "s") for u in users for i in (1, 2)]
    return bulk.produce(
        Parts(output, {"which": "a", **identity}, shard=shard),
        pairs=lambda: pairs,
        builder=builder,
        place=bulk.Workplace(tiny.mesh(), True),
        explainer=lambda: echo,
    )


@pytest.fixture
def cut_off(builder, tmp_path):
    """An output of which two of five shards are done."""
    with pytest.raises(RuntimeError, match="power failed"):
        produced(builder, tmp_path / "o.jsonl", Echo(stop_at=10))
    return tmp_path / "o.jsonl"


def test_a_rerun_makes_what_is_missing(builder, cut_off, tmp_path):
    parts = cut_off.with_name("o.jsonl.parts")
    names = [f"shard-0000{n}-of-00005.jsonl" for n in range(5)]
    assert {p.name for p in parts.iterdir()} == {"pairs.bin", "manifest.json", *names[:2]}
    first = (parts / names[0]).read_text()
    (parts / names[0]).write_text(first.replace('"s"', '"kept"'))
    (parts / ".shard-00002-of-00005.jsonl.77.tmp").write_text("torn")
    echo = Echo()
    done = produced(builder, cut_off, echo)
    assert (done.pairs, done.made, len(echo.asked)) == (18, 10, 10)
    produced(builder, tmp_path / "whole.jsonl", Echo())
    records, whole = jsonl(cut_off), jsonl(tmp_path / "whole.jsonl")
    assert [record["system"] for record in records] == ["kept"] * 4 + ["s"] * 14
    assert [r | {"system": "s"} for r in records] == whole
    assert len({(record["user"], record["item"]) for record in whole}) == 18
    assert {path.name for path in tmp_path.iterdir()} == {"o.jsonl", "whole.jsonl"}


def test_parts_of_another_command_are_refused(builder, cut_off):
    before = runs.contents(cut_off.parent)
    for change, message in (
        ({"which": "b"}, r"parts of another command \(which='a', now 'b'\)"),
        ({"shard": 5}, r"\(shard=4, now 5\)"),
    ):
        with pytest.raises(UserError, match=message):
            produced(builder, cut_off, Echo(), **change)
    assert runs.contents(cut_off.parent) == before


def test_a_shard_that_lost_a_record_is_found(builder, cut_off):
    path = cut_off.with_name("o.jsonl.parts") / "shard-00001-of-00005.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match=r"shard-00001.* does not hold its 4 pairs"):
        produced(builder, cut_off, Echo())
    assert not cut_off.exists()
    path.unlink()
    assert produced(builder, cut_off, Echo()).pairs == 18


def test_killed_while_the_parts_are_removed(builder, cut_off, tmp_path):
    """The output is there already: nothing is made again."""
    parts, finished = (cut_off.with_name(f"o.jsonl.{name}") for name in ("parts", "parts.done"))
    shutil.copytree(parts, tmp_path / "saved")
    produced(builder, cut_off, Echo())
    before = cut_off.read_bytes()
    (tmp_path / "saved").rename(finished)
    echo = Echo()
    done = produced(builder, cut_off, echo)
    assert not echo.asked and (done.pairs, done.made) == (18, 0) and not finished.exists()
    assert cut_off.read_bytes() == before


def test_sigterm_keeps_every_finished_shard(builder, tmp_path):
    output, before = tmp_path / "o.jsonl", signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="explain: saved at step 2"):
        produced(builder, output, Echo(signal_at=11))
    assert signal.getsignal(signal.SIGTERM) is before
    assert produced(builder, output, Echo()).made == 10


def test_no_pair_leaves_nothing(builder, tmp_path):
    with pytest.raises(UserError, match="no pair to explain"):
        produced(builder, tmp_path / "o.jsonl", Echo(), users=())
    assert not [*tmp_path.iterdir()]


def test_parts_of_an_earlier_version_go_on(tmp_path):
    """What the identity of the very same output was then is as good; anything else is not."""

    def parts(run, former=None):
        return Parts(tmp_path / "o.jsonl", {"run": run}, shard=2, former=former)

    parts("then").plan([UserItem(0, 1), UserItem(1, 1)])
    with pytest.raises(UserError, match=r"parts of another command \(run='then', now 'now'\)"):
        parts("now").open()
    with pytest.raises(UserError, match=r"parts of another command"):
        parts("now", {"run": "another"}).open()
    same = parts("now", {"run": "then"})
    assert same.open() and same.count == 2
    same.output.write_text("written")
    same.folder.rename(tmp_path / "o.jsonl.parts.done")
    assert same.just_finished() and not parts("now").just_finished()


def test_many_pairs_are_planned_in_blocks(tmp_path):
    """More than one block; ranks, scores and systems that are and are not there."""
    made = [
        UserItem(n % 7, n % 11, n % 5 or None, None if n % 3 else n / 9, ("a", None, "b")[n % 3])
        for n in range(70_001)
    ]
    parts = Parts(tmp_path / "o.jsonl", {}, shard=33_000)
    assert not parts.open()
    parts.plan(iter(made))
    again = Parts(tmp_path / "o.jsonl", {}, shard=33_000)
    assert again.open() and (again.count, again.shards) == (70_001, 3)
    assert [asked for shard in range(3) for asked in again.pairs(shard)] == made
    assert (again.missing(), again.size([0, 2])) == ([0, 1, 2], 37_001)


def test_parquet_holds_the_same_records(builder, tmp_path):
    """Numbers and texts; columns that are empty in a shard, or in all of them."""
    for name, echo in (("model", Echo()), ("template", Template())):
        lines, parquet = (tmp_path / f"{name}.{kind}" for kind in ("jsonl", "parquet"))
        for path in (lines, parquet):
            produced(builder, path, echo)
        frame = pl.read_parquet(parquet)
        assert frame.to_dicts() == jsonl(lines)
        assert tuple(frame.columns) == EXPLANATION_COLUMNS
        assert frame.schema["tokens"] == pl.Int64 and frame.schema["base"] == pl.String
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl", ".parquet"}
