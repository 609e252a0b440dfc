"""The one matcher of titles: policies by hand, against a naive reference, and who uses it."""

import random
import re
import time
import unicodedata

import pytest

from xrec_jax.evaluation.texts.grounding import Grounder
from xrec_jax.joint.controls.registry import mask_titles
from xrec_jax.joint.monitors import Monitors
from xrec_jax.text.titles import policy as policies
from xrec_jax.text.titles.mask import TitleMasks
from xrec_jax.text.titles.match import QUOTES, SMALL, Matcher
from xrec_jax.text.titles.normal import normal_title
from xrec_jax.text.titles.tokens import fold, forms_of, tokenize

POLICIES = {
    name: getattr(policies, name) for name in ("LENIENT", "STRICT", "NAMED", "MASK", "QUOTED")
}
ORDER = ("LENIENT", "STRICT", "NAMED", "MASK")


def found(text, titles, policy, **options):
    matcher, tokens = Matcher(**options), tokenize(text)
    for title in titles:
        for spelling in policy.spellings(title):
            matcher.add(spelling.words)
    return [text[slice(*tokens.span(m.start, m.end))] for m in matcher.find(tokens, policy)]


# What each policy finds, in the order of ORDER; "" is nothing.


@pytest.mark.parametrize(
    ("title", "text", "mentions"),
    [
        # Several words: any case but for what is held against a text.
        ("Home Alone", "as in home alone", ["home alone", "", "home alone", "home alone"]),
        ("Home Alone", "as in Home Alone", ["Home Alone"] * 4),
        ("Home Alone", "a home, all alone", [""] * 4),
        ("Lost in Translation", "see Lost in Translation", ["Lost in Translation"] * 4),
        # Nothing but common words.
        ("As It Was", "it is as it was", ["", "", "", "as it was"]),
        ("As It Was", "you liked As It Was", ["As It Was", "", "As It Was", "As It Was"]),
        ("8 to 10", "from 8 to 10", ["", "", "", "8 to 10"]),
        # One word.
        ("Rust", "you play Rust here", ["Rust"] * 4),
        ("Rust", "there is rust here", [""] * 4),
        ("Rust", "Rust is old", ["Rust", "", "Rust", "Rust"]),
        ("Rust", "by Anna Rust", ["Rust", "", "Rust", "Rust"]),
        ("Rust", "Rust-Miller", ["Rust", "", "Rust", "Rust"]),
        ("Seven", "you saw Seven twice", ["", "", "Seven", "Seven"]),
        ("Seven", "Seven people", ["", "", "", "Seven"]),
        ("Seven", 'the film "Seven"', ["Seven"] * 4),
        ("Seven", "the film \u00abseven,\u00bb", ["seven"] * 4),
        # Short titles and numbers.
        ("It", "you saw It twice", ["", "", "It", ""]),
        ("It", "you saw 'It' twice", ["It"] * 4),
        ("Go", "It may Go", ["", "", "Go", ""]),
        ("187", "187 people saw 187", [""] * 4),
        ("187", 'you saw "187"', ["187"] * 4),
        # Accents, marks and signs.
        ("Am\u00e9lie", "as in AMELIE here", ["AMELIE"] * 4),
        ("Amelie", "as in Ame\u0301lie here", ["Ame\u0301lie"] * 4),
        ("Call of Duty\u00ae", "of Call of Duty\u2122 and", ["Call of Duty"] * 4),
        ("Tom & Jerry", "see Tom and Jerry", ["Tom and Jerry"] * 4),
        ("L.A. Confidential", "see LA Confidential", ["LA Confidential"] * 4),
        ("LA Confidential", "see L.A. Confidential", ["L.A. Confidential"] * 4),
        ("Spider-Man", "see Spider\u2014Man", ["Spider\u2014Man"] * 4),
        ("Golden Lantern", "see Gol\u00adden Lantern", ["Gol\u00adden Lantern"] * 4),
        # Apostrophes and possessives.
        ("Schindler's List", "see Schindler\u2019s List", ["Schindler\u2019s List"] * 4),
        ("Schindler's List", "see Schindlers List", ["Schindlers List"] * 4),
        ("Golden Lantern", "the Golden Lantern's soup", ["the Golden Lantern's"] * 4),
        ("Golden Lantern", "our Golden Lanterns", [""] * 4),
        ("Joe`s Diner", "at Joe\u00b4s Diner", ["Joe\u00b4s Diner"] * 4),
        # Articles.
        (
            "Matrix, The (1999)",
            "like the Matrix Gang",
            ["the Matrix", "", "the Matrix", "the Matrix"],
        ),
        ("The Matrix", 'like "Matrix, The (1999)"', ["Matrix, The (1999)"] * 4),
        ("Golden Lantern", "Bar, A Golden Lantern", ["A Golden Lantern"] * 4),
        # Brackets and years.
        ("Hamlet (1990)", "see Hamlet (1990), a", ["Hamlet (1990)"] * 4),
        ("Hamlet (1990)", "see Hamlet (1990) Bay", ["Hamlet (1990)", "", *["Hamlet (1990)"] * 2]),
        ("Hamlet (1990)", "you saw Hamlet, a", ["Hamlet"] * 4),
        ("Big Day (ID4) (1996)", "see Big Day (ID4) now", ["Big Day (ID4)"] * 4),
        ("Big Day (ID4) (1996)", "see Big Day now", ["Big Day"] * 4),
        ("Big Day (ID4) (1996)", "you saw ID4 now", ["ID4", "ID4", "", ""]),
        # What stands before a subtitle.
        ("Red Sky: The End", "see Red Sky now", ["Red Sky", "", "", ""]),
        ("Red Sky: The End", "see Red Sky - The End", ["Red Sky - The End"] * 4),
        # Other scripts: no capitals, no blanks.
        ("千と千尋の神隠し", "映画千と千尋の神隠しを", ["千と千尋の神隠し"] * 4),
        ("英雄", "你喜欢英雄吗", ["英雄", "", "英雄", "英雄"]),
        ("英雄", "你喜欢《英雄》吗", ["英雄"] * 4),
        ("猫", "黑猫警长", [""] * 4),
        ("猫", "好‘猫’好", ["猫"] * 4),  # quotes, no apostrophes
        ("アリ", "不思議の国のアリス", [""] * 4),
        ("ポニョ", "映画ﾎﾟﾆｮを見る", ["ﾎﾟﾆｮ", "", "ﾎﾟﾆｮ", "ﾎﾟﾆｮ"]),
        ("기생충", "기생충은 좋은", ["기생충"] * 4),
        ("부산", "부산행은 좋은", [""] * 4),
        ("Кино", "фильм Кино, Киноклуб", ["Кино"] * 4),
        ("كتاب الحب", "هذا كِتَاب الحب", ["كِتَاب الحب", "", "كِتَاب الحب", "كِتَاب الحب"]),
    ],
)
def test_policies_by_hand(title, text, mentions):
    made = {name: found(text, [title], POLICIES[name]) for name in ORDER}
    assert made == {n: [m] if m else [] for n, m in zip(ORDER, mentions, strict=True)}


