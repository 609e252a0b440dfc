"""Attribute questions answered by a language model, freely and constrained, and their figures.

A free answer is read strictly: what cannot be parsed is wrong. The constrained readout picks the
allowed answer of the highest probability, which can always be read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation import attributes as scoring
from xrec_jax.evaluation.statistics.intervals import Estimate, exact
from xrec_jax.evaluation.tables import text_table
from xrec_jax.llm import run_base
from xrec_jax.llm.generation.readout import Readout
from xrec_jax.llm.model.lora import Adapter
from xrec_jax.llm.run_base import LoadedBase
from xrec_jax.tasks.attributes import Questions
from xrec_jax.text.records.attributes import Attribute, Question, Value, answer_text

Values = dict[str, scoring.Answer]
Table = dict[str, dict[str, Estimate]]


class Answers(NamedTuple):
    """Answers of one model, an entry a question.

    Attributes:
      texts: free answers.
      read: the same as values, None where that failed.
      chosen: values of the constrained readout.
    """

    texts: list[str]
    read: list[Values]
    chosen: list[Values]


def answer(config: Any, base: LoadedBase, adapter: Adapter | None, questions: Questions) -> Answers:
    """Answers of one model to the held-out questions.

    Args:
      config: of the run.
      base: its base.
      adapter: on the base; None: the base alone.
      questions: of the run.

    Raises:
      UserError: if a log-probability is NaN.
    """
    template = run_base.template(config)
    lm = run_base.language_model(config, base, {} if adapter is None else {"tuned": adapter})
    records = lm.generate(
        [question.prompt for question in questions.held_out],
        max_new_tokens=config.attributes.max_new_tokens,
        adapter=None if adapter is None else "tuned",
        template=template,
    )
    texts = [record["text"] for record in records]
    read = [
        scoring.parse_answer(text, question.attributes)
        for text, question in zip(texts, questions.held_out, strict=True)
    ]
    readout = Readout(base.model, base.params, base.tokenizer, adapter=adapter, template=template)
    options = {
        attribute.key: allowed(attribute, questions.known(attribute.key))
        for attribute in questions.attributes
    }
    chosen = [choose(readout, question, options) for question in questions.held_out]
    return Answers(texts, read, chosen)


def allowed(attribute: Attribute, known: Sequence[Value]) -> list[Value]:
    """Options of a readout: the allowed values, of any number those of the training questions."""
    if attribute.values:
        return [float(v) if attribute.numeric else v for v in attribute.values]
    return sorted(set(known), key=float)


def choose(readout: Readout, question: Question, options: dict[str, list[Value]]) -> Values:
    """Fills in the values of an answer, one key after the other, each the most likely one.

    Args:
      readout: of the model.
      question: with its prompt and the attributes in their order.
      options: values to choose from, by key.

    Raises:
      UserError: if a log-probability is NaN.
    """
    # The prompt is computed once for all options of all keys.
    prefix = readout.open(question.prompt)
    values: dict[str, Value] = {}
    keys = [attribute.key for attribute in question.attributes]
    for place, key in enumerate(keys):
        texts = []
        for value in options[key]:
            text = answer_text({**values, key: value})
            # A value counts with the text that must follow it: one that is the beginning of another
            # would have an advantage.
            if place + 1 < len(keys):
                text = f"{text[:-1]}, {json.dumps(keys[place + 1])}:"
            texts.append(text)
        log_probs = prefix.log_probs(texts)
        if np.isnan(log_probs).any():
            raise UserError(
                f"attributes: the log-probability of an answer for {key!r} is NaN: the weights of "
                "the model or its adapter are broken"
            )
        # Later keys are read behind this choice, as in an answer that is generated.
        values[key] = options[key][int(np.argmax(log_probs))]
    return dict(values)


def figures(config: Any, questions: Questions, answers: Mapping[str, Answers]) -> Table:
    """Figures of base, tuned model and constant, and paired tests; see `evaluation.attributes`.

    Args:
      config: of the run.
      questions: of the run.
      answers: of "base" and "tuned".
    """
    within, resamples = float(config.attributes.within), config.ranking.resamples
    table: Table = {name: {} for name in (*answers, "majority")}
    tests: Table = {"tuned vs base": {}, "tuned vs majority": {}}
    for attribute in questions.attributes:
        key, known = attribute.key, questions.known(attribute.key)
        # Not every question has every attribute: rows of this one.
        rows = [n for n, question in enumerate(questions.held_out) if key in question.truth]
        if not rows:
            continue
        truth = [questions.held_out[n].truth[key] for n in rows]
        users = scoring.Users([questions.held_out[n].user for n in rows], resamples=resamples)
        free = {("", name): [a.read[n][key] for n in rows] for name, a in answers.items()}
        constrained = {
            ("readout_", name): [a.chosen[n][key] for n in rows] for name, a in answers.items()
        }
        values = free | constrained
        # Each model by itself, beside always answering the commonest value.
        for (prefix, name), predicted in values.items():
            table[name] |= scoring.figures(
                attribute, truth, predicted, users, known=known, within=within, prefix=prefix
            )
            if not prefix:
                table[name] |= scoring.parse_failures(attribute, predicted, users)
        table["majority"] |= scoring.constant_figures(
            attribute, truth, users, known=known, within=within
        )
        # The tuned model against both, paired by user.
        for prefix in ("", "readout_"):
            tuned, base = values[prefix, "tuned"], values[prefix, "base"]
            tests["tuned vs base"] |= scoring.compare(
                attribute, truth, tuned, base, users, known=known, prefix=prefix
            )
            tests["tuned vs majority"] |= scoring.compare_constant(
                attribute, truth, tuned, users, known=known, prefix=prefix
            )
    data = {
        "data/train_questions": len(questions.train),
        "data/held_out_questions": len(questions.held_out),
        "data/held_out_users": len({question.user for question in questions.held_out}),
        "data/malformed_completions": questions.malformed,
    }
    return table | tests | {"data": {name: exact(value, value) for name, value in data.items()}}


def figures_table(questions: Questions, table: Table) -> str:
    """Base, tuned model and constant as text, a row an attribute and metric."""
    systems = ("base", "tuned", "majority")
    names = list(dict.fromkeys(name for system in systems for name in table[system]))
    rows = [[name, *(_cell(table[system].get(name)) for system in systems)] for name in names]
    counts = ", ".join(
        f"{attribute.key}: {sum(attribute.key in q.truth for q in questions.held_out)} asked"
        for attribute in questions.attributes
    )
    return f"{text_table(['attribute', *systems], rows)}\n({counts})"


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if estimate["low"] is None or estimate["high"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
