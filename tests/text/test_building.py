"""Instruction sets from the tiny world: what they cite stands in their prompts."""

import numpy as np

from tests import tiny
from xrec_jax.data.world.config import WorldConfig
from xrec_jax.data.world.world import generate
from xrec_jax.text.prompts import published
from xrec_jax.text.records.instructions import read_instructions, write_instructions
from xrec_jax.text.records.splits import split_by_prompt
from xrec_jax.text.synthetic.instructions import Case, build_instructions


def cases():
    world = generate(WorldConfig(**tiny.WORLD))
    items, users = world.dataset.items.to_dicts(), world.dataset.users.to_dicts()
    rows = np.arange(len(users))
    made = world.last_choice(rows)
    events = world.dataset.interactions
    for user in rows.tolist():
        visited = events.item[events.user == user].tolist()
        target = visited[made[user]]
        yield Case(
            item=items[target],
            history=[items[row] for row in visited[: made[user]]],
            reasons=world.reasons(np.array([user]), np.array([target]))[0],
            user=users[user],
            meta={"user": users[user]["user_id"], "item": items[target]["item_id"]},
        )


def test_explanations_cite_only_what_the_prompt_shows(tmp_path):
    given = list(cases())
    names = [case["name"] for case in tiny.data().dataset.items.to_dicts()]
    built, cut = build_instructions(
        given, published.PLACES, latest=6, count_tokens=str.split, max_tokens=128, seed=3
    )
    assert cut.prompts == len(built) == len(given) and 0 < cut.cut < len(built)
    for case, made in zip(given, built, strict=True):
        assert len(made.prompt.split()) <= 128 and made.meta == case.meta
        assert case.item["name"] in made.completion
        assert 50 <= len(made.completion.split()) <= 70
        for name in names:
            if name in made.completion:
                assert name in made.prompt
    again, _ = build_instructions(
        given[::-1], published.PLACES, latest=6, count_tokens=str.split, max_tokens=128, seed=3
    )
    assert again == built[::-1]
    path = tmp_path / "set.jsonl"
    write_instructions(path, built)
    assert read_instructions(path) == built
    train, held = split_by_prompt(built, held_out=0.2)
    assert len(held) == 15 and len(train) == 60


def test_no_history_is_shown_where_none_is_wanted():
    built, cut = build_instructions(list(cases())[:9], published.PLACES, latest=0)
    assert cut.shown == cut.cut == 0
    assert all("oldest first:\n(none)\n" in made.prompt for made in built)
    assert not any("your history" in made.completion for made in built)
