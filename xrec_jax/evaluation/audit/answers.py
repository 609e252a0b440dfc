"""Checks of explanations: refusals, empty or truncated texts, copies, and shifted rows."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from xrec_jax.evaluation.audit.contents import PromptContent, level
from xrec_jax.evaluation.audit.findings import MAX_EXAMPLES, Finding, Severity, percent, plural
from xrec_jax.evaluation.audit.prompts import short
from xrec_jax.text.titles.normal import normal_title
from xrec_jax.text.words import ends_sentences, word_count

_REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|\bI(?:['\u2019]m| am)(?: \w+)? (?:sorry|unable)\b|\bmy apologies\b|\bI apologi[sz]e\b"
    r"|\bI (?:cannot|can['\u2019]?t|could not|won['\u2019]t|do not have enough)"
    r" (?:fulfil|provide|determine|give|generate|answer|assist|help|recommend|information)",
    re.IGNORECASE,
)
_LIMIT = re.compile(r"\bwithin (\d+)\s+words", re.IGNORECASE)
_WINDOW = 12  # words; two consecutive windows that occur in the prompt are a copy
_GOES_ON = tuple(",;:-(\u3001\u060c\uff0c\uff1a\uff1b\uff08")  # signs within a sentence
_TELLING = 8  # characters; a shorter title is often a plain word
_MOSTLY = 0.05  # share from which equal texts are more than chance
_FAR = (5, 6, 7, 8)  # distances of rows whose titles are named by chance only


@dataclasses.dataclass(frozen=True)
class Answer:
    """An explanation with its prompt.

    Attributes:
      prompt_id: id of the prompt.
      writer: system that wrote the explanation.
      text: the explanation.
      prompt: content of the prompt; None if unknown.
      stop: reason of the end of generation, "" if unknown; "length" for a limit.
    """

    prompt_id: str
    writer: str
    text: str
    prompt: PromptContent | None = None
    stop: str = ""

    @property
    def limit(self) -> int | None:
        """Word limit of the prompt; None if it has none."""
        match = _LIMIT.search(self.prompt.text) if self.prompt else None
        return int(match[1]) if match else None


def check_answers(answers: Sequence[Answer], role: str) -> list[Finding | None]:
    """Runs all checks of this module except `check_ids`.

    Args:
      answers: explanations, those of a writer in the order of their prompts.
      role: name of the set, for codes.
    """
    return [
        of_neighbour(answers, role),
        refused(answers, role),
        empty(answers, role),
        echoed(answers, role),
        cut_off(answers, role),
        too_long(answers, role),
        same_text(answers, role),
        reanswered(answers, role),
    ]


def check_ids(answers: Sequence[Answer], prompt_ids: Sequence[str], role: str) -> list[Finding]:
    """Checks that every prompt has one answer of every writer, and every answer a prompt.

    Args:
      answers: explanations.
      prompt_ids: ids of all prompts.
      role: name of the set, for codes.
    """
    # Missing answers and the like are listed as (writer, prompt id).
    known = set(prompt_ids)
    seen = Counter((answer.writer, answer.prompt_id) for answer in answers)
    writers = sorted({answer.writer for answer in answers})
    missing = [(w, name) for name in prompt_ids for w in writers if (w, name) not in seen]
    unknown = [(w, name) for w, name in seen if name not in known]
    repeated = [(w, name) for (w, name), count in seen.items() if count > 1]
    names = Counter(prompt_ids)
    return [
        _ids(
            role,
            "missing",
            "warning",
            missing,
            len(writers) * len(known),
            "Prompts that a writer did not answer: means of writers are over different prompts.",
            "Compare writers only on prompts that all of them answered, and look for a shift of "
            "rows where one writer lacks other prompts than the rest.",
        ),
        _ids(
            role,
            "unknown_prompt",
            "error",
            unknown,
            len(seen),
            "Answers whose prompt is not in the file of prompts.",
            "Give the file of prompts that they were made with.",
        ),
        _ids(
            role,
            "answered_twice",
            "error",
            repeated,
            len(seen),
            "Prompts that a writer answered more than once: a join by prompt doubles rows.",
            "Keep one answer of a writer and prompt, by a rule made before reading them.",
        ),
        _ids(
            role,
            "repeated_prompt_id",
            "error",
            [("prompts", name) for name, count in names.items() if count > 1],
            len(names),
            "Ids that several prompts have: answers cannot be told apart.",
            "Number the prompts anew and make the answers again.",
        ),
    ]


def _ids(
    role: str,
    code: str,
    severity: Severity,
    pairs: Sequence[tuple[str, str]],
    total: int,
    message: str,
    advice: str,
) -> Finding:
    return Finding(
        f"{role}/{code}",
        severity,
        len(pairs),
        total,
        message,
        advice,
        tuple(f"{writer}: prompt {name}" for writer, name in pairs[:MAX_EXAMPLES]),
    )


def _counted(
    answers: Sequence[Answer],
    describe: Callable[[Answer], str],
    *,
    role: str,
    code: str,
    severity: Severity,
    message: str,
    advice: str,
) -> Finding:
    """Finding over answers; `describe` returns the fault of an answer, or "" for none."""
    examples, hits, sizes = [], Counter[str](), Counter(answer.writer for answer in answers)
    for answer in answers:
        description = describe(answer)
        if description:
            # One example of each writer, so that the list shows how many writers a fault concerns.
            if not hits[answer.writer]:
                examples.append(f"{answer.writer}, prompt {answer.prompt_id}: {description}")
            hits[answer.writer] += 1
    counts = ", ".join(f"{w} {n:,} ({percent(n, sizes[w])})" for w, n in hits.most_common())
    several = len(sizes) > 1 and counts
    return Finding(
        code=f"{role}/{code}",
        severity=severity,
        count=hits.total(),
        total=len(answers),
        message=message,
        advice=advice,
        examples=tuple(([counts] if several else []) + examples)[:MAX_EXAMPLES],
    )


def refused(answers: Sequence[Answer], role: str) -> Finding:
    """Finds texts that apologise or call their writer a model."""

    def describe(answer: Answer) -> str:
        match = _REFUSAL.search(answer.text)
        return short(answer.text[match.start() :], 90) if match else ""

    return _counted(
        answers,
        describe,
        role=role,
        code="refusals",
        severity="warning",
        message='Texts that refuse or speak of their writer: "I\'m sorry", "as a language model".',
        advice="Count a refusal as a lost comparison, report its share, never tune on one.",
    )


def empty(answers: Sequence[Answer], role: str) -> Finding:
    """Finds texts without a word."""
    return _counted(
        answers,
        lambda answer: "" if re.search(r"\w", answer.text) else repr(answer.text),
        role=role,
        code="empty",
        severity="warning",
        message="Texts without a word.",
        advice="Generate them again, or count them as lost comparisons.",
    )


def echoed(answers: Sequence[Answer], role: str) -> Finding:
    """Finds texts that repeat a long passage of their prompt."""

    def describe(answer: Answer) -> str:
        words = answer.text.split()
        if answer.prompt is None or len(words) < 2 * _WINDOW:
            return ""
        # Disjoint windows, as each is searched in the whole prompt; two in a row are a passage.
        copied_before = False
        for start in range(0, len(words) - _WINDOW + 1, _WINDOW):
            window = " ".join(words[start : start + _WINDOW])
            copied = window in answer.prompt.text
            if copied and copied_before:
                return short(window, 90)
            copied_before = copied
        return ""

    return _counted(
        answers,
        describe,
        role=role,
        code="echoed",
        severity="warning",
        message=f"Texts that copy {2 * _WINDOW} words or more in a row from their prompt.",
        advice="Check that only new tokens are decoded; else count them as no explanation.",
    )


def cut_off(answers: Sequence[Answer], role: str) -> Finding:
    """Finds texts that end within a sentence; a signature below an empty line counts as an end."""

    def describe(answer: Answer) -> str:
        text = answer.text.rstrip()
        # A signature ("Yours, the shop") has no full stop, but its text is complete.
        last = re.split(r"\n\s*\n", text)[-1]
        signed = last != text and word_count(last) <= 6
        end = text[-1:]
        within = end.isalnum() or end in _GOES_ON
        cut = bool(text) and not signed and within and ends_sentences(end)
        return f"... {text[-60:]!r}" if cut or answer.stop == "length" else ""

    return _counted(
        answers,
        describe,
        role=role,
        code="cut_off",
        severity="warning",
        message="Texts that end within a sentence, or that a limit of tokens ended.",
        advice="Raise the limit of new tokens (instruct.samples.max_new_tokens).",
    )


def too_long(answers: Sequence[Answer], role: str) -> Finding | None:
    """Finds texts longer than the limit of their prompt."""
    limited = [(answer, answer.limit) for answer in answers]
    with_limit = [answer for answer, limit in limited if limit]
    if not with_limit:
        return None

    def describe(answer: Answer) -> str:
        words, limit = word_count(answer.text), answer.limit
        return f"{words} of {limit} words" if limit and words > limit else ""

    return _counted(
        with_limit,
        describe,
        role=role,
        code="too_long",
        severity="warning",
        message="Texts longer than the number of words that their prompt allows.",
        advice="Report the share within the limit, and a win ratio controlled for length.",
    )


def same_text(answers: Sequence[Answer], role: str) -> Finding:
    """Finds texts that a writer gave to several prompts."""
    by_text: dict[tuple[str, str], dict[str, Answer]] = defaultdict(dict)
    for answer in answers:
        # Equal prompts may well get equal answers, so prompts are told apart by text, not by id.
        prompts = answer.prompt.text if answer.prompt else answer.prompt_id
        by_text[answer.writer, level(answer.text)].setdefault(prompts, answer)
    # `key[1]` is the text: empty ones have a finding of their own.
    repeated = {
        key: len(prompts) for key, prompts in by_text.items() if len(prompts) > 1 and key[1]
    }

    def describe(answer: Answer) -> str:
        count = repeated.get((answer.writer, level(answer.text)), 0)
        return f"{short(answer.text)} to {count} prompts" if count else ""

    finding = _counted(
        answers,
        describe,
        role=role,
        code="same_text",
        severity="info",
        message="Texts that their writer gave word for word to another prompt too.",
        advice="Report the share of distinct texts (USR); such a text cannot rest on the history.",
    )
    sizes = Counter(answer.writer for answer in answers)
    repeats: Counter[str] = Counter()
    for (writer, _), count in repeated.items():
        repeats[writer] += count
    often = any(repeats[writer] > _MOSTLY * sizes[writer] for writer in repeats)
    return dataclasses.replace(finding, severity="warning" if often else "info")


def reanswered(answers: Sequence[Answer], role: str) -> Finding:
    """Finds prompts to which a writer gave several different answers."""
    texts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for answer in answers:
        if answer.prompt:
            texts[answer.writer, answer.prompt.text].add(level(answer.text))
    several = {key: len(distinct) for key, distinct in texts.items() if len(distinct) > 1}
    return Finding(
        code=f"{role}/reanswered",
        severity="info",
        count=len(several),
        total=len(texts),
        message="Prompts that have several different answers of one writer.",
        advice="Split by prompt, so that they never stand on both sides.",
        examples=tuple(
            f"{writer}: {plural(count, 'answer')} to {short(prompt)}"
            for (writer, prompt), count in list(several.items())[:MAX_EXAMPLES]
        ),
    )


def of_neighbour(answers: Sequence[Answer], role: str) -> Finding | None:
    """Finds texts that name the item of the previous or next row instead of their own.

    A file with shifted rows has many. The same is counted for rows further away, which are named by
    chance; unless neighbours are named much more often than those, nothing is reported.
    """
    groups: dict[tuple[str, str], list[Answer]] = defaultdict(list)
    for answer in answers:
        if answer.prompt is not None and answer.prompt.read:
            groups[answer.writer, answer.prompt.dataset].append(answer)
    if not groups:
        return None
    shifted: list[tuple[Answer, Answer]] = []
    # Rows are neighbours only within one writer and data set.
    for group in groups.values():
        # `__wrapped__` passes by the cache, which whole explanations would fill. With blanks at
        # both ends a title matches whole words only.
        texts = [f" {normal_title.__wrapped__(answer.text)} " for answer in group]
        titles = [normal_title(answer.prompt.title) if answer.prompt else "" for answer in group]
        names = functools.partial(_names, group, texts, titles)
        near = {place: off for off in (-1, 1) for place in names(off)}
        # Counts of single offsets, of which neighbours have two: hence the factor 2 below.
        chance = [len(list(names(sign * off))) for off in _FAR for sign in (-1, 1)]
        if len(near) >= 3 + 3 * 2 * sum(chance) / len(chance):
            shifted += [(group[place], group[place + near[place]]) for place in sorted(near)]
    return Finding(
        code=f"{role}/of_another_row",
        severity="error",
        count=len(shifted),
        total=sum(map(len, groups.values())),
        message="Texts that name the item of the row before or after, and not their own: answers "
        "and prompts seem to be shifted.",
        advice="Join answers to prompts by an id, never by their order.",
        examples=tuple(
            f"{answer.writer}, prompt {answer.prompt_id}: names {_title(other)} instead of "
            f"{_title(answer)}"
            for answer, other in shifted[:MAX_EXAMPLES]
        ),
    )


def _title(answer: Answer) -> str:
    return short(answer.prompt.title if answer.prompt else "")


def _names(
    group: Sequence[Answer], texts: Sequence[str], titles: Sequence[str], offset: int
) -> Iterable[int]:
    """Yields rows whose text names the title of the row `offset` further, and not its own."""
    for place, (answer, text) in enumerate(zip(group, texts, strict=True)):
        if not 0 <= place + offset < len(group) or answer.prompt is None:
            continue
        own, other = titles[place], titles[place + offset]
        if len(other) < _TELLING or other == own or f" {other} " not in text:
            continue
        # To name a title of the own history is legitimate, even if it is the neighbour's item.
        shown = {normal_title(title) for title in answer.prompt.history}
        if f" {own} " not in text and other not in shown:
            yield place
