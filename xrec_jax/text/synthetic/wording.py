"""Wordings of reasons. Texts only; `explanations` selects and arranges them.

Placeholders: `{it}` the recommended item, `{value}` the planted value, `{plural}` its plural,
`{a_value}` with its article, `{cited}` history entries that share the value, `{be}` "is" or "are"
after them, `{than}` the direction of a price. Every clause of an attribute contains the words by
which `explanations.mentioned_reasons` recognises it: a kind its plural, a sequence the article and
kind.
"""

from __future__ import annotations

FOR = {
    "kind": (
        "you like {plural}, and {it} is one of them",
        "{plural} are among the places you enjoy most, and {it} belongs to them",
        "you have a soft spot for {plural}, so {it} should feel right to you",
        "you tend to enjoy {plural}, which speaks for {it}",
        "of all kinds of places, {plural} please you a lot, and {it} is one of those",
        "{it} is the kind of place you go for, since you like {plural}",
        "as someone who enjoys {plural}, you have a good reason to try {it}",
        "{it} fits your liking for {plural}",
    ),
    "cuisine": (
        "{it} serves {value} food, which you like",
        "you are fond of {value} cooking, and {it} offers it",
        "you enjoy {value} dishes, and {it} has them on the menu",
        "with {value} food on the menu, {it} suits your taste",
        "{value} food is something you like, and {it} serves it",
        "{it} has {value} cuisine, one of your favourites",
        "your taste for {value} food makes {it} a natural choice",
        "when you feel like {value} food, which you enjoy, {it} is a good choice",
    ),
    "mood": (
        "you like {value} places, and {it} is one of them",
        "{it} is {value}, which is how you like a place to be",
        "{it} has the {value} mood that you enjoy",
        "you feel at home in {value} places, and {it} fits that well",
        "{it} offers the {value} atmosphere you look for",
        "you tend to choose {value} places, so {it} should suit you",
        "{it} has {a_value} setting that matches your taste",
        "{a_value} feel matters to you, and {it} has just that",
    ),
    "price": (
        "at price level {value}, {it} suits your budget",
        "{it} has a price level of {value}, which fits what you like to spend",
        "with a price level of {value}, {it} stays within your usual budget",
        "the price level of {value} is about right for you",
        "prices are at level {value}, which matches your budget",
        "you would pay about what you usually do, at price level {value}",
    ),
    "distance": (
        "{it} is {value} from your home, closer than most places",
        "at {value} from home, {it} is nearer to you than most places",
        "you live {value} away, so {it} is closer to home than most",
        "the way there is short compared with most places, {value} from your home",
        "{it} is easy for you to reach, {value} from home and nearer than most",
        "getting there from home takes you {value}, less than for most places",
    ),
    "popularity": (
        "{it} is {value}, more popular than most places",
        "{it} counts as {value} and draws more people than most places do",
        "being {value}, {it} is more popular than most",
        "{it} is {value}, and more people go there than to most places",
        "{it} is more popular than most places and counts as {value}",
        "as {a_value} spot, {it} has more visitors than most",
    ),
    "sequence": (
        "{it} goes well after a visit to {a_value}{last}",
        "after {a_value}{last}, {it} makes a good next stop",
        "your last visit was to {a_value}{last}, and {it} follows well on that",
        "since you have just been to {a_value}{last}, {it} comes at the right time",
        "coming from {a_value}{last}, you would find {it} a fitting next visit",
    ),
}

AGAINST = {
    "kind": (
        "you do not usually enjoy {plural}, and {it} is one of them",
        "{plural} are not really your thing, and {it} is one",
        "you tend to avoid {plural}, which speaks against {it}",
        "{it} belongs to the {plural}, which you are not fond of",
        "you are usually less happy with {plural}, and {it} is one of those",
    ),
    "cuisine": (
        "{it} serves {value} food, which you do not like much",
        "you are not fond of {value} cooking, which is what {it} offers",
        "{it} has {value} dishes on the menu, which are not to your usual taste",
        "{value} food, which {it} serves, is not among your favourites",
        "the menu has {value} food, which you tend to avoid",
    ),
    "mood": (
        "{it} is {value}, and you do not care much for {value} places",
        "you tend to avoid {value} places, and {it} is one of them",
        "{it} has {a_value} mood, which is not what you usually look for",
        "{it} has {a_value} atmosphere, which is not to your taste",
        "{value} places are not really your thing, and {it} is one",
    ),
    "price": (
        "at price level {value}, {it} is {than} than what you usually choose",
        "a price level of {value} makes {it} {than} than usual for you",
        "the price level of {value} is {than} than you are used to",
        "{it} is {than} than your usual places, at price level {value}",
    ),
    "distance": (
        "{it} is {value} from your home, farther than most places",
        "at {value} from home, {it} is farther away than most places",
        "you live {value} away, so {it} is farther from home than most",
        "the way there is long compared with most places, {value} from your home",
    ),
    "popularity": (
        "{it} counts as {value} and is less popular than most places",
        "{it} counts as {value}, and most places are more popular",
        "{it} counts as {value}, and fewer people go there than to most places",
        "{it} is {value}, which means less popular than most",
    ),
    "sequence": (
        "your last visit was to {a_value}{last} too, so {it} offers little change",
        "you have just been to {a_value}{last}, and {it} would be more of the same",
        "{it} comes right after {a_value}{last}, which means little variety",
        "going there straight after {a_value}{last} may feel repetitive",
    ),
}
# For attributes of user-defined tables, whose phrase is quoted.
OTHER_FOR = (
    "its {attribute} ({value}) speaks for it: {phrase}",
    "the {attribute} ({value}) is in its favour: {phrase}",
)
OTHER_AGAINST = (
    "its {attribute} ({value}) speaks against it: {phrase}",
    "the {attribute} ({value}) is not in its favour: {phrase}",
)

