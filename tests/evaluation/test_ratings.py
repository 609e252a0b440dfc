"""Ratings: agreement against published and naive values, means, preferences, raters, files."""

import csv
import gzip
import itertools
import json

import numpy as np
import pytest

from tests.tiny import SHARED, needs_shared_data
from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.ratings import summary
from xrec_jax.evaluation.ratings.raters import GoldCheck, passed, quality, remarks
from xrec_jax.evaluation.ratings.ratings import Answers, Preference, Rating, read_ratings
from xrec_jax.evaluation.statistics.agreement import alpha

# Four observers, twelve units: example C of Krippendorff 2011, whose alphas are printed there.
EXAMPLE = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""
LEVELS = ("nominal", "ordinal", "interval")


def example():
    rows = [line.split() for line in EXAMPLE.strip().splitlines()]
    return np.array([[np.nan if cell == "." else float(cell) for cell in row] for row in rows])


def naive_alpha(ratings, level):
    """Pairs of ratings one by one: observed within units, expected over all paired ratings."""
    units = [[v for v in column if not np.isnan(v)] for column in ratings.T]
    units = [unit for unit in units if len(unit) > 1]
    everything = [value for unit in units for value in unit]

    def apart(c, k):
        if level == "nominal":
            return float(c != k)
        if level == "interval":
            return (c - k) ** 2
        low, high = min(c, k), max(c, k)
        between = sum(low <= value <= high for value in everything)
        return (between - everything.count(c) / 2 - everything.count(k) / 2) ** 2

    observed = sum(
        apart(a, b) / (len(unit) - 1) for unit in units for a, b in itertools.permutations(unit, 2)
    ) / len(everything)
    pairs = list(itertools.permutations(everything, 2))
    expected = sum(apart(a, b) for a, b in pairs) / len(pairs)
    return 1 - observed / expected


