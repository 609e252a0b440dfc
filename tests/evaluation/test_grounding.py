"""Grounding: ways to write a title, what counts for a text and what against it, figures."""

import numpy as np
import pytest

from tests.tiny import SHARED, needs_shared_data
from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.files import read_records
from xrec_jax.evaluation.texts.grounding import (
    Grounder,
    Grounding,
    Span,
    cell_values,
    ground_pairs,
    grounding_metrics,
    ratio_of_sums,
    vocabulary_of,
)
from xrec_jax.text import get, parse_prompt
from xrec_jax.text.titles.match import Trie
from xrec_jax.text.titles.spellings import aliases
from xrec_jax.text.titles.tokens import tokenize

CATALOGUE = [
    "Matrix, The (1999)",
    "Star Wars (1977)",
    "Star Wars: The Clone Wars (2008)",
    "Seven (Se7en)",
    "It",
    "Rust",
    "Cité des enfants perdus, La (1995)",
    "Schindler's List (1993)",
    "L.A. Confidential",
    "Terminator 2: Judgment Day (1991)",
    "Sense & Sensibility",
    "187",
    "Drama",
    "Postino, Il",
    "Home Alone",
    "Game, The",
]
VOCABULARY = {
    "class": ["Drama", "Sci-Fi", "Film-Noir", "Comedy"],
    "price": ["1", "2", "3"],
    "kind": ["bakery"],
}
VOCABULARY = {column: [str(value) for value in values] for column, values in VOCABULARY.items()}


@pytest.fixture(scope="module")
def grounder():
    return Grounder(CATALOGUE, VOCABULARY)


def found(grounder, text, **given):
    return [(text[s.start : s.end], s.kind, s.name) for s in grounder.ground(text, **given).spans]


def test_words_keep_their_places():
    text = "L'ÉTÉ\u00a0d\u2019Anna & G.I. Jane's caf\u0065\u0301."
    tokens = tokenize(text)
    words = tokens.words
    assert [word.form for word in words] == ["lete", "danna", "and", "gi", "janes", "cafe"]
    assert [text[slice(*tokens.span(word.start, word.end))] for word in words][1:] == [
        "d\u2019Anna",
        "&",
        "G.I.",
        "Jane's",
        "caf\u0065\u0301",
    ]
    assert words[4].bare == "jane"
    assert [word.capital for word in words] == [True, False, True, True, True, False]


@pytest.mark.parametrize(
    "title, whole, short",
    [
        ("Matrix, The (1999)", {("matrix",)}, set()),
        ("The Matrix", {("matrix",)}, set()),
        ("Matrix The", {("matrix",)}, set()),
        ("A Bug's Life", {("bugs", "life")}, set()),
        ("Postino, Il", {("postino",), ("il", "postino")}, set()),
        ("Die Hard", {("die", "hard")}, set()),  # an article only in German
        ("Seven (Se7en)", {("seven", "se7en"), ("seven",), ("se7en",)}, set()),
        (
            "Terminator 2: Judgment Day",
            {("terminator", "2", "judgment", "day")},
            {("terminator", "2")},
        ),
        ("Alien: Resurrection", {("alien", "resurrection")}, set()),  # one word may be any title
        ("The", {("the",)}, set()),
        ("Just Cause\\u2122 3", {("just", "cause", "3")}, set()),  # a file's slip
        ('u"Mirrors Edge\\xae"', {("mirrors", "edge")}, set()),
    ],
)
def test_ways_to_write_a_title(title, whole, short):
    assert {alias.words for alias in aliases(title) if not alias.short} == whole
    assert {alias.words for alias in aliases(title) if alias.short} == short


@pytest.mark.parametrize(
    "text, title, cited",
    [
        ("like THE MATRIX, which", "Matrix, The (1999)", "THE MATRIX"),
        ('like "Matrix, The (1999)" and', "Matrix, The (1999)", "Matrix, The (1999)"),
        ("you saw star wars twice", "Star Wars (1977)", "star wars"),
        (
            "la cite des enfants perdus",
            "Cité des enfants perdus, La (1995)",
            "la cite des enfants perdus",
        ),
        ("as in Schindler\u2019s List.", "Schindler's List (1993)", "Schindler\u2019s List"),
        ("as in Schindlers List", "Schindler's List (1993)", "Schindlers List"),
        ("LA Confidential is", "L.A. Confidential", "LA Confidential"),
        ("Terminator 2 is loud", "Terminator 2: Judgment Day (1991)", "Terminator 2"),
        ("sense and sensibility", "Sense & Sensibility", "sense and sensibility"),
        ('the film "187" shows', "187", "187"),
        ("Rust's world", "Rust", "Rust's"),
        ('in "Seven (Se7en)", all', "Seven (Se7en)", "Seven (Se7en)"),
        ("in Se7en, all", "Seven (Se7en)", "Se7en"),
        ("a title of no catalogue, New Film", "New Film", "New Film"),
        ('like "Terminator"', "Terminator 2: Judgment Day (1991)", "Terminator"),
    ],
)
def test_history_is_found_however_it_is_written(grounder, text, title, cited):
    spans = found(grounder, text, history=[title])
    assert spans == [(cited, "history", title)]
    assert found(grounder, text, item=title) == [(cited, "item", title)]
    # The item comes first where both are called alike.
    assert found(grounder, text, item=title, history=[title]) == [(cited, "item", title)]


