"""Options of `xrec explain` that override the config of the run."""

from __future__ import annotations

import dataclasses
import math

from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError
from xrec_jax.data.run_data import RunData
from xrec_jax.llm.io import hub
from xrec_jax.tasks.requests import choose_prompts


@dataclasses.dataclass(frozen=True)
class GenerationOptions:
    """Explainer, prompts and sampling of a call; by default those of the run.

    Attributes:
      explainer: template, base, tuned or a user-defined one; with `adapter` a name for it. "": the
        best available one.
      adapter: directory of another adapter for the base.
      base: path or name of a base that replaces the run's own, if any; see `llm.io.hub`.
      prompt: a registered template of prompts, or "generic" for one of the tables' columns. "": the
        run's own, which is generic in a run that neither tunes nor has a world.
      history: largest number of history entries of a prompt; 0: as the run.
      max_new_tokens: largest number of tokens of an answer; 0: as the run.
      temperature: sampling temperature; negative: as the run.
      batch: rows generated at once; 0: as the run.
      shard: pairs of a shard; 0: as the run.
    """

    explainer: str = ""
    adapter: str = ""
    base: str = ""
    prompt: str = ""
    history: int = 0
    max_new_tokens: int = 0
    temperature: float = -1.0
    batch: int = 0
    shard: int = 0

    def check(self) -> None:
        """Checks the numbers.

        Raises:
          UserError: names the flag and its value.
        """
        for name in ("history", "max_new_tokens", "batch", "shard"):
            value = getattr(self, name)
            if value < 0:
                raise UserError(f"--{name}={value} must not be negative; 0: as the run says")
        if math.isnan(self.temperature) or self.temperature == math.inf:
            raise UserError(f"--temperature={self.temperature} must be a finite number")

    def applied(self, config: ConfigDict, data: RunData) -> ConfigDict:
        """Returns the config of a run with these options applied.

        Prompts, the model and the identity of an output all depend on this one config, so that an
        unfinished output is resumed only with the same options.

        Args:
          config: configuration of the run; not changed.
          data: data of the run.

        Raises:
          UserError: on an unknown template of prompts, or tables that lack what prompts need.
        """
        merged = ConfigDict(config.to_dict())
        instruct, llm = merged.instruct, merged.llm
        if self.base:
            llm.path = hub.recorded(self.base)
        llm.generation_batch = self.batch or llm.generation_batch
        instruct.history = self.history or instruct.history
        samples = instruct.samples
        samples.max_new_tokens = self.max_new_tokens or samples.max_new_tokens
        # 0 is a value here (greedy), unlike above, where it stands for that of the run.
        if self.temperature >= 0:
            samples.temperature = self.temperature
        choose_prompts(merged, data, self.prompt)
        return merged


AS_THE_RUN = GenerationOptions()
