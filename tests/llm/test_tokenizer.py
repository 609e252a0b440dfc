"""Tokenizers: special ids, one beginning, what is trained in a conversation, training a BPE."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
import tokenizers

from tests import runs, tiny
from tests.llm.models import rewrite
from xrec_jax.core.errors import UserError
from xrec_jax.llm.io import bpe, hf
from xrec_jax.llm.io.hf import Generation
from xrec_jax.llm.io.tokenizer import SOFT, Tokenizer, load_tokenizer

TEXTS = ["the cat likes the small café by the river", "You may like it because it is near. " * 3]
CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "the cat?"},
    {"role": "assistant", "content": "the river"},
    {"role": "user", "content": "why"},
    {"role": "assistant", "content": "near."},
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer"
    bpe.train_bpe(TEXTS * 20, path, vocab_size=300)
    return path


@pytest.fixture
def changed(trained, tmp_path):
    """A copy of the directory, to be changed."""
    return pathlib.Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.fixture
def tokenizer(trained):
    return load_tokenizer(trained)


def plain(path, *, template=None, **config):
    """The tokenizer with another chat template, or none."""
    (path / "chat_template.jinja").unlink()
    if template:
        (path / "chat_template.jinja").write_text(template)
    rewrite(path / "tokenizer_config.json", **config)
    return load_tokenizer(path)


def words(tokenizer, rendered):
    """The trained tokens of a conversation, as text with special tokens."""
    kept = [n for n, t in zip(rendered.ids, rendered.trained, strict=True) if t]
    return tokenizer.hf.decode(kept)


def test_special_ids(tokenizer):
    assert tokenizer.hf.convert_ids_to_tokens(range(7)) == list(bpe.SPECIAL)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.soft_id) == (0, 1, 2, 3)
    assert tokenizer.eos_ids == (1,)
    assert len(tokenizer) <= 300


def test_every_end_counts(changed):
    (changed / "generation_config.json").write_text('{"eos_token_id": [7, 1, 9]}')
    assert load_tokenizer(changed).eos_ids == (1, 7, 9)


@pytest.mark.parametrize(
    "text", ["", "the café", "  two  spaces\n\n", "price 1234, 猫 and 🙂", "it's . fine , ok"]
)
def test_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_id and ids.count(0) == 1
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text, bos=False) == ids[1:]


def test_batches_are_rows(tokenizer):
    rows = tokenizer.encode_batch(TEXTS)
    assert rows == [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.decode_batch(rows) == TEXTS
    assert tokenizer.encode_batch([]) == []


def test_one_beginning_only(tokenizer):
    assert tokenizer.encode("<s>the") == tokenizer.encode("the")


def test_no_beginning_where_the_model_has_none(changed):
    rewrite(changed / "tokenizer.json", post_processor=None)
    tokenizer = load_tokenizer(changed)
    assert tokenizer.bos_id == 0 and tokenizer.encode("the")[0] != 0


def test_texts_begin_as_they_do_elsewhere_though_no_file_names_the_token(changed):
    (changed / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(changed)
    assert tokenizer.hf.bos_token_id is None and tokenizer.bos_id == 0
    assert tokenizer.encode("the cat") == tokenizer.hf("the cat")["input_ids"]
    assert tokenizer.encode("<s>the") == tokenizer.encode("the")


def test_a_text_has_one_reading(changed):
    content = json.loads((changed / "tokenizer.json").read_text())
    content["model"]["dropout"] = 1.0  # leaves every merge out
    rewrite(changed / "tokenizer.json", model=content["model"])
    assert len(load_tokenizer(changed).encode("the cat likes the river", bos=False)) < 15


def test_soft_places_are_single_tokens(tokenizer):
    ids = tokenizer.encode(f"a{SOFT}{SOFT} b")
    assert ids.count(tokenizer.soft_id) == 2
    assert tokenizer.decode(ids) == "a b"


def test_pad_without_a_pad_token(changed):
    tokenizer = plain(changed, pad_token=None)
    assert tokenizer.pad_id == tokenizer.eos_id
    assert Tokenizer(tokenizer.hf, Generation(pad_id=6)).pad_id == 6


def test_conversation(tokenizer):
    rendered = tokenizer.render(CHAT)
    assert tokenizer.hf.decode(rendered.ids) == (
        "<s><|system|>be brief<|user|>the cat?<|assistant|>the river</s>"
        "<|user|>why<|assistant|>near.</s>"
    )
    assert words(tokenizer, rendered) == "the river</s>near.</s>"
    prompt = tokenizer.prompt(CHAT[:-1])
    assert rendered.ids[: len(prompt)] == prompt
    assert all(rendered.trained[len(prompt) :])


def test_prompt_and_completion_are_a_conversation(tokenizer):
    pair = ("the cat?", "the river")
    messages = [{"role": r, "content": t} for r, t in zip(("user", "assistant"), pair, strict=True)]
    assert tokenizer.render(pair) == tokenizer.render(messages)
    assert tokenizer.prompt(pair[0]) == tokenizer.prompt(messages[:1])


def test_without_a_template(changed, tokenizer):
    other = plain(changed)
    for each in (other, tokenizer):
        rendered = each.render(("the cat?", "the river"), template=False)
        assert each.hf.decode(rendered.ids) == "<s>the cat?the river</s>"
        assert words(each, rendered) == "the river</s>"
        prompt = each.prompt("the cat?", template=False)
        assert rendered.ids[: len(prompt)] == prompt
        rendered = each.render(CHAT, template=False)
        assert words(each, rendered) == "the river</s>near.</s>"
        prompt = each.prompt(CHAT[:-1], template=False)
        assert rendered.ids[: len(prompt)] == prompt
    assert not other.has_template
    assert other.render(("a", "b")) == other.render(("a", "b"), template=False)
    with pytest.raises(UserError, match="no chat template"):
        other.prompt("a", template=True)


LINES = (
    "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}EOS\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>{% endif %}"
)


def test_what_follows_the_end_is_not_trained(changed):
    tokenizer = plain(changed, template=LINES.replace("EOS", "{{ eos_token }}"))
    assert words(tokenizer, tokenizer.render(CHAT)) == "the river</s>near.</s>"


def test_a_template_without_an_end_gets_one(changed):
    tokenizer = plain(changed, template=LINES.replace("EOS", ""))
    rendered = tokenizer.render(CHAT)
    assert words(tokenizer, rendered) == "the river\nnear.\n</s>"
    assert rendered.ids[-1] == tokenizer.eos_id


SEAMLESS = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if not add_generation_prompt %}{{ eos_token + '\n' }}{% endif %}"
)


def test_a_token_across_the_border_belongs_to_the_answer(changed):
    """The ids are those of the whole text; what is trained is told by its characters."""
    tokenizer = plain(changed, template=SEAMLESS)
    for prompt, answer, trained in (
        ("th", "e cat", "the cat</s>"),
        ("the cat", " likes", " likes</s>"),
        ("you may like", " it caf\u00e9 \U0001f642", " it caf\u00e9 \U0001f642</s>"),
    ):
        rendered = tokenizer.render((prompt, answer))
        assert rendered.ids == tokenizer.encode(f"{prompt}{answer}</s>\n", bos=False)
        assert words(tokenizer, rendered) == trained


BROKEN = {
    "drops earlier answers": (
        "{% for m in messages %}<|user|>{% if loop.last %}{{ m['content'] }}{% endif %}"
        "{% endfor %}",
        "differently",
        "message",
    ),
    "another prompt": (
        "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "differently",
    ),
    "refuses": ("{{ raise_exception('no system role') }}", "no system role"),
    "no template": ("{% for m in %}", "chat template fails"),
}


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN.keys())
def test_a_template_that_cannot_be_masked(changed, case):
    template, *named = case
    tokenizer = plain(changed, template=template)
    messages = [{"role": "user", "content": "th"}, {"role": "assistant", "content": "e cat"}]
    with pytest.raises(UserError) as error:
        tokenizer.render(messages)
    for name in [*named, str(changed)]:
        assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([], "empty"),
        (["the cat"], "number 0"),
        ([{"role": "user"}], "'content'"),
        ([{"content": "x"}], "'role'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "'content'"),
        (CHAT[:2], "nothing to learn"),
        (("a", None), "two texts"),
        (("a", "b", "c"), "two texts"),
        ("a", "nothing to learn"),
    ],
)
def test_malformed_messages(tokenizer, given, named):
    with pytest.raises(UserError, match=named):
        tokenizer.render(given)


def test_no_end_at_all(changed):
    rewrite(changed / "tokenizer_config.json", eos_token=None)
    tokenizer = load_tokenizer(changed)
    assert tokenizer.eos_ids == () and tokenizer.pad_id == 2
    with pytest.raises(UserError, match="no end-of-text token"):
        tokenizer.render(("a", "b"), template=False)


def test_ids_must_fit_the_model(tokenizer):
    tokenizer.check_fits(len(tokenizer))
    with pytest.raises(UserError, match=f"the model only {len(tokenizer) - 1} ids"):
        tokenizer.check_fits(len(tokenizer) - 1)


def add(path, *texts):
    """Adds special tokens behind the vocabulary; returns the number of tokens before."""
    tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(list(texts))
    tokenizer.save(str(path / "tokenizer.json"))
    return size


def test_added_tokens_may_lie_beyond_the_embedding(changed):
    """As after a fine-tuning that added a padding token without a row for it."""
    size = add(changed, "<fill>")
    rewrite(changed / "tokenizer_config.json", pad_token="<fill>")
    tokenizer = load_tokenizer(changed)
    assert tokenizer.pad_id == size
    tokenizer.check_fits(size)
    assert tokenizer.pad_id == tokenizer.eos_id == 1
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
    for text in ("a <fill>", "<fill>"):
        with pytest.raises(UserError, match=f"spells '<fill>', token id {size}, .* {size} ids"):
            tokenizer.encode(text)
    with pytest.raises(UserError, match="do not belong together"):
        tokenizer.check_fits(size - 1)


def test_an_end_beyond_the_embedding(changed):
    size = add(changed, "<stop>")
    rewrite(changed / "tokenizer_config.json", eos_token="<stop>")
    with pytest.raises(UserError, match=f"its end-of-text token has id {size}"):
        load_tokenizer(changed).check_fits(size)
    (changed / "generation_config.json").write_text(json.dumps({"eos_token_id": [size, 1]}))
    tokenizer = load_tokenizer(changed)
    tokenizer.check_fits(size)
    assert tokenizer.eos_ids == (1,)


@pytest.mark.parametrize("text", ["a\ud83d", "\udc00"])
def test_half_a_character_is_told(tokenizer, text):
    for read in (
        tokenizer.encode,
        tokenizer.prompt,
        lambda t: tokenizer.encode_batch(["a", t]),
        lambda t: tokenizer.render((t, "b")),
        lambda t: tokenizer.render(("b", t)),
        lambda t: tokenizer.render((t, "b"), template=False),
        lambda t: tokenizer.prompt([{"role": "user", "content": t}]),
    ):
        with pytest.raises(UserError, match=r"half a surrogate pair .*at character") as error:
            read(text)
        str(error.value).encode()
    for other in (None, 3, b"a"):
        with pytest.raises(UserError, match="must be a text, not"):
            tokenizer.encode(other)


def test_custom_code_is_neither_run_nor_asked_about(changed, monkeypatch):
    monkeypatch.setattr("builtins.input", None)
    (changed / "own.py").write_text("raise SystemExit('this ran')")
    for name, custom in (
        ("tokenizer_config.json", {"AutoTokenizer": [None, "own.Tokenizer"]}),
        ("tokenizer_config.json", ["own.Tokenizer", None]),
        ("config.json", {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}),
    ):
        file = changed / name
        before = file.read_text() if file.exists() else "{}"
        file.write_text(json.dumps(json.loads(before) | {"auto_map": custom}))
        with pytest.raises(UserError, match=rf"{name}: auto_map names custom .*own\.") as error:
            load_tokenizer(changed)
        assert "\n" not in str(error.value)
        if name == "config.json":
            with pytest.raises(UserError, match=r"config.json: auto_map names custom"):
                hf.open_model(changed)
        file.write_text(before)
    load_tokenizer(changed)


def test_pieces_need_their_package(tmp_path, monkeypatch):
    """A directory with `tokenizer.model` alone: sentencepiece's, or the text file of tiktoken."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    for content, package in ((b"\n\x0e\n\x05<unk>", "sentencepiece"), (b"IQ== 0\n", "tiktoken")):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(UserError, match=f"a {package} file; pip install {package}"):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast"])
