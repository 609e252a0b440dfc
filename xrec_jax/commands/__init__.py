"""The verbs of the command line, one file each or one for a family, and their table.

To add one: a file here with a `Verb`, a function in `xrec_jax.api`, and a line in the table.
"""

from __future__ import annotations

from xrec_jax.commands import (
    audit,
    compare,
    configs,
    convert,
    encode,
    explain,
    rate,
    recommend,
    report,
    run,
)
from xrec_jax.commands.verb import Verb

# In the order in which a user needs them, which `xrec --help` keeps.
VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        run.RUN,
        run.EVALUATE,
        recommend.RECOMMEND,
        explain.EXPLAIN,
        compare.COMPARE,
        rate.MAKE,
        rate.COLLECT,
        audit.AUDIT,
        report.REPORT,
        encode.ENCODE,
        convert.IMPORT,
        convert.EXPORT_HF,
        convert.EXPORT_GGUF,
        convert.EXPORT_PEFT,
        configs.CONFIGS,
    )
}
FORMER_NAMES = {"import-hf": "import"}  # still understood
