"""Tokenizers of GGUF files: ours against transformers, llama.cpp and SentencePiece, line by line.

    python -m experiments.parity.gguf_tokenizers [--texts=FOLDER] [--output=RESULT.json]

Compares token ids on the lines of the golden file and on 1,000 lines drawn from the JSON-lines
files below `--texts`: of SmolLM2's file, where its package is installed; of a small byte-level
vocabulary under the name of every pre-tokenizer that is known; and of a small SentencePiece
vocabulary. Prints how many lines differ.

transformers 5.23 reads a GGUF's byte-level vocabulary with GPT-2's expression also where the file
names `smollm`, whose models see every digit alone. So its tokens of lines such as "a  1" are others
than those of llama.cpp and of the original tokenizer; the comparison sets its pre-tokenizer right,
and says how many lines differ without that.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import pathlib
import random
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy as np
import sentencepiece
import tokenizers
import transformers
import xllamacpp
from tokenizers import models, pre_tokenizers, trainers

from xrec_jax.core.errors import UserError
from xrec_jax.llm.io import hub
from xrec_jax.llm.io.gguf.pretokenizers import PRE_TOKENIZERS
from xrec_jax.llm.io.tokenizer import load_tokenizer

# llama.cpp approximates their expressions where letters are not ASCII; ours are the original ones.
APPROXIMATE = ("tekken", "gpt-4o", "llama4")
GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests/llm/io/gguf/golden/smollm2.json"
Ids = list[list[int]]


class Row(NamedTuple):
    """A comparison.

    Attributes:
      text: what is compared.
      lines: number of lines with different tokens.
      must_agree: False where the other side is known to be wrong.
    """

    text: str
    lines: int
    must_agree: bool = True


Rows = Iterator[Row]


def golden_lines() -> list[str]:
    """Lines of the golden file: digits, emoji, accents, spaces, other scripts, special tokens."""
    return [line["text"] for line in json.loads(GOLDEN.read_text())["lines"]]


def drawn_lines(folder: pathlib.Path, count: int = 1000, seed: int = 0) -> list[str]:
    """Lines drawn from all texts of the JSON-lines files below a folder."""
    texts: list[str] = []
    for path in sorted([*folder.rglob("*.jsonl"), *folder.rglob("*.jsonl.gz")]):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for line in file:
                texts += [value for value in json.loads(line).values() if isinstance(value, str)]
    return random.Random(seed).sample(sorted(set(texts)), count)


class LlamaCpp:
    """llama.cpp with one model, behind its own local server.

    Args:
      path: a GGUF file.
      context: longest sequence, times the number of parallel ones.
      threads: threads of computation.
      **options: further values of `xllamacpp.CommonParams`.
    """

    def __init__(self, path: pathlib.Path, context: int = 64, *, threads: int = 1, **options: Any):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = context, 1, False, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        for name, value in options.items():
            setattr(params, name, value)
        self._server = xllamacpp.Server(params)

    def post(self, route: str, **content: Any) -> Any:
        """Answer of the server."""
        request = urllib.request.Request(
            self._server.listening_address + route,
            data=json.dumps(content).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())

    def encode(self, texts: Sequence[str], *, bos: bool = False) -> Ids:
        """Token ids of texts."""
        return [
            self.post("/tokenize", content=text, add_special=bos, parse_special=True)["tokens"]
            for text in texts
        ]


def transformers_tokenizer(path: pathlib.Path) -> Any:
    """The tokenizer that transformers reads from a GGUF file."""
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def differing(a: Ids, b: Ids) -> int:
    """Number of lines with different ids."""
    return sum(x != y for x, y in zip(a, b, strict=True))


def write_tiny(path: pathlib.Path, vocabulary: dict[str, Any]) -> None:
    """Writes a LLaMA of one narrow layer of zeros with a vocabulary, for the readers to open.

    Args:
      path: the new file.
      vocabulary: values of the keys `tokenizer.*`.
    """
    width, rows = 32, len(vocabulary["tokenizer.ggml.tokens"])
    writer = gguf.GGUFWriter(path, "llama")
    numbers = {
        "context_length": 64,
        "embedding_length": width,
        "feed_forward_length": width,
        "block_count": 1,
        "attention.head_count": 2,
        "attention.head_count_kv": 2,
        "rope.dimension_count": width // 2,
        "vocab_size": rows,
    }
    for key, number in numbers.items():
        writer.add_uint32(f"llama.{key}", number)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in vocabulary.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    tensors: dict[str, np.ndarray] = {
        f"blk.0.{name}.weight": np.zeros((width, width), np.float32) for name in matrices
    }
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        tensors[f"{name}.weight"] = np.zeros(width, np.float32)
    tensors["token_embd.weight"] = np.zeros((rows, width), np.float32)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    with contextlib.closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def byte_level_vocabulary(lines: Sequence[str], size: int = 1200) -> dict[str, Any]:
    """A byte-level vocabulary whose merges cross every border that a pre-tokenizer may set."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(lines, trainer)
    content = json.loads(model.to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in content["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def sentencepiece_model(lines: Sequence[str], size: int = 600) -> Any:
    """A small SentencePiece model with LLaMA 2's options."""
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in lines if line.strip()),
        model_writer=stream,
        vocab_size=size,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        character_coverage=0.99,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=stream.getvalue())


