"""Chat templates, which are programs that come with a model, rendered within a budget.

They run in Jinja's sandbox, which denies files and Python internals but allows unlimited loops and
texts. Here every iteration, call and character is counted, and the size of a single operation's
result is estimated before it is computed.
"""

from __future__ import annotations

import contextvars
import dataclasses
import datetime
import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from xrec_jax.core.errors import UserError

MOST_STEPS = 200_000  # iterations, calls and filters of one rendering
MOST_CHARACTERS = 10_000_000  # of the output, and of any intermediate value
MOST_SECONDS = 20.0
_LONGEST = 1_000_000  # characters of a template
_WIDTH = re.compile(r"\d{5}|%[^a-zA-Z%]*\*")  # in a format: a huge field width
_ANY_NUMBER = ("format", "format_map", "default", "d", "dict", "namespace", "update", "append")
_REPEATING = ("replace", "join", "indent", "expandtabs", "translate")
_CONSUMING = ("join", "sum", "list", "sort", "unique", "groupby", "batch", "slice")
_MEMBER = 16  # characters that an element of a list or object counts for
_UNBOUNDED = ("urlize", "wordwrap", "lipsum")  # no template of a model uses them
_budget: contextvars.ContextVar[_Budget] = contextvars.ContextVar("chat template")


class ExcessError(Exception):
    """A template exceeds its budget."""


@dataclasses.dataclass
class _Budget:
    """Remaining budget of one rendering."""

    until: float
    steps: int = MOST_STEPS
    characters: int = MOST_CHARACTERS

    def spend(self, steps: int = 1, characters: int = 0) -> None:
        self.steps -= steps
        self.characters -= characters
        if self.steps < 0:
            raise ExcessError(f"more than {MOST_STEPS:,} steps")
        if self.characters < 0:
            raise ExcessError(f"more than {MOST_CHARACTERS:,} characters")
        if time.monotonic() > self.until:
            raise ExcessError(f"more than {MOST_SECONDS:.0f} seconds")


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
      tokenizer: a `transformers` tokenizer with a template.
      where: name of the tokenizer, for messages.

    Raises:
        UserError: if there are several templates without a default, or the template is invalid.
    """

    def __init__(self, tokenizer: Any, *, where: str):
        self._where = where
        self._names = dict(tokenizer.special_tokens_map)
        with self._refusing():
            text = tokenizer.get_chat_template()
            if len(text) > _LONGEST:
                raise ExcessError(f"more than {_LONGEST:,} characters")
            self._template = _environment().from_string(text)

    def render(self, messages: Sequence[Mapping[str, str]], *, prompt: bool = False) -> str:
        """Renders a conversation as `apply_chat_template` of transformers does.

        Args:
          messages: messages with role and content.
          prompt: append the beginning of an answer.

        Raises:
          UserError: if the template refuses the messages, fails, or exceeds its budget.
        """
        token = _budget.set(_Budget(time.monotonic() + MOST_SECONDS))
        try:
            with self._refusing():
                return self._template.render(
                    messages=[dict(message) for message in messages],
                    tools=None,
                    documents=None,
                    add_generation_prompt=prompt,
                    **self._names,
                )
        finally:
            _budget.reset(token)

    def _refusing(self) -> _Refusing:
        return _Refusing(self._where)


class _Refusing:
    """Turns errors of a template into a `UserError`."""

    def __init__(self, where: str):
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ExcessError):
            raise UserError(f"{self._where}: its chat template asks for {error}") from error
        if isinstance(error, (Exception, MemoryError)):  # a template may raise anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{self._where}: its chat template fails: {reason}") from error


class _Generation(Extension):
    """`{% generation %}`, which marks answers for other tools; ignored here."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with a budget for loops, calls and sizes."""

    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        return _Counting().visit(tree).set_lineno(1)  # gives the new nodes line numbers

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        name, owner = getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
        _check_operands(name, owner, [*args, *kwargs.values()])
        return _measured(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operation(operator, left, right)
        return _measured(super().call_binop(context, operator, left, right))


class _Counting(NodeTransformer):
    """Rewrites loops, concatenations and macros so that they count their work."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 (named by the visitor)
        self.generic_visit(node)
        node.iter = _filter(node.iter, "_turns", _constants(node.body))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes), "_joined", 0)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:  # noqa: N802
        self.generic_visit(node)
        count = nodes.Output([_filter(nodes.Const(""), "_written", _constants(node.body))])
        node.body = [count, *node.body]
        return node


def _filter(node: Any, name: str, size: int) -> nodes.Filter:
    return nodes.Filter(node, name, [nodes.Const(size)], [], None, None)


def _constants(body: Iterable[nodes.Node]) -> int:
    """Number of literal characters of a body, written at every iteration."""
    nested = [literal for node in body for literal in node.find_all(nodes.TemplateData)]
    own = [node for node in body if isinstance(node, nodes.TemplateData)]
    return sum(len(literal.data) for literal in [*nested, *own])


def _turns(values: Iterable[Any], size: int) -> Iterator[Any]:
    budget = _budget.get()
    for value in values:
        budget.spend(1, size)
        yield value


def _joined(values: list[Any], size: int) -> str:
    _budget.get().spend(1, size)
    _check_size(sum(map(_size, values)))
    return _measured("".join(map(str, values)))


def _written(value: object, size: int) -> object:
    _budget.get().spend(1, size)
    return value


@jinja2.pass_context  # prevents Jinja from calling it at compile time
def _output(context: object, value: object) -> str:
    """Counts the output; Jinja's `finalize` hook for every value that a template outputs."""
    del context
    _check_size(_size(value))
    text = value if isinstance(value, str) else str(value)
    _budget.get().spend(1, len(text))
    return text


def _check_size(size: int) -> None:
    if size > MOST_CHARACTERS:
        raise ExcessError(f"a value of more than {MOST_CHARACTERS:,} characters or members")


def _size(value: object) -> int:
    """Approximate number of characters of a value as text, counted up to the limit.

    A list may contain one other list many times, and that one a third, so that a small object can
    have an enormous text.
    """
    total, waiting = 0, [value]
    while waiting and total <= MOST_CHARACTERS:
        item = waiting.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, (list, tuple)):
            total += _MEMBER * len(item)
            waiting += item
        elif isinstance(item, dict):
            total += _MEMBER * len(item)
            waiting += [*item, *item.values()]
        elif isinstance(item, int):
            total += item.bit_length() // 3 + 1
        else:
            total += _MEMBER
    return total


