"""Grounding of answers to prompts that exist as text only."""

import pytest

from tests.tiny import SHARED, needs_shared_data
from xrec_jax.evaluation.texts.prompt_grounding import PromptGrounder, prompt_context
from xrec_jax.text import get
from xrec_jax.text.prompts.templates import Template
from xrec_jax.text.records.instructions import read_instructions


def _film(item, genres, history):
    template = get("llmxrec_movie")
    entries = [
        template.render_entry({"movie_title": title, "class": values}, index)
        for index, (title, values) in enumerate(history, start=1)
    ]
    return template.assemble(
        user=template.render_user({"age": "24", "gender": "male", "occupation": "artist"}),
        item=template.render_item({"movie_title": item, "class": genres}),
        entries=entries,
    )


def _game(item, tags, history):
    template = get("llmxrec_game")
    entries = [
        template.render_entry({"title": title, "tags": values}, index)
        for index, (title, values) in enumerate(history, start=1)
    ]
    item = template.render_item({"title": item, "tags": tags})
    return template.assemble(user="", item=item, entries=entries)


FILM = _film("Contact", ["Drama", "Sci-Fi"], [("Gattaca", ["Thriller"]), ("Alien", ["Sci-Fi"])])
GAME = _game("Rust", ["Indie"], [("Portal 2", ["Action", "Free to Play"]), ("Limbo", None)])


def test_lists_are_read_as_the_template_writes_them():
    assert prompt_context(FILM) == {
        "title": "Contact",
        "attributes": {"class": ["Drama", "Sci-Fi"]},
        "history": [
            {"title": "Gattaca", "attributes": {"class": ["Thriller"]}},
            {"title": "Alien", "attributes": {"class": ["Sci-Fi"]}},
        ],
    }
    game = prompt_context(GAME)
    assert game["attributes"] == {"tags": ["Indie"]}
    assert game["history"][0]["attributes"] == {"tags": ["Action", "Free to Play"]}
    assert game["history"][1]["attributes"] == {"tags": []}  # written as "nan": no value


def test_a_template_of_ones_own_is_read_too():
    own = Template(
        name="own_books", body="Read:\n{history}\nNext: {item}", entry="{title}; ", item="{title}"
    )
    prompt = own.assemble(user="", item="Emma", entries=["Persuasion; ", "Middlemarch; "])
    assert prompt_context(prompt) is None
    context = prompt_context(prompt, own)
    assert context["title"] == "Emma"
    assert [entry["title"] for entry in context["history"]] == ["Persuasion", "Middlemarch"]


def test_what_answers_name_is_looked_up_in_their_prompts():
    # By hand: the first names item and one of two history titles, and a title of the other prompt;
    # the second nothing but an invented title, and an attribute that its prompt lacks.
    texts = [
        'As you liked Gattaca and "Portal 2", Contact, a drama, suits you.',
        'You loved "The Purple Submarine of Doom", so this thriller is for you.',
    ]
    figures = PromptGrounder([FILM, GAME]).figures([FILM, GAME], texts, resamples=0)
    expected = {
        "item_named": 0.5,
        "history_cited": 0.5,
        "absent_titles": 0.5,
        "unknown_titles": 0.5,
        "hallucinated_titles": 2 / 3,
        "attributes_precision": 0.5,
    }
    for name, value in expected.items():
        assert figures[f"grounding/{name}"]["value"] == pytest.approx(value), name


def test_prompts_that_cannot_be_read_are_not_counted():
    grounder = PromptGrounder([FILM, "Why?"])
    figures = grounder.figures([FILM, "Why?"], ["Contact.", "Contact."], resamples=0)
    assert figures["grounding/item_named"]["count"] == 1
    assert grounder.figures(["Why?"], ["Contact."], resamples=0) == {}


@needs_shared_data
def test_the_published_set_is_read_whole():
    records = read_instructions(SHARED / "llmxrec" / "instructions.jsonl")
    grounder = PromptGrounder([record.prompt for record in records])

    def named(dataset):
        rows = [record for record in records if record.meta["dataset"] == dataset]
        figures = grounder.figures(
            [row.prompt for row in rows], [row.completion for row in rows], resamples=0
        )
        assert figures["grounding/item_named"]["count"] == len(rows)
        return figures

    for dataset in ("ml-100k", "steam"):
        assert named(dataset)["grounding/item_named"]["value"] == 1.0
        assert named(dataset)["grounding/hallucinated_titles"]["value"] == 0.0
    # Headlines are paraphrased.
    assert named("mind")["grounding/item_named"]["value"] == 0.35
