"""Language model of a run: its base, trained from scratch or loaded, and the run's adapters."""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
from etils import epath
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage.files import is_local
from xrec_jax.core.trees import PyTree
from xrec_jax.llm.io import hub
from xrec_jax.llm.io.checkpoint import ImportedModel, open_model
from xrec_jax.llm.io.hf import HfModel
from xrec_jax.llm.io.peft_io import WEIGHTS, Base, base_of, is_adapter, load_adapter
from xrec_jax.llm.io.tokenizer import Tokenizer, load_tokenizer
from xrec_jax.llm.language_model import LanguageModel, Record, shardings
from xrec_jax.llm.model import attention, quantize
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.llama import REMAT, Llama
from xrec_jax.llm.model.lora import Adapter
from xrec_jax.llm.model.precision import dtype_named
from xrec_jax.parallel import agreement
from xrec_jax.parallel.mesh import batch_divisor

CHAT = ("auto", "yes", "no")
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "max_positions",
    "rope_theta",
    "tie_embeddings",
)


class LoadedBase(NamedTuple):
    """A loaded base, ready for tuning or inference.

    Attributes:
      model: the model's functions.
      params: frozen parameters on the mesh.
      tokenizer: the base's tokenizer.
      source: the opened directory or file.
      name: the base as the config names it, for what is recorded; empty: its path.
    """

    model: Llama
    params: PyTree
    tokenizer: Tokenizer
    source: HfModel | ImportedModel
    name: str = ""

    def identity(self) -> Base:
        """Path and fingerprint of the base; reads a Hugging Face directory or GGUF file once."""
        return Base(self.name or str(self.source.path), _fingerprint(self.source))


@functools.lru_cache(maxsize=4)
def _fingerprint_at(path: str, modified: float) -> str:
    del modified
    return open_model(path).fingerprint()


def _fingerprint(source: HfModel | ImportedModel) -> str:
    if isinstance(source, ImportedModel):
        return source.digest
    modified = epath.Path(source.path).stat().mtime
    return _fingerprint_at(str(source.path), modified)


def base_path(config: ml_collections.ConfigDict, rundir: RunDir) -> epath.Path:
    """Path of the base: what the config's `llm.path` stands for, or the output of `pretrain`.

    Raises:
      UserError: if `llm.path` is neither a path here nor a name that can be resolved.
    """
    return epath.Path(hub.resolve(config.llm.path)) if config.llm.path else _own_base(rundir)


def has_base(config: ml_collections.ConfigDict, rundir: RunDir) -> bool:
    """True if the config names a base, or `pretrain` has made one."""
    return bool(config.llm.path) or _own_base(rundir).exists()


def _own_base(rundir: RunDir) -> epath.Path:
    return rundir.path / "base"


def adapter_path(rundir: RunDir) -> epath.Path:
    """Path of the `instruct` stage's adapter, in PEFT's format."""
    return rundir.path / "adapter"


def template(config: ml_collections.ConfigDict) -> bool | None:
    """Use of the chat template by the config; None lets the tokenizer decide."""
    chat = config.llm.chat_template
    if chat == "auto":  # a base trained from scratch has never seen the template's tokens
        return None if config.llm.path else False
    return chat == "yes"


def check(config: ml_collections.ConfigDict, mesh: Mesh, rundir: RunDir) -> None:
    """Validates `config.llm` before anything is written.

    Raises:
      UserError: names the key and its valid values.
    """
    llm = config.llm
    if not is_local(rundir.path):
        raise UserError(
            f"--workdir={rundir.path}: language stages write their models to a local disk (or one "
            "that all hosts share); copy the run to object storage afterwards"
        )
    dtype_named(llm.dtype)
    for key, valid in (
        ("quantization", quantize.KINDS),
        ("attention", attention.IMPLEMENTATIONS),
        ("remat", tuple(REMAT)),
        ("chat_template", CHAT),
    ):
        if llm[key] not in valid:
            raise UserError(f"llm.{key}={llm[key]!r} is not valid{did_you_mean(llm[key], valid)}")
    divisor = batch_divisor(mesh)
    if llm.generation_batch < 1 or llm.generation_batch % divisor:
        raise UserError(
            f"llm.generation_batch={llm.generation_batch} must be positive and divisible by the "
            f"{divisor} devices along the batch"
        )
    if not llm.path:
        model_config(config)
        return
    shape, tokenizer = open_model(llm.path).config, load_tokenizer(llm.path)
    # A branch may move while the hosts download, each for itself.
    commits = [text for text in agreement.texts_of_all(hub.commit(llm.path)) if text]
    if len(set(commits)) > 1:
        raise UserError(
            f"llm.path={llm.path}: the hosts have different commits of it; name one of them: "
            f"{llm.path.partition('@')[0]}@{commits[0]}"
        )
    tokenizer.check_fits(shape.vocab_size)
    if llm.chat_template == "yes" and not tokenizer.has_template:
        raise UserError(f"llm.chat_template='yes', but {llm.path} has no chat template; use 'no'")
    shardings(functions(config, shape), mesh)


