"""Texts that end an answer, special tokens among them."""

from __future__ import annotations

from collections.abc import Sequence

from xrec_jax.core.errors import UserError
from xrec_jax.llm.io.tokenizer import Tokenizer, check_text


class Stops:
    """Finds where an answer's text reaches one of several ends.

    An answer's text leaves special tokens out, so an end that spells one (a template's mark of the
    end of a turn, say) is looked for in the text with them.

    Args:
      texts: the ends; None or empty for none.
      tokenizer: the model's.

    Raises:
      UserError: if they are no list of texts, or one is empty.
    """

    def __init__(self, texts: Sequence[str] | None, tokenizer: Tokenizer):
        texts = [] if texts is None else texts
        if isinstance(texts, str) or not isinstance(texts, (list, tuple, set, frozenset)):
            raise UserError(f"stop={texts!r:.60} must be a list of texts")
        self.texts = [check_text(text, f"stop={text!r:.60}") for text in texts]
        if not all(self.texts):
            raise UserError(f"stop={texts!r:.60} must be a list of texts that are not empty")
        self._tokenizer = tokenizer
        ends = {tokenizer.decode_whole([token]) for token in tokenizer.eos_ids}
        special = tokenizer.special_texts
        spelled = {text for text in self.texts if any(token in text for token in special)}
        self._special = sorted(spelled - ends)  # those end an answer anyway
        self._plain = [text for text in self.texts if text not in spelled]

    def __bool__(self) -> bool:
        return bool(self._special or self._plain)

    def keep(self, ids: list[int]) -> int | None:
        """How many tokens of an answer reach an end, the fewest; None if none does."""
        if not self._inside(ids):
            return None
        low, high = 0, len(ids)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._inside(ids[:middle]) else (middle, high)
        return high

    def cut(self, ids: list[int]) -> str:
        """The text of an answer before the first end in it."""
        text = self._tokenizer.decode(ids)
        places = [text.index(end) for end in self._plain if end in text]
        places += [self._before(ids, end) for end in self._special]
        return text[: min(places, default=len(text))]

    def _before(self, ids: list[int], end: str) -> int:
        """Characters of the text, without special tokens, that stand before such an end."""
        whole = self._tokenizer.decode_whole(ids)
        if end not in whole:
            return len(self._tokenizer.decode(ids))
        before = whole[: whole.index(end)]
        for token in self._tokenizer.special_texts:
            before = before.replace(token, "")
        return len(before)

    def _inside(self, ids: list[int]) -> bool:
        text = self._tokenizer.decode(ids) if self._plain else ""
        whole = self._tokenizer.decode_whole(ids) if self._special else ""
        return any(end in text for end in self._plain) or any(end in whole for end in self._special)
