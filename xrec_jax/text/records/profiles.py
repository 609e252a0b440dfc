"""Reader of texts about users and items: profiles, descriptions and explanations.

Each line is a JSON object of a user with an item, as published by XRec (arXiv 2406.02377). A user's
profile and an item's description are repeated in each of their records.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.storage.files import numbered_records
from xrec_jax.text.prompts.templates import Template, register
from xrec_jax.text.words import is_dense, spelt_words

# Asks about the user alone, as `taste_pairs.TASTES`, for data with summaries instead of reviews.
PROFILES = register(
    Template(
        name="profiles",
        body=(
            "Say what this user looks for in a place and what they avoid, as reasons why they may "
            'like a place and why not: "Why: ..." and then "Why not: ...".\n\n'
            "Some places the user went to:\n{history}About the user: {user}\n\n"
        ),
        entry="{index}. [[{title}: ]]{item_text}\n",
        user="{profile}",
        no_history="(none known)\n",
    )
)

# The same without the profile, for files whose profiles leak held-out events.
VISITS = register(
    Template(
        name="visits",
        body=PROFILES.body.replace("About the user: {user}\n\n", "\n"),
        entry=PROFILES.entry,
        no_history=PROFILES.no_history,
    )
)

_VERB = re.compile(
    r"\s(?:would|will|may|might|could|can|should|(?:are|is) likely to)\s+(?:\w+\s+)?"
    r"(?:enjoy|appreciate|love|like|find|be|benefit)\b"
)
_FIRST = re.compile(
    r"^(?:this|the|a)?\s*(?:user|customer|person|they)?\s*(?:who\s+)?"
    r"(?:is likely to enjoy|enjoys|likes|likely to enjoy|seems to enjoy|tends to enjoy"
    r"|would enjoy|appreciates|prefers)\s+",
    re.IGNORECASE,
)
_SAYS = re.compile(r"^(?:the|this) (?:user|customer) (?=(?:would|will|may|might) )", re.IGNORECASE)
_DESPITE = re.compile(r",?\s+despite\s+(?:the\s+)?([^,.;]+)\.?\s*$")
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
# Words without information on a taste: function words, and words common to all such texts.
_EMPTY = frozenset(
    "a about all also among an and any are as at be because been but by can could etc for from had "
    "has have having her his how i if in including into is it its like likely many may more most "
    "of on one or other others our out over own such than that the their them these they this "
    "those through to up use uses using variety various was we well were what when where which "
    "while who will with within would you your user users enjoy enjoys enjoying enjoyed appreciate "
    "appreciates business businesses place places fans fan lovers enthusiasts individuals people "
    "seeking looking find wide range selection options option experience experiences offer offers "
    "offering visit visiting interested prefer prefers love loves".split()
)


class Keys(NamedTuple):
    """Names of the keys of a record; an empty title or teacher key means that there is none."""

    user: str = "uid"
    item: str = "iid"
    profile: str = "user_summary"
    item_text: str = "item_summary"
    title: str = "title"
    teacher: str = "explanation"


class PairText(NamedTuple):
    """A record.

    Attributes:
      line: line number, from 1.
      user: id of the user.
      item: id of the item.
      profile: profile of the user.
      item_text: description of the item.
      title: title of the item; "" for none.
      teacher: explanation by a teacher model; "" for none.
    """

    line: int
    user: str
    item: str
    profile: str
    item_text: str
    title: str = ""
    teacher: str = ""


def read_pair_texts(
    path: epath.PathLike,
    keys: Keys | None = None,
    *,
    users: Iterable[str] | None = None,
    items: Iterable[str] | None = None,
) -> list[PairText]:
    """Reads a file, perhaps gzipped.

    Args:
      path: path of a JSON-lines file.
      keys: key names of the records.
      users: known user ids; None accepts any.
      items: known item ids; None accepts any.

    Raises:
        UserError: names file and line of a record that is not a JSON object, lacks a key, has an
          empty text or an unknown id, or contradicts an earlier line about a user or item.
    """
    keys = keys or Keys()
    known = {"user": users, "item": items}
    ids = {role: None if names is None else set(map(str, names)) for role, names in known.items()}
    first: dict[tuple[str, str], PairText] = {}
    rows = []
    for number, record in numbered_records(path):
        where = f"{path}, line {number}"
        row = PairText(
            number,
            **{role: _value(record, role, key, where) for role, key in keys._asdict().items()},
        )
        for role, allowed in ids.items():
            name = getattr(row, role)
            if allowed is not None and name not in allowed:
                raise UserError(
                    f"{where}: no {role} {name!r} in the data"
                    f"{did_you_mean(name, allowed, limit=3)}; "
                    "give the file of this data set, or delete the line"
                )
        # A user has one profile and an item one description, however often they are repeated.
        for role, texts in (("user", ("profile",)), ("item", ("item_text", "title"))):
            name = getattr(row, role)
            other = first.setdefault((role, name), row)
            for text in texts:
                if getattr(other, text) != getattr(row, text):
                    raise UserError(
                        f"{where}: {getattr(keys, text)!r} of {role} {name!r} differs from line "
                        f"{other.line}; keep one of the two texts"
                    )
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: no record in it")
    return rows


def _value(record: Mapping[str, Any], role: str, key: str, where: str) -> str:
    if not key and role in ("title", "teacher"):
        return ""
    setting = f"joint.states.{role}_key"
    if key not in record:
        raise UserError(f"{where}: no key {key!r} ({setting}){did_you_mean(key, record)}")
    value = record[key]
    # Ids may be numbers; texts may not.
    if role in ("user", "item") and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {key!r} ({setting}) holds no text; fill it or delete the line")
    return value if role in ("user", "item") else " ".join(value.split())


def content_words(text: str) -> list[str]:
    """Content words of a text, in order, in lower case, in the singular.

    Words of one or two letters are dropped, except in scripts with such short words: Chinese,
    Korean.
    """
    words = [word.casefold().replace("\u2019", "'") for word in spelt_words(text)]
    return [
        _stem(word) for word in words if word not in _EMPTY and (len(word) > 2 or is_dense(word))
    ]


def _stem(word: str) -> str:
    word = word.removesuffix("'s")
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def audiences(texts: Sequence[str]) -> list[str]:
    """Audience of each description: "Fans of ramen would enjoy X." gives "fans of ramen".

    Empty if the description has no such beginning. The first word loses its capital, unless the
    texts capitalise it within sentences more often than not ("Mexican").
    """
    # Without the first word of each text, whose capital is that of the sentence.
    inside = Counter(word for text in texts for word in _WORD.findall(text)[1:])
    result = []
    for text in texts:
        pieces = _VERB.split(text, maxsplit=1)
        subject = pieces[0].strip(" ,") if len(pieces) == 2 else ""
        word = _WORD.match(subject)
        if word is not None and inside[word[0]] <= inside[word[0].lower()]:
            subject = subject[0].lower() + subject[1:]
        result.append(subject if len(subject.split()) >= 2 else "")
    return result


def addressed(profile: str) -> str:
    """Rewrites a profile in the second person: "This user enjoys tea." gives "you like tea".

    Profiles with another beginning are unchanged.
    """
    rest_of_profile, count = _FIRST.subn("", profile.strip(), count=1)
    return f"you like {rest_of_profile}" if count else rest_of_profile


def both_sides(explanation: str) -> tuple[str, str]:
    """Splits an explanation into clauses for and against the item, in the second person.

    Only a "despite ..." at the end counts as against: elsewhere it cannot be removed without
    breaking the sentence. Empty if there is none.
    """
    clause = _SAYS.sub("you ", explanation.strip())
    clause = "you " + clause[4:] if clause.startswith("You ") else clause
    despite = _DESPITE.search(clause)
    if despite is None or not despite.start():
        return clause, ""
    # "despite being far" needs a subject: "you may mind it being far".
    it = "it " if despite[1].startswith(("being ", "having ")) else ""
    return clause[: despite.start()] + ".", f"you may mind {it}{despite[1]}"