def sentencepiece_vocabulary(model: Any) -> dict[str, Any]:
    """The keys of a SentencePiece model, as llama.cpp's converter writes them."""
    ids = range(model.get_piece_size())
    kinds = [
        2 if model.is_unknown(n) else 3 if model.is_control(n) else 6 if model.is_byte(n) else 1
        for n in ids
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [model.id_to_piece(n) for n in ids],
        "tokenizer.ggml.scores": [float(model.get_score(n)) for n in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
    }


def of_file(path: pathlib.Path, lines: Sequence[str], *, single_digits: bool) -> Rows:
    """Differences of a file's tokenizer from transformers' and llama.cpp's.

    Args:
      path: the GGUF file.
      lines: texts to encode.
      single_digits: the file's pre-tokenizer is `smollm`, which transformers does not know.
    """
    ours = load_tokenizer(path).encode_batch(lines, bos=False)
    theirs = transformers_tokenizer(path)

    def encode() -> Ids:
        return theirs(list(lines), add_special_tokens=False)["input_ids"]

    what = f"{len(lines)} lines"
    if single_digits:
        yield Row(f"{what}: transformers, its own pre-tokenizer", differing(ours, encode()), False)
        theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    yield Row(f"{what}: transformers", differing(ours, encode()))
    yield Row(f"{what}: llama.cpp", differing(ours, LlamaCpp(path).encode(lines)))


def of_names(lines: Sequence[str], scratch: pathlib.Path) -> Rows:
    """Differences from llama.cpp under every name of a pre-tokenizer."""
    # llama.cpp takes a token that looks special for a special one, so none is learned.
    vocabulary = byte_level_vocabulary([line for line in lines if "<|" not in line])
    narrow = [line for line in lines if line.isascii()]
    for name in PRE_TOKENIZERS:
        path, texts = scratch / f"{name}.gguf", narrow if name in APPROXIMATE else lines
        write_tiny(path, vocabulary | {"tokenizer.ggml.pre": name})
        ours, peer = load_tokenizer(path), LlamaCpp(path)
        for bos in (False, True):
            kind = "with BOS" if bos else "plain"
            difference = differing(ours.encode_batch(texts, bos=bos), peer.encode(texts, bos=bos))
            yield Row(f"{name}, {len(texts)} lines, {kind}: llama.cpp", difference)


def of_sentencepiece(lines: Sequence[str], scratch: pathlib.Path) -> Rows:
    """Differences of a SentencePiece vocabulary from SentencePiece itself and the others."""
    model = sentencepiece_model(lines)
    path = scratch / "sentencepiece.gguf"
    write_tiny(path, sentencepiece_vocabulary(model))
    # Special tokens inside a text, as in chat templates.
    lines = [*lines, *(f"<s>{line}</s>{line}" for line in lines[:100])]
    loaded, what = load_tokenizer(path), f"SentencePiece, {len(lines)} lines"
    ours = loaded.encode_batch(lines, bos=False)
    yield Row(f"{what}: llama.cpp", differing(ours, LlamaCpp(path).encode(lines)))
    # SentencePiece knows no special tokens in texts. transformers' LlamaTokenizer puts no space
    # behind them, nor before a text that begins with one.
    plain = [n for n, line in enumerate(lines) if not any(t in line for t in loaded.special_texts)]
    texts = [lines[n] for n in plain]
    yield Row(
        f"{what}, {len(lines) - len(plain)} left out: sentencepiece",
        differing([ours[n] for n in plain], [model.encode(text) for text in texts]),
    )
    others = [n for n in plain if not lines[n].startswith(" ")]
    theirs = transformers_tokenizer(path)([lines[n] for n in others], add_special_tokens=False)
    yield Row(
        f"{what}, {len(lines) - len(others)} left out: transformers",
        differing([ours[n] for n in others], theirs["input_ids"]),
    )
    texts = [loaded.decode(ids) for ids in ours]
    yield Row(
        f"{what}: decoded otherwise than by sentencepiece",
        sum(texts[n] != model.decode(ours[n]) for n in plain),
    )


def rows(texts: pathlib.Path | None) -> Rows:
    """All comparisons.

    Args:
      texts: folder of JSON-lines files; None to compare the golden file's lines only.
    """
    golden = golden_lines()
    lines = golden if texts is None else [*golden, *drawn_lines(texts)]
    try:
        path = hub.packaged()
    except UserError as error:
        print(f"left out: {error}")
    else:
        for part in (golden, lines[len(golden) :]):
            if part:
                for row in of_file(path, part, single_digits=True):
                    yield row._replace(text=f"SmolLM2, {row.text}")
    with tempfile.TemporaryDirectory() as name:
        yield from of_names(lines[: len(golden) + 100], pathlib.Path(name))
        yield from of_sentencepiece(lines, pathlib.Path(name))


def main() -> None:
    """Prints one line a comparison and exits with 1 if a line differs that must not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--texts", type=pathlib.Path, help="folder of JSON-lines files")
    parser.add_argument("--output", type=pathlib.Path, help="file for the numbers, JSON")
    args = parser.parse_args()
    compared: dict[str, int] = {}
    failed = 0
    for text, lines, must_agree in rows(args.texts):
        compared[text] = lines
        failed += lines if must_agree else 0
        print(f"{lines:9}  {text}{'   DIFFERENT' if lines and must_agree else ''}", flush=True)
    print(f"{failed} lines differ that must not")
    if args.output:
        versions = {p.__name__: p.__version__ for p in (transformers, sentencepiece, xllamacpp)}
        content = {"versions": versions, "lines_that_differ": compared}
        args.output.write_text(json.dumps(content, indent=2) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
