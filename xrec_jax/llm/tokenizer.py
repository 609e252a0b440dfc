"""Tokenizers: text to ids and back, prompts, and conversations with a mask of what is trained."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.files import check_scheme, is_local
from xrec_jax.llm.hf import Generation, read_generation

SOFT = "<|soft|>"  # a place in a prompt that a soft prompt's vectors fill
Message = Mapping[str, str]


class Rendered(NamedTuple):
    """A conversation as ids.

    Attributes:
      ids: `[length]`.
      trained: `[length]`; true where a token is one that the model must learn to write: the
        assistant's words and the token that ends them.
    """

    ids: list[int]
    trained: list[bool]


class Tokenizer:
    """A tokenizer of `transformers` with the ids that a model needs.

    Args:
      tokenizer: a fast tokenizer.
      generation: the model's special ids, which may know more ends than the tokenizer.
      where: for messages.
    """

    def __init__(
        self, tokenizer: Any, generation: Generation | None = None, *, where: str = "tokenizer"
    ):
        self.hf = tokenizer
        self.where = where
        generation = generation or Generation()
        own = tokenizer.eos_token_id
        self.bos_id: int | None = tokenizer.bos_token_id
        # Any of them ends a text; the tokenizer's own comes first and is the one that we write.
        self.eos_ids: tuple[int, ...] = tuple(
            dict.fromkeys([*([] if own is None else [own]), *generation.eos_ids])
        )
        pads = (tokenizer.pad_token_id, generation.pad_id, *self.eos_ids, 0)
        # Only fills up batches: which tokens are real is told by lengths, never by this id.
        self.pad_id: int = next(pad for pad in pads if pad is not None)
        soft = tokenizer.get_vocab().get(SOFT)
        self.soft_id: int | None = soft
        first = tokenizer("a", verbose=False)["input_ids"][:1]
        self._start: list[int] = first if first == [self.bos_id] else []  # of a text

    def __len__(self) -> int:
        """Number of tokens, added ones included."""
        return len(self.hf)

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template."""
        return bool(self.hf.chat_template)

    @property
    def eos_id(self) -> int:
        """The id that ends what we write.

        Raises:
          UserError: if there is none.
        """
        if not self.eos_ids:
            raise UserError(
                f"{self.where}: no end-of-text token; name one as eos_token in "
                "tokenizer_config.json or eos_token_id in generation_config.json"
            )
        return self.eos_ids[0]

    def check_fits(self, vocab_size: int) -> None:
        """Raises a `UserError` if the tokenizer has ids beyond the model's embedding."""
        highest = max(self.hf.get_vocab().values())
        if highest >= vocab_size:
            raise UserError(
                f"{self.where}: it has token id {highest}, but the model only {vocab_size} ids; "
                "they do not belong together"
            )

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Ids of a text.

        Args:
          text: special tokens that are spelled out in it become their ids.
          bos: whether to begin as the model's texts do; never begins twice.
        """
        return self.encode_batch([text], bos=bos)[0]

    def encode_batch(self, texts: Iterable[str], *, bos: bool = True) -> list[list[int]]:
        """Ids of several texts; see `encode`."""
        texts = list(texts)
        if not texts:
            return []
        rows = self.hf(texts, add_special_tokens=False, verbose=False)["input_ids"]
        start = self._start if bos else []
        return [list(row) if row[:1] == start else [*start, *row] for row in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return self.decode_batch([ids])[0]

    def decode_batch(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """The texts of several rows of ids."""
        return [
            self.hf.decode(
                [int(n) for n in row], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            for row in rows
        ]

    def prompt(self, given: str | Sequence[Message], *, template: bool | None = None) -> list[int]:
        """Ids after which the model writes its answer.

        Args:
          given: a prompt, or messages of which the last is not the assistant's.
          template: whether to use the chat template; default: if the model has one.

        Raises:
          UserError: if the messages are malformed or the template refuses them.
        """
        messages = _messages(given)
        if self._templated(template):
            return self.encode(self._apply(messages, prompt=True), bos=False)
        if isinstance(given, str):
            return self.encode(given)
        return self._plain(messages).ids

    def render(
        self, given: tuple[str, str] | Sequence[Message], *, template: bool | None = None
    ) -> Rendered:
        """Ids of a whole conversation, and which of them are trained.

        What precedes an answer is, token for token, what `prompt` gives for it.

        Args:
          given: a prompt and its completion, or messages with at least one of the assistant.
          template: whether to use the chat template; default: if the model has one.

        Raises:
          UserError: if the messages are malformed, the template refuses them, or it writes the
            beginning of a conversation differently once it goes on, so that no mask is right.
        """
        messages = _messages(given)
        if not any(message["role"] == "assistant" for message in messages):
            raise UserError("messages: none is the assistant's, so there is nothing to learn")
        if self._templated(template):
            return self._render_template(messages)
        if isinstance(given, tuple):
            begin, answer = self.encode(given[0]), self._answer(given[1])
            return Rendered(begin + answer, [False] * len(begin) + [True] * len(answer))
        return self._plain(messages)

    def _templated(self, template: bool | None) -> bool:
        if template and not self.has_template:
            raise UserError(f"{self.where}: it has no chat template")
        return self.has_template if template is None else template

    def _answer(self, text: str) -> list[int]:
        return [*self.encode(text, bos=False), self.eos_id]

    def _plain(self, messages: Sequence[Message]) -> Rendered:
        """Messages without a template: paragraphs, each answer ended."""
        ids: list[int] = self.encode("")
        trained = [False] * len(ids)
        for message in messages:
            answer = message["role"] == "assistant"
            text = message["content"]
            part = self._answer(text) if answer else self.encode(text + "\n\n", bos=False)
            ids += part
            trained += [answer] * len(part)
        return Rendered(ids, trained)

    def _render_template(self, messages: Sequence[Message]) -> Rendered:
        ids = self.encode(self._apply(messages), bos=False)
        trained = [False] * len(ids)
        end = 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start = self._prefix(messages[:number], ids, number, prompt=True)
            end = self._prefix(messages[: number + 1], ids, number, prompt=False)
            stops = [n for n in range(start, end) if ids[n] in self.eos_ids]
            if stops:  # a template's line feed behind the end is never written
                end = stops[-1] + 1
            trained[start:end] = [True] * (end - start)
        last = messages[-1]["role"] == "assistant"
        if last and not (end and ids[end - 1] in self.eos_ids):
            ids, trained = [*ids, self.eos_id], [*trained, True]
        return Rendered(ids, trained)

    def _prefix(
        self, messages: Sequence[Message], ids: list[int], number: int, *, prompt: bool
    ) -> int:
        """Length of the rendered `messages`, which must be the beginning of `ids`."""
        begin = self.encode(self._apply(messages, prompt=prompt), bos=False)
        if ids[: len(begin)] != begin:
            raise UserError(
                f"{self.where}: the chat template writes messages 0 to {len(messages) - 1} "
                f"differently when message {number} follows, so what is trained cannot be told; "
                "change chat_template.jinja, or do without a template"
            )
        return len(begin)

    def _apply(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        import jinja2

        try:
            return self.hf.apply_chat_template(
                [dict(message) for message in messages], tokenize=False,
                add_generation_prompt=prompt,
            )  # fmt: skip
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.where}: its chat template fails: {reason}") from error


def load_tokenizer(path: epath.PathLike) -> Tokenizer:
    """Loads the tokenizer of a model's directory, Hugging Face's or imported; never downloads.

    Args:
      path: a local or `gs://` directory.

    Raises:
      UserError: if it is no directory, or holds no tokenizer that can be read.
    """
    check_scheme(path)
    folder = epath.Path(path)
    if not folder.is_dir():
        raise UserError(f"{path}: no such directory; tokenizers are never downloaded")
    if not is_local(path):
        return _load_remote(folder)
    return _load(os.fspath(path), read_generation(folder), str(path))


def _load_remote(folder: epath.Path) -> Tokenizer:
    import tempfile

    from xrec_jax.llm.hf_export import copy_tokenizer

    with tempfile.TemporaryDirectory() as copy:
        copy_tokenizer(folder, copy)
        return _load(copy, read_generation(folder), str(folder))


def _load(folder: str, generation: Generation, where: str) -> Tokenizer:
    known = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    if not any(os.path.isfile(os.path.join(folder, name)) for name in known):
        raise UserError(f"{where}: no tokenizer: none of {', '.join(known)} is there")
    quiet_transformers()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the `tokenizers` package raises plain exceptions
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: the tokenizer cannot be read: {reason}") from error
    return Tokenizer(tokenizer, generation, where=where)


def quiet_transformers() -> None:
    """Keeps `transformers` from advising, when it is first imported, to install PyTorch."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def _messages(given: Any) -> list[Message]:
    """Any way to give a conversation, as checked messages."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if isinstance(given, tuple):
        if len(given) != 2 or not all(isinstance(text, str) for text in given):
            raise UserError("a prompt and its completion must be two texts")
        roles = ("user", "assistant")
        return [{"role": r, "content": t} for r, t in zip(roles, given, strict=True)]
    messages = list(given)
    if not messages:
        raise UserError("messages: the list is empty")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UserError(f"messages: number {number} is no object with role and content")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise UserError(f"messages: number {number} has no text {key!r}")
    return messages