def model_config(
    config: ml_collections.ConfigDict, *, vocab_size: int | None = None
) -> LlamaConfig:
    """Shape of a model trained from scratch.

    Args:
      config: config of the run.
      vocab_size: size of the trained tokenizer's vocabulary, at most the configured one.
    """
    values = {key: config.llm[key] for key in _SIZES}
    if config.llm.initializer_range < 0.0:
        raise UserError(
            f"llm.initializer_range={config.llm.initializer_range} must not be negative"
        )
    # The usual 0.02 suits wide models; in a narrow one embeddings would be small compared to the
    # layers' outputs.
    values["initializer_range"] = config.llm.initializer_range or config.llm.hidden_size**-0.5
    if vocab_size is not None:
        # A multiple of 64 splits evenly over the devices of a mesh.
        values["vocab_size"] = -(-vocab_size // 64) * 64
    return LlamaConfig(**values)


def functions(config: ml_collections.ConfigDict, shape: LlamaConfig) -> Llama:
    """The model's functions, as configured."""
    llm = config.llm
    return Llama(shape, dtype=dtype_named(llm.dtype), attention=llm.attention, remat=llm.remat)


def load_base(config: ml_collections.ConfigDict, rundir: RunDir, mesh: Mesh) -> LoadedBase:
    """Loads the base of a run onto the mesh.

    Raises:
      UserError: if it is missing or damaged.
    """
    if not has_base(config, rundir):
        raise UserError(
            f"{_own_base(rundir)}: no base yet; set llm.path, or put 'pretrain' before "
            "'instruct' in config.stages"
        )
    path = base_path(config, rundir)
    source, tokenizer = open_model(path), load_tokenizer(path)
    tokenizer.check_fits(source.config.vocab_size)
    model = functions(config, source.config)
    params = source.load_params(dtype=model.dtype, shardings=shardings(model, mesh))
    params = quantize.quantize_params(params, config.llm.quantization, release=True)
    name = config.llm.path if config.llm.path and hub.is_name(config.llm.path) else ""
    return LoadedBase(model, params, tokenizer, source, name)


def language_model(
    config: ml_collections.ConfigDict, base: LoadedBase, adapters: dict[str, Adapter] | None = None
) -> LanguageModel:
    """Language model of the base with adapters, for inference."""
    return LanguageModel(
        base.model,
        base.params,
        base.tokenizer,
        adapters=adapters,
        batch=config.llm.generation_batch,
    )


def need_base(config: ml_collections.ConfigDict, rundir: RunDir, stage: str) -> None:
    """Refuses a stage that needs a base if there will be none.

    Raises:
      UserError: names the keys to set.
    """
    if "pretrain" not in config.stages and not has_base(config, rundir):
        raise UserError(
            f"stage {stage!r} has no base: set llm.path to a Hugging Face directory, a GGUF file, "
            f"ORG/NAME of the hub or {hub.SMOLLM2}, or put 'pretrain' before it in config.stages"
        )


def tuned_adapter(rundir: RunDir, base: LoadedBase) -> Adapter:
    """Loads the adapter of a finished `instruct` stage; see `adapter_of`."""
    return adapter_of(adapter_path(rundir), base, stage="instruct")


def adapter_of(path: epath.Path, base: LoadedBase, *, stage: str) -> Adapter:
    """Loads the adapter of a finished stage.

    Raises:
      UserError: if there is none, or it was tuned on other weights.
    """
    if not is_adapter(str(path)):
        raise UserError(f"{path}: no adapter; stage {stage!r} is not finished")
    trained_on = base_of(path).fingerprint
    if trained_on and trained_on != base.identity().fingerprint:
        raise UserError(
            f"{path}: this adapter was tuned on other weights than those in {base.source.path} "
            f"(content {trained_on[:12]}, found {base.identity().fingerprint[:12]}); give the base "
            "it belongs to, or start in another --workdir"
        )
    return jax.tree.map(jax.numpy.asarray, load_adapter(path, base.model.config))


def answer(
    config: ml_collections.ConfigDict,
    lm: LanguageModel,
    prompts: Sequence[Any],
    adapter: str | None,
) -> list[Record]:
    """Generates answers with the sampling options of `instruct.samples`.

    Args:
      config: config of the run.
      lm: base and adapters.
      prompts: texts or conversations.
      adapter: name of the adapter; None for the base.
    """
    samples = config.instruct.samples
    return lm.generate(
        prompts,
        max_new_tokens=samples.max_new_tokens,
        temperature=samples.temperature,
        top_k=samples.top_k,
        top_p=samples.top_p,
        seed=config.seeds[0],
        adapter=adapter,
        template=template(config),
    )


def base_identity(config: ml_collections.ConfigDict, rundir: RunDir) -> str:
    """Identity of the run's base: the start of its weights' SHA-256.

    Raises:
      UserError: if there is no base.
    """
    if not has_base(config, rundir):
        raise UserError(
            f"{rundir.path}: this run has no base; give one with --base, or use "
            "--explainer=template"
        )
    path = base_path(config, rundir)
    return _fingerprint_at(str(path), path.stat().mtime)[:16]


def adapter_identity(path: str, base: str) -> str:
    """Identity of an adapter: the start of its weights' SHA-256.

    Args:
      path: directory of the adapter.
      base: identity of the base that it is applied to.

    Raises:
      UserError: if there is no adapter, or it was tuned on other weights.
    """
    if not is_adapter(path):
        raise UserError(f"{path}: no adapter; stage 'instruct' is not finished")
    trained_on = base_of(path).fingerprint
    if trained_on and not trained_on.startswith(base):
        raise UserError(
            f"{path}: this adapter was tuned on another base (content {trained_on[:12]}, here "
            f"{base[:12]}); give the one it belongs to"
        )
    return hashlib.sha256((pathlib.Path(path) / WEIGHTS).read_bytes()).hexdigest()[:16]
