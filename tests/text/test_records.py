"""Records of explanations: the prompt's hash, and pairs beside what answers them."""

import hashlib

import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.text.records.explanations import EXPLANATION_COLUMNS, Explanation, join, prompt_hash


def pair(user, item, prompt="why?"):
    return {"user": user, "item": item, "prompt": prompt, "prompt_hash": prompt_hash(prompt)}


def record(user, item, text, prompt="why?"):
    return {"user": user, "item": item, "text": text, "prompt_hash": prompt_hash(prompt)}


def test_hash_is_the_start_of_sha256():
    for text in ("", "why this café?", "lone surrogate \ud800"):
        whole = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        assert prompt_hash(text) == whole[:32]


def test_records_in_any_order_come_beside_their_pairs():
    pairs = [pair("b", "2"), pair("a", "1", "and why this?"), pair("a", "2")]
    records = [record("a", "2", "x"), record("a", "1", "y", "and why this?"), record("b", "2", "z")]
    found = join(pairs, records)
    assert [one.pair for one in found] == pairs
    assert [one.explanation["text"] for one in found] == ["z", "y", "x"]


@pytest.mark.parametrize(
    ("pairs", "records", "message"),
    [
        ([pair("a", "1")] * 2, [], "'a' with item '1' is there twice"),
        ([pair("a", "1")], [record("a", "2", "")], "'2' is explained, but it is not among"),
        ([pair("a", "1")], [record("a", "1", "")] * 2, "explained twice"),
        ([pair("a", "1")], [record("a", "1", "", "how?")], "answers another prompt"),
        ([pair("a", "1"), pair("b", "1")], [record("a", "1", "")], "'b' .* has no explanation"),
    ],
)
def test_what_does_not_fit_is_refused(pairs, records, message):
    with pytest.raises(UserError, match=message):
        join(pairs, records)


def test_columns_are_those_of_the_record():
    assert tuple(Explanation.__annotations__) == EXPLANATION_COLUMNS
