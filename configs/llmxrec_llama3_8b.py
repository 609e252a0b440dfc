"""LLMXRec on LLaMA-3-8B or 3.1-8B: LoRA on all projections, bfloat16.

    xrec run --config=configs/llmxrec_llama3_8b.py --workdir=runs/llama3_8b \
        --config.llm.path=DIR --config.instruct.path=INSTRUCTIONS.jsonl --config.instruct.stratify=

(`stratify=` for a set of your own; LLMXRec's has the key `dataset`, the default.)

`DIR` is a Hugging Face directory with the weights, or what `xrec import` made of one, which many
hosts read faster.

Mesh and batch for some machines, as flags (`data` takes all other devices):

    one H200         the defaults
    8 H100 or H200   --config.mesh.fsdp=8 --config.instruct.train.batch_size=8
    v5e-16           --config.mesh.fsdp=16 --config.instruct.train.batch_size=16
                     --config.llm.generation_batch=64
    v5p-128          --config.mesh.fsdp=16 --config.instruct.train.batch_size=64
                     (64 chips: data=4)

The batch must be a multiple of data x fsdp. With less memory: `--config.llm.quantization=nf4`.
No such device was at hand when this was written: time and figures are not known, and the sizes are
reasoned from memory needs.
"""

from ml_collections import ConfigDict

from xrec_jax import defaults


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.published_llmxrec()
    config.name = "llmxrec_llama3_8b"
    return defaults.variant(config, arg)
