"""Former import paths, which scripts written before the reorganisation of 0.1.0 still use.

Importing one gives the module that took its place, with a `DeprecationWarning` that names it. The
table goes in 0.2.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Sequence

# Former module: its place today, below `xrec_jax`.
MODULES = {
    "core.files": "core.storage.files",
    "data.keyed": "core.rng",
    "evaluation.audit.cases": "evaluation.audit.contents",
    "evaluation.grounding": "evaluation.texts.grounding",
    "evaluation.text_metrics": "evaluation.texts.text_metrics",
    "evaluation.intervals": "evaluation.statistics.intervals",
    "evaluation.significance": "evaluation.statistics.significance",
    "llm.config": "llm.model.config",
    "llm.hf": "llm.io.hf",
    "llm.llama": "llm.model.llama",
    "llm.lora": "llm.model.lora",
    "llm.peft_io": "llm.io.peft_io",
    "llm.quantize": "llm.model.quantize",
    "llm.sampler": "llm.generation.sampler",
    "llm.sampling": "llm.generation.sampling",
    "llm.tokenizer": "llm.io.tokenizer",
    "parallel.distributed": "core.runtime.distributed",
    "pipelines.defaults": "defaults",
    "pipelines.rating_cases": "rating.items",
    "pipelines.run": "api.run",
    "pipelines.session": "api",
    "text.layout": "text.prompts.layout",
    "text.published": "text.prompts.published",
    "text.templates": "text.prompts.templates",
    "training.advantages": "training.rl.advantages",
    "training.policy": "training.rl.ppo",
    "training.roles": "training.rl.actor_critic",
}
# Names of these modules that have another one today.
NAMES = {"evaluation.audit.contents": {"read_case": "read_content", "read_cases": "read_contents"}}
_ROOT = "xrec_jax"
_PACKAGES = {name.partition(".")[0] for name in MODULES if name.startswith("pipelines.")}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds former modules, after all other finders have found none of that name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        name = fullname.removeprefix(f"{_ROOT}.")
        if name == fullname or name not in MODULES.keys() | _PACKAGES:
            return None
        # A package that is gone is only the way to its modules.
        return importlib.machinery.ModuleSpec(fullname, self, is_package=name in _PACKAGES)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return types.ModuleType(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        place = MODULES.get(module.__name__.removeprefix(f"{_ROOT}."))
        if place is None:
            return
        current = importlib.import_module(f"{_ROOT}.{place}")
        warnings.warn(
            f"{module.__name__} is {current.__name__} now; the former name goes in 0.2",
            DeprecationWarning,
            stacklevel=2,
        )
        for former, name in NAMES.get(place, {}).items():
            if not hasattr(current, former):
                setattr(module, former, getattr(current, name))
        if place in NAMES:
            module.__dict__.update(
                {name: value for name, value in vars(current).items() if not name.startswith("__")}
            )
        else:  # the very same module, so that what is registered or patched in it is
            sys.modules[module.__name__] = current


def install() -> None:
    """Lets former import paths be found; does nothing the second time."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