def test_byte_level_files_under_the_class_of_llama(changed, tokenizer, name, monkeypatch):
    """Some versions of transformers rebuild them as LLaMA 2's, so that class is not used."""
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", None)
    rewrite(changed / "tokenizer_config.json", tokenizer_class=name)
    text = "the caf\u00e9\n\nthe  river"
    other = load_tokenizer(changed)
    assert other.encode(text) == tokenizer.encode(text) and other.eos_ids == tokenizer.eos_ids
    assert other.decode(other.encode(text)) == text


def test_loading_asks_no_network(changed, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    monkeypatch.setattr("socket.getaddrinfo", None)
    load_tokenizer(changed)


def test_directories_that_hold_no_tokenizer(tmp_path, changed):
    for path, words in {
        tmp_path / "nowhere": "no such directory or file; a base is a local path",
        "meta-llama/Llama-2-7b": "no such directory here.* HF_HUB_OFFLINE",
        tmp_path: r"no tokenizer: none of tokenizer.json, .* is there",
    }.items():
        with pytest.raises(UserError, match=words):
            load_tokenizer(path)
    (changed / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(UserError, match="cannot be read") as error:
        load_tokenizer(changed)
    assert "\n" not in str(error.value)


def test_training_is_deterministic(trained, tmp_path):
    """Also in another process, where hashes are seeded anew; nothing is printed, no PyTorch."""
    code = (
        "import sys\nfrom tests.llm.test_tokenizer import TEXTS\nfrom xrec_jax.llm.io import bpe\n"
        "bpe.train_bpe(iter(TEXTS * 20), sys.argv[1], vocab_size=300)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "again")],
        cwd=tiny.CHECKOUT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout + done.stderr == ""
    assert runs.contents(tmp_path / "again") == runs.contents(trained)


def test_training_refuses(tmp_path, trained):
    with pytest.raises(UserError, match=r"vocab_size=262: .* take 263"):
        bpe.train_bpe(TEXTS, tmp_path / "x", vocab_size=262)
    before = runs.contents(trained)
    with pytest.raises(UserError, match="not empty"):
        bpe.train_bpe(TEXTS, trained, vocab_size=300)
    assert runs.contents(trained) == before
    assert json.loads((trained / "tokenizer_config.json").read_text())["pad_token"] == "<pad>"
