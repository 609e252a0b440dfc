"""Text figures: against the libraries on whole corpora, naive loops, cases worked by hand."""

import itertools
import math

import numpy as np
import pytest

from tests.tiny import SHARED, needs_shared_data
from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.files import read_records
from xrec_jax.evaluation.texts import overlap
from xrec_jax.evaluation.texts.text_metrics import diversity, flesch, syllables, text_metrics
from xrec_jax.text.words import has_blanks

WORDS = "the a park quiet bar lively near home you like it and good food cheap music view".split()


def _texts(count, seed, longest=14):
    rng = np.random.default_rng(seed)
    return [
        " ".join(rng.choice(WORDS, rng.integers(1, longest))).capitalize() + "." * (place % 3 > 0)
        for place in range(count)
    ]


def _sacrebleu(texts, references):
    import sacrebleu

    score = sacrebleu.corpus_bleu(texts, [references])
    return score.score, score.precisions[0]


@pytest.mark.parametrize(
    "texts, references",
    [
        (_texts(23, 0), _texts(23, 1)),
        (_texts(9, 2, longest=4), _texts(9, 3, longest=4)),  # some order without a match
        (["Quiet park.", "x", ""], ["A quiet park, near home.", "y y", "z"]),
        (["one two"], ["three four"]),
        (["one"], ["one"]),  # no n-gram of the higher orders at all
    ],
)
def test_corpus_bleu_is_the_librarys(texts, references):
    figures = text_metrics(texts, references, resamples=0).corpus
    score, first = _sacrebleu(texts, references)
    assert figures["text/bleu"]["value"] == pytest.approx(score, rel=1e-9, abs=1e-9)
    assert figures["text/bleu_1"]["value"] == pytest.approx(first, rel=1e-9, abs=1e-9)
    if len(texts) > 1:
        rolled = references[1:] + references[:1]
        for name, rows in (("control_next", texts), ("control_references", references)):
            assert figures[f"{name}/bleu"]["value"] == pytest.approx(_sacrebleu(rows, rolled)[0])
    else:
        assert not any(name.startswith("control") for name in figures)


def test_bleu_of_a_resample_is_that_of_the_repeated_texts():
    texts, references = _texts(11, 4), _texts(11, 5)
    statistics = overlap.bleu_statistics(texts, references)
    for seed in range(4):
        rows = np.random.default_rng(seed).integers(0, 11, 11)
        again, others = [texts[i] for i in rows], [references[i] for i in rows]
        expected = _sacrebleu(again, others)[0]
        np.testing.assert_allclose(overlap.bleu(statistics[rows].sum(0)), expected)
    found = text_metrics(texts, references, resamples=300).corpus["text/bleu"]
    draws = np.random.default_rng(0).integers(0, 11, (3000, 11))
    low, high = np.quantile(overlap.bleu(statistics[draws].sum(1)), [0.025, 0.975])
    np.testing.assert_allclose([found["low"], found["high"]], [low, high], rtol=0.2)


def _f1(text, reference, order):
    def grams(words):
        return [tuple(words[i : i + order]) for i in range(len(words) - order + 1)]

    mine, theirs = (grams(part.lower().replace(".", "").split()) for part in (text, reference))
    both = sum(min(mine.count(gram), theirs.count(gram)) for gram in set(mine))
    return 200 * both / (len(mine) + len(theirs)) if both else 0.0


