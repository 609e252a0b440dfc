"""Matching of layouts against text in time linear in its length.

An equivalent regular expression backtracks: on a text that nearly matches, its time is polynomial
in the length, with one more power for every field. Here each piece of the layout is tried at each
position once: failures are remembered (the "bit-state" search of Russ Cox's articles on regular
expressions). The result is that of the expression: fields are lazy, optional parts greedy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from xrec_jax.text.prompts import layout as layouts

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Piece:
    """A step of a pattern.

    Attributes:
      kind: "text", a literal; "field", within one line; "lines", over several; "same", the text
        that its group matched before; "optional", the steps up to `skip` may be missing; "mark",
        records a position; "end", the end of the text; "stop", the match is complete.
      text: the literal.
      group: name under which a field or position is recorded.
      skip: number of the step after an optional part.
    """

    kind: str
    text: str = ""
    group: str = ""
    skip: int = 0


def pieces_of(layout: str, prefix: str = "", *, first: int = 0) -> tuple[Piece, ...]:
    """Compiles a layout to steps, with a group PREFIX + NAME for every field.

    Args:
      layout: a layout; a repeated field must match the same text each time.
      prefix: prefix of the group names.
      first: number of the first step within the whole pattern.
    """
    pieces: list[Piece] = []
    seen: set[str] = set()
    for part in layouts.parse_layout(layout):
        if part.optional:
            pieces.append(Piece("optional", skip=first + len(pieces) + 1 + len(part.pieces)))
        for piece in part.pieces:
            if isinstance(piece, str):
                pieces.append(Piece("text", piece))
                continue
            kind = "same" if piece.name in seen else "field"
            pieces.append(Piece(kind, group=prefix + piece.name))
            seen.add(piece.name)
    return tuple(pieces)


class Pattern:
    """A pattern: steps to be matched in order.

    Args:
      pieces: the steps.
    """

    def __init__(self, pieces: Sequence[Piece]):
        self.pieces = tuple(pieces)
        # Steps that may follow each field.
        self.followers = [tuple(_first(self.pieces, step + 1)) for step in range(len(self.pieces))]
        self.repeated = tuple({p.group for p in self.pieces if p.kind == "same"})

    def match(self, text: str, start: int = 0) -> dict[str, Span] | None:
        """Matches a text from a position on.

        Returns:
          Spans of the groups, without those of missing optional parts, and of the whole match under
          ""; None if there is no match.
        """
        return _Search(self, text).run(start)


class _Search:
    """State of one search: failed states, and the last occurrence of each literal."""

    def __init__(self, pattern: Pattern, text: str):
        self._pattern, self._text = pattern, text
        self._tried: set[tuple] = set()
        self._literals: dict[tuple[str, int], Span] = {}  # (searched from, found at)
        self._line: Span = (0, -1)

    def run(self, start: int) -> dict[str, Span] | None:
        """Depth-first search; see `Pattern.match`."""
        pieces, text = self._pattern.pieces, self._text
        spans: dict[str, Span] = {}
        # Previous values of groups, restored on backtracking.
        trail: list[tuple[str, Span | None]] = []
        # Step, position, length of the trail, and start of the current field (-1: here).
        stack = [(0, start, 0, -1)]
        while stack:
            step, place, kept, began = stack.pop()
            # Backtracking: restore the groups to their values when the state was pushed.
            while len(trail) > kept:
                group, before = trail.pop()
                spans.pop(group) if before is None else spans.update({group: before})
            # Literals match in one way only, so they need no state of their own.
            while step < len(pieces) and pieces[step].kind == "text":
                if not text.startswith(pieces[step].text, place):
                    break
                place += len(pieces[step].text)
                step += 1
            if step == len(pieces) or pieces[step].kind == "stop":
                return spans | {"": (start, place)}
            piece = pieces[step]
            if piece.kind in ("field", "lines"):
                began = place if began < 0 else began
                place = self._end(step, place, began)
                # If a field is repeated later, its content is part of the state.
                held = began if piece.group in self._pattern.repeated else -1
                if place < 0 or not self._first_time(step, place, spans, held):
                    continue
                # First try to end the field here; the longer alternative is pushed below it.
                stack.append((step, place + 1, kept, began))
                trail.append((piece.group, spans.get(piece.group)))
                spans[piece.group] = began, place
                stack.append((step + 1, place, len(trail), -1))
            elif piece.kind == "optional":
                if self._first_time(step, place, spans):
                    # The last one is tried first: with the optional part, then without.
                    stack += [(piece.skip, place, kept, -1), (step + 1, place, kept, -1)]
            elif piece.kind == "mark":
                trail.append((piece.group, spans.get(piece.group)))
                spans[piece.group] = place, place
                stack.append((step + 1, place, len(trail), -1))
            elif piece.kind == "end":
                if place == len(text):
                    stack.append((step + 1, place, kept, -1))
            elif piece.kind == "same" and piece.group in spans:
                previous = text[slice(*spans[piece.group])]
                if text.startswith(previous, place):
                    stack.append((step + 1, place + len(previous), kept, -1))
        return None

    def _first_time(self, step: int, place: int, spans: Mapping[str, Span], held: int = -1) -> bool:
        state: tuple = (step, place, held)
        for group in self._pattern.repeated:
            state += (self._text[slice(*spans[group])] if group in spans else None,)
        if state in self._tried:
            return False
        self._tried.add(state)
        return True

    def _end(self, step: int, place: int, began: int) -> int:
        """First position from `place` on where a field may end; -1 for none."""
        limit = len(self._text)
        if self._pattern.pieces[step].kind == "field":
            # Rendered values are on one line; see `layout.text_value`.
            limit = self._end_of_line(began)
        if place > limit:
            return -1
        best = -1
        for piece in self._pattern.followers[step]:
            position = self._next(piece, place, limit)
            if position >= 0 and not 0 <= best <= position:
                best = position
        return best

    def _next(self, piece: Piece, place: int, limit: int) -> int:
        if piece.kind == "end":
            return limit if limit == len(self._text) else -1
        if piece.kind != "text":
            return place
        key = piece.text, limit
        # A hit holds for every place from the start of its search on: no new search up to it.
        low, position = self._literals.get(key, (limit + 1, -1))
        if place < low or -1 < position < place:
            position = self._text.find(piece.text, place, limit + len(piece.text))
            self._literals[key] = place, position
        return position

    def _end_of_line(self, place: int) -> int:
        low, end = self._line
        if not low <= place <= end:
            end = self._text.find("\n", place)
            end = len(self._text) if end < 0 else end
            self._line = place, end
        return end


def _first(pieces: Sequence[Piece], step: int) -> Iterator[Piece]:
    """Yields the steps that may come first from `step` on."""
    while step < len(pieces):
        piece = pieces[step]
        if piece.kind == "optional":
            yield from _first(pieces, step + 1)
            step = piece.skip
        elif piece.kind == "mark":
            step += 1
        else:
            yield piece
            return
    yield Piece("stop")
