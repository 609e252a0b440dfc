"""The interface every explainer has, and the registry that finds one by name."""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from xrec_jax.core.errors import UserError
from xrec_jax.core.registering import replaces_library
from xrec_jax.core.rundir import RunDir
from xrec_jax.llm.language_model import LanguageModel
from xrec_jax.tasks.requests import Case, CaseMaker
from xrec_jax.text.records.explanations import OTHER_FILES

Needs = Literal["nothing", "base", "tuned", "adapter"]
NEEDS: tuple[Needs, ...] = ("nothing", "base", "tuned", "adapter")
# The report's palette. What has no colour of its own gets the first that is free there.
COLOURS = ("blue", "orange", "green", "purple", "ochre", "grey", "red", "indigo")
_NAME = re.compile(r"[\w.-]+")  # it is the name of a file, and " vs " stands between two of them


class Spec(NamedTuple):
    """An explainer as a config or a flag names it.

    Attributes:
      name: of its file and in its records.
      adapter: directory of its adapter; "" without one.
    """

    name: str
    adapter: str = ""


class Written(NamedTuple):
    """What an explainer wrote; see `text.records.Explanation`.

    Attributes:
      text: the explanation.
      tokens: generated, the one that ended the text included; None where none are counted.
      log_prob: of the text in nats, None where there is none.
      stop: "eos" for a text that ended by itself, "length" for one that was cut off.
    """

    text: str
    tokens: int | None = None
    log_prob: float | None = None
    stop: str = "eos"


@dataclasses.dataclass(frozen=True)
class Setup:
    """What an explainer is built from.

    Attributes:
      spec: its name, and the directory of its adapter.
      config: of the run, with whatever a command changed in it.
      rundir: of the run.
      maker: of the cases it will see; also gives rows of the tables (`named`, `user`), the record
        of a pair (`pair`) and the data (`data`).
      language_model: the base, with the adapters of all explainers of the call under their names;
        None for an explainer that needs nothing.
      base: identity of the base, None for an explainer that needs nothing.
      adapter: identity of the adapter, None without one.
    """

    spec: Spec
    config: Any
    rundir: RunDir
    maker: CaseMaker
    language_model: LanguageModel | None = None
    base: str | None = None
    adapter: str | None = None


class Explainer(abc.ABC):
    """Writes explanations.

    Several processes may write parts of one output, and an output that was cut off goes on later:
    a text must be a function of its case alone (of `case.seed`, where it is drawn at random).

    Attributes:
      name: in its records.
      base: identity of its base, None for one that needs nothing.
      adapter: identity of its adapter, None without one.
      repeats: whether the same prompt always gets the same text; it is answered once then.
    """

    name: str
    base: str | None
    adapter: str | None
    repeats: bool = False

    def __init__(self, setup: Setup):
        self.setup = setup
        self.name, self.base, self.adapter = setup.spec.name, setup.base, setup.adapter

    @abc.abstractmethod
    def write(self, cases: Sequence[Case]) -> Iterator[tuple[int, Written]]:
        """Yields the place of a case and its text, in any order, each place once."""


@dataclasses.dataclass(frozen=True)
class Registration:
    """An explainer as its module declares it.

    Attributes:
      name: its key in `explain.explainers`, and of its file.
      build: makes one that is ready to write.
      needs: "nothing"; "base": the language model of the run; "tuned": that with the adapter of
        stage `instruct`; "adapter": that with the adapter that NAME=DIR names.
      label: in charts and tables of the report.
      title: above its texts in the report.
      colour: in the report, of `COLOURS`; "" for any that is free.
      identity: from config and run directory to a digest of whatever else its texts depend on, such
        as a file or a version: an unfinished output of another identity is not continued. None for
        an explainer that depends on nothing but the run, the prompt, its base and its adapter.
    """

    name: str
    build: Callable[[Setup], Explainer]
    needs: Needs = "nothing"
    label: str = ""
    title: str = ""
    colour: str = ""
    identity: Callable[[Any, RunDir], str] | None = None


_REGISTRY: dict[str, Registration] = {}
B = TypeVar("B", bound=Callable[[Setup], Explainer])


def register(
    name: str,
    *,
    needs: Needs = "nothing",
    label: str = "",
    title: str = "",
    colour: str = "",
    identity: Callable[[Any, RunDir], str] | None = None,
) -> Callable[[B], B]:
    """Class decorator: makes an explainer available as `name` in `explain.explainers`.

    Args:
      name: letters, digits, ".", "_" and "-".
      needs: see `Registration`, as the following.
      label: default the name.
      title: default the label, beginning with a capital.
      colour: of `COLOURS`.
      identity: of what else its texts depend on.

    Raises:
      UserError: on a name or label that another explainer has, or a value that is not valid.
    """
    label = label or name
    title = title or label[:1].upper() + label[1:]

    def add(build: B) -> B:
        # A name is a file's name, too, beside the files that other things have in that folder.
        if not _NAME.fullmatch(name) or name in OTHER_FILES:
            raise UserError(f"explainer {name!r}: that cannot be its name")
        if needs not in NEEDS:
            raise UserError(f"explainer {name!r}: needs={needs!r}; valid: {', '.join(NEEDS)}")
        if colour and colour not in COLOURS:
            raise UserError(f"explainer {name!r}: colour={colour!r}; valid: {', '.join(COLOURS)}")
        for other in _REGISTRY.values():
            # A user's module may be loaded again and register anew; the library's own names stay.
            if name == other.name and replaces_library(other.build, build):
                raise UserError(f"explainer {name!r} is registered already")
            # Charts and tables tell explainers apart by their labels.
            if name != other.name and label in (other.name, other.label):
                raise UserError(f"explainer {name!r}: {other.name!r} has the label {label!r}")
        _REGISTRY[name] = Registration(name, build, needs, label, title, colour, identity)
        return build

    return add


def names() -> list[str]:
    """Names of all registered explainers, in the order in which they were registered."""
    return list(_REGISTRY)


def find(name: str) -> Registration | None:
    """The explainer registered as `name`; None for another name, such as that of an adapter."""
    return _REGISTRY.get(name)


def label(name: str) -> str:
    """Name of an explainer in charts and tables; one that is not registered is named as it is."""
    registration = find(name)
    return name if registration is None else registration.label


def valid_name(name: str) -> bool:
    """Whether an adapter may be called so: a name for a file that nothing else has."""
    return bool(_NAME.fullmatch(name)) and name not in (*OTHER_FILES, *names())
