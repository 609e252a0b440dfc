"""Mistakes around real language models: GGUF files, their training, and the instruction curve."""

from __future__ import annotations

from experiments.mutant import Mutant

_GGUF = "xrec_jax/llm/io/gguf/"
_MODEL = "tests/llm/io/gguf/test_model.py::"
_CONFIG = "tests/llm/io/gguf/test_config.py::"
_TOKENIZER = "tests/llm/io/gguf/test_tokenizer.py::"
_EXPORT = "tests/llm/io/gguf/test_export.py::"

LANGUAGE_MODEL = (
    Mutant(
        "gguf_rotary_rows_as_stored",
        _GGUF + "model.py",
        "tensors[name] = Rotated(stored, config.head_dim) if rotated else stored",
        "tensors[name] = stored",
        (
            _MODEL + "test_a_model_is_that_of_the_directory",
            _MODEL + "test_parts_of_heads",
            _EXPORT + "test_round_trip_is_exact_in_float32",
        ),
    ),
    Mutant(
        "gguf_parts_of_heads_begin_at_the_head",
        _GGUF + "model.py",
        "yield begin, from_interleaved(stored, dim)[begin - first : end - first]",
        "yield begin, from_interleaved(stored, dim)[: end - begin]",
        (_MODEL + "test_parts_of_heads",),
    ),
    Mutant(
        "gguf_rope_base_is_the_default",
        _GGUF + "config.py",
        "rope_theta=values.number(Key.ROPE_BASE, default=10000.0),",
        "rope_theta=10000.0,",
        (
            _CONFIG + "test_numbers_are_what_they_were_before_float32",
            _MODEL + "test_scaled_rotary_frequencies",
        ),
    ),
    Mutant(
        "gguf_linear_scaling_is_forgotten",
        _GGUF + "config.py",
        'return None if kind == "none" else _linear(factor)',
        "return None",
        (_CONFIG + "test_accepted", _EXPORT + "test_round_trip_is_exact_in_float32"),
    ),
    Mutant(
        "gguf_rope_factors_are_ignored",
        _GGUF + "model.py",
        "return with_rope_factors(config, factors, where=str(file.path))",
        "return config",
        (_MODEL + "test_scaled_rotary_frequencies",),
    ),
    Mutant(
        "gguf_turn_ends_end_nothing",
        _GGUF + "tokenizer.py",
        "for key in (Key.EOT_ID, Key.EOM_ID))",
        "for key in (Key.EOM_ID,))",
        (_TOKENIZER + "test_turns_end_texts",),
    ),
    Mutant(
        "gguf_smollm_reads_numbers_whole",
        _GGUF + "pretokenizers.py",
        "_SINGLE_DIGITS = PreTokenizer((DIGIT, GPT2))",
        "_SINGLE_DIGITS = PreTokenizer((GPT2,))",
        (_TOKENIZER + "test_pieces_of_a_pre_tokenizer",),
    ),
    Mutant(
        "gguf_sentencepiece_merges_the_rarest_first",
        _GGUF + "tokenizer.py",
        "(-score, -place, token[:place], token[place:])",
        "(score, -place, token[:place], token[place:])",
        (
            _TOKENIZER + "test_sentencepiece_merges_by_score",
            _TOKENIZER + "test_merges_of_scores_are_sorted_by_the_score_of_their_result",
        ),
    ),
    Mutant(
        "gguf_export_permutes_keys_by_query_heads",
        _GGUF + "export.py",
        "return to_interleaved(rows, config.head_dim) if is_rotated(parameter) else rows",
        "dim = len(rows) // config.num_heads\n"
        "    return to_interleaved(rows, dim) if is_rotated(parameter) else rows",
        (
            _EXPORT + "test_round_trip_is_exact_in_float32",
            _EXPORT + "test_another_reader_finds_names_shapes_and_order",
        ),
    ),
    Mutant(
        "gguf_export_of_a_scaled_model_is_unscaled",
        _GGUF + "config.py",
        'if config.rope_scaling is None or config.rope_scaling.kind != "llama3":',
        'if config.rope_scaling is None or config.rope_scaling.kind == "llama3":',
        (
            _CONFIG + "test_published_scalings_are_recovered",
            _EXPORT + "test_another_reader_finds_names_shapes_and_order",
        ),
    ),
    Mutant(
        "activations_of_another_layer",
        "xrec_jax/llm/model/layer_scan.py",
        "(stored, integers(values)), reverse=True)",
        "(stored, integers(values)))",
        ("tests/llm/test_layer_scan.py::test_outputs_and_gradients_are_those_of_a_loop",),
    ),
    Mutant(
        "instruction_curve_learns_from_held_out_users",
        "experiments/instruction_sets.py",
        'elif (record["dataset"], record["row"]) in rows or any(',
        "elif any(",
        (
            "tests/test_experiments_instructions.py::"
            "test_what_would_give_a_held_out_prompt_away_is_left_out",
        ),
    ),
    Mutant(
        "held_out_examples_of_a_file_are_tuned_on",
        "xrec_jax/tasks/instructions.py",
        "train = [record for record in records if record.group not in groups]",
        "train = [record for record in records if groups]",
        ("tests/tasks/test_instructions.py::test_held_out_examples_of_a_file_of_their_own",),
    ),
    Mutant(
        "attention_gradient_without_its_row_sums",
        "xrec_jax/llm/model/blocked.py",
        " - sums[:, :, start:stop, None]",
        "",
        (
            "tests/llm/test_attention.py::test_gradient_by_finite_differences",
            "tests/llm/test_attention.py::test_blocks_and_chunks_of_heads",
        ),
    ),
    Mutant(
        "attention_with_the_mask_of_another_row",
        "xrec_jax/llm/model/blocked.py",
        "rows = jnp.arange(len(grouped[0])) // kv\n    out,",
        "rows = jnp.arange(len(grouped[0])) % kv\n    out,",
        ("tests/llm/test_attention.py::test_blocks_and_chunks_of_heads",),
    ),
    Mutant(
        "lora_gradient_of_a_doubled",
        "xrec_jax/llm/model/products.py",
        "da, db = _dot(back_transposed, x).astype",
        "da, db = (2 * _dot(back_transposed, x)).astype",
        ("tests/llm/test_layer_scan.py::test_gradients_of_a_low_rank_product",),
    ),
    Mutant(
        "prompt_layers_all_read_the_first_prefix",
        "xrec_jax/llm/model/llama.py",
        "first._replace(cache=prefix)",
        "first",
        ("tests/llm/test_llama.py::test_cached_continues_a_sequence",),
    ),
)
