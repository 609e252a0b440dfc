"""Spellings of titles that are equal, and those that are not."""

import pytest

from xrec_jax.text.titles.normal import normal_title, same_title


@pytest.mark.parametrize(
    "first, second",
    [
        ("Matrix, The (1999)", "the MATRIX"),
        ("Postino, Il", "postino"),
        ("Horseman on the Roof, The (Hussard sur toit)", "Horseman on the Roof: Hussard sur Toit"),
        ("Eve\u2019s Bayou", "Eve's Bayou"),
        ("L\u00e9on", "Leon"),
        (r"Call of Duty\xae: Modern Warfare\xae 2", "Call of Duty\u00ae: Modern Warfare 2"),
        (r"ArcheBlade\u2122", "archeblade"),
        ("Tom & Jerry", "Tom and  Jerry."),
        ("Stra\u00dfe", "STRASSE"),
    ],
)
def test_equal_spellings(first, second):
    assert normal_title(first) == normal_title(second) and same_title(first, second)


def test_what_stays():
    assert normal_title("Die Hard") == "die hard"  # an article of another language in front
    assert normal_title("The The") == "the" and normal_title("A") == "a"
    assert normal_title("1984 (1984)") == "1984" and normal_title("(2001)") == "2001"
    assert normal_title("Hamlet (1990)", year=True) == "hamlet 1990"
    assert normal_title("Killer (Bulletproof Heart)") == "killer bulletproof heart"
    assert normal_title("2001: A Space Odyssey") == "2001 a space odyssey"
    assert normal_title("!!!") == "" and not same_title("!!!", "???")
    assert not same_title("Scream", "Scream 2")
