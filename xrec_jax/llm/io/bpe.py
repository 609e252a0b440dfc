"""Training of a small byte-level BPE tokenizer, for models trained from scratch."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

from xrec_jax.core.errors import UserError
from xrec_jax.llm.io.hf_export import new_directory
from xrec_jax.llm.io.tokenizer import SOFT, Tokenizer, load_tokenizer
from xrec_jax.llm.io.tokenizer_files import quiet_transformers

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL = (BOS, EOS, PAD, SOFT, *ROLES)  # ids 0, 1, 2, ...
SMALLEST = 256 + len(SPECIAL)  # least size of a vocabulary: bytes and special tokens
# Role tokens separate messages: BPE never merges across a special token.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_bpe(
    texts: Iterable[str], path: str | pathlib.Path, *, vocab_size: int, min_frequency: int = 2
) -> Tokenizer:
    """Trains a tokenizer and writes it as a directory that `transformers` loads.

    Deterministic: the same texts in the same order give the same files.

    Args:
      texts: training texts, iterated once.
      path: output directory; must not exist, or be empty.
      vocab_size: most ids; fewer if the texts have fewer pairs to merge.
      min_frequency: least frequency of a merged pair.

    Raises:
      UserError: if the vocabulary cannot hold all bytes, or the directory cannot be written.
    """
    if vocab_size < SMALLEST:
        raise UserError(
            f"vocab_size={vocab_size}: the bytes and special tokens alone take {SMALLEST}"
        )
    quiet_transformers()
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    # Single digits keep numbers readable for small models; bytes make every text encodable.
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    # Plain texts begin with the BOS token, as LLaMA's do.
    model.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, SPECIAL.index(BOS))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[SOFT, *ROLES],
        chat_template=TEMPLATE,
    )
    with new_directory(path) as folder:
        tokenizer.save_pretrained(str(folder))
    return load_tokenizer(path)
