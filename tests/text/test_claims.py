"""The reader of claims: against planted reasons, loose wordings and plain descriptions."""

import collections
import functools

import pytest

from tests import tiny
from xrec_jax.data.world import vocabulary as words
from xrec_jax.data.world.config import WorldConfig
from xrec_jax.data.world.text import KIND_WORDS, MOOD_WORDS
from xrec_jax.data.world.world import generate
from xrec_jax.text.claims.reader import Claim, read_claims
from xrec_jax.text.synthetic import wording
from xrec_jax.text.synthetic.corpus import world_sentences
from xrec_jax.text.synthetic.explanations import explain
from xrec_jax.text.synthetic.grammar import plural, sentence, with_article

VOCABULARY = {
    "kind": KIND_WORDS,
    "cuisine": words.CUISINES[1:],
    "mood": MOOD_WORDS,
    "price": words.PRICES,
    "distance": (),
    "popularity": words.POPULARITY_BANDS,
    "sequence": KIND_WORDS,
}
FOR, AGAINST = "for", "against"


def read(text, vocabulary=VOCABULARY):
    return read_claims(text, vocabulary)


def claims(*entries):
    return {Claim(*entry) for entry in entries}


# Every wording of the generator, one by one ----------------------------------------------------

VALUES = {
    "kind": ("gallery", "cinema"),
    "cuisine": ("Italian", "Thai"),
    "mood": ("artsy", "family-friendly"),
    "price": ("1", "4"),
    "distance": ("1.2 km", "10.0 km"),
    "popularity": ("famous", "little-known"),
    "sequence": ("gallery", "bar"),
}


def clause(text, value, it, last=""):
    return sentence(
        text.format(
            it=it,
            value=value,
            a_value=with_article(value),
            plural=plural(value),
            last=last,
            than="cheaper",
        )
    )


@pytest.mark.parametrize("direction", [FOR, AGAINST])
@pytest.mark.parametrize("attribute", VALUES)
def test_every_wording_is_read_alone(attribute, direction):
    texts = (wording.FOR if direction == FOR else wording.AGAINST)[attribute]
    sense = "cheaper" if (attribute, direction) == ("price", AGAINST) else None
    for text in texts:
        for value in VALUES[attribute]:
            for it in ("it", "this place", "The Quiet Bar", "Market's Anchor"):
                said = clause(text, value, it, " (Quiet Museum)")
                assert read(said) == claims((attribute, direction, value, sense)), said


def test_evidence_openers_and_closers_claim_nothing():
    rows = [text for texts in wording.EVIDENCE.values() for text in texts]
    for name in (
        "OPENERS",
        "OPENERS_STRONG",
        "OPENERS_WEAK",
        "HISTORY",
        "HISTORY_ONE",
        "COUNT",
        "WHERE",
        "WHERE_HOME",
        "SAME_DISTRICT",
        "CLOSERS_FOR",
        "CLOSERS_MIXED",
        "CLOSERS_WEAK",
        "NO_AGAINST",
        "UNKNOWN_PART",
    ):
        rows += getattr(wording, name)
    for text in rows:
        for value in ("quiet", "Thai", "bar", "3", "famous"):
            said = sentence(
                text.format(
                    it="it",
                    name="Dusty Moon",
                    value=value,
                    plural=plural(value),
                    be="is",
                    cited="The Flint Fox and Old Quiet Market",
                    they="it is",
                    serve="serves",
                    recent="Dusty Moon",
                    visits="3 earlier visits",
                    district="Riverside",
                    home="Harbour",
                )
            )
            assert read(said) == set(), said


# Whole texts -----------------------------------------------------------------------------------


@functools.cache
def generated():
    """(planted reasons, explanation) of the visits of a world."""
    made = generate(WorldConfig(**tiny.WORLD))
    items, users = made.dataset.items.to_dicts(), made.dataset.users.to_dicts()
    events, past, cases = made.dataset.interactions, collections.defaultdict(list), []
    for item, why in zip(events.item.tolist(), made.reasons_for_visits(events), strict=True):
        text = explain(
            why,
            item=items[item],
            history=past[why.user],
            user=users[why.user],
            key=(why.user, item),
        )
        cases.append((why, text))
        past[why.user].append(items[item])
    return items, cases


def test_planted_reasons_are_recovered():
    found = true = right = 0
    _, cases = generated()
    for why, text in cases:
        planted = {
            (reason.attribute, direction, reason.value)
            for direction, reasons in ((FOR, why.for_), (AGAINST, why.against))
            for reason in reasons
        }
        said = read(text)
        senses = {c.sense for c in said if c.sense}
        phrases = " ".join(reason.phrase for reason in why.against)
        assert senses == {sense for sense in ("cheaper", "pricier") if sense in phrases}, text
        found, true = found + len(said), true + len(planted)
        right += len({claim[:3] for claim in said} & planted)
    assert len(cases) > 800 and true > 2000
    assert right / found > 0.995 and right / true > 0.995


