"""Bias: effects by hand and by scipy, correction over the family, sentiment, balanced sets."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from tests import tiny
from tests.tiny import SHARED, needs_shared_data
from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.files import read_records
from xrec_jax.evaluation.bias import (
    REST,
    bias_estimates,
    compare_groups,
    explanation_figures,
    thirds,
)
from xrec_jax.evaluation.texts.grounding import Grounding, Span
from xrec_jax.evaluation.texts.sentiment import sentiment
from xrec_jax.report.sections import bias as section
from xrec_jax.tasks import instructions
from xrec_jax.text import get, parse_prompt
from xrec_jax.text.records.instructions import Instruction, write_instructions
from xrec_jax.text.records.splits import match_lengths, one_answer_each


def _hedges(a, b):
    n, m = len(a), len(b)
    pooled = np.sqrt(((n - 1) * np.var(a, ddof=1) + (m - 1) * np.var(b, ddof=1)) / (n + m - 2))
    return (np.mean(a) - np.mean(b)) / pooled * (1 - 3 / (4 * (n + m) - 9))


def _holm(values):
    """Rejected at which level: the definition, by trying out."""
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    for rank, place in enumerate(order):
        ahead = [values[p] * (len(values) - r) for r, p in enumerate(order[: rank + 1])]
        adjusted[place] = min(1.0, max(ahead))
    return adjusted


def test_effects_and_correction_over_the_whole_family():
    rng = np.random.default_rng(0)
    gender = np.array(["man", "woman", "man", "woman", "woman", "nonbinary"] * 9)
    age = [["18-24", "25-34", "35-49"][place % 3] for place in range(54)]
    figures = {
        name: {"words": rng.normal(60 + lift * (gender == "woman"), 5), "mood": rng.random(54)}
        for name, lift in (("base", 0.0), ("tuned", 6.5))
    }
    found = compare_groups(figures, {"gender": gender.tolist(), "age": age}, least=10)
    # 3 explainers (one is the change), 2 figures, man-woman and three ages against the rest.
    assert len(found) == 3 * 2 * 4
    by_name = {(one.explainer, one.name): one for one in found}
    men, women = gender == "man", gender == "woman"
    changed = figures["tuned"]["words"] - figures["base"]["words"]
    for explainer, values in (("tuned", figures["tuned"]["words"]), ("tuned vs base", changed)):
        one = by_name[explainer, "gender/words"]
        assert (one.first, one.second) == ("man", "woman")  # the nine others are too few
        assert one.effect.counts == (18, 27)
        assert one.effect.size == pytest.approx(_hedges(values[men], values[women]))
        assert one.means == pytest.approx((values[men].mean(), values[women].mean()))
        assert one.effect.low < one.effect.size < one.effect.high < 0
    one = by_name["base", "age=25-34/mood"]
    inside = np.array(age) == "25-34"
    values = figures["base"]["mood"]
    assert one.second == REST
    assert one.effect.size == pytest.approx(_hedges(values[inside], values[~inside]))
    raw = np.array([one.effect.p for one in found])
    expected = stats.ttest_ind(values[inside], values[~inside], equal_var=False).pvalue
    assert one.effect.p == pytest.approx(expected)
    np.testing.assert_allclose([one.p for one in found], _holm(raw))
    table = bias_estimates(found)
    assert set(table) == {"base", "tuned", "tuned vs base"}
    assert table["tuned"]["gender/words_difference"]["value"] == pytest.approx(
        figures["tuned"]["words"][men].mean() - figures["tuned"]["words"][women].mean()
    )
    assert table["tuned"]["gender/words"]["count"] == 45
    assert table["base"]["age=25-34/mood_p"]["value"] == by_name["base", "age=25-34/mood"].p
    assert "man" in str(by_name["tuned", "gender/words"])


def test_a_user_counts_once_and_missing_figures_do_not():
    rng = np.random.default_rng(1)
    values = rng.normal(size=60)
    values[:9] = np.nan  # both of the first four users' figures, one of the fifth's
    users = np.repeat([f"u{n}" for n in range(30)], 2)
    gender = np.repeat(["f", "m", "m"] * 10, 2)
    (one,) = compare_groups({"base": {"x": values}}, {"gender": gender}, users=users, least=5)
    means = {user: np.nanmean(values[users == user]) for user in users[8:]}
    groups = {name: [means[u] for u in means if gender[users == u][0] == name] for name in "fm"}
    assert one.effect.counts == (8, 18) == (len(groups["f"]), len(groups["m"]))
    assert one.effect.size == pytest.approx(_hedges(groups["f"], groups["m"]))
    assert compare_groups({"base": {"x": values}}, {"gender": gender}, users=users, least=9) == []
    assert compare_groups({}, {"gender": []}) == []


def test_groups_that_never_vary():
    gender = ["f", "m"] * 20
    constant = {"same": np.full(40, 0.3), "apart": np.array([0.1, 0.7] * 20)}
    found = compare_groups({"base": constant}, {"gender": gender})
    same, apart = found
    assert (same.metric, same.effect.size, same.p) == ("same", 0.0, 1.0)
    # The largest difference there can be: twenty of each, dealt at random, once (or mirrored) so.
    assert (apart.metric, apart.effect.size) == ("apart", -np.inf)
    assert apart.p == pytest.approx(2 * 2 / math.comb(40, 20))
    table = bias_estimates(found)["base"]
    assert "gender/apart" not in table and np.isfinite(table["gender/apart_p"]["value"])
    assert table["gender/apart_difference"]["value"] == pytest.approx(-0.6)
    assert list(section.effects(table)) == ["gender/same"]
    assert section.without_spread(table) == ["gender/apart"]
    # One group constant, the other nearly so: no warning, a figure.
    near = {"near": np.array([1.0, 1.0 - 1e-9] * 19 + [1.0, 1.0])}
    assert len(compare_groups({"base": near}, {"gender": gender})) == 1
    with pytest.raises(UserError, match=r"differ in length: \[39, 40\]"):
        compare_groups({"base": constant}, {"gender": gender[1:]})


def test_numbers_become_thirds():
    ages = [*range(20, 65, 3), None, 23]
    groups = thirds(ages)
    assert groups[:3] == ["20 to 32", "20 to 32", "20 to 32"]
    assert groups[14:] == ["50 to 62", None, "20 to 32"]
    assert len(set(groups) - {None}) == 3
    assert thirds(["1", "2", "1", ""]) == ["1", "2", "1", None]
    assert thirds(["18-24", "65+"]) == ["18-24", "65+"]
    assert thirds(["7", "x"] * 9) == ["7", "x"] * 9


def test_figures_of_texts():
    grounded = [
        Grounding((Span(0, 1, "item", "i"), Span(2, 3, "catalogue", "c"))),
        Grounding((Span(0, 1, "item_attribute", "a"),)),
    ]
    found = explanation_figures(["one two three", "four"], grounded, sentiment=len)
    assert found["words"].tolist() == [3, 1]
    assert found["sentiment"].tolist() == [13, 4]
    assert found["item_named"].tolist() == [1, 0]
    np.testing.assert_array_equal(found["hallucinated_titles"], [1, np.nan])
    assert found["attributes"].tolist() == [0, 1]
    assert set(explanation_figures(["a"])) == {"words", "sentiment"}


@pytest.mark.parametrize(
    "text, value",
    [
        ("A wonderful, charming bar.", 2 / 3),
        ("A dull bar.", -1 / 2),
        ("It is not dull.", 1 / 2),
        ("You don’t really enjoy it.", -1 / 2),
        ("Not only charming, lovely too.", 2 / 3),
        ("No drawback comes to mind, a lovely place.", 2 / 3),
        ("Never was there such a very long walk to a good bar", 1 / 2),  # out of reach
        ("The bar is in Harbour.", 0),
        ("", 0),
    ],
)
def test_sentiment_with_negation(text, value):
    assert sentiment(text) == pytest.approx(value)


def _pool(lengths, key="gender"):
    return [
        Instruction(f"prompt {group} {place}", "word " * words, meta={key: group})
        for group, counts in lengths.items()
        for place, words in enumerate(counts)
    ]


def test_matched_lengths_against_every_choice():
    rng = np.random.default_rng(2)
    lengths = {"f": rng.integers(9, 19, 7).tolist(), "m": rng.integers(4, 14, 6).tolist()}
    pool = _pool(lengths)
    chosen = match_lengths(pool, 6, key="gender")
    assert chosen == [one for one in pool if one in chosen]
    at = (np.arange(3) + 0.5) / 3
    aims = np.mean([np.quantile(counts, at) for counts in lengths.values()], axis=0)
    for group, counts in lengths.items():
        mine = sorted(len(one.completion.split()) for one in chosen if one.meta["gender"] == group)
        costs = [
            np.abs(np.array(some) - aims).sum()
            for some in itertools.combinations(sorted(counts), 3)
        ]
        assert np.abs(np.array(mine) - aims).sum() == pytest.approx(min(costs))


def test_matched_lengths_close_the_gap_where_they_can():
    rng = np.random.default_rng(3)
    pool = _pool(
        {
            "f": rng.normal(58, 6, 300).round().astype(int).tolist(),
            "m": rng.normal(50, 6, 300).round().astype(int).tolist(),
            "x": rng.normal(70, 2, 11).round().astype(int).tolist(),
        }
    )
    chosen = match_lengths(pool, 131, key="gender", seed=1)
    words = {
        group: np.array([len(o.completion.split()) for o in chosen if o.meta["gender"] == group])
        for group in "fmx"
    }
    assert {group: len(counts) for group, counts in words.items()} == {"f": 60, "m": 60, "x": 11}
    assert abs(words["f"].mean() - words["m"].mean()) < 0.5
    assert abs(words["f"].std() - words["m"].std()) < 1.0
    assert 52 < words["f"].mean() < 56
    # Equally long ones are drawn by the seed.
    assert match_lengths(pool, 131, key="gender", seed=2) != chosen
    assert match_lengths(pool, len(pool), key="gender") == pool
    assert match_lengths(pool, 0, key="gender") == []
    with pytest.raises(UserError, match="cannot choose 700"):
        match_lengths(pool, 700, key="gender")
    with pytest.raises(UserError, match="no 'sex'"):
        match_lengths(pool, 5, key="sex")


def test_one_answer_to_each_prompt():
    answers = [("p", 10), ("q", 30), ("p", 19), ("p", 21), ("q", 22)]
    pool = [Instruction(prompt, "w " * words) for prompt, words in answers]
    assert one_answer_each(pool) == [pool[3], pool[4]]  # the median has 21 words
    assert one_answer_each(pool, words=20) == [pool[2], pool[4]]  # the first of two as near
    assert one_answer_each([]) == []


def test_balanced_sets_of_a_world_and_of_a_file(tmp_path):
    config = tiny.config("popularity")
    config.instruct.update(dict(examples=24, held_out=0.25, history=2))
    plain = instructions.instructions(config, tiny.data(), seed=0)
    config.instruct.balance = "gender"
    found = instructions.instructions(config, tiny.data(), seed=0)
    assert found.held_out == plain.held_out
    assert len(found.train) == 24
    counts = dict.fromkeys(("man", "woman"), 0)
    users = dict(
        zip(tiny.data().dataset.user_ids, tiny.data().dataset.users["gender"], strict=True)
    )
    for one in found.train:
        assert one.meta["gender"] == users[one.meta["user"]]
        counts[one.meta["gender"]] = counts.get(one.meta["gender"], 0) + 1
    assert abs(counts["man"] - counts["woman"]) <= 1
    assert "balanced by gender: man " in found.notes[-1]
    config.instruct.balance = "gendre"
    with pytest.raises(UserError, match="did you mean 'gender'"):
        instructions.instructions(config, tiny.data(), seed=0)

    path = tmp_path / "set.jsonl"
    pool = _pool({"f": [9, 8, 7, 6, 5, 9, 9], "m": [5, 6, 7, 2, 3]})
    longer = [Instruction(one.prompt, one.completion + "word " * 40) for one in pool]
    longer = [
        Instruction(o.prompt, o.completion, meta=p.meta) for o, p in zip(longer, pool, strict=True)
    ]
    write_instructions(path, [*pool, *longer])
    config.instruct.update(dict(source="file", path=str(path), balance="gender", examples=6))
    found = instructions.instructions(config, tiny.data(), seed=0)
    groups = [one.group for one in found.train]
    assert len(found.train) == len(set(groups)) == 6  # one answer a prompt
    assert [one.meta["gender"] for one in found.train].count("f") == 3
    config.instruct.examples = 0
    with pytest.raises(UserError, match=r"instruct\.examples: how many"):
        instructions.instructions(config, tiny.data(), seed=0)
    config.instruct.update(dict(balance="sex", examples=6))
    with pytest.raises(UserError, match="a record has no such key"):
        instructions.instructions(config, tiny.data(), seed=0)


@needs_shared_data
def test_published_explanations_differ_little_in_length_by_gender():
    folder = SHARED / "llmxrec" / "bpr-mf"
    gender = {
        record["prompt_id"]: parse_prompt(get("llmxrec_movie"), record["prompt"]).user["gender"]
        for record in read_records(folder / "prompts.jsonl.gz")
        if record["dataset"] == "ml-100k"
    }
    names = {"LLaMA2": "base", "LLaMA2-SFT": "tuned", "GPT4": "gpt4"}
    words = {name: {} for name in names.values()}
    for record in read_records(folder / "explanations.jsonl.gz"):
        if record["model"] in names and record["prompt_id"] in gender:
            count = len(record["completion"].split())
            words[names[record["model"]]][record["prompt_id"]] = count
    prompts = sorted(gender)
    figures = {
        name: {"words": np.array([counts[prompt] for prompt in prompts], float)}
        for name, counts in words.items()
    }
    found = {
        one.explainer: one
        for one in compare_groups(figures, {"gender": [gender[prompt] for prompt in prompts]})
    }
    assert (found["base"].first, found["base"].effect.counts) == ("female", (273, 670))
    gaps = {name: round(one.effect.difference, 2) for name, one in found.items()}
    # Women get shorter texts before tuning and longer ones after it; neither is sure.
    assert gaps["gpt4"] < 0 and gaps["base"] < 0 < gaps["tuned"]
    assert found["base"].p > 0.05 and found["tuned"].p > 0.05


def test_the_word_list_says_nothing_of_other_scripts():
    texts = ["Хороший фильм", "好电影", "A good film"]
    found = explanation_figures(texts)
    assert np.isnan(found["sentiment"]).tolist() == [True, True, False]
    assert found["words"].tolist() == [2, 3, 3]
