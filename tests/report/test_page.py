"""The report: complete or sparse runs, hostile texts, figures as in evaluation.json."""

import html.parser
import json
import pathlib
import re

import pytest

from tests import tiny
from xrec_jax.api import report as report_command
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files
from xrec_jax.report.page import write_report
from xrec_jax.report.sections import SECTIONS
from xrec_jax.report.sections.wins import pair_verdicts
from xrec_jax.text import get

HOSTILE = (
    '</script><script>alert(1)</script><img src=x onerror=alert(2)> & "quoted" \u2028 \U0001f600'
)
VOID = {"br", "hr", "input", "link", "meta"}


def e(value, low=None, high=None, count=40):
    return {"value": value, "low": low, "high": high, "count": count}


def around(value, width=0.04):
    return e(value, value - width, value + width)


class Page(html.parser.HTMLParser):
    """Reads a page, and insists that every element is closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.attributes, self.data = [], [], [], {}
        self.sections, self.scripts, self.texts = [], {}, []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.attributes += [(tag, name, value) for name, value in attrs.items()]
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "section":
            self.sections.append(attrs["id"])
        if tag == "data":
            self.data.setdefault(self.sections[-1] if self.sections else "", []).append(
                float(attrs["value"])
            )
        if tag not in VOID:
            self.open.append((tag, attrs))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1][0] == "script":
            self.scripts[self.open[-1][1].get("type", "code")] = data
        else:
            self.texts.append(data)


def pair(number, *, title="Calm Harbour"):
    entry = {"kind": "bar", "mood": "lively", "price": 1}
    return {
        "user": f"u{number}",
        "item": f"p{number}",
        "rank": 1,
        "score": 2.5 - number,
        "system": "bpr",
        "title": title,
        "prompt": "why?",
        "prompt_hash": f"{number:032d}",
        "profile": "Woman of 18-24.",
        "profile_attributes": {"gender": "woman"},
        "history": [
            {"item": "p90", "title": "Red Lantern", "attributes": entry},
            {"item": "p91", "title": "The Old Mill", "attributes": {**entry, "kind": "park"}},
        ],
        "attributes": {"kind": "cafe", "mood": "quiet", "price": 3, "item_text": "long"},
        "planted": {
            "for": [
                {
                    "attribute": "mood",
                    "value": "quiet",
                    "phrase": "likes quiet places",
                    "contribution": 1.0,
                }
            ],
            "against": [
                {
                    "attribute": "price",
                    "value": "3",
                    "phrase": "pricier than usual",
                    "contribution": -1.0,
                }
            ],
        },
        "reasons": "likes quiet places; against: pricier than usual",
    }


TEXTS = {
    "template": "We picked Calm Harbour for you. You like quiet places.",
    "base": "The Old Mill is lively, and so is \u201cGolden Goose\u201d.",
    "tuned": "You like quiet places, such as Red Lantern. At price level 3 it is pricier than "
    "usual.",
}


def systems(*names, **metrics):
    return {name: {key: around(value) for key, value in metrics.items()} for name in names}


def named(mapping):
    return {system: {k: around(v) for k, v in values.items()} for system, values in mapping.items()}


EVALUATION = {
    "recommend": named(
        {
            "bpr": {"test/ndcg@10": 0.1234567, "test/hit@10": 0.21, "valid/ndcg@10": 0.13},
            "popularity": {"test/ndcg@10": 0.0456789, "test/hit@10": 0.09},
        }
    )
    | {"upper_bound": {"test/ndcg@10": e(0.3141592)}},
    "instruct": {
        "base": {"held_out/perplexity": e(1344.5), "held_out/loss": e(7.2)},
        "tuned": {"held_out/perplexity": e(2.853), "held_out/loss": e(1.04)},
    },
    "explain": named({n: {"text/words": 41.5, "text/ended": 0.91} for n in TEXTS}),
    "judge": named(
        {
            "judge": {
                "test/accuracy": 0.8123,
                "test/ece": 0.061,
                "baseline/pair_prior": 0.7017,
                "test/position_consistency": 0.87,
            },
            "base": {"win/ratio": 0.2, "bradley_terry/strength": -1.1},
            "tuned": {"win/ratio": 0.8, "bradley_terry/strength": 1.2},
            "base vs tuned": {"win/ratio": 0.2125, "win/ties": 0.15, "win/consistency": 0.85},
        }
    ),
    "attributes": named(
        {
            "base": {"gender/accuracy": 0.41, "gender/macro_f1": 0.33},
            "tuned": {"gender/accuracy": 0.66, "gender/readout_accuracy": 0.64},
            "majority": {"gender/accuracy": 0.52},
            "tuned vs base": {"gender/accuracy_difference": 0.25, "gender/p": 0.003},
        }
    ),
    "assess": named(
        {
            "base": {"planted/f1": 0.017, "grounding/hallucinated_titles": 0.9},
            "tuned": {
                "planted/f1": 0.713,
                "grounding/hallucinated_titles": 0.05,
                "counterfactual/comprehensiveness": 0.21,
                "planted/kind_f1": 0.6,
            },
            "tuned vs base": {"planted/f1_difference": 0.696, "planted/p": 0.0002},
        }
    ),
    "bias": {
        "tuned": {
            "gender/words": around(0.61),
            "gender/words_p": e(0.012),
            "gender/words_difference": e(4.4),
            "age=18-24/sentiment": around(-0.15),
            "age=18-24/sentiment_p": e(0.7),
        },
        "tuned vs base": {"gender/words": around(0.1), "gender/words_p": e(0.9)},
    },
}
AUDIT = {
    "count": {"error": 1, "warning": 0, "info": 0},
    "findings": [
        {
            "code": "target_in_history",
            "severity": "error",
            "count": 37,
            "total": 240,
            "message": "The target is there.",
            "advice": "Leave it out.",
            "examples": ["user 7"],
        }
    ],
    "passed": ["refusals"],
}
RATINGS = {
    "rate": {
        **named(
            {
                "base": {"reasonability/mean": 3.25},
                "tuned": {"reasonability/mean": 7.125},
                "tuned vs base": {
                    "reasonability/difference": 3.875,
                    "reasonability/p": 0.004,
                    "win/ratio": 0.775,
                    "win/ties": 0.1,
                },
            }
        ),
        "agreement": {"reasonability/alpha_ordinal": around(0.625)},
    },
    "raters": {
        "anna": {"answers/ratings": e(60, count=60)},
        "ben": {"answers/ratings": e(60, count=60), "gold/passed": e(0.5, count=2)},
    },
}


def verdict(number, first, second, p):
    return {
        "prompt_hash": f"{number:032d}",
        "user": f"u{number}",
        "item": f"p{number}",
        "first": first,
        "second": second,
        "p_first": p,
    }


def empty_run(folder):
    folder.mkdir(parents=True)
    files.write_json(folder / "config.json", tiny.config("bpr", "popularity").to_dict())
    return folder


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(files.json_lines(records))


def full_run(folder, *, title="Calm Harbour", count=3, texts=None):
    """A run directory with every file that a report reads."""
    empty_run(folder)
    files.write_json(folder / "evaluation.json", EVALUATION)
    files.write_json(folder / "audit.json", AUDIT)
    files.write_json(folder / "ratings.json", RATINGS)
    write_lines(
        folder / "metrics.jsonl",
        [
            {
                "stage": f"recommend/bpr/{seed}",
                "step": 10 * n,
                "train/epoch": n,
                "train/loss": 0.7 / n,
                "valid/ndcg@10": 0.02 * n,
                "time/elapsed_seconds": 1.5 * n,
            }
            for seed in (0, 1)
            for n in (1, 2, 3)
        ]
        + [
            {
                "stage": "instruct",
                "step": n,
                "train/epoch": n,
                "train/loss": 3.0 / n,
                "valid/loss": 3.3 / n,
            }
            for n in (1, 2)
        ],
    )
    pairs = [pair(n, title=title) for n in range(count)]
    write_lines(folder / "explanations" / "pairs.jsonl", pairs)
    for name, text in (texts or TEXTS).items():
        records = [
            {
                **{k: p[k] for k in ("user", "item", "prompt_hash")},
                "explainer": name,
                "text": text,
                "stop": "length" if name == "base" else "eos",
            }
            for p in pairs
        ]
        write_lines(folder / "explanations" / f"{name}.jsonl", records)
    write_lines(
        folder / "judge" / "verdicts.jsonl",
        [
            verdict(0, "base", "tuned", 0.2),
            verdict(0, "tuned", "base", 0.9),
            verdict(1, "base", "tuned", 0.9),
            verdict(1, "tuned", "base", 0.6),
        ],
    )
    return folder


def read(folder):
    path = write_report(RunDir(folder))
    assert pathlib.Path(path) == folder / "report.html"
    text = pathlib.Path(path).read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    return text, page


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = full_run(tmp_path_factory.mktemp("report") / "run")
    return folder, *read(folder)


# The page


def test_every_section_stands_there_with_its_link(full):
    _, _, page = full
    ids = [module.ID for module in SECTIONS]
    assert page.sections == ids
    linked = {
        value[1:]
        for tag, name, value in page.attributes
        if tag == "a" and name == "href" and value.startswith("#")
    }
    assert set(ids) <= linked <= set(page.ids)


def test_nothing_is_loaded_from_anywhere(full):
    _, text, page = full
    for tag, name, value in page.attributes:
        assert name not in ("src", "srcset", "action", "formaction", "data", "poster"), (tag, name)
        if name == "href":
            assert value.startswith("#")
        assert not name.startswith("on"), (tag, name)
    assert not re.search(r"https?://|@import|url\(", text)
    [policy] = [v for _, n, v in page.attributes if n == "content" and "default-src" in v]
    assert "default-src 'none'" in policy


def test_ids_of_labels_and_descriptions_exist(full):
    _, _, page = full
    for _, name, value in page.attributes:
        if name in ("for", "aria-labelledby", "aria-describedby"):
            assert value in page.ids


def test_figures_are_those_of_the_evaluation(full):
    _, _, page = full
    expected = {
        "ranking": [0.1234567, 0.0456789, 0.3141592, 0.21, 0.09, 0.13],
        "language": [2.853, 1344.5, 1.04],
        "texts": [41.5, 0.91],
        "wins": [0.8123, 0.7017, 0.061, 0.87, 1.2, -1.1, 0.2125, 1 - 0.2125, 0.8],
        "faithfulness": [0.713, 0.017, 0.05, 0.9, 0.21, 0.696, 0.6],
        "attributes": [0.41, 0.66, 0.52, 0.25, 0.33, 0.64],
        "bias": [0.61, -0.15, 0.1],
        "ratings": [3.25, 7.125, 3.875, 0.775, 0.625, 0.5],
    }
    for section, values in expected.items():
        for value in values:
            assert value in page.data[section], (section, value)
    # P-values and differences of the bias are not effect sizes.
    assert not {0.012, 4.4, 0.7} & set(page.data["bias"])
    assert page.data[""] == [0.1234567, 0.713, 0.05, 1 - 0.2125, 0.775, 2.853]


def test_significant_effects_are_marked(full):
    _, text, _ = full
    section = text[text.index('<section id="bias"') : text.index('<section id="audit"')]
    assert section.count("significant after correction") == 1
    assert "1 of 3" in section


def test_rows_of_the_browsable_table(full):
    _, _, page = full
    data = json.loads(page.scripts["application/json"])
    assert [x["name"] for x in data["explainers"]] == ["base", "tuned", "template"]
    assert len(data["pairs"]) == 3
    first = data["pairs"][0]
    assert [data["items"][h]["t"] for h in first["h"]] == ["Red Lantern", "The Old Mill"]
    assert data["items"][first["i"]] == {
        "t": "Calm Harbour",
        "a": {"Kind": "cafe", "Mood": "quiet", "Price": "3"},
    }
    assert first["w"] == [["likes quiet places", 1], ["pricier than usual", 0]]
    kinds = data["kinds"]
    marked = [
        {text[start:end]: kinds[kind] for start, end, kind in spans}
        for text, spans, _, _ in first["x"]
    ]
    assert marked[0]["The Old Mill"] == "history"
    assert marked[0]["lively"] == "past"
    assert "unsupported" in marked[0].values()  # the goose
    assert marked[1] == {
        "quiet": "attribute",
        "Red Lantern": "history",
        "price level 3": "attribute",
    }
    assert marked[2] == {"Calm Harbour": "item", "quiet": "attribute"}
    assert [x[2] for x in first["x"]] == [1, 0, 0]
    assert [x[3] for x in first["x"]] == [[], [0, 1], [0]]
    assert first["v"] == ["tuned beats base"]
    assert data["pairs"][1]["v"] == ["base and tuned tie"]
    assert "v" not in data["pairs"][2]


def test_verdicts_need_both_orders_to_agree(full):
    folder, _, _ = full
    from xrec_jax.report.run_files import load

    said = pair_verdicts(load(RunDir(folder)))
    assert said == {("u0", "p0"): ["tuned beats base"], ("u1", "p1"): ["base and tuned tie"]}


def section_of(text, name):
    start = text.index(f'<section id="{name}"')
    return text[start : text.index("</section>", start)]


def opened(text):
    """The page without what is folded away."""
    return re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)


def with_figures(folder, **stages):
    full_run(folder, count=1)
    files.write_json(folder / "evaluation.json", {**EVALUATION, **stages})
    return read(folder)


def test_small_group_differences_are_folded_and_constant_ones_counted(tmp_path):
    large = {f"age={n}/words": around(0.1 * n * (-1) ** n, 0.3) for n in range(1, 9)}
    tuned = {
        **large,
        **{f"{name}_p": e(0.2) for name in large},
        "gender=man/sentiment": around(0.0625),
        "gender=man/sentiment_p": e(0.03),
        "gender=man/hallucinated_titles": e(0.0, 0.0, 0.0),
        "gender=man/item_named": e(0.0),
        "gender=man/history_cited": e(0.0, -0.1, 0.1),
    }
    text, _ = with_figures(tmp_path / "run", bias={"tuned": tuned})
    section = section_of(text, "bias")

    def values(part):
        return [float(value) for value in re.findall(r'<data value="([^"]*)"', part)]

    shown = [0.1 * n * (-1) ** n for n in (8, 7, 6, 5, 4, 3)] + [0.0625]
    assert values(opened(section)) == pytest.approx(shown)
    folded = re.search("<details>.*</details>", section, re.DOTALL)[0]
    assert sorted(values(folded)) == pytest.approx([-0.1, 0.0, 0.2])
    assert "3 smaller differences, none of which stands" in folded
    assert "2 left out, where nothing varies: Titles not in the history, Item named." in section
    assert "1 of 12" in section  # all that were tested count


def test_a_chart_of_nothing_but_constant_differences(tmp_path):
    text, _ = with_figures(tmp_path / "run", bias={"base": {"gender=man/words": e(0.0, 0.0, 0.0)}})
    section = section_of(text, "bias")
    assert "1 left out, where nothing varies: Words." in section and "<details>" not in section


def test_the_chance_level_stands_beside_the_explainers(tmp_path):
    assess = {
        **EVALUATION["assess"],
        **named(
            {
                "tuned shuffled": {"planted/f1": 0.1875, "planted/kind_f1": 0.0625},
                "tuned vs tuned shuffled": {"planted/f1_difference": 0.5255, "planted/p": 0.2},
            }
        ),
    }
    text, page = with_figures(tmp_path / "run", assess=assess)
    section = section_of(text, "faithfulness")
    assert {0.1875, 0.0625, 0.5255} <= set(page.data["faithfulness"])
    assert "tuned, shuffled (chance)" in section
    assert "tuned minus tuned, shuffled (chance)" in section
    assert "tuned shuffled" not in "".join(page.texts)
    assert section.count('aria-label="p below 0.05"') == 1  # base alone is told apart
    # What is not asked of moved texts has neither column nor line for them.
    assert "shuffled" not in section.split("Grounding")[1]
    assert "1.7\u202f% before tuning, 18.8\u202f% by chance." in "".join(page.texts)


def test_panels_say_in_words_what_is_zero_or_unmeasured(tmp_path):
    nothing = e(0.0, None, None, count=0)
    assess = {
        "base": {
            "grounding/hallucinated_titles": nothing,
            "grounding/item_named": e(0.0, 0, 0),
            "grounding/history_cited": nothing,
        },
        "tuned": {
            "grounding/hallucinated_titles": around(0.25),
            "grounding/item_named": e(0.0, 0, 0),
            "grounding/history_cited": nothing,
        },
    }
    text, page = with_figures(tmp_path / "run", assess=assess)
    section = re.sub("<[^>]*>", "", section_of(text, "faithfulness"))
    assert "Nothing to measure: base." in section
    assert "0.0\u202f% for base and tuned." in section
    assert "Could not be measured on any explainer." in section
    assert page.data["faithfulness"] == [0.25, 0.0]


def test_attributes_as_their_stage_names_them(tmp_path):
    attributes = named(
        {
            "base": {"user_age/accuracy": 0.1, "user_age/within_5": 0.3},
            "tuned": {
                "user_age/accuracy": 0.2,
                "user_age/readout_accuracy": 0.25,
                "user_age/readout_within_5": 0.375,
            },
            "majority": {"user_age/accuracy": 0.15, "user_age/within_5": 0.35},
            "tuned vs majority": {
                "user_age/accuracy_difference": 0.05,
                "user_age/p": 0.011,
                "user_age/readout_accuracy_difference": 0.1,
                "user_age/readout_p": 0.622,
            },
        }
    ) | {"data": {"data/train_questions": e(1600), "data/malformed_completions": e(0)}}
    text, page = with_figures(tmp_path / "run", attributes=attributes)
    section = section_of(text, "attributes")
    assert "1,600 questions to learn from." in section
    for raw in ("user_age", "readout_", "within_5", ">data", "Data<"):
        assert raw not in section
    assert "Within 5, by readout" in section and "Accuracy, by readout" in section
    # The majority's answer is the same by readout: in the chart of either.
    assert page.data["attributes"].count(0.15) == 2
    assert section.count("p = 0.011") == 1 and section.count("p = 0.622") == 1
    assert section.count('aria-label="p below 0.05"') == 1


def test_likeness_to_references_as_the_assessment_names_it(tmp_path):
    tuned = {
        "held_out/bleu": 2.5,
        "held_out/control_shuffled_bleu": 1.25,
        "held_out/control_next_bleu": 1.5,
        "held_out/over_control_bleu": 1.125,
    }
    text, page = with_figures(tmp_path / "run", assess=named({"tuned": tuned}))
    assert "Likeness to the references" in text
    assert [v for v in page.data["texts"] if v in (2.5, 1.25, 1.5, 1.125)] == [2.5, 1.25, 1.125]


def test_a_run_that_only_tunes_shows_its_held_out_answers(tmp_path):
    template = get("llmxrec_movie")
    prompt = template.assemble(
        user=template.render_user({"age": 30, "gender": "male", "occupation": "artist"}),
        item=template.render_item({"movie_title": "Gattaca", "class": ["Drama"]}),
        entries=[template.render_entry({"movie_title": "Alien", "class": ["Sci-Fi"]}, 1)],
    )
    folder = empty_run(tmp_path / "run")
    figures = {"grounding/item_named": 0.75, "grounding/item_named_steam": 0.5, "text/words": 50.0}
    systems = named(dict.fromkeys(("base", "tuned", "reference"), figures))
    files.write_json(folder / "evaluation.json", {"instruct": systems})
    records = [
        {"prompt": asked, "base": HOSTILE, "tuned": "You like Alien.", "reference": "A true one."}
        for asked in (prompt, "Why?")
    ]
    write_lines(folder / "explanations" / "held_out.jsonl", records)
    text, page = read(folder)
    section = section_of(text, "language")
    assert "Answers to 2 held-out prompts" in section and "A true one." in section
    assert '<th scope="row">Gattaca</th>' in section
    assert '<th scope="row">prompt 2</th>' in section
    assert "<img" not in section
    grounding = section_of(text, "faithfulness")
    assert "Here the answers to held-out prompts" in grounding
    assert "Item named, steam" in grounding and grounding.count("the set&#x27;s own answers")
    assert page.data["faithfulness"].count(0.75) == 3
    assert "own answers" in section_of(text, "texts")
    # Beside explained recommendations, which are of other prompts, they are left out.
    text, _ = with_figures(tmp_path / "other", instruct=systems, explain=systems)
    assert "own answers" not in section_of(text, "texts")


def test_passed_checks_are_folded(full):
    section = section_of(full[1], "audit")
    assert "1 check passed" in section and "refusals" in section
    assert "refusals" not in opened(section)


# What may be missing


def test_a_run_that_has_only_begun(tmp_path):
    text, page = read(empty_run(tmp_path / "run"))
    assert page.sections == ["run", "missing"]
    for module in SECTIONS[1:]:
        assert module.TITLE in text and module.HOW in text


@pytest.mark.parametrize(
    ("file", "section"),
    [("audit.json", "audit"), ("ratings.json", "ratings"), ("explanations/pairs.jsonl", "pairs")],
)
def test_a_section_is_left_out_with_its_file(tmp_path, file, section):
    folder = full_run(tmp_path / "run")
    (folder / file).unlink()
    _, page = read(folder)
    assert section not in page.sections and "missing" in page.sections


@pytest.mark.parametrize(
    ("key", "section"),
    [
        ("recommend", "ranking"),
        ("judge", "wins"),
        ("attributes", "attributes"),
        ("assess", "faithfulness"),
        ("bias", "bias"),
    ],
)
def test_a_section_is_left_out_with_its_figures(tmp_path, key, section):
    folder = full_run(tmp_path / "run", count=1)
    kept = {name: value for name, value in EVALUATION.items() if name != key}
    files.write_json(folder / "evaluation.json", kept)
    _, page = read(folder)
    assert [m.ID for m in SECTIONS if m.ID not in page.sections] == [section]


def test_figures_without_value_are_dashes(tmp_path):
    folder = full_run(tmp_path / "run", count=1)
    broken = json.loads(json.dumps(EVALUATION))
    for stage_ in broken.values():
        for metrics in stage_.values():
            for estimate in metrics.values():
                estimate.update(value=None, low=None, high=None)
    files.write_json(folder / "evaluation.json", broken)
    _, page = read(folder)
    assert "ranking" not in page.sections and "faithfulness" not in page.sections


def test_the_few_explanations_of_a_run_without_the_stage(tmp_path):
    folder = empty_run(tmp_path / "run")
    records = [{**pair(0), "base": TEXTS["base"], "tuned": TEXTS["tuned"]}]
    write_lines(folder / "explanations" / "recommended.jsonl", records)
    _, page = read(folder)
    data = json.loads(page.scripts["application/json"])
    assert [x[0] for x in data["pairs"][0]["x"]] == [TEXTS["base"], TEXTS["tuned"]]


def test_more_pairs_than_the_page_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("xrec_jax.report.run_files.MOST_PAIRS", 4)
    folder = full_run(tmp_path / "run", count=6)
    text, page = read(folder)
    assert len(json.loads(page.scripts["application/json"])["pairs"]) == 4
    assert "The first" in text


def test_no_run_directory(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        report_command.report(tmp_path)


def test_the_verb_reads_the_data_for_its_sizes(tmp_path, capsys):
    folder = empty_run(tmp_path / "run")
    report_command.report(folder)
    text = (folder / "report.html").read_text()
    users = tiny.config().data.world.num_users
    assert f"<dt>Users</dt><dd>{users}</dd>" in text
    assert "report.html" in capsys.readouterr().out


# Hostile texts


def test_texts_of_a_run_never_become_markup(tmp_path):
    texts = dict.fromkeys(TEXTS, HOSTILE)
    folder = full_run(tmp_path / "run", title=HOSTILE, texts=texts)
    config = json.loads((folder / "config.json").read_text())
    config["name"] = HOSTILE
    files.write_json(folder / "config.json", config)
    hostile = {HOSTILE: {"test/ndcg@10": around(0.2), "win/ratio": around(0.7)}}
    files.write_json(
        folder / "evaluation.json",
        {**EVALUATION, "recommend": hostile, "judge": {f"{HOSTILE} vs tuned": hostile[HOSTILE]}},
    )
    finding = dict.fromkeys(("code", "message", "advice"), HOSTILE)
    finding |= {"severity": HOSTILE, "count": 1, "total": 0, "examples": [HOSTILE]}
    files.write_json(folder / "audit.json", {"findings": [finding], "passed": [HOSTILE]})
    files.write_json(folder / "ratings.json", {"rate": {HOSTILE: {"q/mean": around(3.0)}}})
    write_lines(
        folder / "metrics.jsonl",
        [
            {
                "stage": f"recommend/{HOSTILE.replace('/', '')}/0",
                "step": 1,
                "train/epoch": 1,
                "train/loss": 0.5,
            }
        ],
    )
    text, page = read(folder)
    assert not any(tag == "img" or name.startswith("on") for tag, name, _ in page.attributes)
    assert text.count("<script") == 2 and text.count("</script") == 2
    assert HOSTILE in "".join(page.texts)
    data = json.loads(page.scripts["application/json"])
    assert data["items"][0]["t"] == HOSTILE
    assert data["pairs"][0]["x"][0][0] == HOSTILE
    assert "\u2028" not in page.scripts["application/json"]


def test_marks_count_as_the_browser_does(tmp_path):
    text = "\U0001f600\U0001f600 Red Lantern"
    folder = full_run(tmp_path / "run", count=1, texts={"tuned": text})
    _, page = read(folder)
    [[_, [[start, end, _]], _, _]] = json.loads(page.scripts["application/json"])["pairs"][0]["x"]
    units = text.encode("utf-16-le")
    assert units[2 * start : 2 * end].decode("utf-16-le") == "Red Lantern"


def test_half_a_character_pair_is_named_by_file_and_line(tmp_path):
    folder = full_run(tmp_path / "run", count=1)
    record = {**pair(0), "title": "x\ud83d"}
    (folder / "explanations" / "pairs.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match=r"pairs\.jsonl, line 1: .* half a surrogate pair"):
        read(folder)
