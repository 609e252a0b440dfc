"""Prompt layouts: published prompts byte for byte, hand-worked texts, what is refused."""

import dataclasses
import gzip
import json
import re

import numpy as np
import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.text.prompts import published, templates
from xrec_jax.text.prompts.parsing import parse_prompt
from xrec_jax.text.prompts.render import render_prompt
from xrec_jax.text.prompts.templates import Template

ROWS_MOVIE = [
    {"title": "Heat (1995) {director's cut}", "class": "Action Crime"},
    {"title": "2001: A Space Odyssey", "class": "Drama"},
]


def read_by_lines(prompt):
    """Title and attribute lines of the history and of the item, without any template."""
    head, body, _ = prompt.split("\n\n")[:3]
    lines = head.split("\n")[1:]
    starts = []
    for place, line in enumerate(lines):
        if line.startswith(f"{len(starts) + 1}: "):
            starts.append(place)
    stretches = [lines[a:b] for a, b in zip(starts, [*starts[1:], len(lines)], strict=True)]
    history = [[s[0].split(": ", 1)[1], *s[1:]] for s in stretches]
    item = body.split("\n")[2:]
    profile = re.match(r"The age .* is (\d+), the gender is (\w+) and .* is (.*?)\. As a", body)
    return history, [item[0][:-1], *item[1:]], profile and profile.groups()


def attribute(line):
    return re.fullmatch(r"The .*? of the \w+ (?:is|are) (.*)\.", line).group(1)


def as_row(fields, names):
    values = [fields[0], *map(attribute, fields[1:])]
    return dict(zip(names, values, strict=True))


def rendered_again(record, template, names):
    history, item, profile = read_by_lines(record["prompt"])
    user = profile and dict(zip(("age", "gender", "occupation"), profile, strict=True))
    return render_prompt(
        template,
        user=user,
        item=as_row(item, names),
        history=[as_row(entry, names) for entry in history],
    )


# Fields of each data set, and templates by where a prompt comes from: the tuning set or a system.
MOVIE = dataclasses.replace(published.MOVIE, columns={})
LAYOUTS = {
    "ml-100k": (("title", "class"), MOVIE, MOVIE),
    "mind": (("title", "category", "sub_category"), published.NEWS, published.NEWS_ASKED),
    "steam": (("title", "tags"), published.GAME, published.GAME),
}