def _longest_common(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, j in itertools.product(range(len(a)), range(len(b))):
        table[i + 1, j + 1] = (
            table[i, j] + 1 if a[i] == b[j] else max(table[i, j + 1], table[i + 1, j])
        )
    return table[-1, -1]


def test_rouge_against_loops_and_its_control():
    texts, references = _texts(13, 6), _texts(13, 7)
    found = text_metrics(texts, references, resamples=100, seed=3)
    for order in (1, 2):
        expected = [_f1(*pair, order) for pair in zip(texts, references, strict=True)]
        np.testing.assert_allclose(found.per_text[f"text/rouge_{order}"], expected)
    expected = []
    for text, reference in zip(texts, references, strict=True):
        a, b = (part.lower().replace(".", "").split() for part in (text, reference))
        expected.append(200 * _longest_common(a, b) / (len(a) + len(b)))
    np.testing.assert_allclose(found.per_text["text/rouge_l"], expected)
    order = overlap.derangement(13, seed=3)
    shuffled = [_f1(text, references[i], 1) for text, i in zip(texts, order, strict=True)]
    np.testing.assert_allclose(found.per_text["control_shuffled/rouge_1"], shuffled)
    gain = found.corpus["over_control/rouge_1"]
    plain = np.mean(found.per_text["text/rouge_1"]) - np.mean(shuffled)
    assert gain["value"] == pytest.approx(plain)
    assert gain["low"] < plain < gain["high"]


def test_nothing_keeps_its_reference():
    for count, seed in itertools.product((2, 3, 10, 57), range(5)):
        order = overlap.derangement(count, seed=seed)
        assert sorted(order) == list(range(count))
        assert (order != np.arange(count)).all()
    assert (overlap.derangement(57, seed=0) != overlap.derangement(57, seed=1)).any()
    assert overlap.next_reference(3).tolist() == [1, 2, 0]
    with pytest.raises(UserError, match="two texts"):
        overlap.derangement(1, seed=0)


def test_features_against_loops():
    rng = np.random.default_rng(8)
    features = [set(rng.choice(list("abcdefgh"), rng.integers(0, 4)).tolist()) for _ in range(17)]
    wanted = [{str(rng.choice(list("abcxy")))} if place % 5 else set() for place in range(17)]
    found = text_metrics(_texts(17, 9), features=features, reference_features=wanted)
    pairs = list(itertools.combinations(features, 2))
    div = sum(len(a & b) for a, b in pairs) / len(pairs)
    assert found.corpus["text/div"]["value"] == pytest.approx(div)
    hits = [want <= have for want, have in zip(wanted, features, strict=True) if want]
    assert found.corpus["text/fmr"]["value"] == pytest.approx(np.mean(hits))
    assert found.corpus["text/fmr"]["count"] == len(hits) == 13
    every = set().union(*wanted)
    assert found.corpus["text/fcr"]["value"] == len(set().union(*features) & every) / len(every)
    given = text_metrics(_texts(17, 9), features=features, vocabulary="abcdefghijklmnop")
    assert given.corpus["text/fcr"]["value"] == len(set().union(*features)) / 16
    assert "text/fmr" not in given.corpus


def test_diversity_has_the_spread_of_fresh_texts():
    rng = np.random.default_rng(10)

    def draw():
        return [
            {name for name, chance in zip("abcde", rate, strict=True) if rng.random() < chance}
            for rate in rng.beta(2, 3, (60, 1)) * np.array([1, 0.8, 0.6, 0.4, 0.2])
        ]

    found = [diversity(draw()) for _ in range(300)]
    spread = np.std([one["value"] for one in found])
    width = np.mean([one["high"] - one["low"] for one in found])
    np.testing.assert_allclose(width, 2 * 1.96 * spread, rtol=0.15)


def test_variety_and_repetition_against_loops():
    texts = [*_texts(8, 11), "you like it you like it you like it", "near", ""]
    texts += [texts[3], f"  {texts[3]} "]
    found = text_metrics(texts, resamples=50)
    assert found.corpus["text/usr"]["value"] == 11 / 13
    rows = [text.lower().replace(".", "").split() for text in texts]
    for order in (1, 2):
        grams = [tuple(row[i : i + order]) for row in rows for i in range(len(row) - order + 1)]
        share = len(set(grams)) / len(grams)
        assert found.corpus[f"text/distinct_{order}"]["value"] == pytest.approx(share)
    # "you like it" three times: of seven 3-grams three differ.
    assert found.per_text["text/repetition"][8] == pytest.approx(4 / 7)
    assert found.per_text["text/repetition"][9] == 0
    fours = [{tuple(row[i : i + 4]) for i in range(len(row) - 3)} for row in rows]
    for place, own in enumerate(fours):
        others = set().union(*(fours[:place] + fours[place + 1 :]))
        expected = len(own & others) / len(own) if own else 0.0
        assert found.per_text["text/self_repetition"][place] == pytest.approx(expected)
    assert found.per_text["text/words"].tolist() == [len(text.split()) for text in texts]
    assert np.isnan(found.per_text["text/readability"][10])
    assert found.corpus["text/readability"]["count"] == 12


def test_syllables_and_reading_ease_by_hand():
    counted = dict(
        the=1,
        place=1,
        places=2,
        table=2,
        people=2,
        noted=2,
        liked=1,
        tried=1,
        see=1,
        quiet=1,
        area=2,
        bakery=3,
        cuisine=2,
        restaurant=3,
        you=1,
        rhythm=1,
        shops=1,
        churches=2,
        movies=2,
        theatre=2,
        family=3,
        romantic=3,
        café=2,
        level=2,
        wines=1,
        x=1,
    )
    assert {word: syllables(word) for word in counted} == counted
    # 9 words in 2 sentences, "6.7" is one and ends none; only "away" has two syllables.
    expected = 206.835 - 1.015 * 9 / 2 - 84.6 * 10 / 9
    assert flesch("You like quiet parks. It is 6.7 km away!") == pytest.approx(expected)
    assert flesch("Go.") > flesch("Extraordinary administrative considerations predominate.")


def test_wrong_input_is_named():
    with pytest.raises(UserError, match="at least one text"):
        text_metrics([])
    with pytest.raises(UserError, match="2 texts, but 1 references"):
        text_metrics(["a", "b"], ["a"])
    with pytest.raises(UserError, match="3 features"):
        text_metrics(["a", "b"], features=[set(), set(), set()])


@needs_shared_data
def test_published_predictions_of_xrec():
    path = SHARED / "google-maps" / "explanations.jsonl.gz"
    rows = read_records(path)
    texts = [row["xrec_prediction"] for row in rows]
    found = text_metrics(texts, [row["explanation"] for row in rows], resamples=0).corpus
    wanted = {
        "text/bleu": 17.61,
        "text/bleu_1": 41.85,
        "text/rouge_1": 37.73,
        "text/rouge_2": 19.25,
        "text/rouge_l": 32.63,
        "text/usr": 1.0,
        # What PEERS calls the control: the references among themselves.
        "control_references/bleu": 13.68,
        "control_references/rouge_1": 30.74,
        "control_references/rouge_2": 15.34,
        "control_references/rouge_l": 27.42,
        # Against wrong references the predictions score more than that.
        "control_next/bleu": 16.47,
        "control_next/rouge_l": 30.63,
    }
    assert {name: round(found[name]["value"], 2) for name in wanted} == wanted
    assert round(found["text/words"]["value"], 1) == 29.4


SCRIPTS = [
    "Этот фильм вам понравится",
    "هذا الفيلم مناسب لك",
    "ภาพยนตร์ เรื่องนี้ เหมาะ",
    "这部电影适合你",
    "この映画はあなたに合う",
    "이 영화는 당신에게 맞습니다",
    "यह फ़िल्म आपके लिए है",
]


@pytest.mark.parametrize("text", SCRIPTS)
def test_every_script_has_words(text):
    same = text_metrics([text, text], [text, text], resamples=0, controls=False).corpus
    for name in ("text/rouge_1", "text/rouge_2", "text/rouge_l", "text/bleu", "text/bleu_1"):
        assert round(same[name]["value"], 9) == 100.0
    assert same["text/usr"]["value"] == 0.5
    assert 0.4 < same["text/distinct_1"]["value"] <= 0.5 and same["text/words"]["value"] > 2
    assert math.isnan(same["text/readability"]["value"])  # the formula knows Latin script
    assert "Latin" in same["text/readability"]["note"]
    assert ("note" in same["text/words"]) == (not has_blanks(text))


def test_other_words_are_other_words_in_every_script():
    def rouge_1(text, reference):
        found = text_metrics([text], [reference], resamples=0, controls=False).corpus
        return found["text/rouge_1"]["value"]

    assert rouge_1("schon gut", "schön gut") == 50.0
    assert rouge_1("scho\u0308n gut", "schön gut") == 100.0
    assert rouge_1("кот спит", "кот ест") == 50.0
    assert rouge_1("हिन्दी", "हन्दी") == 0.0
    assert rouge_1("好电影", "坏电视") == pytest.approx(100 / 3)


def test_bleu_of_chinese_is_the_librarys():
    texts = ["这部电影适合你，因为你喜欢iPhone 12。", "你会喜欢这个故事!", "不"]
    references = ["这部影片适合您，因为您喜欢iPhone 12！", "你喜欢这个故事吗?", "是"]
    found = text_metrics(texts, references, resamples=0, controls=False).corpus
    import sacrebleu

    wanted = sacrebleu.corpus_bleu(texts, [references], tokenize="zh").score
    assert found["text/bleu"]["value"] == pytest.approx(wanted, abs=1e-9)


def test_readability_is_of_the_texts_that_can_have_it():
    english = "The cat sat on the mat."
    found = text_metrics([english, "Кот сидит.", english], resamples=0).corpus["text/readability"]
    assert found == {"value": pytest.approx(flesch(english)), "low": None, "high": None, "count": 2}
    assert flesch("Die schönen Äpfel sind süß.") == pytest.approx(
        206.835 - 1.015 * 5 - 84.6 * 7 / 5
    )
    assert text_metrics(["!"], resamples=0).corpus["text/readability"]["count"] == 0
