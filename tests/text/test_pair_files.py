"""Files of profiles and descriptions, and names of places inside texts."""

import gzip
import json

import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.text import parse_prompt
from xrec_jax.text.records import profiles
from xrec_jax.text.records.profiles import Keys, read_pair_texts
from xrec_jax.text.titles.mask import TitleMasks

ROW = {
    "uid": 3,
    "iid": "b",
    "title": "Blue Bar",
    "user_summary": "This user is likely to enjoy tea.",
    "item_summary": "Fans of ale would enjoy Blue Bar.",
    "explanation": "You would enjoy the ale.",
}


def write(path, *lines):
    path.write_text(
        "".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines)
    )
    return path


def test_reads_records_and_their_lines(tmp_path):
    other = {**ROW, "iid": "c", "title": "C", "item_summary": "Good\n for  tea."}
    path = write(tmp_path / "texts.jsonl", ROW, "", other)
    first, second = read_pair_texts(path, users=["3"], items=["b", "c"])
    assert (first.line, first.user, first.item, first.teacher) == (1, "3", "b", ROW["explanation"])
    assert (second.line, second.item, second.item_text) == (3, "c", "Good for tea.")
    zipped = tmp_path / "texts.jsonl.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert read_pair_texts(zipped) == [first, second]
    (bare,) = read_pair_texts(write(path, ROW), Keys(title="", teacher=""))
    assert (bare.title, bare.teacher) == ("", "")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ({k: v for k, v in ROW.items() if k != "user_summary"}, "no key 'user_summary'"),
        ({**ROW, "user_summary": " "}, "'user_summary' .* holds no text"),
        ({**ROW, "explanation": 3}, "'explanation' .* holds no text"),
        ({**ROW, "uid": True}, "'uid' .* holds no text"),
        ({**ROW, "uid": 33}, "no user '33' in the data; did you mean '3'"),
        ({**ROW, "iid": "q"}, "no item 'q' in the data"),
        ({**ROW, "user_summary": "Other."}, "'user_summary' of user '3' differs from line 1"),
        ({**ROW, "title": "Red Bar"}, "'title' of item 'b' differs from line 1"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, said):
    path = write(tmp_path / "texts.jsonl", ROW, line)
    with pytest.raises(UserError, match=said) as error:
        read_pair_texts(path, users=["3", "4"], items=["b"])
    assert f"{path}, line 2" in str(error.value) and "\n" not in str(error.value)


def test_a_file_without_a_record_or_absent(tmp_path):
    with pytest.raises(UserError, match="no record"):
        read_pair_texts(write(tmp_path / "none.jsonl", ""))
    with pytest.raises(UserError, match="no such file"):
        read_pair_texts(tmp_path / "absent.jsonl")


def test_titles_are_found_as_a_reader_would():
    masks = TitleMasks(["Friendly", "The Blue Bar", "Blue Bar & Grill", "Don's", "42", "Ax", "!"])
    text = (
        "Friendly staff at the BLUE bar, Blue Bar and Grill or dons; friendly, 42, Ax, Don\u2019s."
    )
    assert masks.found(text) == ["friendly", "blue bar", "blue bar and grill", "dons"]
    assert (
        masks.mask(text) == "a place staff at a place, a place or dons; friendly, 42, Ax, a place."
    )
    kept = masks.mask(text, keep="Blue Bar", by="it")
    assert kept == "it staff at the BLUE bar, it or dons; friendly, 42, Ax, it."
    assert masks.mask("") == "" and TitleMasks([]).found(text) == []


def test_sentences_are_turned_to_the_user():
    assert profiles.audiences(
        [
            "Fans of ramen would enjoy X.",
            "Mexican food lovers, will likely appreciate it.",
            "Those who like Mexican art, would find X.",
            "A bar.",
            "They would like it.",
        ]
    ) == ["fans of ramen", "Mexican food lovers", "those who like Mexican art", "", ""]
    assert profiles.addressed("This user is likely to enjoy tea.") == "you like tea."
    assert profiles.addressed("User enjoys tea.") == "you like tea."
    assert profiles.addressed("Tea is liked.") == "Tea is liked."
    both = profiles.both_sides
    assert both("The user would enjoy the ale.") == ("you would enjoy the ale.", "")
    assert both("You may like ale, despite the high price.") == (
        "you may like ale.",
        "you may mind high price",
    )
    assert both("You may like ale despite being full.")[1] == "you may mind it being full"
    inside = "You may like it because, despite the price, ale is good."
    assert both(inside) == ("you" + inside[3:], "")


def test_content_words():
    words = profiles.content_words("The user would enjoy Cafes, cozy pubs' ales & the bus glass")
    assert words == ["cafe", "cozy", "pub", "ale", "bus", "glass"]


@pytest.mark.parametrize("template", [profiles.PROFILES, profiles.VISITS])
def test_templates_ask_about_the_user_alone(template):
    entries = [
        template.render_entry({"title": title, "item_text": "Good."}, number)
        for number, title in enumerate(("Bar", None), start=1)
    ]
    user = template.render_user({"profile": "Likes tea."}) if template.user else ""
    prompt = template.assemble(user=user, item="", entries=entries)
    assert "1. Bar: Good.\n2. Good.\n" in prompt and "Why not:" in prompt
    assert ("Likes tea." in prompt) == (template is profiles.PROFILES)
    assert parse_prompt(template, prompt) is not None