def _measured(value: Any) -> Any:
    """Checks the size of a result and spends its cost."""
    if isinstance(value, (str, list, tuple, dict)):
        _check_size(len(value))
        _budget.get().spend(1 + len(value) // 1000)
    return value


def _check_operands(name: str, owner: object, values: list[Any]) -> None:
    """Refuses a call or filter whose result could be huge, judged by its arguments.

    Args:
      name: name of the function.
      owner: object of a method, or input of a filter.
      values: other arguments.
    """
    _budget.get().spend()
    total = sum(map(_size, [owner, *values]))
    _check_size(total)
    if name not in _ANY_NUMBER:
        for value in values:
            if isinstance(value, (int, float)) and not abs(value) <= _LONGEST:
                raise ExcessError(f"the number {str(value)[:20]} as an argument")
    if name in _REPEATING:  # one text may be inserted at every position of another
        sizes = [len(v) for v in [owner, *values] if isinstance(v, (str, list, tuple))]
        sizes += [abs(int(value)) for value in values if isinstance(value, (int, float))]
        first, second = sorted([*sizes, 1, 1])[-2:]
        _check_size((first + 1) * second + total)


def _check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuses an operation whose result would be huge."""
    _budget.get().spend()
    sized = (str, list, tuple)
    if operator == "%" and isinstance(left, str):
        _check_format(left)
        _check_size(len(left) + _size(right))
    elif operator == "*" and isinstance(left, sized) != isinstance(right, sized):
        text, times = (left, right) if isinstance(left, sized) else (right, left)
        _check_size(len(text) * max(int(times), 0))
    elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length()
        if (bits * abs(right) if operator == "**" else bits + right.bit_length()) > 100_000:
            raise ExcessError("a number of more than 100,000 bits")
    elif operator == "+" and isinstance(left, sized) and isinstance(right, sized):
        _check_size(len(left) + len(right))


def _check_format(text: object) -> None:
    """Refuses a format with huge field widths."""
    if _WIDTH.search(str(text)):
        raise ExcessError(f"the format {str(text)[:40]!r}")


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a Jinja filter: checks its operands and counts its work."""
    skipped = 0 if getattr(function, "jinja_pass_arg", None) is None else 1

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        before, (value, *others) = args[:skipped], args[skipped:]
        if name in _CONSUMING and not isinstance(value, (str, dict)):
            value = list(_turns(value, 0))
        if name == "format":
            _check_format(value)
        _check_operands(name, value, [*others, *kwargs.values()])
        return _measured(function(*before, value, *others, **kwargs))

    return bounded


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: object, ensure_ascii: bool = False, **options: Any) -> str:
    """JSON without Jinja's HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _now(layout: str) -> str:
    _check_format(layout)
    return datetime.datetime.now().strftime(layout)


def _environment() -> _Sandbox:
    """Jinja environment of transformers, without filters that no model's template uses."""
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        optimized=False,
        finalize=_output,
    )
    environment.filters["tojson"] = _to_json
    for name in _UNBOUNDED:
        environment.filters.pop(name, None)
        environment.globals.pop(name, None)
    environment.filters = {
        name: _bounded(name, function) for name, function in environment.filters.items()
    }
    environment.filters |= {"_turns": _turns, "_joined": _joined, "_written": _written}
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    return environment