@tiny.needs_shared_data
def test_published_tuning_prompts_are_rendered_byte_for_byte():
    lines = (tiny.SHARED / "llmxrec/instructions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 240
    for record in records:
        names, template, _ = LAYOUTS[record["dataset"]]
        assert rendered_again(record, template, names).text == record["prompt"]
        back = parse_prompt(template, record["prompt"])
        assert len(back.history) == len(read_by_lines(record["prompt"])[0])


@tiny.needs_shared_data
def test_published_system_prompts_are_rendered_byte_for_byte():
    with gzip.open(tiny.SHARED / "llmxrec/bpr-mf/prompts.jsonl.gz", "rt") as file:
        records = [json.loads(line) for line in file]
    assert len(records) == 2944
    stray = 0
    for record in records:
        names, _, template = LAYOUTS[record["dataset"]]
        text = rendered_again(record, template, names).text
        # One published prompt ends in a stray space.
        stray += text + " " == record["prompt"]
        assert text == record["prompt"] or text + " " == record["prompt"]
        back = parse_prompt(template, text)
        again = render_prompt(template, user=back.user, item=back.item, history=back.history)
        assert again.text == text
    assert stray == 1


def test_the_movie_layout_by_hand():
    user = {"age": 26.0, "gender": "female", "occupation": "homemaker"}
    item = {"movie_title": "Fargo", "class": ["Crime", "Drama"]}
    history = [{"movie_title": row["title"], "class": row["class"]} for row in ROWS_MOVIE]
    text = render_prompt(published.MOVIE, user=user, item=item, history=history).text
    head, body, tail, end = text.split("\n\n")
    assert head == (
        "The history films watched by the customer are:\n"
        "1: Heat (1995) {director's cut}\nThe class of the movie is Action Crime.\n"
        "2: 2001: A Space Odyssey\nThe class of the movie is Drama."
    )
    assert body.startswith(
        "The age of the customer is 26, the gender is female and the customer's occupation is "
        "homemaker. As a recommender system in the movie domain, based on"
    )
    assert body.endswith("class:\nFargo.\nThe class of the movie is Crime Drama.")
    assert tail.endswith("SHORT and CONCISE language. Your response should be WITHIN 75 words.")
    assert end == ""


def test_the_news_layouts_differ_in_their_last_sentences_only_and_keep_the_typos():
    row = {"title": "A", "category": "b", "sub_category": "c"}
    tuned = render_prompt(published.NEWS, item=row, history=[row]).text
    asked = render_prompt(published.NEWS_ASKED, item=row, history=[row]).text
    assert "in the news domin, according" in tuned and "viewing history , tell" in asked
    assert "CONCISE language.You're responding" in tuned
    assert "CONCISE language. Your response" in asked
    assert tuned != asked and tuned.split("\n\n")[:2] == asked.split("\n\n")[:2]
    assert sorted(tuned.replace(".", ". ").split()) == sorted(asked.replace(".", ". ").split())


def test_games_list_their_tags_in_brackets_and_say_nan_for_none():
    item = {"title": "Rust", "tags": np.array(["Action", "Free to Play"])}
    history = [{"title": "Odd\nTitle", "tags": float("nan")}, {"title": "Bare", "tags": []}]
    text = render_prompt(published.GAME, item=item, history=history).text
    assert (
        "1: Odd Title\nThe tags of the game are nan.\n2: Bare\nThe tags of the game are nan."
        in text
    )
    assert "Rust.\nThe tags of the game are [Action, Free to Play].\n" in text
    assert len(parse_prompt(published.GAME, text).history) == 2


def test_places_of_the_world():
    data = tiny.data()
    items, users = data.dataset.items.to_dicts(), data.dataset.users.to_dicts()
    text = render_prompt(published.PLACES, user=users[0], item=items[3], history=items[:2]).text
    gym, cinema, place = items[0], items[1], items[3]
    assert text == (
        "Tell the user why the recommended place may suit them and what may speak against it. Use "
        "only the facts below and stay within 75 words.\n\n"
        "Places the user went to, oldest first:\n"
        f"1. {gym['name']}: gym, trendy, price level 3, famous, in Old Town\n"
        f"2. {cinema['name']}: cinema, romantic, price level 1, well-liked, in Eastfield\n"
        f"\nAbout the user: {users[0]['user_text']}\n"
        f"Recommended place: {place['name']}: restaurant, Italian food, quiet, price level 3, "
        "well-liked, in Harbour\n\n"
    )
    empty = render_prompt(published.PLACES, user=users[0], item=items[3], history=[]).text
    assert "oldest first:\n(none)\n\nAbout" in empty


def test_a_long_prompt_that_does_not_match_is_refused_at_once():
    items = tiny.data().dataset.items.to_dicts()
    user = {"user_text": "hi"}
    text = render_prompt(published.PLACES, user=user, item=items[0], history=items[:60]).text
    assert len(parse_prompt(published.PLACES, text).history) == 60
    broken = [text.replace("\n33. ", "\n33 - "), text.replace("About", "Abuot"), text[::-1]]
    for prompt in broken:
        with pytest.raises(UserError, match="does not follow"):
            parse_prompt(published.PLACES, prompt)


@pytest.mark.parametrize("name", ["llmxrec_movie", "llmxrec_news", "llmxrec_game", "places"])
def test_generated_prompts_are_read_back(name):
    template = templates.get(name)
    rng = np.random.default_rng(0)
    words = ["Odd: Title", "x.y", "the {class}", "A, B", "12: 3", "ends (now)"]

    def row(table):
        columns = templates.layouts.fields_of(table)
        return {
            template.columns.get(c, c): f"{rng.choice(words)} {rng.integers(9)}" for c in columns
        }

    for length in (1, 2, 11):
        user, item = row(template.user), row(template.item)
        history = [row(template.item) for _ in range(length)]
        text = render_prompt(template, user=user, item=item, history=history).text
        back = parse_prompt(template, text)
        renamed = [{template.columns.get(k, k): v for k, v in h.items()} for h in back.history]
        if name != "places":  # where values hold its separators a place's fields are ambiguous
            assert renamed == history
            assert back.user == user
        again = render_prompt(
            template,
            user=back.user,
            item={template.columns.get(k, k): v for k, v in back.item.items()},
            history=renamed,
        )
        assert again.text == text
    with pytest.raises(UserError, match="does not follow"):
        parse_prompt(template, "Something else entirely")


def test_the_generic_layout_leaves_out_what_is_missing():
    template = templates.generic(
        item_columns=["name", "genre", "pages"], user_columns=["age"], item_word="book"
    )
    history = [{"name": "A", "genre": None, "pages": 10.5}, {"name": "B", "genre": "", "pages": 7}]
    item = {"name": "C", "genre": ["x", "y"], "pages": np.float32(0.1)}
    text = render_prompt(template, user={"age": np.int64(9)}, item=item, history=history).text
    assert text.startswith(
        "Earlier choices of the user, oldest first:\n1. A; pages: 10.5\n2. B; pages: 7\n\n"
        "About the user:\n- age: 9\n\n"
        "Recommended book:\nC; genre: x, y; pages: 0.1\n\nExplain to the user why this book may"
    )


def test_a_config_states_only_its_difference():
    short = templates.template_from(
        {"base": "places", "name": "short", "entry": "{index} {name}\n"}
    )
    assert short.body == published.PLACES.body and short.entry == "{index} {name}\n"
    assert templates.template_from("places") is published.PLACES
    made = templates.template_from({"name": "generic", "item_columns": ["name"]})
    assert made.item == "{name}" and not made.user
    own = dict(name="own", body="{history}|{item}", entry="{a}", item="{a}", absent=["-"])
    template = templates.template_from(own)
    assert render_prompt(template, item={"a": "-"}, history=[{"a": 1}]).text == "1|unknown"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("llmxrec_move", "did you mean 'llmxrec_movie'"),
        ({"base": "places", "entri": "x"}, "unknown key 'entri'.*did you mean 'entry'"),
        ({"name": "x", "body": "{history}{item}", "entry": "a"}, "need each other, once"),
        ({"name": "generic", "item_colums": ["a"]}, "did you mean 'item_columns'"),
        ({"name": "generic"}, "needs item_columns"),
        ({"name": "generic", "item_columns": []}, "at least one item column"),
        ({"name": "generic", "item_columns": ["a", "b{"]}, "rename it"),
    ],
)
def test_a_wrong_config_is_refused(spec, message):
    with pytest.raises(UserError, match=message):
        templates.template_from(spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"body": "{history}"}, "need each other, once"),
        ({"body": "{history}{item}{item}"}, "need each other, once"),
        ({"body": "{history}{item}{usr}"}, "unknown field 'usr'.*'user'"),
        ({"user": "{a}"}, "need each other"),
        ({"entry": "{a"}, "wrong layout"),
        ({"entry": "{}"}, "plain column name"),
        ({"entry": "{a:>3}"}, "plain column name"),
        ({"entry": "[[{a}"}, "without its own"),
        ({"listed": "{lst}"}, "listed must hold"),
    ],
)
def test_a_wrong_template_is_refused(changes, message):
    fine = dict(name="t", body="{history}{item}", entry="{a}", item="{a}")
    with pytest.raises(UserError, match=message):
        Template(**(fine | changes))


def test_a_missing_column_is_named():
    with pytest.raises(UserError, match="'llmxrec_news', item table: no column 'category'"):
        render_prompt(published.NEWS, item={"title": "A"}, history=[])
    with pytest.raises(UserError, match="no column 'movie_title'; did you mean 'movie_titles'"):
        render_prompt(
            published.MOVIE,
            user={"age": 1, "gender": "f", "occupation": "x"},
            item={"movie_titles": "A"},
            history=[],
        )


def test_a_name_is_registered_once():
    assert templates.register(published.PLACES) is published.PLACES
    with pytest.raises(UserError, match="already is another"):
        templates.register(dataclasses.replace(published.PLACES, item="{name}"))


def test_entries_between_separators_are_read_back():
    template = Template(
        name="s",
        body="{history}. {item}",
        entry="{index}) {a}[[ ({b})]]",
        item="{a}",
        separator="; ",
    )
    history = [{"a": "x; y", "b": "1"}, {"a": "z", "b": None}, {"a": "w", "b": "2.5"}]
    text = render_prompt(template, item={"a": "end"}, history=history).text
    assert text == "1) x; y (1); 2) z; 3) w (2.5). end"
    assert list(parse_prompt(template, text).history) == history
