"""Faults of LLMXRec's published files (BPR-MF), as an outsider finds them.

    xrec audit --config=configs/llmxrec_audit.py --output=llmxrec_audit.json

reads `../shared/data/llmxrec`; elsewhere give `--config.audit.prompts=FILE` and so on. `:tiny`
needs no files.

Five seconds on one core, exit status 1: 9 errors, among them all 240 tuning pairs evaluated, the
target in 28 % of the news histories shown, two groups of judgements that are copies; 19 warnings,
among them 82.6 % of the labels being 2, 92.9 % guessed from the pair of systems alone, 1,014
refusals by ChatGLM2, 174 attribute answers that do not parse.
"""

from ml_collections import ConfigDict

from xrec_jax import defaults

DATA = "../shared/data/llmxrec"


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "llmxrec_audit"
    config.stages = ()
    config.data.format = "none"
    config.audit.update(
        dict(
            instructions=f"{DATA}/instructions.jsonl",
            prompts=f"{DATA}/bpr-mf/prompts.jsonl.gz",
            explanations=f"{DATA}/bpr-mf/explanations.jsonl.gz",
            judgements=f"{DATA}/judgements.jsonl.gz",
            attributes=f"{DATA}/attributes.jsonl",
            ratings=f"{DATA}/human_ratings.csv",
        )
    )
    return defaults.variant(config, arg)
