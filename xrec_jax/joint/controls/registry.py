"""Controls of joint training: each with what it reads, how it is trained, and what it shows.

A control is the recommender of joint training with other texts, or with none. A new one is one
entry here, or a user's own in a module that `config.imports` names, and its name in
`config.joint.systems`:

    from xrec_jax.joint.controls.registry import Control, register

    register(
        Control(
            "shouted",
            label="in capitals",
            description="The joint texts in capital letters.",
            shows="If the gain went away, the recommender would read letters, not words.",
            texts=lambda source: [text.upper() for text in source.texts("joint")],
        )
    )
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from xrec_jax.joint.states.base import JointStates
from xrec_jax.joint.states.candidates import JointCases
from xrec_jax.text.synthetic.taste_pairs import join_pair, taste_pair
from xrec_jax.text.titles.mask import TitleMasks

ALONE, JOINT = "alone", "joint"
_PLACE = "this place"


class TextSource(Protocol):
    """A finished seed, as controls see it when they make their texts.

    Attributes:
      states: all explained states.
      rows: `[n]` those that need a text.
    """

    @property
    def states(self) -> JointStates: ...

    @property
    def rows(self) -> np.ndarray: ...

    def texts(self, name: str) -> list[str]:
        """Texts of another control for `rows`."""

    def best_answers(self) -> list[str]:
        """Answers of the best round's policy."""

    def warm_answers(self) -> list[str]:
        """Answers of the policy after the warm start."""

    def base_answers(self) -> list[str]:
        """Answers of the base model without an adapter."""


def _everywhere(states: JointStates) -> bool:
    """For controls that every run can have."""
    return True


@dataclasses.dataclass(frozen=True)
class Control:
    """A system that joint training is held against.

    Attributes:
      name: its key in `config.joint.systems` and in `evaluation.json`.
      label: its name on the page.
      description: what it is, in a sentence.
      shows: what it would show if the claim were wrong; empty where it is no control.
      colour: class of its bars on the page.
      silent: whether it must not gain.
      texts: makes a text of every row; None where it has none of its own.
      reads: whose texts its recommender reads where it has none: a control, or "" for nothing.
      recommender: "fresh" is trained on what it reads as long as joint was at most; "joint" is that
        of joint; "refit" is trained anew on the joint texts; "alone" is not trained at all.
      side: "why" or "why_not" reads only that side of a text; "" both.
      features: reads plain numbers in place of texts.
      history: reads the texts of the items in the history, averaged, in place of texts.
      shuffled: gives every user a text of somebody else.
      exists: whether a run with such states can have it.
      published: whether its texts are among the final ones in `explanations/`.
      compared: place among the paired tests of joint against controls; 0 for no such test.
    """

    name: str
    label: str
    description: str
    shows: str = ""
    colour: str = "k4"
    silent: bool = False
    texts: Callable[[TextSource], list[str]] | None = None
    reads: str = JOINT
    recommender: Literal["fresh", "joint", "refit", "alone"] = "fresh"
    side: Literal["", "why", "why_not"] = ""
    features: bool = False
    history: bool = False
    shuffled: bool = False
    exists: Callable[[JointStates], bool] = _everywhere
    published: bool = False
    compared: int = 0

    @property
    def source(self) -> str:
        """The control whose texts it reads; "" for none."""
        return self.name if self.texts is not None else self.reads

    @property
    def standardised(self) -> bool:
        """Whether what it reads is standardised by itself, as joint's texts were by theirs."""
        return self.texts is not None or self.features or self.history


# In the order in which the page describes them.
CONTROLS: dict[str, Control] = {}


def register(control: Control) -> None:
    """Adds a control, or replaces the one of its name."""
    CONTROLS[control.name] = control


def published() -> list[str]:
    """Names of controls whose texts are among the final ones."""
    return [name for name, control in CONTROLS.items() if control.published]


def compared() -> list[str]:
    """Names of controls that joint is tested against, in the order of the tests."""
    chosen = [control for control in CONTROLS.values() if control.compared]
    return [control.name for control in sorted(chosen, key=lambda control: control.compared)]


# Texts.


def _of_states(field: str) -> Callable[[TextSource], list[str]]:
    """Texts that states bring with them."""

    def texts(source: TextSource) -> list[str]:
        own: Sequence[str] = getattr(source.states, field)
        return [own[s] for s in source.rows]

    return texts


def _planted(source: TextSource) -> list[str]:
    states = source.states
    if isinstance(states, JointCases):
        assert states.said is not None
        return [states.said[s] for s in source.rows]
    assert states.planted is not None
    return [said(states.planted[s]) for s in source.rows]


def said(planted: Any) -> str:
    """Planted tastes as a pair."""
    sides = []
    for side in ("for", "against"):
        values: dict[str, list[str]] = {}
        for reason in planted[side]:
            values.setdefault(reason["attribute"], []).append(reason["value"])
        sides.append(values)
    return join_pair(taste_pair(*sides))


