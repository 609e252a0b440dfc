"""Registered templates: LLMXRec's (arXiv 2312.15661) and those for places.

LLMXRec's are reproduced verbatim: their typos ("domin", a space before a comma, a missing one after
a full stop) are kept, because a model tuned on them expects them. News prompts exist in two forms:
`llmxrec_news` is that of its tuning set and judgements, `llmxrec_news_asked` that of the prompts
given to its systems; they differ in the order of the last sentences.
"""

from __future__ import annotations

from xrec_jax.text.prompts.templates import Template, register

_ASK = "Use ONLY the information mentioned above, especially the history record. "
_TO_CUSTOMER = "You're responding to the CUSTOMER. Directly tell the customer the reason. "
_SHORT = "Respond in SHORT and CONCISE language."
_LIMIT = "Your response should be WITHIN 75 words.\n\n"
_TAIL = f"{_ASK}{_TO_CUSTOMER}{_SHORT} {_LIMIT}"

_CLASS = "The class of the movie is {class}.\n"
MOVIE = register(
    Template(
        name="llmxrec_movie",
        body=(
            "The history films watched by the customer are:\n{history}\n{user}"
            "As a recommender system in the movie domain, based on the customer's historical "
            "viewing records, historical viewing movie information and user information, tell the "
            "customer why he or she needs to watch this movie, and what are the advantages of this "
            "movie.\nGive reasons why the customer needs to watch this movie with the following "
            "title and class:\n{item}\n" + _TAIL
        ),
        entry="{index}: {title}\n" + _CLASS,
        item="{title}.\n" + _CLASS,
        user=(
            "The age of the customer is {age}, the gender is {gender} and the customer's "
            "occupation is {occupation}. "
        ),
        columns={"title": "movie_title"},
        joiner=" ",
    )
)

_CATEGORY = (
    "The category of the news is {category}.\nThe sub category of the news is {sub_category}.\n"
)
_NEWS = (
    "The history news viewed by the customer are:\n{history}\nAs a recommender system in the news "
    "domin, according to the user's previous news viewing history , tell the customer why he or "
    "she needs to watch this news.\nGive reasons why the customer needs to watch this news with "
    "the following title and category:\n{item}\n"
)
NEWS = register(
    Template(
        name="llmxrec_news",
        body=f"{_NEWS}{_ASK}{_SHORT}{_TO_CUSTOMER}{_LIMIT}",
        entry="{index}: {title}\n" + _CATEGORY,
        item="{title}.\n" + _CATEGORY,
    )
)
NEWS_ASKED = register(
    Template(name="llmxrec_news_asked", body=_NEWS + _TAIL, entry=NEWS.entry, item=NEWS.item)
)

# LLMXRec writes "nan" for a game without tags.
_TAGS = "The tags of the game are {tags}.\n"
GAME = register(
    Template(
        name="llmxrec_game",
        body=(
            "The history games played by the customer are:\n{history}\nAs a recommender system in "
            "the game playing domain, according to the user's HISTORICAL play record , tell the "
            "customer why he or she needs to play this game, and what are the advantages of this "
            "game.\nGive reasons why the customer needs to play this game with the following title "
            "and tags:\n{item}\n" + _TAIL
        ),
        entry="{index}: {title}\n" + _TAGS,
        item="{title}.\n" + _TAGS,
        listed="[{list}]",
        unknown="nan",
    )
)

_PLACE = (
    "{name}: {kind}[[, {cuisine} food]][[, {mood}]][[, price level {price}]][[, {popularity}]]"
    "[[, in {district}]]"
)
# The item comes last: prompts of one user share the text before it, and it is close to the answer.
PLACES = register(
    Template(
        name="places",
        body=(
            "Tell the user why the recommended place may suit them and what may speak against it. "
            "Use only the facts below and stay within 75 words.\n\n"
            "Places the user went to, oldest first:\n{history}\nAbout the user: {user}\n"
            "Recommended place: {item}\n\n"
        ),
        entry="{index}. " + _PLACE + "\n",
        item=_PLACE,
        user="{user_text}",
        no_history="(none)\n",
        absent=("none",),
    )
)
# XRec's Google Maps data: summaries of user and place instead of attributes.
PLACES_SUMMARY = register(
    Template(
        name="places_summary",
        body=PLACES.body,
        entry="{index}. {title}[[: {item_summary}]]\n",
        item="{title}[[: {item_summary}]]",
        user="{user_summary}",
        no_history="(none)\n",
    )
)