# History entries that share the value of a reason for the item.
EVIDENCE = {
    "kind": (
        "your visits to {plural} so far include {cited}",
        "among the {plural} you have been to {be} {cited}",
        "among {plural}, you already know {cited}",
    ),
    "cuisine": (
        "you have also had the chance to try {value} food at {cited}",
        "{cited} in your history {serve} {value} food as well",
        "your history also has {value} food, at {cited}",
    ),
    "mood": (
        "{cited} in your history {be} {value} as well",
        "you have been to {cited} before, and {they} {value} too",
        "{cited}, where you went earlier, {be} just as {value}",
    ),
    "price": (
        "{cited} in your history {be} at price level {value} as well",
        "you already know price level {value} from {cited}",
    ),
}

OPENERS = (
    "{name} could be a good next stop for you",
    "{name} may be a place for you",
    "consider {name} for your next outing",
    "{name} is our suggestion for you",
    "for your next visit, we suggest {name}",
    "here is why {name} might appeal to you",
    "we picked {name} for you",
    "there is something to be said for trying {name}",
    "how about {name} for a change of scene?",
)
OPENERS_STRONG = (
    "{name} looks like a good match for you",
    "{name} should suit you well",
    "there are good reasons for you to try {name}",
    "you are likely to enjoy {name}",
)
OPENERS_WEAK = (
    "{name} is only a tentative suggestion for you",
    "there is no strong reason why {name} should be the place for you",
    "nothing we know of speaks strongly for {name} in your case",
    "we cannot name a clear reason why you would like {name}",
)
CONNECTIVES = ("also, ", "besides, ", "on top of that, ", "moreover, ", "what is more, ")
CAVEATS = (
    "on the other hand, ",
    "to be fair, ",
    "keep in mind that ",
    "you should know, though, that ",
    "one thing against it: ",
    "the drawback is that ",
    "however, ",
    "a word of caution: ",
)
CAVEATS_AGAIN = ("also, ", "besides, ", "another point against it: ", "and ")

HISTORY = (
    "your latest visits were to {recent}",
    "so far, your most recent stops have been {recent}",
    "recently you went to {recent}",
    "before this suggestion, you went to {recent}",
)
HISTORY_ONE = ("your latest visit was to {recent}", "most recently you went to {recent}")
COUNT = ("we looked at {visits} of yours to find this", "this takes {visits} of yours into account")
WHERE = (
    "you will find {it} in {district}",
    "{it} is located in {district}",
    "{it} stands in {district}",
)
WHERE_HOME = (
    "you will find {it} in {district}, while you live in {home}",
    "you live in {home}, and {it} is in {district}",
    "from {home}, where you live, you would go to {district}",
)
SAME_DISTRICT = (
    "you will find {it} in {district}, where you also live",
    "both {it} and your home are in {district}",
)
CLOSERS_FOR = (
    "overall, it seems worth a visit",
    "all in all, a visit seems worth your time",
    "that is why it was picked for you",
    "these are the points that led to this suggestion",
    "we think you will be glad you went",
    "give it a try when you have the time",
)
CLOSERS_MIXED = (
    "still, the points in its favour weigh more",
    "even so, we think it deserves a try",
    "all the same, it may well be worth your time",
)
CLOSERS_WEAK = (
    "take this as an idea rather than a sure match",
    "so only go if you are curious about something different",
    "you may want to look at other places first",
    "see it as a chance to try something new, not as a safe choice",
)
NO_AGAINST = (
    "we know of nothing in particular that speaks against it",
    "nothing we know of speaks clearly against it",
    "no clear drawback comes to mind",
)
UNKNOWN_PART = (
    "part of what makes a place appealing cannot be put into words, so your own impression counts",
    "how much you like it may also depend on things that nobody has written down",
    "we know only part of what matters to you, so trust your own impression as well",
)
