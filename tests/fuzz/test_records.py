"""Damaged files of records: JSON lines that people give and runs leave, and tables of ratings."""

import gzip
import json

import pytest

from tests.fuzz.mutate import survives
from xrec_jax.core.storage import files
from xrec_jax.core.storage.files import json_lines
from xrec_jax.evaluation.ratings.ratings import read_ratings
from xrec_jax.inference import comparisons
from xrec_jax.rating import answers as rating_answers
from xrec_jax.rating import items
from xrec_jax.text.records.attribute_questions import read_questions
from xrec_jax.text.records.instructions import read_instructions
from xrec_jax.text.records.judgements import read_judgements
from xrec_jax.text.records.profiles import read_pair_texts

pytestmark = pytest.mark.slow

PROMPTS = ["Why Ash?\n1. Oak: bar\n", "Why Café?", "東京\u2028?"]
INSTRUCTIONS = [
    {"prompt": PROMPTS[0], "completion": "Because.", "user": "u1", "stars": 4.5},
    {"system": "Be short.", "prompt": PROMPTS[1], "completion": "It is \u2019good\u2019."},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
]
JUDGEMENTS = [
    {"prompt": prompt, "first": "one", "second": "two \U0001f600", "better": 1 + n % 2, "pair": n}
    for n, prompt in enumerate(PROMPTS)
]
ATTRIBUTES = [
    {"prompt": f"{prompt} {n}", "completion": f'{{"age": {20 + n}, "gender": "{"mf"[n % 2]}"}}'}
    for n, prompt in enumerate(PROMPTS)
]
PAIRS = [
    {
        "uid": f"u{n % 2}",
        "iid": n,
        "user_summary": f"likes tea {n % 2}",
        "title": f"Ash {n}",
        "item_summary": f"a bar {n}",
        "explanation": "You would like it.",
    }
    for n in range(4)
]
EXPLANATIONS = [
    {"prompt_id": n, "prompt": prompt, "dataset": "d", "model": model, "completion": f"{model} {n}"}
    for n, prompt in enumerate(PROMPTS)
    for model in ("A", "B")
]
READERS = {
    "instructions": (read_instructions, json_lines(INSTRUCTIONS)),
    "judgements": (lambda path: read_judgements(path, pair="pair"), json_lines(JUDGEMENTS)),
    "attributes": (read_questions, json_lines(ATTRIBUTES)),
    "pairs": (read_pair_texts, json_lines(PAIRS)),
    "explanations": (lambda path: items.of_files([str(path)]), json_lines(EXPLANATIONS)),
    "a run's log": (files.read_json_lines, json_lines(INSTRUCTIONS)),
}
RATINGS = (
    'rater,item,system,question,value,versus\nann,"i\n1",A,fun,5,\nann,"i\n1",B,fun,3.5,\n'
    "ann,i2,A,preference,0.5,B\nben,i2,A,fun,4,\n"
)
WIDE = ',prompt_id,model,"clear ""x""",fun\n0,1,A,5,1\n1,1,B,3,2\n2,2,A,4,\n3,2,B,1,4\n'
ROWS = [{"item": n, "system": s, "fun": n + 0.5, "odd": None} for n in range(3) for s in "AB"]
TABLES = {"long.csv": RATINGS, "wide.csv": WIDE, "rows.jsonl": json_lines(ROWS)}
KEY = {
    "format": rating_answers.KEY_FORMAT,
    "version": 1,
    "seed": 0,
    "systems": ["A", "B"],
    "questions": ["reasonability", "fun"],
    "low": 1,
    "high": 9,
    "cases": [
        {"item": "1", "group": "", "title": "Ash", "gold": "", "broken": "", "texts": {"A": "x"}},
        {
            "item": "2",
            "group": "",
            "title": "Oak",
            "gold": "other item",
            "broken": "B",
            "texts": {"A": "x"},
        },
    ],
    "sheets": {
        "s1": {
            "number": 1,
            "steps": {
                "1": {"case": 0, "system": "A"},
                "2": {"case": 0, "first": "B", "second": "A"},
                "3": {"case": 1, "system": "B"},
                "4": {"case": 1, "first": "A", "second": "B"},
            },
        }
    },
}
EXPORT = {
    "format": rating_answers.EXPORT_FORMAT,
    "sheet": "s1",
    "rater": "Ann  É.",
    "answers": {
        "1": {"values": {"reasonability": 5, "fun": 2.5}, "seconds": 7.5},
        "2": {"values": {"preference": "first"}, "seconds": 3},
        "3": {"values": {"reasonability": 1, "fun": 1}, "seconds": 2},
        "4": {"values": {"preference": "tie"}},
    },
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("zipped", [False, True])
def test_json_lines(tmp_path, name, zipped):
    read, text = READERS[name]
    data, path = text.encode(), tmp_path / "file.jsonl"
    if zipped and name == "a run's log":  # which is never zipped
        data, path = text.replace("é", "\\u00e9").encode(), tmp_path / "log.jsonl"
    elif zipped:
        data, path = gzip.compress(data, mtime=0), tmp_path / "file.jsonl.gz"
    refused = survives(read, data, path, count=200, seed=sum(map(ord, name)))
    assert refused > 50


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_ratings(tmp_path, name):
    def consistent(found):
        assert len(found.ratings) + len(found.preferences) > 0
        assert all(one.item and one.system and one.question for one in found.ratings)

    refused = survives(read_ratings, TABLES[name].encode(), tmp_path / name, check=consistent)
    assert refused > 80


def test_files_that_raters_saved(tmp_path):
    key = tmp_path / "KEY.json"
    key.write_text(json.dumps(KEY))

    def read(path):
        return rating_answers.read([path], key=key, partial=True)

    def consistent(found):
        answers, _, _ = found
        assert all(1 <= one.value <= 9 and one.rater for one in answers.ratings)

    data = json.dumps(EXPORT, indent=1).encode()
    assert survives(read, data, tmp_path / "ann.json", check=consistent) > 80


def test_keys_to_sheets(tmp_path):
    export = tmp_path / "ann.json"
    export.write_text(json.dumps(EXPORT))

    def read(path):
        return rating_answers.read([export], key=path, partial=True)

    data = json.dumps(KEY, indent=1).encode()
    assert survives(read, data, tmp_path / "KEY.json", count=500) > 100


@pytest.mark.parametrize("place", [0, 1])
def test_prompts_with_explanations(tmp_path, place):
    prompts = [{"prompt_id": n, "prompt": prompt} for n, prompt in enumerate(PROMPTS)]
    both = [tmp_path / "p.jsonl", tmp_path / "e.jsonl"]
    for path, records in zip(both, (prompts, EXPLANATIONS), strict=True):
        path.write_text(json_lines(records))

    def read(_):
        comparisons.read_comparison_set("+".join(map(str, both)))
        return items.of_files(["+".join(map(str, both))])

    assert survives(read, both[place].read_bytes(), both[place], count=200, seed=place) > 50


def test_values_of_every_type(tmp_path):
    """Where a text, a number or an object stands, any other value of JSON is refused or read."""
    key, export = tmp_path / "KEY.json", tmp_path / "ann.json"
    export.write_text(json.dumps(EXPORT))
    others = [None, True, 0, -1, 0.5, 10**300, "", "x", [], ["x"], [[]], {}, {"x": 1}, {"1": {}}]

    def replaced(value, other):
        """The value with each part, in turn, replaced."""
        yield other
        names = list(value) if isinstance(value, dict) else []
        names = range(len(value)) if isinstance(value, list) else names
        for name in names:
            part = value[name]
            for changed in replaced(part, other):
                copy = value.copy()
                copy[name] = changed
                yield copy

    tried = 0
    for good, path, other_path in ((KEY, key, export), (EXPORT, export, key)):
        other_path.write_text(json.dumps(EXPORT if path is key else KEY))
        for other in others:
            for value in replaced(good, other):
                path.write_text(json.dumps(value))
                tried += 1
                try:
                    rating_answers.read([export], key=key, partial=True)
                except files.UserError as error:
                    assert "\n" not in str(error)
    assert tried > 800
