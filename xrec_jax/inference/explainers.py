"""Who explains: the template, the base of a run, its tuned adapter, or any other adapter."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rundir import RunDir
from xrec_jax.inference import explainers
from xrec_jax.llm import run_base
from xrec_jax.llm.generation.sampling import Sampling
from xrec_jax.llm.generation.schedule import Request
from xrec_jax.llm.io.peft_io import is_adapter, load_adapter
from xrec_jax.llm.language_model import LanguageModel
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.lora import Adapter
from xrec_jax.llm.run_base import adapter_identity, base_identity
from xrec_jax.parallel.mesh import batch_divisor
from xrec_jax.tasks.requests import Case, CaseMaker
from xrec_jax.text.records.explanations import OTHER_FILES, Explanation
from xrec_jax.text.synthetic.template_explainer import template_explanation

KINDS = ("template", "base", "tuned")
_NAME = re.compile(r"[\w.-]+")


class Spec(NamedTuple):
    """An explainer as a config or a flag names it.

    Attributes:
      name: of its file and in its records.
      adapter: directory of its adapter; "" for the template and the base.
    """

    name: str
    adapter: str = ""


class Written(NamedTuple):
    """What an explainer wrote; see `text.records.Explanation`."""

    text: str
    tokens: int | None
    log_prob: float | None
    stop: str


class Explainer(Protocol):
    """Writes explanations.

    Attributes:
      name: in its records.
      base: identity of its base, None for the template.
      adapter: identity of its adapter, None without one.
      repeats: whether the same prompt always gets the same text.
    """

    name: str
    base: str | None
    adapter: str | None
    repeats: bool

    def write(self, cases: Sequence[Case]) -> Iterator[tuple[int, Written]]:
        """Yields the place of a case and its text, in any order, each place once."""
        ...


def parse(text: str, rundir: RunDir) -> Spec:
    """An explainer from "template", "base", "tuned", an adapter's DIR, or NAME=DIR.

    Raises:
      UserError: if it is none of these.
    """
    if text == "tuned":
        return Spec(text, str(run_base.adapter_path(rundir)))
    if text in KINDS:
        return Spec(text)
    text = str(text)
    name, folder = pathlib.Path(text).name, text
    if "=" in text and not is_adapter(text):  # which may be the path of an adapter itself
        name, _, folder = text.partition("=")
    if not is_adapter(folder):
        raise UserError(
            f"explainer {text!r} is neither template, base nor tuned, nor the directory of an "
            f"adapter{did_you_mean(text, KINDS)}"
        )
    if not _NAME.fullmatch(name) or name in (*OTHER_FILES, *KINDS):
        raise UserError(
            f"explainer {text!r}: {name!r} cannot be its name; give another as NAME={folder}"
        )
    return Spec(name, str(pathlib.Path(folder).absolute()))


def choose(config: Any, rundir: RunDir, *, explainer: str, adapter: str, base: str) -> Spec:
    """The explainer that a call asks for.

    Args:
      config: of the run.
      rundir: of the run.
      explainer: template, base or tuned, or a name for `adapter`; "" for the best there is: the
        adapter given, else the base given, else what the run has: tuned, base or template.
      adapter: directory of an adapter, or "".
      base: directory of a base that was given, or "".

    Raises:
      UserError: on an unknown one, or two that contradict each other.
    """
    if adapter:
        if explainer in KINDS:
            raise UserError(f"--explainer={explainer} and --adapter={adapter}: give one of them")
        return parse(f"{explainer}={adapter}" if explainer else adapter, rundir)
    if not explainer:
        there = run_base.base_path(config, rundir).exists()
        tuned = there and not base and run_base.adapter_path(rundir).exists()
        explainer = "tuned" if tuned else "base" if there or base else "template"
    if explainer not in KINDS:
        raise UserError(
            f"--explainer={explainer!r} is not valid{did_you_mean(explainer, KINDS)}; another "
            "adapter is given by --adapter=DIR"
        )
    return parse(explainer, rundir)


def identities(spec: Spec, config: Any, rundir: RunDir) -> tuple[str | None, str | None]:
    """Base and adapter of an explainer; see `base_identity` and `adapter_identity`."""
    if spec.name == "template":
        return None, None
    base = base_identity(config, rundir)
    return base, adapter_identity(spec.adapter, base) if spec.adapter else None


class Template:
    """Says what item and history have in common; knows no more than the prompt does."""

    name: str = "template"
    base: str | None = None
    adapter: str | None = None
    repeats: bool = False

    def __init__(self, maker: CaseMaker, *, seed: int):
        self._maker, self._seed = maker, seed

    def write(self, cases: Sequence[Case]) -> Iterator[tuple[int, Written]]:
        """See `Explainer`."""
        maker = self._maker
        for place, case in enumerate(cases):
            text = template_explanation(
                maker.named(case.asked.item),
                [maker.named(row) for row in case.history],
                maker.user(case.asked.user),
                key=case.digest,
                seed=self._seed,
                title=maker.name_column,
            )
            yield place, Written(text, None, None, "eos")


class Model:
    """A language model, with or without an adapter.

    All cases of a call go through one sampler, which sorts them, so that what prompts share (those
    of one user above all) is read once, and fills rows that are done with the next prompts.
    """

    def __init__(self, spec: Spec, lm: LanguageModel, samples: Any, base: str, adapter: str | None):
        self.name: str = spec.name
        self.base: str | None = base
        self.adapter: str | None = adapter
        self._which = spec.name if spec.adapter else None
        self._lm, self._limit = lm, samples.max_new_tokens
        self._sampling = Sampling(samples.temperature, samples.top_k, samples.top_p)
        self.repeats = self._sampling.greedy

    def write(self, cases: Sequence[Case]) -> Iterator[tuple[int, Written]]:
        """See `Explainer`."""
        lm = self._lm
        requests = [Request(case.ids, self._limit, case.seed) for case in cases]
        found = lm.sampler.stream(
            requests, sampling=self._sampling, adapter=lm.adapter(self._which)
        )
        for place, answer in found:
            text = lm.tokenizer.decode(answer.ids)
            log_prob = float(np.sum(answer.log_probs))
            yield place, Written(text, len(answer.ids), log_prob, answer.stop)


def needs_model(specs: Sequence[Spec]) -> bool:
    """Whether a language model must be loaded."""
    return any(spec.name != "template" for spec in specs)


def load(
    specs: Sequence[Spec], config: Any, rundir: RunDir, mesh: Mesh, maker: CaseMaker
) -> list[Explainer]:
    """Explainers ready to write; a base is loaded once for all of them.

    Args:
      specs: which.
      config: of the run.
      rundir: of the run.
      mesh: of the base, current while they write.
      maker: of the cases they will see.

    Raises:
      UserError: if base or adapter is missing, damaged, or one does not belong to the other.
    """
    seed = config.seeds[0]
    if not needs_model(specs):
        return [Template(maker, seed=seed) for _ in specs]
    known = {spec: identities(spec, config, rundir) for spec in specs}
    base = run_base.load_base(config, rundir, mesh)
    adapters = {
        spec.name: _on_device(spec.adapter, base.model.config) for spec in specs if spec.adapter
    }
    divisor = batch_divisor(mesh)
    batch = -(-config.llm.generation_batch // divisor) * divisor
    lm = LanguageModel(base.model, base.params, base.tokenizer, adapters=adapters, batch=batch)
    made: list[Explainer] = []
    for spec in specs:
        of_base, of_adapter = known[spec]
        if of_base is None:
            made.append(Template(maker, seed=seed))
        else:
            made.append(Model(spec, lm, config.instruct.samples, of_base, of_adapter))
    return made


def _on_device(path: str, shape: LlamaConfig) -> Adapter:
    return jax.tree.map(jnp.asarray, load_adapter(path, shape))


def answers(
    explainer: Explainer, cases: Sequence[Case], advance: Callable[[int], object]
) -> list[Written]:
    """A text for every case, in order.

    Prompts that stand there more than once are answered once, where the explainer would write the
    same again.

    Args:
      explainer: who writes.
      cases: what about.
      advance: is told how many cases more are done.
    """
    places: dict[Any, list[int]] = {}
    for place, case in enumerate(cases):
        places.setdefault(case.prompt if explainer.repeats else place, []).append(place)
    groups = list(places.values())
    found: list[Written | None] = [None] * len(cases)
    for index, written in explainer.write([cases[group[0]] for group in groups]):
        for place in groups[index]:
            found[place] = written
        advance(len(groups[index]))
    return [written for written in found if written is not None]


def record(explainer: Explainer, maker: CaseMaker, case: Case, written: Written) -> Explanation:
    """The record of an explanation."""
    asked, data = case.asked, maker.data.dataset
    return {
        "user": str(data.user_ids[asked.user]),
        "item": str(data.item_ids[asked.item]),
        "rank": asked.rank,
        "score": asked.score,
        "system": asked.system,
        "explainer": explainer.name,
        "prompt_hash": case.digest,
        "text": written.text,
        "tokens": written.tokens,
        "log_prob": written.log_prob,
        "stop": written.stop,
        "base": explainer.base,
        "adapter": explainer.adapter,
    }


def folder(rundir: RunDir) -> epath.Path:
    """Where the stage's files lie."""
    return rundir.path / "explanations"


def specs(config: Any, rundir: RunDir) -> list[Spec]:
    """The explainers that a config names.

    Raises:
      UserError: if there is none, one is not known, or two have one name.
    """
    asked = config.explain.explainers
    if not asked:
        raise UserError(
            f"explain.explainers is empty; valid: {', '.join(explainers.KINDS)}, DIR of an adapter"
        )
    found = [explainers.parse(text, rundir) for text in asked]
    names = [spec.name for spec in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"explain.explainers names {name!r} twice; give one as NAME=DIR")
    return found