@pytest.mark.parametrize(
    "text",
    [
        "It is a good film, and it will please you.",  # It
        "seven people in the game, at home alone",  # Seven; Game, The; Home Alone
        "Seven people. Rust is orange.",  # a sentence's first word
        "a drama with rust and 187 dollars",
        "Anna Rust and Rust Miller",  # part of a name
        "part of the Star Wars saga",
        "your Drama and Comedy films",  # an attribute's value, no title
        "you liked Terminator 2",  # a short form may be another film
    ],
)
def test_what_is_not_held_against_a_text(grounder, text):
    kinds = {kind for _, kind, _ in found(grounder, text)}
    assert kinds <= {"absent_attribute"}


@pytest.mark.parametrize(
    "text, spans",
    [
        ("as in Star Wars: The Clone Wars, or", [("Star Wars: The Clone Wars", "catalogue")]),
        ("as in Star Wars and more", [("Star Wars", "catalogue")]),
        ("you play Rust, they say", [("Rust", "catalogue")]),
        ('"It" and \u201cSeven\u201d', [("It", "catalogue"), ("Seven", "catalogue")]),
        ('like "Drama"', [("Drama", "catalogue")]),
        ('"The Sting", \u2018Amélie\u2019', [("The Sting", "unknown"), ("Amélie", "unknown")]),
        ("like 'Ocean's Eleven'", [("Ocean's Eleven", "unknown")]),
        ('she said "what a day" and "Comedy Sci-Fi"', []),
        ('"A speech: You Will Find That This Is Much Too Long For Any Title."', []),
    ],
)
def test_titles_of_neither(grounder, text, spans):
    spoken = [s for s in found(grounder, text) if "attribute" not in s[1]]
    assert [span[:2] for span in spoken] == spans


def test_attributes_of_item_history_and_neither(grounder):
    text = "A Comedy-drama, no film noirs; bakeries at price level 2, a level of 3, 1 hour, sci fi."
    spans = found(
        grounder,
        text,
        item_attributes={"class": ["Comedy"], "price": 2.0},
        history_attributes=[{"class": ["Drama", "Film-Noir"], "kind": None}, {"kind": "bakery"}],
    )
    assert spans == [
        ("Comedy", "item_attribute", "Comedy"),
        ("drama", "history_attribute", "Drama"),
        ("film noirs", "history_attribute", "Film-Noir"),
        ("bakeries", "history_attribute", "bakery"),
        ("price level 2", "item_attribute", "2"),
        ("level of 3", "absent_attribute", "3"),
        ("sci fi", "absent_attribute", "Sci-Fi"),
    ]
    # A title that is called as a true attribute of the item is that attribute, quotes or not.
    named = found(grounder, 'it is "Drama"', item_attributes={"class": "Drama"})
    assert named == [("Drama", "item_attribute", "Drama")]
    # Words of a title are not an attribute too.
    assert [s[1] for s in found(grounder, 'the "Drama Queen"')] == ["unknown"]


def test_cells_and_vocabulary():
    assert cell_values(float("nan")) == cell_values(None) == cell_values("none") == []
    assert cell_values(["a", None, 3.0, 2.5]) == ["a", "3", "2.5"]
    rows = [{"x": ["b", "a"], "y": 1}, {"x": "a", "y": None}]
    assert vocabulary_of(rows, ("x", "y")) == {"x": ("b", "a"), "y": ("1",)}
    with pytest.raises(UserError, match="no column 'z'"):
        vocabulary_of(rows, ("z",))


