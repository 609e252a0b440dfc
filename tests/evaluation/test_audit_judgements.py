"""Checks of judgements: on a fair set nothing, on faulty ones exact counts."""

import itertools
import random

from xrec_jax.evaluation import audit
from xrec_jax.evaluation.audit.comparisons import groups_of, systems_of
from xrec_jax.evaluation.audit.judgements import check_judgements

SYSTEMS = ("ape", "bee", "cat", "dog")


def row(dataset, prompt, first, second, better, **more):
    return {
        "prompt": f"{dataset} {prompt}",
        "dataset": dataset,
        "better": better,
        "first": f"{first} on {dataset} {prompt}",
        "second": f"{second} on {dataset} {prompt}",
        **more,
    }


def grid(datasets=("ml", "steam", "mind"), prompts=10, label=None):
    """Groups of every pair of systems in every data set, in one order."""
    label = label or (lambda dataset, pair, prompt: 1 + prompt % 2)
    return [
        row(dataset, prompt, *pair, label(dataset, pair, prompt))
        for dataset in datasets
        for pair in itertools.combinations(SYSTEMS, 2)
        for prompt in range(prompts)
    ]


def read(records):
    return audit.read_judgements(records, audit.read_contents(records))


def found(records, written=None):
    outcomes = [one for one in check_judgements(read(records), written) if one]
    return {one.code.removeprefix("judgements/"): one for one in outcomes}


def hits(records):
    return {code: one.count for code, one in found(records).items() if one.count}


def test_fair_judgements():
    # Both orders of every pair on every prompt; the same text wins in both.
    rows = []
    for one in grid():
        rows.append(one | {"first_system": "x", "second_system": "y"})
        turned = {"first": one["second"], "second": one["first"], "better": 3 - one["better"]}
        rows.append(one | turned | {"first_system": "y", "second_system": "x"})
    assert len(found(rows)) == 7 and not hits(rows)
    random.Random(3).shuffle(rows)
    nameless = [{k: v for k, v in one.items() if "system" not in k} for one in rows]
    assert not hits(nameless)


def test_groups_and_systems_are_recovered():
    judged = read(grid())
    groups = groups_of(judged)
    assert [len(rows) for rows in groups] == [10] * 18
    assert [rows[0] for rows in groups] == list(range(0, 180, 10))
    pairs = systems_of(judged, groups)
    expected = [
        (f"ml system {a}", f"ml system {b}") for a, b in itertools.combinations((1, 2, 3, 4), 2)
    ]
    assert pairs[:6] == expected and pairs[6][0] == "steam system 1"
    written = {(one.prompt.text, one.first): "ape" for one in judged[:10]}
    named = systems_of(judged, groups, written)
    assert named[0] == ("ape", "ml system 2") and named[6] == ("steam system 1", "steam system 2")
    # A system of which a third of the texts was written anew is still the same one.
    anew = grid(("ml",))
    for place in (10, 13, 16):
        anew[place]["first"] = f"another {place}"
    judged = read(anew)
    assert systems_of(judged, groups_of(judged)) == expected
    # One group tells nothing; neither does a file in which systems change places.
    judged = read(anew[:10])
    assert systems_of(judged, groups_of(judged)) == [None]


def test_label_imbalance_and_prior():
    certain = grid(label=lambda dataset, pair, prompt: 2 if "dog" in pair else 1 + prompt % 2)
    one = found(certain)["label_imbalance"]
    assert (one.count, one.total) == (90 + 45, 180) and one.severity == "warning"
    assert one.examples[0] == "mind: 45 of 60 (75 %)" and "text 2 is the better" in one.message
    # By hand: 3 x 30 certain rows; of the others, 5 and 5 labels, every row's guess is wrong.
    prior = found(grid(label=lambda dataset, pair, prompt: 1 if "ape" in pair else 2))["pair_prior"]
    assert (prior.count, prior.total) == (180, 180)
    assert "the constant answer 50 %" in prior.message and "in 18 of 18 pairs" in prior.message
    assert prior.examples[0] == "ml system 1 before ml system 2: 1 in 10 of 10"
    assert "pair_prior" not in hits(certain[:10])
    alike = grid(label=lambda *_: 2)  # nothing to gain over the constant answer
    assert "pair_prior" not in hits(alike) and hits(alike)["label_imbalance"] == 180
    assert "label_imbalance" not in hits(alike[:3])  # three heads in a row