def test_only_quotes():
    texts = ["a drama", "a Drama", 'a "Drama"', "Home Alone", "\u201cHome Alone.\u201d"]
    titles = ["Drama", "Home Alone"]
    made = [found(text, titles, policies.QUOTED) for text in texts]
    assert made == [[], [], ["Drama"], [], ["Home Alone"]]


@pytest.mark.parametrize("policy", [POLICIES[name] for name in ORDER])
def test_of_titles_that_begin_alike_the_longest_wins(policy):
    titles = ["Star Wars", "Star Wars: The Clone Wars", "Clone Wars Bay", "Wars"]
    text = "see Star Wars The Clone Wars Bay, Star Wars and"
    assert found(text, titles, policy) == ["Star Wars The Clone Wars", "Star Wars"]
    # The longer one does not go on: what it begins with is looked at again.
    assert found("see Star Wars The Clone", titles, policy) == ["Star Wars"]
    # An article behind one title is not the article of the next.
    text = "see Star Wars, The Clone Wars Bay"
    assert found(text, titles, policy)[0] == "Star Wars, The Clone Wars"


def test_an_article_belongs_to_one_title():
    text, titles = "see Matrix, The Golden Lantern", ["Matrix", "Golden Lantern"]
    assert found(text, titles, policies.NAMED) == ["Matrix", "The Golden Lantern"]
    assert TitleMasks(titles).mask(text, by="_") == "see _, _"
    assert found("see Matrix, The here", titles, policies.NAMED) == ["Matrix, The"]
    assert TitleMasks(["Vitamin A", "Golden Lantern"]).mask("Vitamin A Golden Lantern") == (
        "a place a place"
    )


