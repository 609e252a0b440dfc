"""Interface and registry of explainers."""

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
from xrec_jax.tasks.requests import ExplanationRequest, RequestBuilder
from xrec_jax.text.records.explanations import OTHER_FILES

Needs = Literal["nothing", "base", "tuned", "adapter"]
NEEDS: tuple[Needs, ...] = ("nothing", "base", "tuned", "adapter")
# Palette of the report. An explainer without a colour gets the first free one.
COLOURS = ("blue", "orange", "green", "purple", "ochre", "grey", "red", "indigo")
_NAME = re.compile(r"[\w.-]+")  # a file name; " vs " separates two of them in comparisons


class Spec(NamedTuple):
    """An explainer as selected by a config or a flag.

    Attributes:
      name: name of the explainer, of its file and in its records.
      adapter: directory of its adapter; "" without one.
    """

    name: str
    adapter: str = ""


class Written(NamedTuple):
    """Output of an explainer; see `text.records.explanations.Explanation`.

    Attributes:
      text: the explanation.
      tokens: number of generated tokens including the final one; None without a language model.
      log_prob: log-probability of the text in nats; None without a language model.
      stop: "eos" for a complete text, "length" for a truncated one.
    """

    text: str
    tokens: int | None = None
    log_prob: float | None = None
    stop: str = "eos"


@dataclasses.dataclass(frozen=True)
class Setup:
    """Inputs for building an explainer.

    Attributes:
      spec: name of the explainer and directory of its adapter.
      config: configuration of the run, with the options of the command.
      rundir: directory of the run.
      builder: builder of the requests; also has rows of the tables (`named`, `user`), the record of
        a request (`pair`) and the data (`data`).
      language_model: the base with the adapters of all explainers by name; None for an explainer
        that needs nothing.
      base: identity of the base; None for an explainer that needs nothing.
      adapter: identity of the adapter; None without one.
    """

    spec: Spec
    config: Any
    rundir: RunDir
    builder: RequestBuilder
    language_model: LanguageModel | None = None
    base: str | None = None
    adapter: str | None = None


class Explainer(abc.ABC):
    """Interface of an explainer.

    Several processes may write parts of one output, and an interrupted output is resumed later, so
    a text must be a function of its request alone (of `request.seed`, if it is sampled).

    Attributes:
      name: name of the explainer in its records.
      base: identity of its base; None for an explainer that needs nothing.
      adapter: identity of its adapter; None without one.
      repeats: whether equal prompts always get equal texts, and need to be answered only once.
    """

    name: str
    base: str | None
    adapter: str | None
    repeats: bool = False

    def __init__(self, setup: Setup):
        self.setup = setup
        self.name, self.base, self.adapter = setup.spec.name, setup.base, setup.adapter

    @abc.abstractmethod
    def write(self, requests: Sequence[ExplanationRequest]) -> Iterator[tuple[int, Written]]:
        """Yields the index of each request with its text, in any order."""


@dataclasses.dataclass(frozen=True)
class Registration:
    """Declaration of an explainer.

    Attributes:
      name: key in `explain.explainers`, and name of its file.
      build: builds the explainer.
      needs: "nothing"; "base": the language model of the run; "tuned": the base with the adapter of
        stage `instruct`; "adapter": the base with the adapter of NAME=DIR.
      label: label in charts and tables of the report.
      title: title of its texts in the report.
      colour: colour in the report, of `COLOURS`; "" for any free one.
      identity: function from config and run directory to a digest of all further dependencies of
        the texts, such as a file or a version: an unfinished output with another identity is not
        resumed. None if texts depend only on the run, the prompt, the base and the adapter.
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
    """Class decorator that registers an explainer as `name` for `explain.explainers`.

    Args:
      name: letters, digits, ".", "_" and "-".
      needs: see `Registration`, as the following.
      label: by default the name.
      title: by default the label with an initial capital.
      colour: one of `COLOURS`, or "".
      identity: digest of further dependencies.

    Raises:
      UserError: on a name or label of another explainer, or an invalid value.
    """
    label = label or name
    title = title or label[:1].upper() + label[1:]

    def add(build: B) -> B:
        # The texts' file has this name, beside the other files of that folder.
        if not _NAME.fullmatch(name) or name in OTHER_FILES:
            raise UserError(f"explainer {name!r}: that cannot be its name")
        if needs not in NEEDS:
            raise UserError(f"explainer {name!r}: needs={needs!r}; valid: {', '.join(NEEDS)}")
        if colour and colour not in COLOURS:
            raise UserError(f"explainer {name!r}: colour={colour!r}; valid: {', '.join(COLOURS)}")
        for other in _REGISTRY.values():
            # A user's module may be loaded again, but the library's own names cannot be replaced.
            if name == other.name and replaces_library(other.build, build):
                raise UserError(f"explainer {name!r} is registered already")
            # Charts and tables distinguish explainers by their labels.
            if name != other.name and label in (other.name, other.label):
                raise UserError(f"explainer {name!r}: {other.name!r} has the label {label!r}")
        _REGISTRY[name] = Registration(name, build, needs, label, title, colour, identity)
        return build

    return add


def names() -> list[str]:
    """Names of all registered explainers in the order of registration."""
    return list(_REGISTRY)


def find(name: str) -> Registration | None:
    """Finds the explainer registered as `name`; None for other names, such as an adapter's."""
    return _REGISTRY.get(name)


def valid_name(name: str) -> bool:
    """True if an adapter may have the name: a valid file name that is not taken."""
    return bool(_NAME.fullmatch(name)) and name not in (*OTHER_FILES, *names())