def naive_prior(records, key):
    """Rows guessed right by the most frequent label of the others with the same key."""
    right = 0
    for place, one in enumerate(records):
        rest = [other for n, other in enumerate(records) if n != place]
        score = lambda label, among: sum(o["better"] == label for o in among)  # noqa: E731
        same = [other for other in rest if key(other) == key(one)]
        best = max((1, 2), key=lambda label: (score(label, same), score(label, rest)))
        right += best == one["better"]
    return right


def test_prior_against_a_loop():
    rng = random.Random(5)
    shares = (0.1, 0.8, 0.3, 0.9, 0.2, 0.5)
    share = dict(zip(itertools.combinations(SYSTEMS, 2), shares, strict=True))
    records = grid(
        ("ml", "mind"), 13, label=lambda dataset, pair, prompt: 1 + (rng.random() < share[pair])
    )
    by_pair = lambda one: (one["dataset"], one["first"][:3], one["second"][:3])  # noqa: E731
    assert found(records)["pair_prior"].count == naive_prior(records, by_pair) > 0


def test_fixed_position():
    records = grid(("ml", "mind"))
    one = found(records)["fixed_position"]
    assert (one.count, one.total, one.severity) == (120, 120, "warning")
    assert one.examples == tuple(
        f"{name} system {number} stands {place} in all of its 30 comparisons"
        for name in ("mind", "ml")
        for number, place in ((1, "first"), (4, "second"))
    )
    some = [("", "a", "b"), ("", "b", "a"), ("", "a", "c"), ("", "a", "c")]
    one = audit.shown_in_one_order(some, "verdicts")
    assert (one.code, one.count, one.total) == ("verdicts/fixed_position", 2, 4)
    assert one.examples == ("c stands second in all of its 2 comparisons",)


def test_copies_contradictions_and_holes():
    records = grid()
    # Two groups of "mind" hold prompts of "steam" with some other labels, as published.
    copies = [dict(one) for one in records[60:80]]
    for place in (1, 4, 17):
        copies[place]["better"] = 3 - copies[place]["better"]
    faulty = [*records[:120], *copies, *records[140:]]
    assert hits(faulty) == {
        "fixed_position": 180,
        "group_copies": 2,
        "uneven_groups": 2,
        "contradictory_labels": 3,
    }
    one = found(faulty)
    assert one["group_copies"].total == 18 and one["group_copies"].severity == "error"
    assert one["group_copies"].examples[0] == (
        "rows 61 to 70 (steam) and rows 121 to 130 (steam): "
        "10 comparisons in common, 8 labels agree"
    )
    assert one["uneven_groups"].examples[:2] == (
        "steam: 8 groups instead of 6, 80 rows",
        "mind: 4 groups instead of 6, 40 rows",
    )
    assert one["contradictory_labels"].total == 20
    assert one["contradictory_labels"].examples[0].startswith("rows 62 and 122: ")
    apart = [*records[:60], *copies, *records[140:], *records[60:120]]  # between, as published
    assert found(apart)["uneven_groups"].examples[2] == (
        "rows 61 to 80 (steam) stand apart from rows 121 to 180 (steam); mind between them"
    )


def test_order_does_not_hide_a_contradiction():
    first = row("ml", 1, "a", "b", 1)
    turned = row("ml", 1, "b", "a", 1)  # the other text wins
    agrees = row("ml", 1, "b", "a", 2)
    assert hits([first, agrees]) == {} and hits([first, turned])["contradictory_labels"] == 1
    assert hits([first | {"second": first["first"]}]) == {"equal_texts": 1}
