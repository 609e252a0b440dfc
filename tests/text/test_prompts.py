"""History selection and truncation, against sorting by hand and a naive loop."""

import math

import numpy as np
import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.text.prompts import published, templates
from xrec_jax.text.prompts.render import Prompt, TruncationCount, render_prompt, select_history

TEMPLATE = templates.Template(
    name="t", body="{history}- {user} {item}!", entry="{index} {a}\n", item="{a}", user="{b}"
)
USER, ITEM = {"b": "me"}, {"a": "target"}


def test_history_is_sorted_by_time_with_ties_in_file_order():
    entries, times = list("abcdef"), [3, 1, 3, 2.5, 1, 9]
    assert select_history(entries, times) == list("bedacf")
    assert select_history(entries, times, latest=2) == list("cf")
    assert select_history(entries, times, latest=2, before=9) == list("ac")
    assert select_history(entries, times, latest=3, without="c") == list("daf")
    assert select_history(entries, latest=2) == list("ef")
    assert select_history(entries, latest=0) == []
    assert select_history(entries, latest=99) == entries
    assert select_history([5, 0, 5], without=0) == [5, 5]
    assert select_history([], []) == []
    assert select_history([1, 2], np.array([2.5, 2.25])) == [2, 1]


def test_wrong_history_arguments_are_refused():
    with pytest.raises(UserError, match="at least 0, got -1"):
        select_history("ab", latest=-1)
    with pytest.raises(UserError, match="2 history entries but 1 times"):
        select_history("ab", [1])
    with pytest.raises(UserError, match="needs the times"):
        select_history("ab", before=3)


def test_a_cut_prompt_by_hand():
    history = [{"a": "one two"}, {"a": "three"}, {"a": "four"}]
    full = "1 one two\n2 three\n3 four\n- me target!"
    assert render_prompt(TEMPLATE, user=USER, item=ITEM, history=history) == Prompt(full, 3)
    words = lambda text: len(text.split())  # noqa: E731
    cut = render_prompt(
        TEMPLATE, user=USER, item=ITEM, history=history, count_tokens=words, max_tokens=9
    )
    assert cut == Prompt("1 three\n2 four\n- me target!", shown=2, dropped=1, tokens=7)
    fits = render_prompt(
        TEMPLATE, user=USER, item=ITEM, history=history, count_tokens=str.split, max_tokens=10
    )
    assert fits == Prompt(full, shown=3, dropped=0, tokens=10)


def naive(template, user, item, history, count, budget):
    """Drops one entry after the other."""
    for dropped in range(len(history) + 1):
        text = render_prompt(template, user=user, item=item, history=history[dropped:]).text
        if count(text) <= budget:
            return text, dropped
    return None, None


@pytest.mark.parametrize("count", [len, lambda t: math.ceil(len(t) / 3.7), lambda t: t.split()])
def test_truncation_equals_a_naive_loop_and_counts_few_times(count):
    data = tiny.data()
    items, users = data.dataset.items.to_dicts(), data.dataset.users.to_dicts()
    rng = np.random.default_rng(5)
    calls = 0

    def size(text):
        counted = count(text)
        return counted if isinstance(counted, int) else len(counted)

    def counting(text):
        nonlocal calls
        calls += 1
        return count(text)

    seen, prompts = set(), []
    for case in range(60):
        length = int(rng.integers(0, 40))
        history = [items[row] for row in rng.integers(0, len(items), length)]
        user, item = users[case], items[case]
        shortest = render_prompt(published.PLACES, user=user, item=item, history=[]).text
        longest = render_prompt(published.PLACES, user=user, item=item, history=history).text
        low, high = size(shortest), size(longest)
        budget = int(rng.integers(low, max(high + high // 4, low + 1)))
        want = naive(published.PLACES, user, item, history, size, budget)
        calls = 0
        got = render_prompt(
            published.PLACES,
            user=user,
            item=item,
            history=history,
            count_tokens=counting,
            max_tokens=budget,
        )
        assert (got.text, got.dropped) == want
        assert got.shown + got.dropped == length and got.tokens == size(got.text) <= budget
        assert calls <= 2 + math.ceil(math.log2(length + 1))
        assert users[case]["user_text"] in got.text and "within 75 words" in got.text
        seen.add((got.dropped > 0) + (got.shown == 0))
        prompts.append(got)
    assert seen == {0, 1, 2}
    total = TruncationCount.of(prompts)
    assert total.prompts == 60
    assert total.dropped == sum(p.dropped for p in prompts) > 0
    assert total.cut == len([p for p in prompts if p.dropped])


def test_the_budget_holds_for_a_count_that_jumps():
    # A tokenizer may merge across entries: more text can take fewer tokens.
    history = [{"a": "x" * n} for n in (3, 9, 1, 7, 2, 8)]
    jumpy = lambda text: len(text) - (11 if len(text) % 3 == 0 else 0)  # noqa: E731
    for budget in range(14, 60):
        got = render_prompt(
            TEMPLATE, user=USER, item=ITEM, history=history, count_tokens=jumpy, max_tokens=budget
        )
        assert jumpy(got.text) <= budget


def test_a_prompt_too_long_without_history_is_refused():
    for history in ([], [{"a": "x"}] * 3):
        with pytest.raises(UserError, match=r"takes 3 tokens without any history.* budget of 2"):
            render_prompt(
                TEMPLATE,
                user=USER,
                item=ITEM,
                history=history,
                count_tokens=lambda text: text.split(),
                max_tokens=2,
            )


def test_what_a_prompt_needs_is_named():
    with pytest.raises(UserError, match="'t' needs a user row"):
        render_prompt(TEMPLATE, item=ITEM, history=[])
    with pytest.raises(UserError, match="count_tokens"):
        render_prompt(TEMPLATE, user=USER, item=ITEM, history=[], max_tokens=5)


def test_the_count_of_what_was_cut_by_hand():
    total = TruncationCount.of([Prompt("", 4), Prompt("", 2, 3), Prompt("", 0, 1)])
    assert total == TruncationCount(prompts=3, cut=2, dropped=4, shown=6)
    assert str(total) == ("2 of 3 prompts cut to the token budget: 4 of 10 history entries dropped")
    assert TruncationCount.of([]) + total == total
