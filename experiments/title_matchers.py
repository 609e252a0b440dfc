"""Mentions of titles that each use of the title matcher finds in explanations that exist.

    python experiments/title_matchers.py --out=now.json --runs=runs/a,runs/b --against=before.json

Reads the published explanations of LLMXRec (films, games, news), the profiles, descriptions and
explanations of Google Maps, and finished runs of the planted world. For grounding, the monitors of
reward hacking, the masks of texts from files and the control `masked_titles` it writes what each
finds in each text. With `--against`, what another version of the code wrote, it prints how many
texts have another outcome, and the first of them. It uses only what is public in both versions.
"""

from __future__ import annotations

import collections
import json
import pathlib
from typing import Any, NamedTuple

from absl import app, flags

from xrec_jax.core.storage.files import read_records
from xrec_jax.evaluation.texts.grounding import Grounder, cell_values
from xrec_jax.joint.controls.registry import mask_titles
from xrec_jax.joint.monitors import Monitors
from xrec_jax.text import get, parse_prompt
from xrec_jax.text.titles.mask import TitleMasks

SHARED = pathlib.Path("../shared/data")
_OUT = flags.DEFINE_string("out", None, "JSON file of the outcomes.", required=True)
_AGAINST = flags.DEFINE_string("against", "", "Outcomes of another version of the code.")
_RUNS = flags.DEFINE_list("runs", [], "Finished runs of the planted world.")
_SHARED = flags.DEFINE_string("shared", str(SHARED), "Folder of the published data.")
_TEMPLATES = {"ml-100k": "llmxrec_movie", "steam": "llmxrec_game", "mind": "llmxrec_news_asked"}
_REFERENCES = 300  # texts that stand for those of supervised tuning
_EXAMPLES = 12  # changed texts that are printed of each use
_MASK = "\u25a1"


class Row(NamedTuple):
    """A title and the attributes of its item, by column."""

    title: str
    attributes: dict[str, Any]


class Case(NamedTuple):
    """A text with what its prompt shows: item and history with their attributes."""

    text: str
    item: Row
    history: list[Row]
    prompt: str


class Corpus(NamedTuple):
    """Texts over one catalogue."""

    titles: list[str]
    cases: list[Case]


def llmxrec(folder: pathlib.Path) -> dict[str, Corpus]:
    """The explanations of five language models for three domains."""
    prompts: dict[int, tuple[str, Any, str]] = {}
    for record in read_records(folder / "bpr-mf" / "prompts.jsonl.gz"):
        parsed = parse_prompt(get(_TEMPLATES[record["dataset"]]), record["prompt"])
        prompts[record["prompt_id"]] = record["dataset"], parsed, record["prompt"]
    titles: dict[str, dict[str, None]] = collections.defaultdict(dict)
    for dataset, prompt, _ in prompts.values():
        titles[dataset].update({entry["title"]: None for entry in (prompt.item, *prompt.history)})
    cases: dict[str, list[Case]] = collections.defaultdict(list)
    for record in read_records(folder / "bpr-mf" / "explanations.jsonl.gz"):
        if record["prompt_id"] in prompts and isinstance(record["completion"], str):
            dataset, prompt, text = prompts[record["prompt_id"]]
            history = [_row(entry) for entry in prompt.history]
            cases[dataset].append(Case(record["completion"], _row(prompt.item), history, text))
    return {f"llmxrec {name}": Corpus(list(titles[name]), cases[name]) for name in cases}


def _row(fields: dict[str, str]) -> Row:
    """A row of a prompt; classes and tags stand there as one text."""
    values: dict[str, Any] = {}
    for column, value in fields.items():
        if column == "class":
            values[column] = value.split()
        elif column != "title":
            values[column] = value.strip("[]").split(", ")
    return Row(fields["title"], values)


def google_maps(path: pathlib.Path) -> dict[str, Corpus]:
    """Profiles, descriptions and explanations of places."""
    records = list(read_records(path))
    titles = list(dict.fromkeys(record["title"] for record in records))
    fields = ("user_summary", "item_summary", "explanation", "xrec_prediction")
    return {
        f"google-maps {field}": Corpus(
            titles, [Case(r[field], Row(r["title"], {}), [], r["user_summary"]) for r in records]
        )
        for field in fields
    }