def test_what_is_common_is_said_to_the_matcher():
    titles, options = ["Home Alone", "Rust"], {"common": lambda words: True}
    text = "at home alone, Rust, of Home Alone"
    assert found(text, titles, policies.NAMED, **options) == ["Rust", "Home Alone"]
    assert found(text, titles, policies.LENIENT, **options) == ["Home Alone"]
    assert found(text, titles, policies.STRICT, **options) == []


def test_masks_leave_the_possessive_and_what_is_kept():
    masks = TitleMasks(["The Old Mill", "Old Mill (Bar)", "Chain (North)", "Chain (South)"])
    assert masks.mask("the Old Mill\u2019s soup", by="it") == "it\u2019s soup"
    assert masks.mask("at Old Mill", keep="Old Mill") == "at Old Mill"
    assert masks.mask("at Chain", keep="Chain (South)") == "at Chain"
    assert masks.mask("at Chain (North)", keep="Chain (South)") == "at a place"
    # A title comes before those that are so called without their brackets.
    assert masks.found("Old Mill, Old Mill (Bar)") == ["old mill", "old mill bar"]


# Against a loop over titles and places.

WORDS = ["golden", "lantern", "rust", "it", "seven", "7", "the", "of", "bay", "o'neil"]
TITLES = [
    "Golden Lantern",
    "Golden Lantern Bay",
    "Lantern, The",
    "Rust",
    "It",
    "Seven",
    "7",
    "7 of It",
    "Seven of It",
    "Bay of Rust",
    "O'Neil Bay",
    "Rust Rust",
    "The Golden",
    "It It",
]


def naive(text, titles, policy):
    """Titles in an ASCII text: each one, the longest first, tried at every place by expression."""
    spellings = {spelling.words for title in titles for spelling in policy.spellings(title)}
    longest_first = sorted(spellings, key=lambda words: (-len(words), words))
    matches, place = [], 0
    while place < len(text):
        begins = text[place].isalnum() and not re.search(r"\w'?$", text[:place])
        for words in longest_first if begins else ():
            body = r"[^a-z0-9&]+".join("'?".join(word) for word in words)
            there = re.compile(rf"{body}('s)?(?!'?\w)", re.IGNORECASE).match(text, place)
            if there and naive_counts(text, there, words, policy):
                matches.append(" ".join(words))
                place = there.end() - 1
                break
        place += 1
    return matches


def naive_counts(text, there, words, policy):
    start, end = there.span()
    before = text[:start]
    article = re.search(r"(?<!\w)(?<!\w')the $", before, re.IGNORECASE)
    front = article.start() if article else start
    behind = (
        re.sub(r"^, The(?!\w)", "", text[end:], flags=re.IGNORECASE) if not article else text[end:]
    )
    for first, rest in ((start, text[end:]), (front, behind)):
        if first and text[first - 1] in QUOTES and rest.lstrip(".,!?;:")[:1] in tuple(QUOTES):
            return True
    small = all(word in SMALL or word.isdigit() for word in words)
    spoken = re.findall(r"[\w']+", there.group())
    capitals = not spoken[0][0].islower() and not spoken[-1][0].islower()
    capitals &= all(not word[0].islower() or word.lower() in SMALL for word in spoken)
    name = {id(value): key for key, value in POLICIES.items()}[id(policy)]
    if name == "QUOTED":
        return False
    if len(words) > 1:
        if name == "MASK":
            return True
        if name == "STRICT":
            return capitals and not small
        return not small or (capitals and not words[0].isdigit())
    if not capitals or words[0].isdigit():
        return False
    first = bool(re.search(r"(^|[.!?:\n])[\s\"'(*-]*$", before))
    if name == "MASK":
        return len(words[0]) >= 3
    if name == "LENIENT":
        return not small
    if name == "NAMED":
        return not small or not first
    left = re.search(r"([\w']+)[ -]*$", text[:front])
    right = re.match(r"[ -]*(\w)", behind)
    beside = bool(left and not left[1][0].islower() and left[1].lower() not in SMALL)
    beside |= bool(right and not right[1].islower())
    return not small and not first and not beside


