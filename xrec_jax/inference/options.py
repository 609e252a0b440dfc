"""What a call of `xrec explain` may set otherwise than the run that it explains."""

from __future__ import annotations

import dataclasses
import math

from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage import files
from xrec_jax.data.run_data import RunData
from xrec_jax.tasks.requests import choose_prompts


@dataclasses.dataclass(frozen=True)
class GenerationOptions:
    """Who writes explanations, from which prompts, and how; the default of each is the run's own.

    Attributes:
      explainer: template, base, tuned or a user's own; with `adapter` a name for it. "": the best
        there is.
      adapter: directory of another adapter for the base.
      base: directory of a base for a run without one, or instead of its own.
      prompt: a registered template of prompts, or "generic" for one of the tables' columns. "": the
        run's own, which is generic in a run that neither tunes nor has a world.
      history: most entries of a prompt; 0: as the run.
      max_new_tokens: of an answer; 0: as the run.
      temperature: of sampling; negative: as the run.
      batch: rows that generate at once; 0: as the run.
      shard: pairs written at once; 0: as the run.
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
        """Raises a `UserError` for a number that no run can work with; names the flag."""
        for name in ("history", "max_new_tokens", "batch", "shard"):
            value = getattr(self, name)
            if value < 0:
                raise UserError(f"--{name}={value} must not be negative; 0: as the run says")
        if math.isnan(self.temperature) or self.temperature == math.inf:
            raise UserError(f"--temperature={self.temperature} must be a finite number")

    def applied(self, config: ConfigDict, data: RunData) -> ConfigDict:
        """The config of a run with everything that this call sets otherwise.

        Prompts, the model and the identity of an output all read this one config, so an output that
        was begun goes on only under the same options.

        Args:
          config: of the run; stays as it is.
          data: of the run.

        Raises:
          UserError: on an unknown template of prompts, or tables that lack what prompts need.
        """
        merged = ConfigDict(config.to_dict())
        instruct, llm = merged.instruct, merged.llm
        if self.base:
            llm.path = str(files.absolute(self.base))
        llm.generation_batch = self.batch or llm.generation_batch
        instruct.history = self.history or instruct.history
        samples = instruct.samples
        samples.max_new_tokens = self.max_new_tokens or samples.max_new_tokens
        if self.temperature >= 0:
            samples.temperature = self.temperature
        choose_prompts(merged, data, self.prompt)
        return merged


AS_THE_RUN = GenerationOptions()