def of_run(folder: pathlib.Path) -> dict[str, Corpus]:
    """Explanations of pairs and of users in a finished run."""
    corpora: dict[str, Corpus] = {}
    catalogue: dict[str, None] = {}
    pairs_path = folder / "explanations" / "pairs.jsonl"
    if pairs_path.exists():
        pairs = list(read_records(pairs_path))
        for pair in pairs:
            catalogue[pair["title"]] = None
            catalogue.update({entry["title"]: None for entry in pair["history"]})
        for path in sorted(folder.glob("explanations/*.jsonl")):
            texts = list(read_records(path))
            if len(texts) == len(pairs) and "text" in texts[0]:
                cases = [
                    Case(
                        text["text"],
                        Row(pair["title"], pair["attributes"]),
                        [Row(e["title"], e["attributes"]) for e in pair["history"]],
                        pair["prompt"],
                    )
                    for text, pair in zip(texts, pairs, strict=True)
                ]
                corpora[f"{folder.name} {path.stem}"] = Corpus(list(catalogue), cases)
    for path in sorted(folder.glob("joint/*/systems/*.jsonl")):
        cases = [Case(record["text"], Row("", {}), [], "") for record in read_records(path)]
        name = f"{folder.name} joint {path.parent.parent.name} {path.stem}"
        corpora[name] = Corpus(list(catalogue) or ["Golden Lantern", "The Merry Wagon"], cases)
    return corpora


def outcomes(corpus: Corpus) -> dict[str, list[Any]]:
    """Mentions that each use finds in each text."""
    titles = corpus.titles
    columns: dict[str, dict[str, None]] = collections.defaultdict(dict)
    for case in corpus.cases:
        for row in (case.item, *case.history):
            for column, value in row.attributes.items():
                columns[column].update(dict.fromkeys(cell_values(value)))
    columns.pop("title", None)
    grounder, masks = Grounder(titles, columns), TitleMasks(titles)
    texts = [case.text for case in corpus.cases]
    monitors = Monitors(texts[:_REFERENCES], titles)
    number = {title: place for place, title in reversed(list(enumerate(titles)))}
    matches: dict[str, list[Any]] = {"grounding": [], "monitors": [], "masks": []}
    for case in corpus.cases:
        spans = grounder.ground(
            case.text,
            item=case.item.title,
            history=[row.title for row in case.history],
            item_attributes=case.item.attributes,
            history_attributes=[row.attributes for row in case.history],
        ).spans
        matches["grounding"].append([list(span) for span in spans])
        measured = monitors.measure([case.text], [case.prompt], [number.get(case.item.title, -1)])
        matches["monitors"].append(measured)
        matches["masks"].append(masks.mask(case.text, by=_MASK))
    matches["control"] = mask_titles(texts, titles)
    return matches


def mentions(use: str, texts: list[str], matches: list[Any]) -> int:
    """The number of mentions, of texts with one for the monitors."""
    if use == "grounding":
        return sum("attribute" not in span[2] for spans in matches for span in spans)
    if use == "monitors":
        return round(sum(measured["monitor/title_mention"] for measured in matches))
    mask = _MASK if use == "masks" else "this place"
    return sum(f.count(mask) - t.count(mask) for f, t in zip(matches, texts, strict=True))


def main(argv: list[str]) -> None:
    """Writes the outcomes, and compares them."""
    del argv
    shared = pathlib.Path(_SHARED.value)
    corpora = llmxrec(shared / "llmxrec") | google_maps(
        shared / "google-maps" / "explanations.jsonl.gz"
    )
    for run in _RUNS.value:
        corpora |= of_run(pathlib.Path(run))
    before = json.loads(pathlib.Path(_AGAINST.value).read_text()) if _AGAINST.value else {}
    now: dict[str, Any] = {}
    for name, corpus in corpora.items():
        matches, texts = outcomes(corpus), [case.text for case in corpus.cases]
        now[name] = matches
        for use, values in matches.items():
            line = f"{name:36} {use:10} {len(texts):6} texts {mentions(use, texts, values):6}"
            old = before.get(name, {}).get(use)
            if old is not None:
                moved = [i for i, value in enumerate(values) if value != old[i]]
                line += f" (before {mentions(use, texts, old)}), other in {len(moved)} texts"
            print(line, flush=True)
            for i in moved[:_EXAMPLES] if old is not None else ():
                print(f"    text   {texts[i]!r}\n    before {old[i]!r}\n    now    {values[i]!r}")
    pathlib.Path(_OUT.value).write_text(json.dumps(now))


if __name__ == "__main__":
    app.run(main)