@pytest.mark.parametrize("name", POLICIES)
def test_against_a_loop_over_titles_and_places(name):
    policy, draw = POLICIES[name], random.Random(3)
    matcher, number = Matcher(), 0
    for title in TITLES:
        for spelling in policy.spellings(title):
            matcher.add(spelling.words)
    for _ in range(1500):
        text = ""
        for _ in range(draw.randrange(1, 9)):
            word = draw.choice(WORDS)
            word = draw.choice([word, word, word.capitalize(), word.capitalize(), word.upper()])
            word += draw.choice(["", "", "", "", "'s"])
            text += word + draw.choice([" ", " ", " ", " ", ", ", ". ", ' "', '" ', "-", "! "])
        made = [" ".join(match.title) for match in matcher.find(tokenize(text), policy)]
        assert made == naive(text, TITLES, policy), text
        number += len(made)
    assert number > 20


# Texts of every script, folded and as they are.

LETTERS = ["abcdé", "бгёй", "αβέ", "千猫姫", "のスポガ", "기생충부", "กาดีปู", "कीमल", "كتاب", "שלום"]


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC"])
def test_titles_of_any_script_are_found_where_they_stand(form):
    draw = random.Random(4)
    for _ in range(400):
        letters = draw.choice(LETTERS)
        word = "".join(draw.choices(letters, k=draw.randrange(3, 7))).title()
        title = f"{word} {word[::-1].strip()}".title()
        if len(forms_of(title)) < 2 or not fold(word[-1:]):
            continue
        text = unicodedata.normalize(form, f"see \u2026 ½ «{title}», e\u0301 {title} .")
        masks = TitleMasks([title])
        assert masks.found(text) == [normal_title(title)] * 2
        assert masks.mask(text, by="@").count("@") == 2
        tokens = tokenize(text)
        for word in tokens.words:  # every word leads back to what it was cut from
            start, end = tokens.span(word.start, word.end)
            assert tokens.folded[word.start : word.end] in fold(text[start:end])
        assert tokens.folded == fold(text)


# Time.


@pytest.mark.parametrize("piece", ["It Rust ", '"It", ', "기", "の猫", "the A. ", "Rust's-"])
def test_time_is_linear_in_the_length_of_a_text(piece):
    titles = ["It", "Rust", "기생", "猫の猫", "A A A A B", "Rust Rust Rust Seven"]
    grounder, masks = Grounder(titles), TitleMasks(titles)
    text = piece * (40_000 // len(piece))
    start = time.process_time()
    masks.mask(text)
    grounder.ground(text, item="Rust")
    assert time.process_time() - start < 10


# Who uses it.


def test_grounding_monitors_masks_and_the_control_use_the_one_matcher(monkeypatch):
    asked = []
    find = Matcher.find

    def spy(self, tokens, policy):
        asked.append(policy if isinstance(policy, policies.Policy) else policy(("rust",)))
        return find(self, tokens, policy)

    monkeypatch.setattr(Matcher, "find", spy)
    grounder, monitors = Grounder(["Rust", "Home Alone"]), Monitors(["a text"], ["Rust"])
    grounder.ground("Rust", item="Rust")
    grounder.ground("Rust", item="Home Alone")
    monitors.measure(["Rust"], [""])
    TitleMasks(["Rust"]).found("Rust")
    TitleMasks(["Rust"]).mask("Rust")
    mask_titles(["Rust"], ["Rust"])
    wanted = ["LENIENT", "STRICT", "NAMED", "MASK", "MASK", "MASK"]
    assert asked == [POLICIES[name] for name in wanted]