def test_the_trie_against_a_scan():
    rng = np.random.default_rng(0)
    sequences = {tuple(rng.choice(list("abc"), rng.integers(1, 5)).tolist()) for _ in range(25)}
    trie = Trie()
    for words in sequences:
        trie.add(words)
    text = tokenize(" ".join(rng.choice(list("abcd"), 200).tolist())).words
    for place in range(len(text)):
        forms = tuple(word.form for word in text[place : place + 5])
        expected = [
            forms[:n] for n in (5, 4, 3, 2, 1) if len(forms) >= n and forms[:n] in sequences
        ]
        assert [words for words, _ in trie.at(text, place)] == expected
        assert all(end - place == len(words) for words, end in trie.at(text, place))


def test_mentions_put_into_generated_texts():
    rng = np.random.default_rng(1)
    parts = [
        [a + b for a in ("Vel", "Mor", "Tan", "Qui", "Bra") for b in ends]
        for ends in (("dra", "lo", "x"), ("mund", "sk", "tal"))
    ]
    titles = [f"{a} {b}" for a in parts[0] for b in parts[1]]
    titles = [f"{t}, The (19{50 + n % 50})" if n % 3 else f"The {t}" for n, t in enumerate(titles)]
    grounder = Grounder(titles)
    for _ in range(60):
        item, *others = rng.choice(titles, 7, replace=False).tolist()
        history, absent = others[:4], others[4:]
        said, text = [], "We thought of"
        for place in rng.permutation(7)[: rng.integers(1, 8)]:
            title = [item, *history, *absent][place]
            name = title.replace("The ", "").split(",")[0]
            grounded = place < 5
            style = rng.integers(4 if grounded else 2)
            name = [name, f"the {name}", name.lower(), name.upper() + "'s"][style]
            text += f" some time {name}, and"
            said.append((title, "item" if place == 0 else "history" if grounded else "catalogue"))
        spans = grounder.ground(text, item=item, history=history).spans
        assert [(span.name, span.kind) for span in spans] == said


def _made(*spans):
    return Grounding(tuple(Span(0, 1, kind, name) for kind, name in spans))


def test_figures_by_hand():
    groundings = [
        _made(("item", "i"), ("item", "i"), ("history", "a"), ("history", "b"), ("history", "a")),
        _made(("catalogue", "c"), ("unknown", "d"), ("history", "a"), ("item_attribute", "x")),
        _made(("item_attribute", "x"), ("absent_attribute", "y"), ("history_attribute", "z")),
        _made(),
    ]
    found = grounding_metrics(groundings, resamples=200)
    values = {name.split("/")[1]: figure["value"] for name, figure in found.corpus.items()}
    assert values == {
        "item_named": 0.25,
        "history_cited": 0.75,
        "absent_titles": 0.25,
        "unknown_titles": 0.25,
        "attributes": 1.0,
        "attributes_of_item": 0.5,
        "hallucinated_titles": 2 / 5,
        "attributes_precision": 3 / 4,
    }
    each = found.per_text["grounding/hallucinated_titles"]
    np.testing.assert_array_equal(each, [0, 2 / 3, np.nan, np.nan])
    assert found.corpus["grounding/hallucinated_titles"]["count"] == 2
    assert groundings[2].features == {"x", "y", "z"}
    nothing = grounding_metrics([_made()], resamples=10).corpus["grounding/hallucinated_titles"]
    assert nothing == {"value": 0.0, "low": None, "high": None, "count": 0}
    with pytest.raises(UserError, match="at least one"):
        grounding_metrics([])


def test_interval_of_a_ratio_of_sums():
    rng = np.random.default_rng(2)
    below = rng.integers(0, 5, 300).astype(float)
    above = rng.binomial(below.astype(int), 0.3).astype(float)
    found = ratio_of_sums(above, below, resamples=2000)
    # The usual linear approximation of a ratio's standard error.
    residual = (above - found["value"] * below) / below.mean()
    error = residual.std() / np.sqrt(300)
    np.testing.assert_allclose(found["high"] - found["low"], 2 * 1.96 * error, rtol=0.1)


def test_pairs_of_a_run(grounder):
    pair = {
        "title": "Rust",
        "attributes": {"kind": "bakery"},
        "history": [{"title": "Home Alone", "attributes": {"class": ["Comedy"]}}],
    }
    text = "Rust is a bakery, a comedy like home alone."
    (one,) = ground_pairs(grounder, [pair], [text])
    assert [(text[a:b], kind) for a, b, kind in one.highlights()] == [
        ("Rust", "item"),
        ("bakery", "item_attribute"),
        ("comedy", "history_attribute"),
        ("home alone", "history"),
    ]
    with pytest.raises(UserError, match="1 pairs, but 2 texts"):
        ground_pairs(grounder, [pair], [text, text])