def mask_titles(texts: list[str], titles: Any) -> list[str]:
    """Texts with other words in place of the titles of the catalogue (the policy `MASK`)."""
    masks = TitleMasks(titles)
    return [masks.mask(text, by=_PLACE) for text in texts]


def _masked(source: TextSource) -> list[str]:
    return mask_titles(source.texts(JOINT), source.states.titles)


# Controls.

register(
    Control(
        "joint",
        label="joint",
        colour="k0",
        description="Explanations and recommender trained in turns, as of the best round. Its "
        "recommender went on from there or was trained anew on the texts, whichever was"
        " better on valid users.",
        texts=lambda source: source.best_answers(),
        recommender="joint",
        published=True,
    )
)

register(
    Control(
        "alone",
        label="alone",
        colour="k5",
        description="The same recommender without any text: what is to be beaten.",
        reads="",
        recommender="alone",
    )
)

register(
    Control(
        "sft",
        label="warm start (SFT)",
        colour="k1",
        description="The explainer before the first round, tuned on examples alone.",
        shows="If it gained as much, training by reward would add nothing.",
        texts=lambda source: source.warm_answers(),
        published=True,
        compared=1,
    )
)

register(
    Control(
        "refit",
        label="joint texts, read anew",
        colour="k2",
        description="The joint texts with a recommender that was trained as those of all controls "
        "are. From the warm start only its texts differ.",
        recommender="refit",
    )
)

register(
    Control(
        "untuned",
        label="untuned model",
        colour="k1",
        description="The language model as it was, without any adapter.",
        shows="If it gained as much, no training of the explainer would be needed.",
        texts=lambda source: source.base_answers(),
        published=True,
        compared=5,
    )
)

register(
    Control(
        "template",
        label="template",
        colour="k4",
        description="A text by rule from the attributes in the history, no model.",
        shows="If it gained as much, counting attributes would do.",
        texts=_of_states("template"),
        published=True,
        compared=3,
    )
)

register(
    Control(
        "prompt",
        label="prompt as it is",
        colour="k4",
        description="The words of the prompt itself, with no model to read them.",
        shows="If it gained as much, nobody would need to explain.",
        texts=_of_states("prompts"),
    )
)

register(
    Control(
        "summary",
        label="history summary",
        colour="k4",
        description="A text that says what was visited, without reasons.",
        shows="If it gained as much, the reasons would be idle.",
        texts=_of_states("summary"),
        published=True,
    )
)

register(
    Control(
        "why",
        label="why only",
        colour="k2",
        description="The joint texts without their why-not part.",
        shows="If it gained as much, reasons against would be idle.",
        side="why",
    )
)

register(
    Control(
        "why_not",
        label="why-not only",
        colour="k2",
        description="The joint texts without their why part.",
        shows="If it gained as much, reasons for would be idle.",
        side="why_not",
    )
)

register(
    Control(
        "masked_titles",
        label="titles masked",
        colour="k3",
        description="The joint texts with every title taken out.",
        shows="If the gain went away, the texts would give the items away by name.",
        texts=_masked,
        recommender="joint",
        exists=lambda states: any(states.titles),
    )
)

register(
    Control(
        "features",
        label="plain features",
        colour="k4",
        description="The facts of user and items as numbers instead of a text.",
        shows="If it gained as much, the gain would be the attributes', not the explanation's.",
        reads="",
        features=True,
        compared=4,
    )
)

register(
    Control(
        "content",
        label="items of the history",
        colour="k4",
        description="What the items of the history are, in words, averaged, in place of a text.",
        shows="If it gained as much, reading the items would do, and nobody need explain.",
        reads="",
        side="why",  # its one part is there, whichever side explanations are read of
        history=True,
        exists=lambda states: any(states.item_texts),
    )
)

register(
    Control(
        "shuffled",
        label="shuffled texts",
        colour="k6",
        description="The recommender trained as long with joint texts of somebody else for every "
        "user.",
        shows="If it gained, any text would do, and the gain would not come from what is said.",
        silent=True,
        shuffled=True,
        compared=2,
    )
)

register(
    Control(
        "null",
        label="no text given",
        colour="k6",
        description="The fused recommender trained as long, without any text.",
        shows="If it gained, the further training would explain the gain, not the explanations.",
        silent=True,
        reads="",
    )
)

register(
    Control(
        "stated",
        label="perfect reader",
        colour="k7",
        description="What users say in the prompts of their tastes, read without error.",
        texts=_of_states("stated"),
        exists=lambda states: states.stated is not None,
        published=True,
        compared=6,
    )
)

register(
    Control(
        "planted",
        label="true reasons",
        colour="k7",
        description="The world's own reasons as a text: what perfect texts would give.",
        texts=_planted,
        exists=lambda states: states.planted is not None,
        published=True,
    )
)
