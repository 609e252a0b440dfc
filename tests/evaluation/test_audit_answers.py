"""Checks of explanations: on clean texts nothing, on faulty ones exact counts."""

import dataclasses

from xrec_jax.evaluation import audit
from xrec_jax.evaluation.audit.contents import PromptContent
from xrec_jax.evaluation.audit.findings import MAX_EXAMPLES

ANIMALS = (
    "Aardvark Bulldog Catfish Dolphin Elephant Falcons Gorilla Hamster Iguanas Jackals Kangaroo "
    "Leopard Meerkat Narwhal"
).split()
PROMPT = (
    "You liked one thing and another thing and again something else that was not bad "
    "bad at all, so tell why they may like {}. Stay within 20 words."
)


def case(place):
    title = f"{ANIMALS[place]} Story"
    return PromptContent(PROMPT.format(title), "zoo", "", "t", title, ("Plain Tale", "Old Song"))


def clean(writer="ours", said=None):
    """One answer a prompt; `said` is the place whose item an answer names."""
    return [
        audit.Answer(
            str(place),
            writer,
            f"Like Plain Tale, {ANIMALS[said(place) if said else place]} Story is a calm pick.",
            case(place),
        )
        for place in range(len(ANIMALS))
    ]


def found(answers):
    outcomes = [one for one in audit.check_answers(answers, "explanations") if one]
    return {one.code.removeprefix("explanations/"): one for one in outcomes}


def changed(place, text, **more):
    answers = clean()
    answers[place] = dataclasses.replace(answers[place], text=text, **more)
    return answers


def hits(answers):
    return {code: one.count for code, one in found(answers).items() if one.count}


def test_clean_answers():
    assert len(found(clean())) == 8 and not hits([*clean(), *clean("theirs")])
    ids = [str(place) for place in range(len(ANIMALS))]
    assert not any(one.count for one in audit.check_ids(clean(), ids, "explanations"))


def test_refusals():
    texts = (
        "As an AI language model, I like nothing.",
        "I'm sorry, but there is nothing to say.",
        "I am truly sorry.",
        "Well, I cannot provide a reason.",
        "I am unable to tell.",
    )
    for text in texts:
        assert hits(changed(3, text)) == {"refusals": 1}, text
    fine = ("You will not be sorry.", "A tale of a language model that fails.", "I can't wait.")
    for text in fine:
        assert not hits(changed(3, text)), text
    answers = [*clean("theirs"), *changed(3, texts[0]), *clean("others")]
    one = found(answers)["refusals"]
    assert (one.count, one.total, one.severity) == (1, 42, "warning")
    assert one.examples == ("ours 1 (7.14 %)", f"ours, prompt 3: {texts[0]!r}")


def test_empty_long_and_cut():
    assert hits(changed(0, " \n")) == {"empty": 1}
    assert hits(changed(0, "...")) == {"empty": 1}
    assert hits(changed(0, "word " * 20 + "end.")) == {"too_long": 1}
    assert not hits(changed(0, "word " * 19 + "end."))
    assert hits(changed(0, "It is good because it")) == {"cut_off": 1}
    assert hits(changed(0, "It is good.", stop="length")) == {"cut_off": 1}
    assert not hits(changed(0, "It is good!\n\nBest regards,\nYour system", stop="eos"))
    assert hits(changed(0, "适合你，因为你喜欢。它也" + "很" * 12)) == {"cut_off": 1, "too_long": 1}
    assert not hits(changed(0, "适合你，因为你喜欢。"))
    assert not hits(changed(0, "เหมาะกับคุณ"))  # Thai puts no sign to a sentence's end
    assert hits(changed(0, "يناسبك،")) == {"cut_off": 1}
    answers = [dataclasses.replace(one, prompt=None) for one in clean()]
    assert {"too_long", "of_another_row"}.isdisjoint(found(answers))  # nothing known of the prompt


def test_echo():
    words = case(0).text.split()
    text = " ".join(words[:24]) + "."  # 23 words alike: the full stop makes the last one another
    assert hits(changed(0, text)) == {"too_long": 1}
    assert hits(changed(0, " ".join(words[:24]) + " end.")) == {"echoed": 1, "too_long": 1}


def test_same_text_and_several_answers():
    twice = changed(4, clean()[2].text.replace("Catfish Story", "This"))
    twice[7] = dataclasses.replace(twice[7], text=" " + twice[4].text)
    one = found(twice)["same_text"]
    assert (one.count, one.total, one.severity) == (2, 14, "warning")
    many = [*twice, *(audit.Answer(f"x{n}", "ours", f"Text {n}.") for n in range(60))]
    assert found(many)["same_text"].severity == "info"
    again = [*clean(), dataclasses.replace(clean()[1], text="Another one.")]
    assert hits(again) == {"reanswered": 1}
    assert found(again)["reanswered"].examples[0].startswith("ours: 2 answers to 'You liked")


def test_answers_of_the_next_row():
    last = len(ANIMALS) - 1
    shifted = found([*clean("theirs"), *clean(said=lambda place: min(place + 1, last))])
    one = shifted["of_another_row"]
    assert (one.count, one.total, one.severity) == (13, 28, "error")
    assert len(one.examples) == MAX_EXAMPLES
    assert one.examples[0] == "ours, prompt 0: names 'Bulldog Story' instead of 'Aardvark Story'"
    assert hits(clean(said=lambda place: max(place - 1, 0)))["of_another_row"] == 13
    # Named at random, neighbours come as often as others; a title shown in the history is fair.
    assert "of_another_row" not in hits(clean(said=lambda place: place * 5 % 14))
    shown = [
        dataclasses.replace(
            one, prompt=dataclasses.replace(case(place), history=(f"{ANIMALS[place - 1]} Story",))
        )
        for place, one in enumerate(clean(said=lambda place: place - 1))
    ]
    assert "of_another_row" not in hits(shown)


def test_ids():
    answers = [*clean(), *clean("theirs")][1:]  # ours lacks prompt 0
    answers.append(dataclasses.replace(answers[0], prompt_id="77"))
    answers.append(answers[2])
    ids = [str(place) for place in range(len(ANIMALS))]
    outcomes = {
        one.code.split("/")[1]: one for one in audit.check_ids(answers, [*ids, "5"], "explanations")
    }
    assert {code: one.count for code, one in outcomes.items()} == {
        "missing": 1,
        "unknown_prompt": 1,
        "answered_twice": 1,
        "repeated_prompt_id": 1,
    }
    assert outcomes["missing"].total == 28 and outcomes["missing"].examples == ("ours: prompt 0",)
    assert outcomes["unknown_prompt"].examples == ("ours: prompt 77",)
    assert outcomes["answered_twice"].examples == ("ours: prompt 3",)
