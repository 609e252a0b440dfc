"""What the seeds of a joint run share and no state changes: base, sampler, encoder."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.data.run_data import RunData
from xrec_jax.joint.guards import GuardOptions
from xrec_jax.llm.encoder import TextEncoder
from xrec_jax.llm.generation.sampler import Sampler
from xrec_jax.llm.generation.sampling import Sampling
from xrec_jax.llm.io.tokenizer import Tokenizer
from xrec_jax.llm.model.lora import LoraConfig
from xrec_jax.llm.run_base import LoadedBase
from xrec_jax.parallel.mesh import put_sharded, sharding
from xrec_jax.text.synthetic.taste_pairs import split_pair
from xrec_jax.training import language as train_language

ROUNDS_AT = 1 << 19  # steps after those before a seed, more than its warm start has
# Texts of one token each that may stand for soft vectors; the first that a tokenizer has is taken.
_PLACEHOLDERS = (" _", " *", " ~", " #", ".", " -", ",")


def placeholder_of(config: Any, tokenizer: Tokenizer) -> tuple[str, int]:
    """Text and id of the token that soft vectors replace; "" and -1 for no soft prompt.

    Raises:
      UserError: if the tokenizer has no such token.
    """
    placeholder, count = config.joint.soft_prompt.placeholder, config.joint.soft_prompt.vectors
    if not count:
        return "", -1
    for text in (placeholder,) if placeholder else _PLACEHOLDERS:
        # Behind a letter, as a tokenizer may treat the first token of a text in another way; and
        # equal tokens, so that none of the run merges with its neighbour.
        ids = tokenizer.encode("x" + text * count, bos=False)[-count:]
        if len(ids) == count and len(set(ids)) == 1 and tokenizer.decode(ids).strip():
            return text, int(ids[0])
    raise UserError(
        f"joint.soft_prompt.placeholder={placeholder!r}: {count} of it in a row are not {count} "
        "equal tokens of this tokenizer; choose another, or joint.soft_prompt.vectors=0"
    )


def cut_off(config: Any) -> int:
    """Cut-off of the NDCG that stands for all: 10 where it is measured, else the first."""
    ks = tuple(config.ranking.ks)
    return 10 if 10 in ks else int(ks[0])


class PartEncoder(Protocol):
    """Encodes parts of explanations, and what items are, alike.

    Attributes:
      width: E, features of an encoding.
    """

    @property
    def width(self) -> int: ...

    def __call__(self, texts: Sequence[str], /) -> tuple[np.ndarray, np.ndarray]:
        """Encodings `[n, E]` float32, and which texts are not empty `[n]`."""


class BaseEncoder:
    """Mean states of the base; a text is cut where the model ends.

    Args:
      base: loaded.
      layer: of the states; see `llm.encoder.mean_states`.
    """

    def __init__(self, base: LoadedBase, layer: str):
        self._tokenizer, self._longest = base.tokenizer, base.model.config.max_positions
        self._encoder = TextEncoder(base.model, base.params, batch=64, layer=layer)

    @property
    def width(self) -> int:
        """Features of an encoding."""
        return self._encoder.width

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See `PartEncoder`."""
        ids = self._tokenizer.encode_batch(texts, bos=False)
        return self._encoder([row[: self._longest] for row in ids])


class JointSetup:
    """Models and options of a run; built once.

    Args:
      config: of the run.
      data: of the run.
      base: loaded; None where nothing is written or asked, which needs an `encoder`.
      mesh: devices; use the object inside `use_mesh(mesh)`.
      rundir: the run directory.
      steps_before: updates of earlier stages of the run; see `training.loop.LoopOptions`.
      encoder: of texts, in place of the base as `joint.encoder` says.
    """

    def __init__(
        self,
        config: Any,
        data: RunData,
        base: LoadedBase | None,
        *,
        mesh: Mesh,
        rundir: RunDir,
        steps_before: int = 0,
        encoder: PartEncoder | None = None,
    ):
        self._steps_before = steps_before
        self.config, self.cfg, self.data = config, config.joint, data
        self._base, self.mesh, self.rundir = base, mesh, rundir
        self.size = self.cfg.explain.max_new_tokens
        self.guards = GuardOptions.of(self.cfg.guards)
        self.encoder = encoder or BaseEncoder(self.base, self.cfg.encoder)
        self.placeholder = placeholder_of(config, base.tokenizer)[1] if base else -1

    @property
    def base(self) -> LoadedBase:
        """The language model under all roles."""
        assert self._base is not None, "a setup without a language model"
        return self._base

    @functools.cached_property
    def sampler(self) -> Sampler:
        """Sampler of the base model, for every role that writes."""
        return Sampler(
            self.base.model,
            self.base.params,
            eos=self.base.tokenizer.eos_ids,
            batch=self.config.llm.generation_batch,
        )

    @functools.cached_property
    def lora(self) -> LoraConfig:
        """LoRA configuration of the policy (actor)."""
        return train_language.lora_config(self.cfg.lora)

    @functools.cached_property
    def critic_lora(self) -> LoraConfig:
        """LoRA configuration of the critic."""
        return train_language.lora_config(self.cfg.critic)

    @property
    def sampling(self) -> Sampling:
        """Sampling options of the texts that the recommender reads."""
        return Sampling(temperature=self.cfg.explain.temperature)

    @property
    def exploring(self) -> Sampling:
        """Sampling options of rollouts; log-probabilities are the policy's own."""
        return Sampling(temperature=self.cfg.rollout.temperature)

    @property
    def best_k(self) -> int:
        """Cut-off of the NDCG that is looked at, and that final parameters are chosen by."""
        return cut_off(self.config)

    def steps_before(self, seed: int) -> int:
        """Of a seed's warm start; see `training.loop.LoopOptions`. Rounds follow at `ROUNDS_AT`."""
        return self._steps_before + (list(self.config.seeds).index(seed) << 20)

    def put(self, tree: Any) -> Any:
        """Host rows, the same on every process, split over the devices."""
        return put_sharded(tree, _split(tree, self.mesh))

    def texts(self, tokens: np.ndarray, length: np.ndarray) -> list[str]:
        """Answers as texts."""
        eos = set(self.base.tokenizer.eos_ids)
        rows = [
            [token for token in row[:count].tolist() if token not in eos]
            for row, count in zip(tokens, length, strict=True)
        ]
        return [text.strip() for text in self.base.tokenizer.decode_batch(rows)]

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encodings `[n, 2, E]` of both parts of texts, and which parts are there `[n, 2]`."""
        encoding, present = self.encoder([part for text in texts for part in split_pair(text)])
        return encoding.reshape(len(texts), 2, -1), present.reshape(len(texts), 2)


def _split(tree: Any, mesh: Mesh) -> Any:
    return jax.tree.map(lambda _: sharding(mesh, "batch"), tree)
