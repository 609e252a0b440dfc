"""Level 2: prompts, instruction sets and explanations as text; works on rows, not on data sets."""

from xrec_jax.text.prompts import published  # noqa: F401 (its templates register)
from xrec_jax.text.prompts.parsing import parse_prompt
from xrec_jax.text.prompts.render import Prompt, TruncationCount, render_prompt, select_history
from xrec_jax.text.prompts.templates import Template, generic, get, names, register, template_from
from xrec_jax.text.records.instructions import (
    Instruction,
    deduplicate,
    from_messages,
    read_instructions,
    write_instructions,
)
from xrec_jax.text.records.splits import count_by, select, split_by_prompt
from xrec_jax.text.synthetic.corpus import world_sentences
from xrec_jax.text.synthetic.explanations import Length, explain, mentioned_reasons
from xrec_jax.text.synthetic.instructions import Case, build_instructions

__all__ = [
    "Case",
    "Instruction",
    "Length",
    "Prompt",
    "Template",
    "TruncationCount",
    "build_instructions",
    "count_by",
    "deduplicate",
    "explain",
    "from_messages",
    "generic",
    "get",
    "mentioned_reasons",
    "names",
    "parse_prompt",
    "read_instructions",
    "register",
    "render_prompt",
    "select",
    "select_history",
    "split_by_prompt",
    "template_from",
    "world_sentences",
    "write_instructions",
]
