"""Stop strings, including those that spell special tokens."""

from __future__ import annotations

from collections.abc import Sequence

from xrec_jax.core.errors import UserError
from xrec_jax.llm.io.tokenizer import Tokenizer, check_text


class Stops:
    """Detects stop strings in the text of an answer.

    Answers are decoded without special tokens, so a stop string that spells one (such as a
    template's end-of-turn token) is searched in the text with them.

    Args:
      texts: the stop strings; None or empty for none.
      tokenizer: the model's tokenizer.

    Raises:
      UserError: if they are not a list of texts, or one is empty.
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
        self._special = sorted(spelled - ends)  # end-of-text tokens end an answer anyway
        self._plain = [text for text in self.texts if text not in spelled]

    def __bool__(self) -> bool:
        return bool(self._special or self._plain)

    def keep(self, ids: list[int]) -> int | None:
        """Least number of an answer's tokens that contain a stop string; None if none does."""
        if not self._inside(ids):
            return None
        # A binary search: once a prefix contains a stop string, longer ones do as well.
        low, high = 0, len(ids)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._inside(ids[:middle]) else (middle, high)
        return high

    def cut(self, ids: list[int]) -> str:
        """Text of an answer before its first stop string."""
        text = self._tokenizer.decode(ids)
        places = [text.index(end) for end in self._plain if end in text]
        places += [self._before(ids, end) for end in self._special]
        return text[: min(places, default=len(text))]

    def _before(self, ids: list[int], end: str) -> int:
        """Number of characters, without special tokens, before a stop string that spells one."""
        text = self._tokenizer.decode_whole(ids)
        if end not in text:
            return len(self._tokenizer.decode(ids))
        before = text[: text.index(end)]
        for token in self._tokenizer.special_texts:
            before = before.replace(token, "")
        return len(before)

    def _inside(self, ids: list[int]) -> bool:
        text = self._tokenizer.decode(ids) if self._plain else ""
        full_text = self._tokenizer.decode_whole(ids) if self._special else ""
        return any(end in text for end in self._plain) or any(
            end in full_text for end in self._special
        )
