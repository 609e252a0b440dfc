"""Tokenizer: encoding, decoding, prompts, and conversations with a loss mask."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.files import check_scheme
from xrec_jax.llm.io import hub
from xrec_jax.llm.io.chat_template import ChatTemplate
from xrec_jax.llm.io.gguf.reader import is_gguf
from xrec_jax.llm.io.hf import Generation
from xrec_jax.llm.io.tokenizer_files import read_tokenizer

SOFT = "<|soft|>"  # placeholder that a soft prompt vector replaces
Message = Mapping[str, str]


class Rendered(NamedTuple):
    """Token ids of a conversation, with a loss mask.

    Attributes:
      ids: `[length]` token ids.
      trained: `[length]`, true for tokens to be learned: the assistant's answers, each with its
        end-of-text token.
    """

    ids: list[int]
    trained: list[bool]


class Tokenizer:
    """A `transformers` tokenizer with the special ids of a model.

    Args:
      tokenizer: a fast tokenizer.
      generation: special ids of the model, perhaps with more end-of-text tokens than the tokenizer.
      where: name for messages.
    """

    def __init__(
        self, tokenizer: Any, generation: Generation | None = None, *, where: str = "tokenizer"
    ):
        self.hf = tokenizer
        self.where = where
        generation = generation or Generation()
        own = tokenizer.eos_token_id
        # The tokens that `transformers` puts before a text, even if no file names a BOS token.
        self._start: list[int] = _start(tokenizer)
        self.bos_id: int | None = tokenizer.bos_token_id
        if self.bos_id is None and self._start:
            self.bos_id = self._start[0]
        # Any of them ends a text; the tokenizer's own comes first and is the one that is written.
        self.eos_ids: tuple[int, ...] = tuple(
            dict.fromkeys([*([] if own is None else [own]), *generation.eos_ids])
        )
        pads = (tokenizer.pad_token_id, generation.pad_id, *self.eos_ids, 0)
        # Only for padding: masks come from lengths, never from this id.
        self.pad_id: int = next(pad for pad in pads if pad is not None)
        soft = tokenizer.get_vocab().get(SOFT)
        self.soft_id: int | None = soft
        self._beyond: dict[int, str] = {}  # tokens without a row of the embedding
        self._rows = 0  # rows of the model's embedding, once known
        self._chat: ChatTemplate | None = None

    def __len__(self) -> int:
        """Number of tokens, added ones included."""
        return len(self.hf)

    @property
    def has_template(self) -> bool:
        """True if the model has a chat template."""
        return bool(self.hf.chat_template)

    @property
    def eos_id(self) -> int:
        """End-of-text id that is written after an answer.

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

        Added tokens without a row of the embedding (a padding token, most often) are accepted as
        long as no text spells them and none of them begins or ends every text.

        Raises:
          UserError: if tokens of the vocabulary itself, or indispensable added ones, lie beyond the
            embedding.
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
        """Encodes a text.

        Args:
          text: the text; special tokens spelled out in it become their ids.
          bos: add the begin-of-text token, unless the text spells it.
        """
        return self.encode_batch([text], bos=bos)[0]

    def encode_batch(self, texts: Iterable[str], *, bos: bool = True) -> list[list[int]]:
        """Encodes several texts; see `encode`."""
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
        """Decodes ids, without special tokens."""
        return self.decode_batch([ids])[0]

    def decode_batch(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """Decodes several rows of ids."""
        return [
            self.hf.decode(
                [int(n) for n in row], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            for row in rows
        ]

    def decode_whole(self, ids: Sequence[int]) -> str:
        """Decodes ids, with special tokens spelled out."""
        return self.hf.decode(
            [int(n) for n in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    @functools.cached_property
    def special_texts(self) -> tuple[str, ...]:
        """Texts of the special tokens, which `decode` omits."""
        added = self.hf.added_tokens_decoder.values()
        return tuple(sorted({token.content for token in added if token.special}))

    def prompt(
        self, conversation: str | Sequence[Message], *, template: bool | None = None
    ) -> list[int]:
        """Token ids of a prompt, to be continued by the model's answer.

        Args:
          conversation: a prompt, or messages of which the last is not the assistant's.
          template: use the chat template; default: if the model has one.

        Raises:
          UserError: if the messages are malformed or the template refuses them.
        """
        messages = _messages(conversation)
        if self._templated(template):
            return self.encode(self._apply(messages, prompt=True), bos=False)
        if isinstance(conversation, str):
            return self.encode(conversation)
        return self._plain(messages).ids

    def render(
        self, conversation: tuple[str, str] | Sequence[Message], *, template: bool | None = None
    ) -> Rendered:
        """Token ids and loss mask of a whole conversation.

        The tokens before an answer equal those of `prompt`.

        Args:
          conversation: a prompt and its completion, or messages with at least one of the assistant.
          template: use the chat template; default: if the model has one.

        Raises:
          UserError: if the messages are malformed, the template refuses them, or it renders the
            beginning of a conversation differently once it continues, so that no mask is correct.
        """
        messages = _messages(conversation)
        if not any(message["role"] == "assistant" for message in messages):
            raise UserError("messages: none is the assistant's, so there is nothing to learn")
        if self._templated(template):
            return self._render_template(messages)
        if isinstance(conversation, tuple):
            begin, answer = self.encode(conversation[0]), self._answer(conversation[1])
            return Rendered(begin + answer, [False] * len(begin) + [True] * len(answer))
        return self._plain(messages)

    def _templated(self, template: bool | None) -> bool:
        if template and not self.has_template:
            raise UserError(f"{self.where}: it has no chat template")
        return self.has_template if template is None else template

    def _answer(self, text: str) -> list[int]:
        return [*self.encode(text, bos=False), self.eos_id]

    def _plain(self, messages: Sequence[Message]) -> Rendered:
        """Renders messages without a template: paragraphs, answers with an end-of-text token."""
        ids: list[int] = self.encode("")
        trained = [False] * len(ids)
        for message in messages:
            answer = message["role"] == "assistant"
            text = message["content"]
            tokens = self._answer(text) if answer else self.encode(text + "\n\n", bos=False)
            ids += tokens
            trained += [answer] * len(tokens)
        return Rendered(ids, trained)

    def _render_template(self, messages: Sequence[Message]) -> Rendered:
        text = self._apply(messages)
        ids = self.encode(text, bos=False)
        trained = [False] * len(ids)
        end = 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start, end = self._answer_span(messages, number, text, ids)
            stops = [n for n in range(start, end) if ids[n] in self.eos_ids]
            if stops:  # a template's line feed after the end-of-text token is never generated
                end = stops[-1] + 1
            trained[start:end] = [True] * (end - start)
        # The model must learn to stop, even if the template ends without an end-of-text token.
        last = messages[-1]["role"] == "assistant"
        if last and not (end and ids[end - 1] in self.eos_ids):
            ids, trained = [*ids, self.eos_id], [*trained, True]
        return Rendered(ids, trained)

    def _answer_span(
        self, messages: Sequence[Message], number: int, rendered: str, ids: list[int]
    ) -> tuple[int, int]:
        """Token range of the answer that is message `number`.

        A token that spans the border of prompt and answer belongs to the answer.
        """
        borders = [
            self._prefix(messages[:number], rendered, number, prompt=True),
            self._prefix(messages[: number + 1], rendered, number, prompt=False),
        ]
        begins = [self.encode(border, bos=False) for border in borders]
        # Usually tokens do not cross the borders and encoded prefixes give the range; else
        # character offsets do.
        if all(ids[: len(begin)] == begin for begin in begins):
            return len(begins[0]), len(begins[1])
        first, last = (len(border) for border in borders)
        places = self.hf(
            rendered, add_special_tokens=False, verbose=False, return_offsets_mapping=True
        )["offset_mapping"]
        inside = [n for n, (start, stop) in enumerate(places) if stop > first and start < last]
        return (inside[0], inside[-1] + 1) if inside else (len(begins[0]), len(begins[0]))

    def _prefix(self, messages: Sequence[Message], text: str, number: int, *, prompt: bool) -> str:
        """Renders leading messages, which must be a prefix of the whole conversation's text."""
        begin = self._apply(messages, prompt=prompt)
        if not text.startswith(begin):
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
    """Loads the tokenizer of a Hugging Face model, an imported one or a GGUF file.

    Args:
      path: a local or `gs://` directory, a GGUF file, or a name; see `hub.resolve`.

    Raises:
      UserError: if it is neither, or holds no readable tokenizer.
    """
    path = hub.resolve(path)
    check_scheme(path)
    if not is_gguf(path) and not epath.Path(path).is_dir():
        raise UserError(f"{path}: no such directory")
    tokenizer, generation = read_tokenizer(path)
    return Tokenizer(tokenizer, generation, where=str(path))


def _start(tokenizer: Any) -> list[int]:
    """Tokens that a tokenizer puts before every text: one, or none."""
    with_special, bare = (
        tokenizer("a", add_special_tokens=special, verbose=False)["input_ids"]
        for special in (True, False)
    )
    return list(with_special[:1]) if with_special[1 : 1 + len(bare)] == bare != with_special else []


def check_text(text: object, what: str = "text") -> str:
    """Returns the text if it can be encoded in UTF-8.

    Raises:
      UserError: if it is not a text, or holds half a surrogate pair, such as of an emoji cut in
        two.
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
    return str(text)  # subclasses, such as NumPy's, become plain texts


def _messages(conversation: Any) -> list[Message]:
    """Converts any form of a conversation to checked messages."""
    if isinstance(conversation, str):
        return [{"role": "user", "content": conversation}]
    if isinstance(conversation, tuple):
        if len(conversation) != 2 or not all(isinstance(text, str) for text in conversation):
            raise UserError("a prompt and its completion must be two texts")
        roles = ("user", "assistant")
        return [{"role": r, "content": t} for r, t in zip(roles, conversation, strict=True)]
    messages = list(conversation)
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
