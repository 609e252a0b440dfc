"""Names of items: which column holds them, and items of one name stay different items."""

import dataclasses
import json
import pathlib

import numpy as np
import polars as pl
import pytest

from tests import runs, tiny
from xrec_jax import api
from xrec_jax.api import run
from xrec_jax.core.errors import UserError
from xrec_jax.data.readers.tables import title_column
from xrec_jax.data.run_data import describe, prepare
from xrec_jax.evaluation import audit
from xrec_jax.report.charts import spans
from xrec_jax.stages import assess, showcase
from xrec_jax.tasks.requests import use_generic_prompts
from xrec_jax.tasks.titles import titles
from xrec_jax.text.prompts.layout import text_value
from xrec_jax.text.synthetic.template_explainer import template_explanation

EVENTS = "user_id,item_id,timestamp\nann,a,1\nann,b,2\nann,c,3\nben,b,1\nben,c,2\nben,d,3\n"


def data(folder: pathlib.Path, items: str, **columns: str):
    (folder / "e.csv").write_text(EVENTS)
    (folder / "i.csv").write_text(items)
    made = tiny.config("popularity")
    made.data.format, made.data.path = "csv", str(folder / "e.csv")
    made.data["items"] = str(folder / "i.csv")
    made.data.columns.update(columns)
    return made, prepare(made.data)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("brand", "Title"), "Title"),
        (("TITLE", "title"), "title"),
        (("Title", "Name"), "Name"),
        (("Movie Title",), "Movie Title"),
        (("movie-title ",), "movie-title "),
        (("titles", "brand"), None),
        ((), None),
    ],
)
def test_the_column_of_titles_is_found_whatever_its_case(names, found):
    assert title_column(names) == found


def test_a_key_names_the_column_of_titles(tmp_path):
    items = "item_id,title,Label\na,x,Ash\nb,x,Bay\nc,x,\nd,x, \n"
    made, found = data(tmp_path, items, title="Label")
    assert titles(found.dataset).tolist() == ["Ash", "Bay", "c", "d"]
    assert audit.findings.Names(found.dataset).item(0) == "item 'Ash' (a)"
    use_generic_prompts(made, found)
    assert "{Label}" in made.instruct.template.item
    with pytest.raises(UserError, match=r"columns.title='label' is no column.*'Label'"):
        data(tmp_path, items, title="label")
    made.data["items"] = ""
    with pytest.raises(UserError, match=r"columns.title='Label' needs an item table"):
        prepare(made.data)


def test_titles_that_are_numbers_read_as_written(tmp_path):
    _, found = data(tmp_path, "item_id,title\na,1984\nb,0\nc,300\nd,\n")
    assert titles(found.dataset).tolist() == ["1984", "0", "300", "d"]


def test_titles_are_spelt_as_in_prompts(tmp_path):
    _, found = data(tmp_path, 'item_id,title\na,"Two\r\nlines"\nb," \t"\nc,Ümläut 😀\nd,"\n"\n')
    assert titles(found.dataset).tolist() == ["Two lines", "b", "Ümläut 😀", "d"]
    table = pl.DataFrame({"title": [1984.0, float("nan"), None, 2.5]})
    numbered = dataclasses.replace(found.dataset, items=table)
    assert titles(numbered).tolist() == ["1984", "b", "c", "2.5"]
    assert [text_value(row, "title") for row in table.to_dicts()] == ["1984", None, None, "2.5"]


def test_blank_and_large_values_in_prompts():
    row = {"blank": " \t", "list": [" ", "x", ""], "blanks": [" "], "id": np.int64(2**53 + 1)}
    assert [text_value(row, column) for column in row] == [None, "x", None, "9007199254740993"]


