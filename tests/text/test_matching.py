"""Layouts matched against text: as a regular expression would, but in linear time."""

import dataclasses
import random
import re
import time

import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.text.prompts import layout as layouts
from xrec_jax.text.prompts import published, templates
from xrec_jax.text.prompts.matching import Pattern, Piece, pieces_of
from xrec_jax.text.prompts.parsing import parse_prompt, read_prompt
from xrec_jax.text.prompts.render import render_prompt
from xrec_jax.text.prompts.templates import Template

LAYOUTS = ["{a}: {b}[[, {c} x]][[, {d}]]", "{a}[[ {a}]] {b}", "[[{a}, ]]{b}{c}.", "a{a}[[a{b}a]]a"]


def naive(layout):
    """The same as a regular expression."""
    names, pattern, seen = layouts.fields_of(layout), "", set()
    for part in layouts.parse_layout(layout):
        inner = ""
        for piece in part.pieces:
            if isinstance(piece, str):
                inner += re.escape(piece)
            else:
                group = f"f{names.index(piece.name)}"
                inner += f"(?P={group})" if group in seen else f"(?P<{group}>.*?)"
                seen.add(group)
        pattern += f"(?:{inner})?" if part.optional else inner
    return re.compile(pattern), names


def drawn_layout(draw):
    parts = []
    for _ in range(draw.randrange(1, 6)):
        part = "".join(
            draw.choices(["{a}", "{b}", "{c}", "a", "b", ", ", "\n"], k=draw.randrange(1, 4))
        )
        parts.append(f"[[{part}]]" if draw.random() < 0.4 else part)
    return "".join(parts)


def test_what_is_found_is_what_an_expression_finds():
    draw = random.Random(5)
    matched = 0
    for layout in [*LAYOUTS, *(drawn_layout(draw) for _ in range(150))]:
        pattern, names = naive(layout)
        pieces = pieces_of(layout)
        whole, beginning = Pattern([*pieces, Piece("end")]), Pattern(pieces)
        for _ in range(60):
            text = "".join(draw.choices("ab,:x.\n ", k=draw.randrange(12)))
            wanted, found = pattern.fullmatch(text), whole.match(text)
            assert (wanted is None) == (found is None), (layout, text)
            if wanted is not None:
                matched += 1
                spans = {name: wanted.span(f"f{place}") for place, name in enumerate(names)}
                there = {name: span for name, span in spans.items() if span[0] >= 0}
                assert found == there | {"": (0, len(text))}, (layout, text)
            first, shorter = pattern.match(text), beginning.match(text)
            assert (first and first.span()) == (shorter and shorter[""]), (layout, text)
    assert matched > 300


def filled(name, entries=4):
    items = tiny.data().dataset.items.to_dicts()
    template = templates.get(name)
    row = dict.fromkeys(
        [
            template.columns.get(field, field)
            for layout in (template.item, template.entry, template.user)
            for field in layouts.fields_of(layout)
        ],
        "some words, a price level 3, in a town",
    )
    history = [
        row | {name: f"{value} {number}" for name, value in row.items()}
        for number in range(entries)
    ]
    if name == "places":
        row, history = items[0] | {"user_text": "A woman."}, items[1 : entries + 1]
    return render_prompt(template, item=row, history=history, user=row).text


@pytest.mark.parametrize("name", templates.names())
@pytest.mark.parametrize("entries", [0, 4])
def test_a_trimmed_prompt_is_read_as_the_whole_one(name, entries):
    text = filled(name, entries)
    template = templates.get(name)
    whole = parse_prompt(template, text)
    assert len(whole.history) == entries
    for trimmed in (text.strip(), text.rstrip(), text + "\n\n ", "\n" + text):
        assert parse_prompt(template, trimmed) == whole
        found = read_prompt(trimmed)
        assert found is not None and found == read_prompt(text)


def test_a_trimmed_end_may_be_an_entrys():
    template = Template("ends", "Visits:\n{history}", "{index}. {name}[[, {kind}]]\n")
    rows = [{"name": "Ash", "kind": "bar"}, {"name": "Oak", "kind": None}]
    text = render_prompt(template, item={}, history=rows).text
    assert text.endswith("\n")
    assert parse_prompt(template, text.strip()) == parse_prompt(template, text)
    separated = dataclasses.replace(template, entry="{index}. {name}", separator="; ")
    text = render_prompt(separated, item={}, history=rows).text
    assert [one["name"] for one in parse_prompt(separated, text).history] == ["Ash", "Oak"]


def test_time_is_linear_where_a_prompt_nearly_matches():
    """Each of these takes minutes with an expression, or longer."""
    text = filled("places")
    broken = [
        text.rstrip() + ", nice" * 2_000 + "\nAnd more.",  # every comma may begin a part
        text.replace("\n2. ", "\n2. " + "a: b, price level 3, in x, y food" * 500 + "\n"),
        text.replace("Recommended place", "Recommended plaice") + "About the user: " * 2_000,
        "1. " * 20_000,
    ]
    start = time.process_time()
    for prompt in broken:
        with pytest.raises(UserError, match="does not follow"):
            parse_prompt(published.PLACES, prompt)
    long = text.rstrip() + ", nice" * 2_000
    assert parse_prompt(published.PLACES, long).item["district"].endswith(", nice")
    assert time.process_time() - start < 5
