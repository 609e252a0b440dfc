"""Tokenizers: text to ids and back, prompts, and conversations with a mask of what is trained."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.files import check_scheme
from xrec_jax.llm.io.chat_template import ChatTemplate
from xrec_jax.llm.io.hf import Generation, read_generation
from xrec_jax.llm.io.tokenizer_files import read_tokenizer

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
        # As `transformers` begins a text, also where no file names the token that begins one.
        self._start: list[int] = _start(tokenizer)
        self.bos_id: int | None = tokenizer.bos_token_id
        if self.bos_id is None and self._start:
            self.bos_id = self._start[0]
        # Any of them ends a text; the tokenizer's own comes first and is the one that we write.
        self.eos_ids: tuple[int, ...] = tuple(
            dict.fromkeys([*([] if own is None else [own]), *generation.eos_ids])
        )
        pads = (tokenizer.pad_token_id, generation.pad_id, *self.eos_ids, 0)
        # Only fills up batches: which tokens are real is told by lengths, never by this id.
        self.pad_id: int = next(pad for pad in pads if pad is not None)
        soft = tokenizer.get_vocab().get(SOFT)
        self.soft_id: int | None = soft
        self._beyond: dict[int, str] = {}  # tokens that the model has no row for
        self._rows = 0  # of the model's embedding, once that is known
        self._chat: ChatTemplate | None = None

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
        """Checks the ids against the model's embedding.

        Tokens that were added without a row for them (a padding token, most often) are fine as
        long as no text spells them and none of them begins or ends every text.

        Raises:
          UserError: if tokens of the vocabulary itself, or ones that cannot be done without, lie
            beyond the embedding.
        """
        beyond = {n: text for text, n in self.hf.get_vocab().items() if n >= vocab_size}
        needless = set(self.hf.get_added_vocab().values()).difference(self._start)
        if not needless.issuperset(beyond):
            raise UserError(
                f"{self.where}: it has token id {max(beyond)}, but the model only {vocab_size} "
                "ids; they do not belong together"
            )
        ends = tuple(n for n in self.eos_ids if n < vocab_size)
        if self.eos_ids and not ends:
            raise UserError(
                f"{self.where}: its end-of-text token has id {self.eos_ids[0]}, but the model only "
                f"{vocab_size} ids; name another eos_token_id in generation_config.json"
            )
        self._beyond, self._rows, self.eos_ids = beyond, vocab_size, ends
        if self.pad_id >= vocab_size:
            self.pad_id = next(iter(ends), 0)

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Ids of a text.

        Args:
          text: special tokens that are spelled out in it become their ids.
          bos: whether to begin as the model's texts do; never begins twice.
        """
        return self.encode_batch([text], bos=bos)[0]

    def encode_batch(self, texts: Iterable[str], *, bos: bool = True) -> list[list[int]]:
        """Ids of several texts; see `encode`."""
        texts = [check_text(text) for text in texts]
        if not texts:
            return []
        rows = self.hf(texts, add_special_tokens=False, verbose=False)["input_ids"]
        self._check_rows(rows)
        start = self._start if bos else []
        return [list(row) if row[:1] == start else [*start, *row] for row in rows]

    def _check_rows(self, rows: Iterable[Sequence[int]]) -> None:
        for row in rows if self._beyond else ():
            for token in self._beyond.keys() & set(row):
                raise UserError(
                    f"{self.where}: a text spells {self._beyond[token]!r}, token id {token}, for "
                    f"which the model has no embedding (it has {self._rows} ids)"
                )

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

    def decode_whole(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled out."""
        return self.hf.decode(
            [int(n) for n in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    @functools.cached_property
    def special_texts(self) -> tuple[str, ...]:
        """How the tokens are spelled that `decode` leaves out."""
        added = self.hf.added_tokens_decoder.values()
        return tuple(sorted({token.content for token in added if token.special}))

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
        whole = self._apply(messages)
        ids = self.encode(whole, bos=False)
        trained = [False] * len(ids)
        end = 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start, end = self._answer_span(messages, number, whole, ids)
            stops = [n for n in range(start, end) if ids[n] in self.eos_ids]
            if stops:  # a template's line feed behind the end is never written
                end = stops[-1] + 1
            trained[start:end] = [True] * (end - start)
        last = messages[-1]["role"] == "assistant"
        if last and not (end and ids[end - 1] in self.eos_ids):
            ids, trained = [*ids, self.eos_id], [*trained, True]
        return Rendered(ids, trained)

    def _answer_span(
        self, messages: Sequence[Message], number: int, whole: str, ids: list[int]
    ) -> tuple[int, int]:
        """Which tokens of a conversation hold the answer that is message `number`.

        Where a token reaches across the border of prompt and answer, it belongs to the answer.
        """
        borders = [
            self._prefix(messages[:number], whole, number, prompt=True),
            self._prefix(messages[: number + 1], whole, number, prompt=False),
        ]
        begins = [self.encode(text, bos=False) for text in borders]
        if all(ids[: len(begin)] == begin for begin in begins):
            return len(begins[0]), len(begins[1])
        first, last = (len(text) for text in borders)
        places = self.hf(
            whole, add_special_tokens=False, verbose=False, return_offsets_mapping=True
        )["offset_mapping"]
        inside = [n for n, (start, stop) in enumerate(places) if stop > first and start < last]
        return (inside[0], inside[-1] + 1) if inside else (len(begins[0]), len(begins[0]))

    def _prefix(self, messages: Sequence[Message], whole: str, number: int, *, prompt: bool) -> str:
        """The rendered `messages`, which must be the beginning of the whole conversation."""
        begin = self._apply(messages, prompt=prompt)
        if not whole.startswith(begin):
            raise UserError(
                f"{self.where}: the chat template writes messages 0 to {len(messages) - 1} "
                f"differently when message {number} follows, so what is trained cannot be told; "
                "change chat_template.jinja, or do without a template"
            )
        return begin

    def _apply(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        if self._chat is None:
            self._chat = ChatTemplate(self.hf, where=self.where)
        return self._chat.render(messages, prompt=prompt)


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
    return Tokenizer(read_tokenizer(folder), read_generation(folder), where=str(path))


def _start(tokenizer: Any) -> list[int]:
    """What a tokenizer puts before every text: one token, or nothing."""
    whole, bare = (
        tokenizer("a", add_special_tokens=special, verbose=False)["input_ids"]
        for special in (True, False)
    )
    return list(whole[:1]) if whole[1 : 1 + len(bare)] == bare != whole else []


def check_text(text: Any, what: str = "text") -> str:
    """The text, if it can be written in UTF-8.

    Raises:
      UserError: if it is no text, or holds half a surrogate pair, as of an emoji cut in two.
    """
    if not isinstance(text, str):
        raise UserError(f"{what} must be a text, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise UserError(
            f"{what} holds half a surrogate pair ({half!r}) at character {error.start}; remove or "
            "replace it"
        ) from error
    return str(text)  # of NumPy's and other subclasses the plain text


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
            check_text(message[key], f"messages: number {number}, {key!r}")
    return messages