def test_a_table_without_titles_is_said(tmp_path):
    made, found = data(tmp_path, "item_id,label,brand\na,A,x\nb,B,x\nc,C,x\nd,D,x\n")
    assert "no column of titles in the item table (label, brand)" in describe(found, made.data)
    made, found = data(tmp_path, "item_id,TITLE\na,A\nb,B\nc,C\nd,D\n")
    assert "no column of titles" not in describe(found, made.data)


def test_a_column_of_titles_is_no_attribute():
    pairs = [
        {
            "item": "a",
            "title": "Ash",
            "attributes": {"Label": "Ash", "kind": "tree"},
            "history": [
                {"item": "b", "title": "Bay", "attributes": {"Label": "Bay", "kind": "bush"}}
            ],
        }
    ]
    marker = spans.Marker(pairs)
    kinds = [kind for *_, kind in marker.spans("Bay is a bush, Ash a tree.", pairs[0])]
    assert kinds == ["history", "past", "item", "attribute"]
    assert not spans.vocabulary([{"Movie Title": "Ash"}])
    assert assess._tells([{"attributes": {"c": "x"}}, {"attributes": {"c": "y"}}], "c")


# Items of one title.


def test_items_of_one_title_are_different_choices():
    row = {"title": "Blue Hat", "kind": "hat"}
    shirt = {"item_id": "s", "title": "Shirt", "kind": "shirt"}
    history = [row | {"item_id": "x"}, row | {"item_id": "y"}, shirt]
    text = template_explanation(row | {"item_id": "z"}, history, title="title")
    assert "You seem to like hats, such as Blue Hat." in text
    alone = template_explanation(row | {"item_id": "x"}, [history[0], shirt], title="title")
    assert "hats" not in alone  # the item itself is no earlier choice of it
    plain = template_explanation(
        row | {"price": float("nan")}, [row | {"price": float("nan")}], title="title"
    )
    assert plain == template_explanation(row | {"price": float("nan")}, [], title="title")


def test_names_that_several_items_have_are_shown_with_ids():
    names = np.array(["Hat", "Cap", "Hat"])
    assert showcase._unambiguous(names, np.array(["a", "b", "c"])) == ["Hat (a)", "Cap", "Hat (c)"]


def test_a_run_keeps_items_of_one_title_apart(tmp_path):
    made, _ = data(tmp_path, "item_id,Title,kind\na,Hat,wool\nb,Hat,silk\nc,Cap,silk\nd,Hat,silk\n")
    made.stages = ("recommend", "explain", "assess")
    made.explain.explainers, made.explain.users = ("template",), 0
    made.assess.groups, made.assess.resamples = (), 10
    with made.ignore_type():
        made.instruct.template = dict(name="generic", item_columns=("Title", "kind"), title="Title")
    with runs.one_device():
        run.run(made, tmp_path / "w")
    folder = tmp_path / "w" / "explanations"
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    [pair] = [pair for pair in pairs if pair["user"] == "ann"]
    assert (pair["item"], pair["title"]) == ("d", "Hat")
    assert [entry["item"] for entry in pair["history"]] == ["a", "b", "c"]
    assert [entry["title"] for entry in pair["history"]] == ["Hat", "Hat", "Cap"]
    assert pair["prompt"].count("Hat") == 3
    texts = [json.loads(line) for line in (folder / "template.jsonl").read_text().splitlines()]
    [text] = [one["text"] for one in texts if one["user"] == "ann"]
    assert "like silks, such as Hat and Cap" in text  # the silk hat is an earlier choice
    # A run whose config spells out its prompts opens again.
    assert [one["item"] for one in api.restore(tmp_path / "w").recommend(["ann"])] == ["d"]
    # The audit of the run does not take one hat for the other; of prompts alone it cannot tell.
    apart = audit.prompts.target_in_history(audit.read_contents(pairs), "pairs")
    bare = audit.prompts.target_in_history(
        audit.read_contents([{"prompt": one["prompt"]} for one in pairs]), "pairs"
    )
    assert (apart and apart.count) in (None, 0) and bare is not None