def test_descriptions_claim_nothing():
    items, _ = generated()
    for text in world_sentences(items, copies=2):
        assert read(text) == set(), text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "You love quiet cafes, so it is for you.",
            [("mood", FOR, "quiet"), ("kind", FOR, "cafe")],
        ),
        ("Because you enjoy Thai food, you might like The Golden Bar.", [("cuisine", FOR, "Thai")]),
        ("you enjoy thai dishes", [("cuisine", FOR, "Thai")]),
        ("The calm setting matches your taste.", [("mood", FOR, "quiet")]),
        ("You don\u2019t really like museums, and this is one.", [("kind", AGAINST, "museum")]),
        ("You've never been fond of romantic places.", [("mood", AGAINST, "romantic")]),
        ("You neither like bars nor gyms.", [("kind", AGAINST, "bar"), ("kind", AGAINST, "gym")]),
        ("You rarely go for lively places.", [("mood", AGAINST, "lively")]),
        ("It is quiet, and you like that.", [("mood", FOR, "quiet")]),
        (
            "You like bars, but it is a museum, which you tend to avoid.",
            [("kind", FOR, "bar"), ("kind", AGAINST, "museum")],
        ),
        (
            "The quiet mood suits you, but the Indian food does not suit your taste.",
            [("mood", FOR, "quiet"), ("cuisine", AGAINST, "Indian")],
        ),
        ("The Silent Park is a park and parks are not your thing.", [("kind", AGAINST, "park")]),
        (
            "Likes quiet places; likes Thai food; against: pricier than usual.",
            [("mood", FOR, "quiet"), ("cuisine", FOR, "Thai"), ("price", AGAINST, None, "pricier")],
        ),
        (
            "It's a bit pricier than you are used to, at price level 4.",
            [("price", AGAINST, "4", "pricier")],
        ),
        ("It stays within your usual budget with a price level of 1.", [("price", FOR, "1")]),
        ("Its price does not fit your budget.", [("price", AGAINST, None)]),
        ("The price level of 2 suits this cosy cafe.", []),
        ("At 2.5 km it is nearer to home than most.", [("distance", FOR, "2.5 km")]),
        ("It's further from your home than most places (7.3 km).", [("distance", AGAINST, None)]),
        ("It is not far from your home.", [("distance", FOR, None)]),
        ("You live 3.1 km away, so it is not closer than most.", [("distance", AGAINST, "3.1 km")]),
        ("Everyone knows it: it is more popular than most places.", [("popularity", FOR, None)]),
        ("It is less popular than most.", [("popularity", AGAINST, None)]),
        ("You like famous places.", [("popularity", FOR, "famous")]),
        ("A bar is a good next stop after a restaurant.", [("sequence", FOR, "restaurant")]),
        (
            "You just went to a pub, and it would be more of the same.",
            [("sequence", AGAINST, "bar")],
        ),
        ("Its mood (cosy) speaks for it: you like quiet places.", [("mood", FOR, "cosy")]),
        (
            "The release year (1999) is not in its favour: too old.",
            [("release_year", AGAINST, "1999")],
        ),
        (
            "You like it. You like it. You like cafes. You do not like cafes.",
            [("kind", FOR, "cafe"), ("kind", AGAINST, "cafe")],
        ),
        # What is said of others, of other places or of nobody is no reason.
        ("The Golden Bar is a lively bar in Riverside. It serves Thai food at price level 3.", []),
        ("It is 2.5 km away, famous and cheap. You recently went to a park.", []),
        ("Visitors love its quiet mood, and people who like museums will enjoy it.", []),
        ("If you like Thai food, it has some. Dusty Moon, an artsy cafe, should suit you.", []),
        ("It feels like a quiet place. You like Flint Market and Quiet Bar.", []),
        ("You like neither its mood nor its price. Nothing speaks against it.", []),
        ("It isn't cheaper than your usual places.", []),
        ("", []),
    ],
)
def test_loose_wordings(text, expected):
    assert read(text) == claims(*expected)


def test_the_vocabulary_decides_what_can_be_claimed():
    text = "You enjoy slow comedies, and you like the cosy mood."
    assert read(text, {"genre": {"comedy": ["comedies"]}}) == claims(("genre", FOR, "comedy"))
    assert read(text, {"pace": ["slow", "fast"]}) == claims(("pace", FOR, "slow"))
    assert read(text, {}) == set()
    # The longer of two values that begin alike is meant.
    assert read("You like dark comedy.", {"genre": ["comedy", "dark comedy"]}) == claims(
        ("genre", FOR, "dark comedy")
    )
