"""English grammar for generated text: articles, plurals, lists, sentences."""

from __future__ import annotations

from collections.abc import Sequence

# Words pronounced with an initial consonant though written with a vowel, and vice versa.
_CONSONANT_SOUND = ("uni", "use", "usu", "util", "euro", "eu", "one", "once", "ukrain")
_VOWEL_SOUND = ("hour", "honest", "honour", "honor", "heir")
_NUMBER_WORDS = "no one two three four five six seven eight nine ten eleven twelve".split()


def with_article(phrase: str) -> str:
    """Adds "a" or "an" to a phrase: "an artsy bar", "a university", "an 18-year-old"."""
    return f"{'an' if _starts_with_vowel_sound(phrase.lower()) else 'a'} {phrase}"


def _starts_with_vowel_sound(phrase: str) -> bool:
    if phrase.startswith(_VOWEL_SOUND):
        return True
    if phrase.startswith(_CONSONANT_SOUND):
        return False
    if phrase[:1].isdigit():
        digits = phrase[: len(phrase) - len(phrase.lstrip("0123456789"))]
        return digits.startswith("8") or digits in ("11", "18")
    return phrase[:1] in tuple("aeiou")


def plural(noun: str) -> str:
    """Plural of a regular noun, or of a phrase that ends in one: "art galleries"."""
    lower = noun.lower()
    if lower.endswith("y") and lower[-2:-1] not in tuple("aeiou"):
        return noun[:-1] + "ies"
    if lower.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    return noun + "s"


def listing(names: Sequence[str]) -> str:
    """Joins names: "A", "A and B", "A, B and C"."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def count_of(count: int, noun: str) -> str:
    """Number with noun: "one visit", "13 galleries"; numbers up to twelve as words."""
    number = _NUMBER_WORDS[count] if 0 <= count < len(_NUMBER_WORDS) else str(count)
    return f"{number} {noun if count == 1 else plural(noun)}"


def sentence(text: str) -> str:
    """Makes a sentence of a clause: capital first letter, one full stop."""
    text = text.strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."
