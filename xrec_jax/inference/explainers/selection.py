"""Selection of explainers by configs and flags, and the identities of their base and adapter."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from etils import epath

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rundir import RunDir
from xrec_jax.inference.explainers.base import Registration, Spec, find, names, valid_name
from xrec_jax.inference.explainers.language import ADAPTER
from xrec_jax.llm import run_base
from xrec_jax.llm.io.peft_io import is_adapter
from xrec_jax.llm.run_base import adapter_identity, base_identity


def registration(spec: Spec) -> Registration:
    """Registration of an explainer's name; by default that of an adapter of the run's base."""
    return find(spec.name) or ADAPTER


def parse(text: str, rundir: RunDir) -> Spec:
    """Parses a registered name ("template", "tuned"), an adapter's DIR, or NAME=DIR.

    Raises:
      UserError: if it is none of these.
    """
    text = str(text)  # other types are rejected below
    known = find(text)
    # A registered name comes first, even where a directory is called so.
    if known is not None and known.needs == "adapter":
        raise UserError(f"explainer {text!r} needs the directory of an adapter: {text}=DIR")
    if known is not None:
        tuned = known.needs == "tuned"
        return Spec(known.name, str(run_base.adapter_path(rundir)) if tuned else "")
    # A directory alone is named after its last folder.
    name, directory = pathlib.Path(text).name, text
    if "=" in text and not is_adapter(text):  # the path of an adapter may contain "="
        name, _, directory = text.partition("=")
    if not is_adapter(directory):
        *first, last = names()
        raise UserError(
            f"explainer {text!r} is neither {', '.join(first)} nor {last}, nor the directory of an "
            f"adapter{did_you_mean(text, names())}"
        )
    if not (_takes_adapter(name) or valid_name(name)):
        raise UserError(
            f"explainer {text!r}: {name!r} cannot be its name; give another as NAME={directory}"
        )
    return Spec(name, str(pathlib.Path(directory).absolute()))


def _takes_adapter(name: str) -> bool:
    """True if a registered explainer needs the directory of an adapter."""
    known = find(name)
    return known is not None and known.needs == "adapter"


def choose(config: Any, rundir: RunDir, *, explainer: str, adapter: str, base: str) -> Spec:
    """Selects the explainer of a call.

    Args:
      config: configuration of the run.
      rundir: directory of the run.
      explainer: a registered name, such as template, base or tuned, or a name for `adapter`; "" for
        the best available one: the adapter or base of the call, or the run's own: tuned, base or
        template.
      adapter: directory of an adapter, or "".
      base: directory of a base, or "".

    Raises:
      UserError: on an unknown explainer, or contradicting options.
    """
    if adapter:
        if find(explainer) is not None and not _takes_adapter(explainer):
            raise UserError(f"--explainer={explainer} and --adapter={adapter}: give one of them")
        return parse(f"{explainer}={adapter}" if explainer else adapter, rundir)
    # Nothing is named: the most that the run has learned writes.
    if not explainer:
        has_base = run_base.has_base(config, rundir)
        tuned = has_base and not base and run_base.adapter_path(rundir).exists()
        explainer = "tuned" if tuned else "base" if has_base or base else "template"
    if find(explainer) is None:
        raise UserError(
            f"--explainer={explainer!r} is not valid{did_you_mean(explainer, names())}; another "
            "adapter is given by --adapter=DIR"
        )
    return parse(explainer, rundir)


def identities(spec: Spec, config: Any, rundir: RunDir) -> tuple[str | None, str | None]:
    """Identities of an explainer's base and adapter; see `llm.run_base`."""
    if registration(spec).needs == "nothing":
        return None, None
    base = base_identity(config, rundir)
    return base, adapter_identity(spec.adapter, base) if spec.adapter else None


def own_identity(spec: Spec, config: Any, rundir: RunDir) -> str | None:
    """Identity of further dependencies that an explainer declares; None without any."""
    identity = registration(spec).identity
    return None if identity is None else str(identity(config, rundir))


def needs_model(specs: Sequence[Spec]) -> bool:
    """True if any of the explainers needs a language model."""
    return any(registration(spec).needs != "nothing" for spec in specs)


def folder(rundir: RunDir) -> epath.Path:
    """Folder of the `explain` stage."""
    return rundir.path / "explanations"


def specs(config: Any, rundir: RunDir) -> list[Spec]:
    """Explainers of a config.

    Raises:
      UserError: if there is none, one is unknown, or two have the same name.
    """
    listed = config.explain.explainers
    if not listed:
        raise UserError(
            f"explain.explainers is empty; valid: {', '.join(names())}, DIR of an adapter"
        )
    chosen = [parse(text, rundir) for text in listed]
    chosen_names = [spec.name for spec in chosen]
    # The name is that of the file of texts, so two explainers cannot share it.
    for name in chosen_names:
        if chosen_names.count(name) > 1:
            raise UserError(f"explain.explainers names {name!r} twice; give one as NAME=DIR")
    return chosen
