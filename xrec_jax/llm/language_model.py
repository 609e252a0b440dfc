"""Language model for inference: functions, base, adapters and tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.trees import PyTree
from xrec_jax.core.values import whole_number
from xrec_jax.llm.generation.prefixes import bucket
from xrec_jax.llm.generation.sampler import Sampler
from xrec_jax.llm.generation.sampling import Sampling
from xrec_jax.llm.generation.schedule import Answer, Request
from xrec_jax.llm.generation.stops import Stops
from xrec_jax.llm.io import hub
from xrec_jax.llm.io.checkpoint import open_model
from xrec_jax.llm.io.peft_io import load_adapter
from xrec_jax.llm.io.tokenizer import Message, Tokenizer, load_tokenizer
from xrec_jax.llm.model import quantize
from xrec_jax.llm.model.layout import build, check_shardings
from xrec_jax.llm.model.llama import Llama
from xrec_jax.llm.model.lora import Adapter
from xrec_jax.llm.model.precision import dtype_named
from xrec_jax.parallel.mesh import sharding

Record = dict[str, Any]


def shardings(model: Llama, mesh: Mesh) -> PyTree:
    """Shardings of a base's parameters on a mesh.

    Raises:
      UserError: names a parameter that the mesh does not split evenly.
    """
    split = build(model.config, lambda parameter: sharding(mesh, *parameter.axes))
    check_shardings(model.config, split)
    return split


class LanguageModel:
    """A base with any number of adapters and the tokenizer.

    Attributes:
      model: the model's functions.
      params: parameters of the base, shared by all adapters and never changed.
      tokenizer: the model's tokenizer.
      adapters: adapters by name; the base itself is the adapter None.

    Args:
      model: the model's functions.
      params: parameters of the base, unboxed.
      tokenizer: the model's tokenizer.
      adapters: adapters by name.
      batch: number of rows generated at once.
      sampler_options: further arguments of `Sampler`.
    """

    def __init__(
        self,
        model: Llama,
        params: PyTree,
        tokenizer: Tokenizer,
        *,
        adapters: Mapping[str, Adapter] | None = None,
        batch: int = 16,
        **sampler_options: Any,
    ):
        tokenizer.check_fits(model.config.vocab_size)
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.adapters = dict(adapters or {})
        self._options = {"batch": batch, **sampler_options}
        self._sampler: Sampler | None = None
        self._logits = jax.jit(
            lambda params, ids, segments, adapter: model.logits(
                params, ids, segments=segments, adapter=adapter
            )
        )

    @property
    def sampler(self) -> Sampler:
        """The sampler, created on first use."""
        if self._sampler is None:
            eos = self.tokenizer.eos_ids
            self._sampler = Sampler(self.model, self.params, eos=eos, **self._options)
        return self._sampler

    def adapter(self, name: str | None) -> Adapter | None:
        """Looks up an adapter; None is the base, "default" the only adapter (or the base).

        Raises:
          UserError: for an unknown name, or "default" if there are several.
        """
        if name is None:
            return None
        if not isinstance(name, str):
            raise UserError(f"adapter={name!r:.60} must be a name{did_you_mean('', self.adapters)}")
        if name in self.adapters:
            return self.adapters[name]
        if name == "default" and len(self.adapters) < 2:
            return next(iter(self.adapters.values()), None)
        raise UserError(f"no adapter {name!r}{did_you_mean(name, self.adapters)}")

    def logits(self, token_ids: Any, *, adapter: str | None = "default") -> jax.Array:
        """Logits of every next token.

        Args:
          token_ids: `[batch, length]` int, or a list of rows of any lengths.
          adapter: None for the base.

        Returns:
          `[batch, length, vocab]` float32; values after the end of a shorter row are undefined.

        Raises:
          UserError: for a token outside the vocabulary, or a row that is too long.
        """
        config = self.model.config
        if isinstance(token_ids, (str, bytes)) or not isinstance(token_ids, Iterable):
            raise UserError("token_ids must be a list of rows of whole numbers: [[1, 2, 3]]")
        rows = [_row(row) for row in token_ids]
        for number, row in enumerate(rows):
            if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
                raise UserError(f"row {number} of token_ids must hold whole numbers: [[1, 2, 3]]")
        length = max((len(row) for row in rows), default=0)
        if not length:
            raise UserError("logits need at least one token")
        if length > config.max_positions:
            raise UserError(
                f"a row has {length} tokens, but the model takes {config.max_positions}"
            )
        # Few widths, so that few shapes are compiled; segment 0 masks the padding.
        width = bucket(length)
        ids, segments = (np.zeros((len(rows), width), np.int32) for _ in range(2))
        for number, row in enumerate(rows):
            if len(row) and not 0 <= row.min() <= row.max() < config.vocab_size:
                raise UserError(
                    f"row {number} of token_ids must hold ids from 0 to {config.vocab_size - 1}"
                )
            ids[number, : len(row)], segments[number, : len(row)] = row, 1
        return self._logits(self.params, ids, segments, self.adapter(adapter))[:, :length]

    def generate(
        self,
        prompts: Sequence[str | Sequence[Message] | Sequence[int]],
        *,
        max_new_tokens: Any = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: Any = 0,
        stop: Sequence[str] | None = (),
        adapter: str | None = "default",
        template: bool | None = None,
        soft: Sequence[np.ndarray] | None = None,
    ) -> list[Record]:
        """Generates an answer to every prompt.

        Args:
          prompts: texts, messages or token ids.
          max_new_tokens: most tokens of an answer; one number, or one a prompt.
          temperature: softmax temperature; 0 (or below 0.0001) is greedy.
          top_k: most likely tokens kept; see `sampling.Sampling`.
          top_p: share of probability kept.
          min_p: least share of the highest probability.
          repetition_penalty: penalty of tokens seen before.
          seed: random seed; one for all prompts, mixed with the index of each, or one a prompt. A
            prompt with its seed gets the same answer in any batch.
          stop: texts that end an answer, which is cut before them; they may spell special tokens.
          adapter: None for the base, "default" for the loaded adapter.
          template: use the chat template; default: if the model has one.
          soft: `[vectors, hidden]` for each prompt, in place of its tokens `<|soft|>`.

        Returns:
          Records with `text`, `tokens` (number of tokens), `log_prob` (sum at the sampling
          temperature), `stop` ("eos", "length" or "string"), `ids` and `log_probs`.

        Raises:
          UserError: for an invalid value, or a prompt that is too long.
        """
        prompts = _listed(prompts)
        count = len(prompts)
        stops = Stops(stop, self.tokenizer)
        options = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        # One limit and seed for each prompt.
        limits = _each(max_new_tokens, "max_new_tokens", count)
        seeds = (
            _each(seed, "seed", count)
            if _is_list(seed)
            else [_mix(whole_number(seed, "seed"), place) for place in range(count)]
        )
        if soft is not None and (not _is_list(soft) or len(soft) != count):
            what = f"{len(soft)} values" if _is_list(soft) else f"type {type(soft).__name__}"
            raise UserError(f"soft has {what} for {count} prompts")
        if template is not None and not isinstance(template, bool):
            raise UserError(f"template={template!r:.60} must be True, False or None")
        # All prompts are validated before the first is generated.
        requests = [
            self._request(
                number,
                self._ids(number, prompt, template),
                limits[number],
                seeds[number],
                None if soft is None else soft[number],
            )
            for number, prompt in enumerate(prompts)
        ]
        answers = self.sampler.generate(
            requests,
            sampling=options,
            adapter=self.adapter(adapter),
            stop=stops.keep if stops else None,
        )
        return [self._record(answer, stops) for answer in answers]

    def _ids(self, number: int, prompt: Any, template: bool | None) -> list[int]:
        name = f"prompt {number}"
        if isinstance(prompt, str) or _is_conversation(prompt):
            try:
                return self.tokenizer.prompt(prompt, template=template)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
        if _is_list(prompt):
            tokens = prompt if isinstance(prompt, (list, tuple)) else np.asarray(prompt)
            return [whole_number(token, f"{name}: token") for token in tokens]
        raise UserError(
            f"{name} is of type {type(prompt).__name__}; it must be a text, a list of messages, or "
            "a list of token ids"
        )

    def _request(
        self, number: int, ids: list[int], limit: int, seed: int, soft: np.ndarray | None
    ) -> Request:
        if soft is None:
            return Request(ids, limit, seed)
        places = [place for place, token in enumerate(ids) if token == self.tokenizer.soft_id]
        if np.shape(soft) != (len(places), self.model.config.hidden_size):
            raise UserError(
                f"prompt {number} has {len(places)} soft tokens of {self.model.config.hidden_size} "
                f"features, but its vectors have shape {list(np.shape(soft))}"
            )
        return Request(ids, limit, seed, places, np.asarray(soft, np.float32))

    def _record(self, answer: Answer, stops: Stops) -> Record:
        return {
            "text": stops.cut(answer.ids),
            "tokens": len(answer.ids),
            "log_prob": float(np.sum(answer.log_probs)),
            "stop": answer.stop,
            "ids": answer.ids,
            "log_probs": answer.log_probs,
        }


def _row(row: Any) -> np.ndarray:
    try:
        return np.asarray(row)
    except ValueError:  # nested rows of different lengths
        return np.zeros((0, 0))


def _listed(prompts: Any) -> Sequence[Any]:
    """Checks that the prompts are a list."""
    single = isinstance(prompts, (str, bytes, bytearray, Mapping)) or not hasattr(
        prompts, "__len__"
    )
    if single or (len(prompts) and isinstance(prompts[0], Mapping)):
        raise UserError(
            "prompts must be a list: [prompt], even if there is only one, not "
            f"{'messages' if not single else type(prompts).__name__}"
        )
    return prompts


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple)) or (
        isinstance(value, (np.ndarray, jax.Array)) and value.ndim > 0
    )


def _is_conversation(prompt: object) -> bool:
    return isinstance(prompt, (list, tuple)) and any(
        isinstance(message, Mapping) for message in prompt
    )


def _each(values: Any, name: str, count: int) -> list[int]:
    """Expands an integer, or a list of them, to one a prompt."""
    if not _is_list(values):
        return [whole_number(values, name)] * count
    if len(values) != count:
        raise UserError(f"{name} has {len(values)} values for {count} prompts")
    return [whole_number(value, f"{name}[{place}]") for place, value in enumerate(values)]


def _mix(seed: int, place: int) -> int:
    """Derives a 32-bit seed of a prompt from its index."""
    return int(np.random.SeedSequence([seed % 2**63, place]).generate_state(1)[0])


def load_llm(
    path: epath.PathLike,
    adapter: epath.PathLike | Mapping[str, epath.PathLike] | None = None,
    *,
    dtype: str = "float32",
    quantization: str = "none",
    attention: str = "auto",
    mesh: Mesh | None = None,
    batch: int = 16,
    **sampler_options: Any,
) -> LanguageModel:
    """Loads a model for inference.

    Args:
      path: a Hugging Face directory, a GGUF file, a checkpoint made by `xrec import`,
        ORG/NAME[@REVISION] of the hub, or "smollm2"; see `hub.resolve`.
      adapter: a directory in PEFT's format, several by name, or None.
      dtype: dtype of parameters and computation: "float32", "bfloat16", or "auto" for bfloat16
        where the processor multiplies it.
      quantization: storage of the layers' kernels: "none", "int8" or "nf4".
      attention: see `attention.IMPLEMENTATIONS`.
      mesh: mesh to shard the parameters over; use the result inside `parallel.mesh.use_mesh(mesh)`.
      batch: number of rows generated at once.
      **sampler_options: further arguments of `Sampler`.

    Raises:
      UserError: if anything is missing, damaged or does not fit together.
    """
    path = hub.resolve(path)  # once: model and tokenizer are of one snapshot
    source = open_model(path)
    kind = dtype_named(dtype)
    model = Llama(source.config, dtype=kind, attention=attention)
    tokenizer = load_tokenizer(path)
    directories = {"default": adapter} if isinstance(adapter, (str, epath.Path)) else adapter
    if directories is not None and not isinstance(directories, Mapping):
        directories = {"default": directories}
    adapters = {
        name: jax.tree.map(jnp.asarray, load_adapter(where, source.config))
        for name, where in (directories or {}).items()
    }
    # Plain kernels are freed one by one as they are quantised.
    split = None if mesh is None else shardings(model, mesh)
    params = jax.tree.map(jnp.asarray, source.load_params(dtype=kind, shardings=split))
    params = quantize.quantize_params(params, quantization, release=True)
    return LanguageModel(
        model, params, tokenizer, adapters=adapters, batch=batch, **sampler_options
    )
