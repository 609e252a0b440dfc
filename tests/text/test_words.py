"""Words, marks and names in scripts with and without blanks, with and without capitals."""

import unicodedata

import pytest
import regex

from xrec_jax.text import words
from xrec_jax.text.records.profiles import content_words
from xrec_jax.text.titles.mask import TitleMasks
from xrec_jax.text.titles.normal import normal_title, same_title

COUNTS = {
    "This, well, don't - 3.5 snake_case": 6,  # as split at white space
    "Этот фильм вам понравится": 4,
    "Schöne Grüße aus Köln": 4,
    "هذا الفيلم مناسب لك": 4,
    "यह हिन्दी फ़िल्म है": 4,
    "이 영화는 당신에게 맞습니다": 4,
    "می\u200cخواهم کتاب": 2,
    "这部电影适合你。": 7,
    "iPhone手机，很好！": 5,
    "私はスターが好き": 8,
    "กาแฟ ดี": 5,  # three letters, a vowel written in front, and one that carries a mark
    "": 0,
    "— ! 。": 3,
}


@pytest.mark.parametrize(("text", "count"), COUNTS.items())
def test_number_of_words(text, count):
    assert words.word_count(text) == count
    # A letter with a mark of its own is the letter that has it.
    assert words.word_count(unicodedata.normalize("NFD", text)) == count or "영" in text
    assert words.words(unicodedata.normalize("NFD", text)) == words.words(text)


def test_words_are_those_of_rouge_where_it_knows_the_letters():
    text = "It's 3.5 snake_case; RE-READ e-mail, A1b2!"
    own = [word for word in regex.split("[^a-z0-9]+", text.lower()) if word]
    assert words.words(text) == own
    assert words.words("Fünf Äpfel") == ["fünf", "äpfel"]
    assert words.words("这部iPad好") == ["这", "部", "ipad", "好"]
    assert words.words("हिन्दी में") == ["हिन्दी", "में"]  # marks are part of their letters
    assert words.spelt_words("Hadn't 3d Œuvre हिन्दी 电影") == [
        "Hadn't",
        "d",
        "Œuvre",
        "हिन्दी",
        "电",
        "影",
    ]


@pytest.mark.parametrize(
    ("text", "latin"),
    [
        ("plain", True),
        ("", True),
        ("42", True),
        ("Über Köln", True),
        ("Фильм", False),
        ("A film: Сталкер (1979), very slow", True),
        ("映画のTitle", True),
        ("映画のタイトルA", False),
    ],
)
def test_mostly_latin(text, latin):
    assert words.is_latin(text) == latin


SAME = [
    ("Amélie", "AMELIE"),
    ("Ёлка", "елка"),
    ("Ωμέγα", "ωμεγα"),
    ("ＡＢＣ", "abc"),
    ("ﾏﾄﾘｯｸｽ", "マトリックス"),
    ("كِتَاب", "كتاب"),
    ("За́мок", "замок"),
    ("שָׁלוֹם", "שלום"),
    ("千と千尋（2001年）", "千と千尋"),
    ("설국열차", "설국 열차"),
    ("한글", unicodedata.normalize("NFD", "한글")),
    ("Straße", "STRASSE"),
]
OTHER = [("мой", "мои"), ("が", "か"), ("की", "का"), ("กี", "กุ"), ("ปี", "ปู"), ("ї", "і"), ("أ", "و")]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_of_one_title(one, other):
    assert same_title(one, other)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_titles_that_differ_in_what_is_a_letter(one, other):
    assert normal_title(one) and not same_title(one, other)


FINDS = [
    ("Кино", "Смотрите Кино вечером", True),
    ("Кино", "Киноклуб", False),
    ("もののけ姫", "あなたはもののけ姫が好き", True),
    ("英雄", "你喜欢英雄吗", True),
    ("猫", "黑猫警长", False),
    ("猫", "电影《猫》很好", True),
    ("アリ", "不思議の国のアリス", False),
    ("アリ", "映画アリを見る", True),
    ("スターウォーズ", "スターウォーズシリーズ", True),
    ("기생충", "기생충은 좋은 영화", True),
    ("부산", "부산행을 보세요", False),
    ("설국열차", "영화 설국 열차에서는", True),
    ("겨울왕국", "내겨울왕국", False),
    ("ร้านกาแฟ", "ไปร้านกาแฟกัน", True),
    ("मेला", "यह मेला है", True),
    ("मेल", "यह मेला है", False),
    ("الجوكر", "فيلم الجوكر جيد", True),
    ("הנוכל", "ראה את הנוכל הערב", True),
]


@pytest.mark.parametrize(("title", "text", "there"), FINDS)
def test_titles_in_running_text(title, text, there):
    masks = TitleMasks([title])
    assert masks.found(text) == [normal_title(title)] * there
    masked = masks.mask(text, by="_")
    assert ("_" in masked) == there and (masked == text) != there


def test_a_finder_asks_for_borders_where_words_have_them():
    both = words.finder(["千と千尋", "Amélie", "art"])
    assert both.sub("_", "千と千尋の AMÉLIE, Amélies art arty") == "_の _, Amélies _ arty"
    assert not words.finder(["मेल"]).search("मेला")  # the vowel sign belongs to the letter
    assert words.finder(["art"]).sub("_", "Art arty") == "_ arty"
    assert words.finder(["drama"]).search("好drama好") is None  # letters stand beside it


def test_words_that_say_something():
    assert content_words("Он любит тихие кафе") == ["любит", "тихие", "кафе"]
    assert content_words("喜欢咖啡") == ["喜", "欢", "咖", "啡"]
    assert content_words("조용한 카페") == ["조용한", "카페"]
    assert content_words("an ox, the cafés") == ["café"]


@pytest.mark.parametrize("mark", ["\u00ad", "\u200b", "\u200f", "\u2060", "\ufeff", "\u202a"])
def test_what_cannot_be_seen_parts_no_words(mark):
    assert words.words(f"An a{mark}bbey{mark} {mark}ü") == ["an", "abbey", "ü"]
    assert words.spelt_words(f"a{mark}bbey ü") == ["abbey", "ü"]
    assert normal_title(f"a{mark}bbey") == "abbey"
    assert same_title(f"{mark}Abbey Road{mark}", "Abbey Road")
