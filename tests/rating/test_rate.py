"""The human kit without a browser: blind sheets, the key, the way back, and faulty files."""

import collections
import json
import random
import re

import pytest

from tests.tiny import SHARED, needs_shared_data
from xrec_jax.api import rate
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage.files import json_lines, write_text
from xrec_jax.evaluation.ratings.raters import GoldCheck
from xrec_jax.rating import answers as rating_answers
from xrec_jax.rating import forms, items, tables
from xrec_jax.text.records.explanations import prompt_hash

SYSTEMS = ("zeppelin", "quokka", "template")
LIKED = {"template": 8, "quokka": 6, "zeppelin": 3}
PROMPT = (
    "Tell the user why the recommended place may suit them and what may speak against it. Use only "
    "the facts below and stay within 75 words.\n\nPlaces the user went to, oldest first:\n1. Old "
    "Moon: cafe, quiet, price level 2, famous, in Harbour\n\nAbout the user: A man of {age}.\n"
    "Recommended place: {name}: bar, Thai food, lively, price level 1, famous, in Old Town\n\n"
)


def explained(folder, count=11, prompt=PROMPT):
    """A run directory with nothing but explanations in it."""
    pairs, texts = [], {name: [] for name in SYSTEMS}
    for n in range(count):
        made = prompt.format(age=20 + n, name=f"Silver Fox {n}")
        own = {"user": f"u{n % 4}", "item": f"p{n}", "rank": 1, "score": 0.5, "system": "bpr"}
        own["prompt_hash"] = prompt_hash(made)
        pairs.append(
            own
            | {
                "title": f"Silver Fox {n}",
                "prompt": made,
                "profile": f"A man of {20 + n}.",
                "profile_attributes": {},
                "attributes": {"name": f"Silver Fox {n}", "kind": "bar"},
                "history": [
                    {"item": "p", "title": "Old Moon", "attributes": {"x": 0.25, "price": 2}}
                ],
                "planted": None,
                "reasons": None,
            }
        )
        for name in SYSTEMS:
            text = (
                f"Silver Fox {n} is a bar </script> for {LIKED[name]} of your friends & you\u2028"
            )
            texts[name].append(own | {"explainer": name, "text": text})
    write_text(folder / "explanations" / "pairs.jsonl", json_lines(pairs))
    for name, records in texts.items():
        write_text(folder / "explanations" / f"{name}.jsonl", json_lines(records))
    # Other stages leave files there too.
    write_text(folder / "explanations" / "held_out.jsonl", json_lines([{"prompt": "", "base": ""}]))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return explained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def kit(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "kit"
    rate.make(run, output=folder, pairs=6, raters=3, gold=2, seed=5)
    return folder


def content(html):
    return json.loads(re.search(r'id="sheet">(.*?)</script>', html, re.DOTALL)[1])


def sheets(kit):
    return [path.read_text() for path in sorted((kit / "sheets").iterdir())]


def key_of(kit):
    return json.loads((kit / "KEY.json").read_text())


def export(kit, number, path, *, noise=1, rater="", drop=(), **changes):
    """What a sheet saves for a rater who likes systems as `LIKED` says."""
    key, rng = key_of(kit), random.Random(number)
    id_ = content(sheets(kit)[number - 1])["sheet"]
    answers = {}
    for step, meaning in key["sheets"][id_]["steps"].items():
        case = key["cases"][meaning["case"]]
        like = lambda s, case=case: 1 if case["broken"] == s else LIKED[s]  # noqa: E731
        if "system" in meaning:
            mark = like(meaning["system"])
            values = {
                q: min(10, max(1, mark + rng.randint(-noise, noise))) for q in key["questions"]
            }
        else:
            better = like(meaning["first"]) - like(meaning["second"])
            values = {"preference": "first" if better > 0 else "second"}
        if step not in drop:
            answers[step] = {"values": values, "seconds": 10 + number}
    record = {"format": "xrec-ratings", "version": 1, "sheet": id_, "rater": rater or f"R{number}"}
    path.write_text(json.dumps(record | {"answers": answers} | changes))
    return path


def test_sheets_are_blind_whole_and_offline(kit):
    key = key_of(kit)
    made = sheets(kit)
    assert len(made) == 3 and sorted(p.name for p in kit.iterdir()) == ["KEY.json", "sheets"]
    ids = [content(html)["sheet"] for html in made]
    assert len(set(ids)) == 3 and sorted(ids) == sorted(key["sheets"])
    for html in made:
        for name in (*SYSTEMS, "bpr", "gold", "broken", "shuffled"):
            assert name not in html.lower()
        assert not re.search(
            r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttp|<link(?! rel=\"icon\")", html
        )
        assert "default-src 'none'" in html and "/*" not in html.split("</style>")[0][-40:]
        data = content(html)
        assert len(data["cases"]) == 8 and len(data["steps"]) == 8 * 6
        # A text cannot end the script element that it lies in.
        assert html.count("</script>") == 2 and "\u2028" not in html
        for step in data["steps"]:
            case = key["cases"][key["sheets"][data["sheet"]]["steps"][step["id"]]["case"]]
            meaning = key["sheets"][data["sheet"]]["steps"][step["id"]]
            names = (
                [meaning["system"]]
                if "system" in meaning
                else [meaning["first"], meaning["second"]]
            )
            assert step["texts"] == [case["texts"][name].strip() for name in names]
            assert data["cases"][step["case"]]["item"]["title"] == case["title"]
    shown = content(made[0])["cases"][0]
    assert shown["history"] == [
        {"title": "Old Moon", "note": "cafe, quiet, price level 2, famous, in Harbour"}
    ]
    assert shown["item"]["note"] == "bar, Thai food, lively, price level 1, famous, in Old Town"
    assert re.fullmatch(r"A man of \d\d\.", shown["profile"])


def test_orders_differ_between_raters_and_sides_are_balanced(kit):
    key = key_of(kit)
    orders, firsts = [], collections.Counter()
    for sheet in key["sheets"].values():
        steps = list(sheet["steps"].values())
        orders.append([step["case"] for step in steps])
        assert sorted(set(orders[-1])) == list(range(8))
        firsts.update((s["first"], s["second"]) for s in steps if "first" in s)
        seen = collections.Counter((s["first"], s["second"]) for s in steps if "first" in s)
        assert all(abs(n - seen[b, a]) <= 1 for (a, b), n in seen.items())
    assert len({tuple(order) for order in orders}) == 3
    assert sum(firsts.values()) == 3 * 8 * 3
    places = [[order.index(case) // 6 for case in range(6, 8)] for order in orders]
    assert any(place != [6, 7] for place in places)  # checks do not stand at the end


def test_gold_checks_break_one_text(kit, run):
    cases = {case.item: case for case in items.of_run(RunDir(run))}
    gold = [case for case in key_of(kit)["cases"] if case["gold"]]
    assert [case["gold"] for case in gold] == ["other item", "shuffled words"]
    for case in gold:
        sound = cases[case["item"]].texts
        changed = [name for name in SYSTEMS if case["texts"][name] != sound[name]]
        assert changed == [case["broken"]] == ["template"]
    other, shuffled = (case["texts"]["template"] for case in gold)
    assert any(other == case.texts["template"] for case in cases.values())
    assert gold[0]["title"] not in other
    assert sorted(shuffled.split()) == sorted(cases[gold[1]["item"]].texts["template"].split())


def test_a_text_that_names_the_item_is_not_another_items():
    about = {
        "a": "a long text about Jade",
        "b": "a long text about jade and Onyx",
        "c": "Opal is one",
    }
    cases = [
        items.RatedItem(
            f"i{name}", "", PROMPT.format(age=30, name=title), {"s": f"{text} and more words here"}
        )
        for (name, text), title in zip(about.items(), ("Jade", "Onyx", "Opal"), strict=True)
    ]
    for seed in range(30):
        [check] = [s for s in forms.choose(cases, pairs=2, gold=1, seed=seed) if s.gold]
        wrong = check.rated.texts["s"].lower()
        assert check.rated.title.lower() not in wrong


def test_the_same_arguments_make_the_same_files(kit, run, tmp_path):
    rate.make(run, output=tmp_path / "again", pairs=6, raters=3, gold=2, seed=5)
    assert sheets(tmp_path / "again") == sheets(kit)
    assert key_of(tmp_path / "again") == key_of(kit)
    rate.make(run, output=tmp_path / "b", pairs=6, raters=3, gold=2, seed=6)
    assert not set(key_of(tmp_path / "b")["sheets"]) & set(key_of(kit)["sheets"])


def test_some_systems_and_fewer_comparisons(run, tmp_path):
    rate.make(run, output=tmp_path / "two", pairs=9, gold=0, systems=["quokka", "zeppelin"])
    assert key_of(tmp_path / "two")["systems"] == ["quokka", "zeppelin"]
    rate.make(run, output=tmp_path / "one", pairs=9, gold=0, preferences=1)
    [sheet] = key_of(tmp_path / "one")["sheets"].values()
    compared = collections.Counter(
        frozenset((s["first"], s["second"])) for s in sheet["steps"].values() if "first" in s
    )
    assert list(compared.values()) == [3, 3, 3]
    rate.make(run, output=tmp_path / "none", pairs=3, gold=1, preferences=0)
    [sheet] = key_of(tmp_path / "none")["sheets"].values()
    assert all("system" in step for step in sheet["steps"].values())


def test_answers_come_back_unblinded(kit, tmp_path, capsys):
    files = [export(kit, n, tmp_path / f"{n}.json") for n in (1, 2, 3)]
    answers, gold, seconds = rating_answers.read(files, key=kit / "KEY.json")
    assert len(answers.ratings) == 3 * 6 * 3 * 3 and len(answers.preferences) == 3 * 6 * 3
    for rating in answers.ratings:
        assert abs(rating.value - LIKED[rating.system]) <= 1
    for said in answers.preferences:
        assert said.share == float(LIKED[said.first] > LIKED[said.second])
    assert len(gold) == 6
    assert all(check.value <= 2 and check.shares == (0.0, 0.0) for check in gold)
    assert gold[0] == GoldCheck("R1", "other item", gold[0].value, (0.0, 0.0))
    assert seconds["R2"] == [12.0] * 48

    found = rate.collect(files, key=kit / "KEY.json", output=tmp_path / "ratings.json")
    stored = json.loads((tmp_path / "ratings.json").read_text())
    assert stored["rate"]["template"] == found["rate"]["template"]
    for name, liked in LIKED.items():
        mean = stored["rate"][name]["reasonability/mean"]
        assert mean["low"] <= mean["value"] <= mean["high"] and mean["count"] == 6
        assert abs(mean["value"] - liked) < 0.6
    assert stored["rate"]["template"]["win/ratio"]["value"] == 1
    assert stored["rate"]["agreement"]["preference/alpha_nominal"]["value"] == 1
    assert 0.8 < stored["rate"]["agreement"]["redundancy/alpha_ordinal"]["value"] < 1
    assert stored["raters"]["R3"]["gold/passed"] == {
        "value": 1,
        "low": None,
        "high": None,
        "count": 2,
    }
    out = capsys.readouterr().out
    for words in ("mean ratings", "won against", "Krippendorff", "2 of 2", "Bradley-Terry"):
        assert words in out

    alone = rate.collect(files, key=kit / "KEY.json", exclude=["R1", "R3"])
    assert "agreement" not in alone["rate"]
    out = capsys.readouterr().out
    assert out.count("left out") == 2 and "there is one rater" in out


def test_partial_answers_count_only_where_asked_for(kit, tmp_path):
    whole = export(kit, 1, tmp_path / "1.json")
    steps = list(json.loads(whole.read_text())["answers"])
    part = export(kit, 2, tmp_path / "2.json", drop=steps[7:])
    with pytest.raises(UserError, match=r"2\.json: rater 'R2' answered 7 of 48 screens.*--partial"):
        rate.collect([whole, part], key=kit / "KEY.json")
    found = rate.collect([whole, part], key=kit / "KEY.json", partial=True)
    assert 1 <= found["raters"]["R2"]["answers/ratings"]["value"] < 30
    nothing = export(kit, 3, tmp_path / "3.json", drop=steps)
    with pytest.raises(UserError, match="nobody has answered"):
        rate.collect([nothing], key=kit / "KEY.json", partial=True)


def test_files_that_do_not_belong_are_refused(kit, run, tmp_path):
    one = export(kit, 1, tmp_path / "1.json")
    key = kit / "KEY.json"
    rate.make(run, output=tmp_path / "other", pairs=2, seed=9)
    for files, options, message in (
        ([export(tmp_path / "other", 1, tmp_path / "o.json")], {}, "o.json: it belongs to sheet"),
        (
            [one, export(kit, 2, tmp_path / "2.json", rater=" r1 ")],
            {},
            "2.json: rater 'r1' is also",
        ),
        ([one, one], {}, "also in"),
        ([key], {}, "KEY.json: not a file that a rating sheet saved"),
        ([tmp_path / "no.json"], {}, "no such file"),
        ([one], {"key": one}, "not a KEY.json"),
        ([one], {"key": ""}, "--key is missing"),
        ([], {}, "give either"),
        ([one], {"exclude": ["Bob"]}, "--exclude=Bob: no such rater; raters: R1"),
        ([one], {"exclude": ["R1"]}, "nobody is left"),
        ([one], {"output": tmp_path / "x.csv"}, "must end in .json"),
        ([one], {"workdir": tmp_path}, "not a run directory"),
        ([export(kit, 1, tmp_path / "n.json", rater=" ")], {}, "does not say who rated"),
        ([export(kit, 1, tmp_path / "a.json", answers=[])], {}, "holds no 'answers'"),
    ):
        with pytest.raises(UserError, match=message):
            rate.collect(files, **({"key": key} | options))


@pytest.mark.parametrize(
    ("step", "values", "message"),
    [
        ("rate", {"reasonability": 11}, "reasonability is 11, not a number from 1 to 10"),
        ("rate", {"reasonability": True}, "is True, not a number"),
        ("rate", {"reasonability": "9"}, "is '9', not a number"),
        ("rate", {"preference": "first"}, "which was not asked"),
        ("compare", {"preference": "third"}, "not one of first, tie, second"),
        ("nowhere", {"preference": "tie"}, "'999' is not on its sheet"),
        ("rate", None, "no 'values' in it"),
    ],
)
def test_edited_answers_are_refused(kit, tmp_path, step, values, message):
    path = export(kit, 1, tmp_path / "1.json")
    record = json.loads(path.read_text())
    steps = key_of(kit)["sheets"][record["sheet"]]["steps"]
    numbers = {
        "rate": next(s for s in steps if "system" in steps[s]),
        "compare": next(s for s in steps if "first" in steps[s]),
        "nowhere": "999",
    }
    record["answers"][numbers[step]] = {"values": values}
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=message):
        rate.collect([path], key=kit / "KEY.json")


def test_wrong_requests_make_nothing(run, tmp_path):
    out = tmp_path / "kit"
    for options, message in (
        ({"pairs": 0}, "--pairs=0 must be 1 or more"),
        ({"preferences": -2}, "-1 or more"),
        ({"pairs": 10}, "needs 12 recommendations, there are 11"),
        ({"systems": ["quoka"]}, "has no 'quoka'; did you mean 'quokka'"),
        ({"explanations": ["x.jsonl"]}, "give either"),
        ({"workdir": ""}, "give either"),
        ({"workdir": tmp_path}, "no explanations/pairs.jsonl"),
        ({"output": run}, "not an empty directory"),
    ):
        with pytest.raises(UserError, match=message):
            rate.make(**({"workdir": run, "output": out, "pairs": 4} | options))
        assert not out.exists()


def test_texts_too_short_to_break_make_no_gold_check(tmp_path):
    rows = [{"prompt": f"Why {n}?", "explainer": "a", "text": "Because it is."} for n in range(9)]
    write_text(tmp_path / "a.jsonl", json_lines(rows))
    with pytest.raises(UserError, match="--gold=1: too few"):
        rate.make(
            output=tmp_path / "kit", explanations=[str(tmp_path / "a.jsonl")], pairs=2, gold=1
        )
    rate.make(output=tmp_path / "kit", explanations=[str(tmp_path / "a.jsonl")], pairs=2, gold=0)
    shown = content(sheets(tmp_path / "kit")[0])["cases"][0]
    assert list(shown) == ["prompt"] and shown["prompt"].startswith("Why ")


def test_a_prompt_of_an_unknown_template_is_shown_from_the_pair(tmp_path):
    folder = explained(tmp_path, count=3, prompt="Sell {name} to someone of {age}.")
    case = items.of_run(RunDir(folder))[0]
    assert case.context() == {
        "profile": "A man of 20.",
        "history": [{"title": "Old Moon", "note": "price: 2"}],
        "item": {"title": "Silver Fox 0", "note": "kind: bar"},
    }


def test_explanations_from_elsewhere(tmp_path, capsys):
    prompts = [{"prompt_id": n, "dataset": "d", "prompt": f"Why {n}?"} for n in range(4)]
    answers = [
        {"prompt_id": n, "model": m, "completion": f"{m} says that it is {n} times as good as that"}
        for n in range(4)
        for m in ("Ada", "Bo")
        if (n, m) != (2, "Bo")
    ]
    write_text(tmp_path / "p.jsonl", json_lines(prompts))
    write_text(tmp_path / "e.jsonl", json_lines(answers))
    both = f"{tmp_path}/p.jsonl+{tmp_path}/e.jsonl"
    cases = items.of_files([both])
    assert [(case.item, case.group) for case in cases] == [("0", "d"), ("1", "d"), ("3", "d")]
    rate.make(output=tmp_path / "kit", explanations=[both], pairs=2, gold=1)
    out = capsys.readouterr().out
    assert "warning: the word 'Ada' stands in a text" in out
    # One file has its prompts trimmed, the other one whole.
    for name, end in (("a", " \n\n"), ("b", "")):
        one = [{"prompt": f"Why {n}?{end}", "completion": f"because {n}"} for n in range(3)]
        write_text(tmp_path / f"{name}.jsonl", json_lines(one))
    cases = items.of_files([f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"])
    assert [list(case.texts) for case in cases] == [["a", "b"]] * 3
    write_text(tmp_path / "p.jsonl", json_lines([*prompts, {"prompt_id": 3, "prompt": "Whose?"}]))
    with pytest.raises(UserError, match=r"p\.jsonl, line 5: prompt_id=3 stands there twice"):
        items.of_files([both])
    write_text(tmp_path / "p.jsonl", json_lines(prompts))
    write_text(tmp_path / "e.jsonl", json_lines([{"prompt_id": 7, "completion": "x"}]))
    with pytest.raises(UserError, match=r"line 1: .*p\.jsonl has no prompt_id 7"):
        items.of_files([both])
    again = [{"prompt": "x", "completion": text} for text in ("y", "y", "z")]
    write_text(tmp_path / "e.jsonl", json_lines(again[:2]))
    assert items.of_files([f"{tmp_path}/e.jsonl"])[0].texts == {"e": "y"}
    write_text(tmp_path / "e.jsonl", json_lines(again))
    with pytest.raises(UserError, match="line 3: e answers this prompt again, with another text"):
        items.of_files([f"{tmp_path}/e.jsonl"])
    write_text(tmp_path / "e.jsonl", json_lines([{"prompt": "x", "txt": "y"}]))
    with pytest.raises(UserError, match="no key 'text'; did you mean 'txt'"):
        items.of_files([f"{tmp_path}/e.jsonl"])
    for record, message in (
        ({"prompt": "x", "completion": None}, "e.jsonl, line 1: completion is null"),
        ({"prompt": None, "completion": "y"}, "prompt is null"),
        ({"prompt": "x", "model": ["a"], "completion": "y"}, "model must be text or a number"),
        ({"prompt": "x", "prompt_id": None, "completion": "y"}, "prompt_id is null"),
        ({"prompt": "x", "completion": ["y"]}, r"completion must be text or a number, not \['y'\]"),
    ):
        write_text(tmp_path / "e.jsonl", json_lines([record]))
        with pytest.raises(UserError, match=message):
            items.of_files([f"{tmp_path}/e.jsonl"])


def test_a_table_is_collected_by_group(tmp_path, capsys):
    lines = ["dataset,item,model,clear"]
    lines += [f"{d},{i},{m},{i + b}" for d in "xy" for i in range(5) for b, m in enumerate("ab")]
    (tmp_path / "r.csv").write_text("\n".join(lines))
    found = rate.collect(ratings=tmp_path / "r.csv")
    assert list(found) == ["rate/x", "rate/y"]
    assert found["rate/y"]["a vs b"]["clear/difference"]["value"] == -1
    out = capsys.readouterr().out
    assert "x: mean ratings" in out and "there is one rater, or none is named" in out
    assert "2.00 [" in tables.text(found)
    assert "warning" not in out


def test_copied_rows_of_a_table_are_told_and_drawn_as_one(tmp_path, capsys):
    lines = ["item,model,clear,true"]
    lines += [
        f"{i},{m},{1 + (i % 7 * (b + 2)) % 9},{1 + (i % 7 + b) % 8}"
        for i in range(70)
        for b, m in enumerate("abcd")
    ]
    (tmp_path / "r.csv").write_text("\n".join(lines))
    found = rate.collect(ratings=tmp_path / "r.csv", resamples=200)["rate"]
    assert found["a"]["clear/mean"]["count"] == found["a vs b"]["clear/p"]["count"] == 7
    out = capsys.readouterr().out
    assert "warning: 70 items with 7 distinct rows of 8 marks, one of them 10 times" in out


@needs_shared_data
def test_published_explanations_make_a_sheet(tmp_path):
    folder = SHARED / "llmxrec" / "bpr-mf"
    rate.make(
        output=tmp_path / "kit",
        pairs=5,
        systems=["GPT4", "LLaMA2-SFT"],
        explanations=[f"{folder}/prompts.jsonl.gz+{folder}/explanations.jsonl.gz"],
    )
    data = content(sheets(tmp_path / "kit")[0])
    assert all(case["item"]["title"] and case["history"] for case in data["cases"])