@needs_shared_data
def test_published_explanations_of_films():
    lines = (SHARED / "ml-100k" / "ml-100k.item").read_text().splitlines()[1:]
    folder = SHARED / "llmxrec" / "bpr-mf"

    def row(fields):
        return {"class": fields["class"].split()}

    prompts = {
        record["prompt_id"]: parse_prompt(get("llmxrec_movie"), record["prompt"])
        for record in read_records(folder / "prompts.jsonl.gz")
        if record["dataset"] == "ml-100k"
    }
    genres = vocabulary_of(
        [row(entry) for prompt in prompts.values() for entry in prompt.history], ["class"]
    )
    grounder = Grounder([line.split("\t")[1] for line in lines], genres)
    found = {"GPT4": [], "LLaMA2-SFT": []}
    for record in read_records(folder / "explanations.jsonl.gz"):
        if record["model"] in found and (prompt := prompts.get(record["prompt_id"])):
            one = grounder.ground(
                record["completion"],
                item=prompt.item["title"],
                history=[entry["title"] for entry in prompt.history],
                item_attributes=row(prompt.item),
                history_attributes=map(row, prompt.history),
            )
            found[record["model"]].append(one)
    figures = {name: grounding_metrics(ones, resamples=0).corpus for name, ones in found.items()}
    # A rough matcher found 1.47 and .17 history titles a text, 67 of 1,450 and 69 of 234 absent.
    for name, cited, absent in (("GPT4", 2.158, 0.008), ("LLaMA2-SFT", 0.227, 0.189)):
        assert len(found[name]) == 943
        assert figures[name]["grounding/item_named"]["value"] > 0.999
        assert figures[name]["grounding/history_cited"]["value"] == pytest.approx(cited, abs=5e-3)
        share = figures[name]["grounding/hallucinated_titles"]["value"]
        assert share == pytest.approx(absent, abs=5e-3)


def kinds(text, item, history=(), catalogue=(), **more):
    found = Grounder([item, *history, *catalogue]).ground(text, item=item, history=history, **more)
    return [(text[span.start : span.end], span.kind) for span in found.spans]


def test_titles_in_scripts_without_blanks():
    text = "千と千尋の神隠しはあなたに合います。『もののけ姫』が好きですから。"
    assert kinds(text, "千と千尋の神隠し", ["もののけ姫"]) == [
        ("千と千尋の神隠し", "item"),
        ("もののけ姫", "history"),
    ]
    assert kinds("기생충은 설국 열차처럼", "기생충", ["설국열차 (2013)"]) == [
        ("기생충", "item"),
        ("설국 열차", "history"),
    ]
    assert kinds("ดูฉลาดเกมส์โกงคืนนี้", "ฉลาดเกมส์โกง") == [("ฉลาดเกมส์โกง", "item")]
    assert kinds("好猫，好《猫》", "猫") == [("猫", "item")]  # one character needs its quotes


def test_what_is_held_against_a_text_without_capitals():
    other = ["爱情", "海上钢琴师", "الحب", "الجوكر الأخير القديم"]
    assert kinds("你会喜欢爱情。", "英雄", catalogue=other) == []  # a common word
    assert kinds("你会喜欢《爱情》。", "英雄", catalogue=other) == [("爱情", "catalogue")]
    assert kinds("像海上钢琴师一样", "英雄", catalogue=other) == [("海上钢琴师", "catalogue")]
    assert kinds("عن الحب والحياة", "x", catalogue=other) == []
    assert kinds("مثل الجوكر الأخير القديم", "x", catalogue=other) == [
        ("الجوكر الأخير القديم", "catalogue")
    ]
    assert kinds("他看了《无名之辈》", "英雄") == [("无名之辈", "unknown")]
    assert kinds('قال "مرحبا بك" وذهب', "x") == []  # speech: no capital shows a title
    assert kinds("Фильм «Сталкер» и «тихий дом»", "x") == [("Сталкер", "unknown")]


def test_values_in_scripts_without_blanks():
    grounder = Grounder(["x"], {"genre": ["剧情", "爱", "драма", "드라마"]})

    def named(text):
        return grounder.ground(text, item="x", item_attributes={"genre": "剧情"}).features

    assert named("这是剧情片") == {"剧情"} and named("可爱的人") == set()
    assert named("Хорошая Драма!") == {"драма"} and named("мелодрама") == set()
    assert named("드라마를 좋아해") == {"드라마"} and named("드라마틱한") == set()