@pytest.mark.parametrize(
    ("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_is_the_published_one(level, published):
    found = alpha(example(), level=level)
    assert round(found["value"], 3) == published
    assert found["count"] == 11  # the last unit has one rating
    assert found["low"] < found["value"] < found["high"] <= 1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_alpha_agrees_with_a_loop_over_pairs(level, seed):
    rng = np.random.default_rng(seed)
    ratings = np.round(rng.normal(5, 2, (5, 13)) * 2) / 2  # fractional values
    ratings[rng.random(ratings.shape) < 0.4] = np.nan
    np.testing.assert_allclose(
        alpha(ratings, level=level, resamples=0)["value"], naive_alpha(ratings, level)
    )


def test_alpha_at_its_ends():
    same = np.tile([1.5, 2, 9, 2], (3, 1))
    assert all(alpha(same, level=level)["value"] == 1 for level in LEVELS)
    # Two raters who always differ about two values do worse than chance.
    assert alpha(np.array([[1.0, 2, 1, 2], [2, 1, 2, 1]]))["value"] < -0.5
    noise = np.random.default_rng(0).integers(1, 11, (3, 3000)).astype(float)
    assert abs(alpha(noise, resamples=0)["value"]) < 0.03
    for unknown in (np.ones((2, 4)), np.array([[1, np.nan], [np.nan, 2.0]]), np.ones((1, 3))):
        found = alpha(unknown)
        assert np.isnan(found["value"]) and found["low"] is None
    with pytest.raises(UserError, match="did you mean 'ordinal'"):
        alpha(example(), level="ordnal")
    with pytest.raises(UserError, match=r"\[raters, units\]"):
        alpha(np.ones(3))


def test_alpha_interval_is_that_of_drawn_units_and_of_drawn_clusters():
    ratings = example()[:, :11]
    rng = np.random.default_rng(5)
    drawn = [naive_alpha(ratings[:, rng.integers(0, 11, 11)], "interval") for _ in range(800)]
    found = alpha(ratings, resamples=4000)
    expected = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose([found["low"], found["high"]], expected, atol=0.05)
    # Every unit thrice, but drawn as one cluster: nothing is known more surely than before.
    thrice, clusters = np.repeat(ratings, 3, axis=1), np.repeat(np.arange(11), 3)
    wide = alpha(thrice, clusters=clusters, resamples=4000)
    narrow = alpha(thrice, resamples=4000)
    assert narrow["high"] - narrow["low"] < 0.75 * (wide["high"] - wide["low"])
    np.testing.assert_allclose([wide["low"], wide["high"]], expected, atol=0.05)
    with pytest.raises(UserError, match="2 clusters for 11"):
        alpha(ratings, clusters=[1, 2])


def ratings_of(table, question="clear"):
    """`{(rater, item, system): value}` as records."""
    return [Rating(r, i, s, question, float(v)) for (r, i, s), v in table.items()]


def test_means_and_their_intervals_draw_whole_items():
    rng = np.random.default_rng(2)
    items = rng.normal(6, 2, 30)
    # Four raters who say the same about an item: as good as one of them.
    made = [
        Rating(f"r{r}", f"i{i}", "a", "clear", items[i]) for i in range(30) for r in range(4)
    ] + [Rating("r0", "i3", "b", "clear", 2.5)]
    found = summary.means(made, resamples=4000)
    mean = found["a"]["clear/mean"]
    np.testing.assert_allclose(mean["value"], items.mean())
    half = 1.96 * items.std() / np.sqrt(30)
    np.testing.assert_allclose(mean["high"] - mean["low"], 2 * half, rtol=0.08)
    assert mean["count"] == 30
    assert found["b"]["clear/mean"] == {"value": 2.5, "low": None, "high": None, "count": 1}


def test_differences_are_paired_and_corrected():
    rng = np.random.default_rng(3)
    base = rng.normal(5, 3, 25)
    table = {}
    for i, x in enumerate(base):
        for r in ("r", "q"):
            table[r, f"i{i}", "a"] = x + 1 + rng.normal(0, 0.2)
            table[r, f"i{i}", "b"] = x
            if i < 20:
                table[r, f"i{i}", "c"] = x + rng.normal(0, 0.2)
    found = summary.differences(ratings_of(table))
    assert list(found) == ["a vs b", "a vs c", "b vs c"]
    one = found["a vs b"]
    expected = np.mean(
        [(table["r", f"i{i}", "a"] + table["q", f"i{i}", "a"]) / 2 - base[i] for i in range(25)]
    )
    np.testing.assert_allclose(one["clear/difference"]["value"], expected)
    assert one["clear/difference"]["high"] - one["clear/difference"]["low"] < 0.4
    assert one["clear/p"]["value"] < 0.001 and found["b vs c"]["clear/p"]["value"] > 0.05
    assert found["a vs c"]["clear/difference"]["count"] == 20


def test_preferences_count_ties_half_and_both_directions():
    said = [("a", "b", 1), ("b", "a", 0), ("a", "b", 0.5), ("b", "c", 1), ("c", "a", 0.5)]
    answers = [Preference("r", f"i{n}", x, y, s) for n, (x, y, s) in enumerate(said)]
    found = summary.preferences(answers)
    value = lambda name, metric: found[name][metric]["value"]  # noqa: E731
    np.testing.assert_allclose(value("a vs b", "win/ratio"), 2.5 / 3)
    np.testing.assert_allclose(value("a vs b", "win/ties"), 1 / 3)
    np.testing.assert_allclose(value("a", "win/ratio"), 3 / 4)
    np.testing.assert_allclose(value("c", "win/ratio"), 0.5 / 2)
    assert value("a", "bradley_terry/strength") > value("b", "bradley_terry/strength")
    strengths = [value(name, "bradley_terry/strength") for name in "abc"]
    np.testing.assert_allclose(sum(strengths), 0, atol=1e-9)
    assert summary.preferences([]) == {}


def test_agreement_reads_preferences_in_one_direction():
    ratings = ratings_of({(r, f"i{i}", "a"): (i % 4) + 1.5 for r in "xy" for i in range(7)})
    # The two saw the texts on different sides, and mean the same.
    prefer = [Preference("x", f"i{i}", "a", "b", i % 2) for i in range(7)]
    prefer += [Preference("y", f"i{i}", "b", "a", 1 - i % 2) for i in range(7)]
    found = summary.agreement(Answers(tuple(ratings), tuple(prefer)))
    assert set(found) == {
        "clear/alpha_interval",
        "clear/alpha_ordinal",
        "preference/alpha_nominal",
        "preference/alpha_ordinal",
    }
    assert all(estimate["value"] == 1 for estimate in found.values())
    # Texts about one item are drawn together: ten equal ones tell no more than one.
    rng = np.random.default_rng(0)
    noisy = [
        Rating(r, f"i{i}", f"s{s}", "clear", value)
        for r in "xy"
        for i in range(7)
        for value in [rng.normal(i, 2)]
        for s in range(10)
    ]
    once = Answers(tuple(r for r in noisy if r.system == "s0"))
    for metric, many in summary.agreement(Answers(tuple(noisy))).items():
        one = summary.agreement(once)[metric]
        assert many["high"] - many["low"] > 0.6 * (one["high"] - one["low"])
    alone = Answers(tuple(r for r in ratings if r.rater == "x"))
    assert summary.agreement(alone) == {}
    assert "agreement" not in summary.summary(alone)
    assert summary.summary(Answers(tuple(ratings), tuple(prefer)))["agreement"] == found


def test_raters_are_told_apart():
    rng = np.random.default_rng(4)
    table = {}
    for i in range(40):
        truth = rng.integers(2, 9)
        table["good", f"i{i}", "a"] = truth
        table["fair", f"i{i}", "a"] = truth + rng.integers(-1, 2)
        table["lazy", f"i{i}", "a"] = 5
        table["wild", f"i{i}", "a"] = 10 - truth
    answers = Answers(tuple(ratings_of(table, "reasonability") + ratings_of(table, "clear")))
    gold = [GoldCheck("good", "x", 1), GoldCheck("lazy", "x", 5), GoldCheck("good", "y", 2, (0,))]
    found = quality(answers, gold=gold, seconds={"good": [20, 30, 7], "lazy": [1, 2, 1.5]})
    value = lambda rater, metric: found[rater][metric]["value"]  # noqa: E731
    values = {
        r: np.array([table[r, f"i{i}", "a"] for i in range(40)], float)
        for r in ("good", "fair", "lazy", "wild")
    }
    others = np.mean([values[r] for r in ("fair", "lazy", "wild")], axis=0)
    np.testing.assert_allclose(
        value("good", "others/correlation"), np.corrcoef(values["good"], others)[0, 1]
    )
    np.testing.assert_allclose(
        value("good", "others/distance"), np.abs(values["good"] - others).mean()
    )
    assert value("good", "gold/passed") == 1 and value("lazy", "gold/passed") == 0
    assert value("good", "time/median") == 20
    assert value("lazy", "straight/most_used") == 1 and value("lazy", "straight/same_answers") == 1
    assert np.isnan(value("lazy", "others/correlation"))
    assert "gold/passed" not in found["fair"] and "time/median" not in found["fair"]
    assert remarks(found["lazy"]) == [
        "missed 1 of 1 gold checks",
        "half of the screens took under 5 s",
        "gave one value in 100% of the answers",
    ]
    assert remarks(found["wild"])[0] == "rates against the others"


@pytest.mark.parametrize(
    ("value", "shares", "right"),
    [
        (2, (), True),
        (6.5, (), False),
        (8, (), False),
        (2, (1.0, 1.0), False),
        (2, (1.0, 0.0), True),
        (None, (0.5,), True),
        (None, (1.0,), False),
    ],
)
def test_gold_checks(value, shares, right):
    assert passed(GoldCheck("r", "x", value, shares), usual=6.5) is right


def test_long_and_wide_tables_are_read(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text(
        "rater,pair,model,question,value,versus,dataset\n"
        "x,1,a,clear,7.5,,d\nx,1,b,clear,,,d\n\nx,1,a,preference,0.5,b,d\ny,1,b,clear,2,,e\n"
    )
    found = read_ratings(path)
    assert found.ratings == (
        Rating("x", "1", "a", "clear", 7.5, "d"),
        Rating("y", "1", "b", "clear", 2, "e"),
    )
    assert found.preferences == (Preference("x", "1", "a", "b", 0.5, "d"),)
    assert (found.groups, found.raters, found.systems) == (("d", "e"), ("x", "y"), ("a", "b"))
    assert found.only(group="d", without=["y"]).ratings == found.ratings[:1]
    rows = [
        {"item": 3, "system": "a", "clear": 4, "kind": 2.5},
        {"item": 3, "system": "b", "kind": 1},
    ]
    zipped = tmp_path / "wide.jsonl.gz"
    zipped.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert read_ratings(zipped).ratings == (
        Rating("", "3", "a", "clear", 4),
        Rating("", "3", "a", "kind", 2.5),
        Rating("", "3", "b", "kind", 1),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("itm,system,clear\n1,a,3\n", "no column 'item'; did you mean 'itm'"),
        ("item,system\n1,a\n", "no column with ratings"),
        ("item,system,clear\n1,a,good\n", "line 2: clear is 'good', not a number"),
        ("item,system,clear\n1,a,nan\n", "not a number"),
        ("item,system,clear\n1,a,3\n1,a,4\n", "line 3: one rater .* item '1' again"),
        ("item,system,clear\n1,,3\n", "line 2: system is empty"),
        ("item,system,clear\n1,a,3,4\n", "line 2: 4 cells, the header has 3"),
        ("item,system,clear\n1,a,\n", "no rating in it"),
        ("", "no rating in it"),
        ("rater,item,system,question,value,versus\nx,1,a,preference,2,b\n", "is 1, 0.5 or 0"),
        ("rater,item,system,question,value\nx,1,a,preference,1\n", "versus is empty"),
        ("rater,item,system,question,value\nx,1,a,,1\n", "the question is empty"),
        (
            "item,system,clear,fun,clear\n1,a,5,1,2\n",
            r"line 1: column 'clear' stands twice \(columns 3 "
            r"and 5\); rename",
        ),
        ("item,model,system,fun\n1,a,b,5\n", "line 1: 'model' and 'system' both name the system"),
        ("pair,prompt_id,system,fun\n1,1,b,5\n", "'pair' and 'prompt_id' both name the item"),
        ("item,system,,fun\n1,a,x,5\n", "line 1: column 3 has no name; name it or delete it"),
        (",item,system,fun\n7,1,a,5\n7,2,a,5\n", "column 1 has no name"),  # no row number
        ('item,system,fun\n1,a,5\n"2,a,6\n3,a,7\n', "line 3: .* quote .* never closed"),
        ('item,system,fun\n1,"a"b,5\n', "line 2: .*text stands behind a closing quote"),
        ("item,system,fun\n1,a,\0\n", "line 2: .*NUL"),
        ("item,system,fun\r1,a,5\r", "line 1: .* carriage returns alone"),
        ("item;system;fun\n1;a;4,5\n", "line 1: columns separated by semicolons; .*commas"),
        ("item\tsystem\tfun\n1\ta\t5\n", "line 1: columns separated by tabs"),
        ("sep=,\nitem,system,fun\n1,a,5\n", "line 1: a separator instead of a header; delete"),
        ("item,system,fun\n1,a,1_0\n", "line 2: fun is '1_0', not a number"),
        ("item,system,fun\n1,a,4\n2,a ,3\n", "line 3: system is 'a ', elsewhere 'a'"),
        (
            "rater,item,system,question,value,versus\nx,1,a,preference,1,b\nx,1,b ,fun,1,\n",
            "line 3: system is 'b ', elsewhere 'b'; they differ in blanks alone",
        ),
        ("item,system,fun\n1," + "a" * 70_000 + ",5\n", "line 2: .*more than 65,536 characters"),
    ],
)
def test_faults_of_tables_are_told(tmp_path, text, message):
    path = tmp_path / "r.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_ratings(path)


def test_a_line_break_in_quotes_belongs_to_its_cell(tmp_path):
    path = tmp_path / "r.csv"
    path.write_bytes(
        b'\xef\xbb\xbfitem,system,fun\r\n"i\n1",A,5\r\n"i\r\n\r\n1",B,3\r\n\r\ni1,A,"1"\r\ni1,B,x\r\n'
    )
    with pytest.raises(UserError, match="line 9: fun is 'x'"):  # lines as an editor counts them
        read_ratings(path)
    path.write_bytes(path.read_bytes().replace(b"x", b"2"))
    found = read_ratings(path).ratings
    assert [one.item for one in found] == ["i\n1", "i\r\n\r\n1", "i1", "i1"]


INDEX = {
    "of pandas": ",item,system,fun\n0,1,a,5\n1,1,b,3\n",
    "of a part of a table": ",item,system,fun\n17,1,a,5\n4,1,b,3\n",
    "written twice": "Unnamed: 0,index,item,system,fun\n0,0,1,a,5\n1,1,1,b,3\n",
    "from 1": "item,system,fun,No.\n1,a,5,1\n1,b,3,2\n",
    "a comma at the ends": "item,system,fun,\n1,a,5,\n1,b,3,\n",
}


@pytest.mark.parametrize("name", INDEX)
def test_numbers_of_rows_are_no_question(tmp_path, name):
    path = tmp_path / "r.csv"
    path.write_text(INDEX[name])
    found = read_ratings(path)
    assert found.questions == ("fun",) and len(found.ratings) == 2
    assert len(found.notes) == {"written twice": 2, "a comma at the ends": 0}.get(name, 1)
    assert all("numbers the rows and is left out" in note for note in found.notes)


def test_a_question_may_be_called_like_an_index(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("item,system,index\n1,a,4\n1,b,5\n")
    found = read_ratings(path)
    assert [one.value for one in found.ratings] == [4, 5] and not found.notes


def test_records_of_ratings_hold_plain_values(tmp_path):
    path = tmp_path / "r.jsonl"
    for record, message in (
        (
            '{"item": ["a"], "system": "b", "fun": 1}',
            r"line 2: item is \['a'\], not a number or text",
        ),
        ('{"item": "a", "system": "b", "fun": true}', "line 2: fun is True"),
        (
            '{"item": "a", "pair": "a", "system": "b", "fun": 1}',
            "line 2: 'item' and 'pair' both name",
        ),
        ('{"item": null, "system": "b", "fun": 1}', "line 2: item is empty"),
        ('{"item": 7.0, "system": "b", "fun": 1}', "line 2: item is 7.0; write it as text"),
        ('{"item": "a\\ud83d", "system": "b", "fun": 1}', "line 2: .* half a surrogate pair"),
    ):
        path.write_text("\n" + record)
        with pytest.raises(UserError, match=message):
            read_ratings(path)
    path.write_text('{"item": "a", "system": "b", "fun": null, "odd": 1}')
    assert [one.question for one in read_ratings(path).ratings] == ["odd"]  # null: no answer


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"\.csv or \.jsonl"):
        read_ratings(tmp_path / "r.xlsx")
    with pytest.raises(UserError, match="no such file"):
        read_ratings(tmp_path / "r.csv")


@needs_shared_data
def test_published_ratings_have_the_published_means():
    found = read_ratings(SHARED / "llmxrec" / "human_ratings.csv")
    published = {"steam": (7.75, 7.69), "ml-100k": (8.04, 7.47), "mind": (7.59, 7.34)}
    for group, (tuned, gpt4) in published.items():
        means = summary.means(found.only(group=group).ratings, resamples=50)
        of = lambda system, means=means: means[system]["reasonability/mean"]["value"]  # noqa: E731
        assert (round(of("LLaMA2-SFT"), 2), round(of("GPT4"), 2)) == (tuned, gpt4)
    with (SHARED / "llmxrec" / "human_ratings.csv").open() as file:
        total = sum(float(row["redundancy"]) for row in csv.DictReader(file))
    assert total == sum(r.value for r in found.ratings if r.question == "redundancy")
