"""The data of a run: which split an unset one is, and what is said of events and users left out."""

import json
import pathlib

import pytest

from tests import tiny
from xrec_jax.api import run
from xrec_jax.data.run_data import describe, prepare

HEADER = "user_id,item_id,timestamp,rating\n"


def config(path: pathlib.Path, **filters):
    """A config that reads a CSV file, or a folder of them, and counts what is popular."""
    made = tiny.config("popularity")
    made.data.format, made.data.path = "csv", str(path)
    made.data.filters.update(filters)
    return made


def described(made) -> str:
    return describe(prepare(made.data), made.data)


def events(path: pathlib.Path, *rows: str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return path


def parts(folder: pathlib.Path, **rows: str) -> pathlib.Path:
    for name, text in rows.items():
        events(folder / f"{name}.csv", *text.split())
    return folder


def test_a_folder_with_parts_is_not_split_anew(tmp_path, capsys):
    folder = parts(
        tmp_path / "d",
        train="ann,a,1,5 ann,b,2,5 ann,c,3,5 ben,a,1,5 ben,b,2,5 ben,c,3,5",
        valid="ann,d,4,5",
        test="ann,e,5,5 ann,f,6,5",
    )
    made = config(folder)
    run.run(made, tmp_path / "w")
    said = capsys.readouterr().out
    assert "6 training, 1 validation and 2 test events; split as in the files" in said
    assert "not tested: 1 of 2 users, who have no test event" in said
    assert json.loads((tmp_path / "w" / "config.json").read_text())["data"]["split"]["kind"] == (
        "given"
    )
    figures = json.loads((tmp_path / "w" / "evaluation.json").read_text())["recommend"]
    assert figures["popularity"]["test/ndcg@10"]["count"] == 1
    run.run(config(folder), tmp_path / "w")  # with an unset split again
    made.data.split.kind = "leave_one_out"
    assert "own parts (train, valid, test) are joined and split anew" in described(made)


def test_a_published_split_without_validation(tmp_path):
    folder = parts(
        tmp_path, train="ann,a,1,5 ann,c,3,5 ann,b,2,5 ben,b,1,5", test="ann,d,4,5 ben,a,2,5"
    )
    made = config(folder)
    made.data.split.validation = "last"
    data = prepare(made.data)
    assert [data.dataset.item_ids[row] for row in data.split.valid.item] == ["c"]
    assert "each user's last training event is the validation event" in described(made)


ROWS = (
    "ann,a,1,5",
    "ann,a,2,5",
    "ann,a,3,5",
    "ann,b,4,5",
    "ann,c,5,5",
    "ben,a,1,5",
    "ben,b,2,5",
    "ben,c,3,1",
    "cat,b,1,5",
    "cat,c,2,5",
    "cat,a,2,5",
    "dan,q,1,4",
    "dan,a,9,5",
)


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        (
            dict(),
            [
                "4 users, 4 items; 5 training, 3 validation and 3 test events; 1 users end on tied",
                "dropped: 2 repeated events (duplicates='first')",
                "not tested: 1 of 4 users, who have no test event",
            ],
        ),
        (dict(duplicates="keep"), ["2 events repeat a user and an item and are kept"]),
        (
            dict(min_rating=4.5, user_core=3),
            [
                "2 events rated too low (min_rating=4.5), 3 events of users and items with too few "
                "(user_core=3, item_core=0), 2 users with all their events, 1 items with all"
            ],
        ),
    ],
    ids=["repeated", "kept", "filtered"],
)
def test_what_was_left_out_is_said(tmp_path, filters, said):
    found = described(config(events(tmp_path / "e.csv", *ROWS), **filters))
    for text in said:
        assert text in found


def test_nothing_is_said_where_nothing_was_left_out():
    made = tiny.config()
    assert describe(tiny.data(), made.data).count("\n") == 0


def test_descriptions_of_others_and_pairs_in_two_parts_are_counted(tmp_path):
    folder = parts(
        tmp_path / "d", train="ann,a,1,5 ann,b,2,5", valid="ann,c,4,5", test="ann,a,5,5 ben,b,6,5"
    )
    (tmp_path / "i.csv").write_text("item_id,title\na,A\nx,X\ny,Y\n")
    made = config(folder)
    made.data["items"] = str(tmp_path / "i.csv")
    found = described(made)
    for text in (
        "1 pairs of a user and an item stand in several parts",
        "2 described items have no event and are left out",
        "2 items are not described in the item table",
        "1 users are tested without a training event",
    ):
        assert text in found
