"""The mistakes of `experiments/mutations.py`: what each replaces, and the tests that must fail."""

from __future__ import annotations

from experiments.mutant import Mutant
from experiments.mutants_language_model import LANGUAGE_MODEL

_ROUND = "tests/joint/test_round.py::"
_INSIDE = "tests/joint/test_inside.py::"
_COOCCURRENCE = "tests/recommenders/test_cooccurrence.py::"
_MATCH = "tests/recommenders/test_match.py::"
_JOINT_ROUND = "xrec_jax/joint/round.py"

_JOINT = (
    Mutant(
        "negated_reward",
        "xrec_jax/joint/scoring.py",
        "return gather(score), gather(parts)",
        "return -gather(score), gather(parts)",
        (_ROUND + "test_a_token_that_is_paid_for_becomes_likelier",),
    ),
    Mutant(
        "negated_advantages",
        _JOINT_ROUND,
        '"advantages": np.asarray(advantages)}',
        '"advantages": -np.asarray(advantages)}',
        (_ROUND + "test_a_token_that_is_paid_for_becomes_likelier",),
    ),
    Mutant(
        "policy_stays",
        _JOINT_ROUND,
        "policy=part_of(policy),",
        "policy=state.policy,",
        (_ROUND + "test_a_token_that_is_paid_for_becomes_likelier",),
    ),
    Mutant(
        "groups_mixed_up",
        _JOINT_ROUND,
        "jnp.arange(len(states)) // cfg.rollout.group_size",
        "jnp.arange(len(states)) % (len(states) // cfg.rollout.group_size)",
        (_ROUND + "test_answers_are_compared_with_those_to_the_same_prompt",),
    ),
    Mutant(
        "rollouts_of_mixed_groups",
        _JOINT_ROUND,
        "return np.repeat(np.array(chosen, np.int64), group)",
        "return np.tile(np.array(chosen, np.int64), group)",
        (_INSIDE + "test_every_training_state_is_drawn_before_any_comes_again",),
    ),
    Mutant(
        "greedy_rollouts",
        "xrec_jax/joint/setup.py",
        "return Sampling(temperature=self.cfg.rollout.temperature)",
        "return Sampling(temperature=0.0)",
        (_ROUND + "test_rollouts_are_drawn_from_the_policy",),
    ),
    Mutant(
        "rollouts_as_they_are_read",
        _JOINT_ROUND,
        "        key=(sides.seed, Stream.ROLLOUTS, number),\n        exploring=True,\n",
        "        key=(sides.seed, Stream.ROLLOUTS, number),\n",
        (_ROUND + "test_rollouts_are_drawn_from_the_policy",),
    ),
    Mutant(
        "unfinished_answers_unpunished",
        _JOINT_ROUND,
        "whole = missing_eos(jnp.asarray(score), jnp.asarray(buffer.ended), cfg.ppo.missing_eos)",
        "whole = jnp.asarray(score)",
        (
            _ROUND + "test_answers_are_compared_with_those_to_the_same_prompt",
            _ROUND + "test_a_critic_is_told_what_answers_earned",
        ),
    ),
    Mutant(
        "spread_of_groups_always_divides",
        _JOINT_ROUND,
        " scale=cfg.ppo.scale,",
        "",
        (_ROUND + "test_answers_are_compared_with_those_to_the_same_prompt",),
    ),
    Mutant(
        "kl_controller_stands_still",
        _JOINT_ROUND,
        "controller=put_replicated(controller, shared.mesh),",
        "controller=state.controller,",
        (_ROUND + "test_the_weight_of_the_kl_follows_its_target",),
    ),
    Mutant(
        "kl_pays",
        "xrec_jax/training/rl/advantages.py",
        "return advantages - penalty, score - penalty",
        "return advantages + penalty, score - penalty",
        (_ROUND + "test_answers_are_compared_with_those_to_the_same_prompt",),
    ),
    Mutant(
        "kl_within_the_group",
        "xrec_jax/training/rl/advantages.py",
        "group_advantages(score[:, 0], groups",
        "group_advantages((score - penalty)[:, 0], groups",
        ("tests/training/test_advantages.py::test_equal_scores_stay_equal_beside_a_kl",),
    ),
    Mutant(
        "parameters_chosen_on_test_users",
        "xrec_jax/joint/recommender/fitting.py",
        'fused.evaluate("few", params, frozen, read)',
        'fused.evaluate("test", params, frozen, read)',
        (_INSIDE + "test_parameters_are_chosen_on_looked_at_valid_users",),
    ),
    Mutant(
        "looked_at_events_are_test_events",
        "xrec_jax/joint/recommender/fused.py",
        "few = split.valid.take(np.isin(split.valid.user, self.setup.tracked_users))",
        "few = split.test.take(np.isin(split.test.user, self.setup.tracked_users))",
        (_INSIDE + "test_parameters_are_chosen_on_looked_at_valid_users",),
    ),
    Mutant(
        "valid_users_read_test_texts",
        "xrec_jax/joint/recommender/fused.py",
        'rows = states.rows(TEST if group == "test" else VALID)',
        "rows = states.rows(TEST)",
        (_INSIDE + "test_parameters_are_chosen_on_looked_at_valid_users",),
    ),
    Mutant(
        "valid_lists_of_test_candidates",
        "xrec_jax/joint/recommender/reranker.py",
        'rows = states.rows(TEST if group == "test" else VALID)',
        "rows = states.rows(TEST)",
        ("tests/joint/test_granularity.py::test_lists_are_ranked_as_sorted_anew",),
    ),
    Mutant(
        "shuffled_texts_are_ones_own",
        "xrec_jax/joint/controls/systems.py",
        "array[rows] = array[other]",
        "array[rows] = array[rows]",
        (_INSIDE + "test_shuffled_texts_are_those_of_other_users",),
    ),
    Mutant(
        "another_user_is_the_same",
        "xrec_jax/joint/recommender/rows.py",
        "    return place\n",
        "    return np.arange(len(users))\n",
        (
            _INSIDE + "test_other_users_texts_are_other_users",
            _INSIDE + "test_shuffled_texts_are_those_of_other_users",
        ),
    ),
    Mutant(
        "rewarded_against_ones_own_text",
        "xrec_jax/joint/recommender/fused.py",
        '"other_encoding": encoding[other],\n                "other_present": present[other],',
        '"other_encoding": encoding[places],\n                "other_present": present[places],',
        ("tests/joint/test_setup.py::test_a_text_is_worth_its_mean_over_the_targets",),
    ),
    Mutant(
        "matched_with_absent_parts",
        "xrec_jax/recommenders/explained/reading.py",
        'query = jnp.where(mask, query * constants["query_scale"], 0.0)',
        'query = query * constants["query_scale"]',
        (_MATCH + "test_without_a_text_scores_are_the_bases_to_the_last_bit",),
    ),
    Mutant(
        "matched_with_other_items",
        "xrec_jax/recommenders/explained/match.py",
        "    vectors[present] = own /",
        "    vectors[present] = own[::-1] /",
        (
            _MATCH + "test_space_of_the_items",
            _MATCH + "test_it_learns_which_items_a_text_speaks_of",
        ),
    ),
    Mutant(
        "items_of_a_run_not_matched",
        "xrec_jax/joint/recommender/fused.py",
        "item_vectors(*self.setup.item_encoding, projection)",
        "0 * item_vectors(*self.setup.item_encoding, projection)",
        ("tests/joint/test_setup.py::test_texts_meet_the_items_of_the_run",),
    ),
    Mutant(
        "pretrained_on_held_out_visits",
        "xrec_jax/tasks/pretraining.py",
        "histories = Histories.of([data.split.train], data.dataset.num_users)",
        "histories = Histories.of([data.dataset.interactions], data.dataset.num_users)",
        ("tests/tasks/test_pretraining.py::test_no_held_out_visit_is_pretrained_on",),
    ),
    Mutant(
        "readings_of_held_out_reviews",
        "xrec_jax/tasks/pretraining.py",
        "reviews, train = world.reviews, data.learned",
        "reviews, train = world.reviews, data.dataset.interactions",
        ("tests/tasks/test_pretraining.py::test_no_held_out_visit_is_pretrained_on",),
    ),
    Mutant(
        "warm_start_without_an_end",
        "xrec_jax/joint/actor.py",
        "answers = [[*row, tokenizer.eos_id] for row in ids]",
        "answers = [[*row] for row in ids]",
        (_INSIDE + "test_the_warm_start_learns_to_end",),
    ),
    Mutant(
        "kl_to_another_reference",
        _JOINT_ROUND,
        'reference = sides.warm_policy if cfg.kl.reference == "warm_start" else {}',
        'reference = sides.warm_policy if cfg.kl.reference == "base" else {}',
        (_ROUND + "test_answers_are_compared_with_those_to_the_same_prompt",),
    ),
    Mutant(
        "texts_of_the_last_round",
        "xrec_jax/joint/controls/systems.py",
        'return self._answers(self.state.best["policy"],',
        'return self._answers(self.state.policy["params"]["policy"],',
        (_INSIDE + "test_final_texts_are_the_best_explainers",),
    ),
    Mutant(
        "recommender_learns_from_rolled_out_users",
        "xrec_jax/joint/states/setup.py",
        "learned, rolled_out = states.divided(shared.cfg.rollout.held_out)",
        "rolled_out, learned = states.divided(shared.cfg.rollout.held_out)",
        ("tests/joint/test_setup.py::test_lessons_are_those_of_a_plain_loop",),
    ),
    Mutant(
        "taught_users_counted",
        "xrec_jax/joint/results.py",
        "kept &= ~np.isin(users, setup.taught_users)",
        "kept &= kept",
        ("tests/joint/test_again.py::test_evaluate_gives_the_same_figures",),
    ),
)

_RANKING = "xrec_jax/evaluation/ranking/evaluator.py"
_RECOMMEND = (
    Mutant(
        "item_table_of_events_left_out",
        "xrec_jax/training/recommender.py",
        "self.model.initial_rows(self.data.learned.user, self.data.learned.item)",
        "self.model.initial_rows(self.data.split.train.user, self.data.split.train.item)",
        (_COOCCURRENCE + "test_training_begins_with_the_events_it_learns_from",),
    ),
    Mutant(
        "pairs_across_users",
        "xrec_jax/recommenders/cooccurrence.py",
        "(user[:-distance] == user[distance:]) & (first != second)",
        "first != second",
        (_COOCCURRENCE + "test_pairs_are_those_of_a_loop",),
    ),
    Mutant(
        "trained_on_test_events",
        "xrec_jax/data/run_data.py",
        "            return train\n",
        "            return self.dataset.interactions\n",
        ("tests/api/test_run.py::test_no_held_out_event_is_trained_on",),
    ),
    Mutant(
        "epochs_chosen_on_the_test",
        "xrec_jax/training/recommender.py",
        'evaluate=lambda s: self.evaluate("valid", s.params, s.frozen)',
        'evaluate=lambda s: self.evaluate("test", s.params, s.frozen)',
        ("tests/api/test_run.py::test_epochs_are_chosen_on_validation_events",),
    ),
    Mutant(
        "seen_items_not_masked",
        _RANKING,
        "seen = distinct(history.padded(rows, width, fill=-1, end=end))",
        "seen = np.full((len(rows), width), -1, np.int32)",
        (
            "tests/evaluation/test_ranks.py::test_evaluator_against_a_loop",
            "tests/api/test_run.py::test_ranks_are_those_of_a_plain_loop",
        ),
    ),
    Mutant(
        "users_swapped",
        _RANKING,
        "per_target[0, place] = batch.masked[: len(rows)][real]",
        "per_target[0, place] = np.roll(batch.masked[: len(rows)], 1, axis=0)[real]",
        (
            "tests/evaluation/test_ranks.py::test_evaluator_against_a_loop",
            "tests/api/test_run.py::test_ranks_are_those_of_a_plain_loop",
        ),
    ),
    Mutant(
        "ties_counted_for_the_target",
        "xrec_jax/evaluation/ranking/ranks.py",
        "not_lower = ~(scores[:, None, :] < own[:, :, None]) & (ids < num_items)",
        "not_lower = (scores[:, None, :] > own[:, :, None]) & (ids < num_items)",
        ("tests/evaluation/test_ranks.py::test_ranks_hand_worked",),
    ),
    Mutant(
        "leave_one_out_off_by_one",
        "xrec_jax/data/splits.py",
        "from_end = count - 1 - from_start",
        "from_end = count - 2 - from_start",
        ("tests/data/test_splits.py::test_leave_one_out",),
    ),
    Mutant(
        "test_without_the_validation_event",
        "xrec_jax/training/recommender.py",
        '"test": ([split.train, split.valid], split.test),',
        '"test": ([split.train], split.test),',
        ("tests/api/test_run.py::test_ranks_are_those_of_a_plain_loop",),
    ),
)

_LANGUAGE = (
    Mutant(
        "prompt_tokens_trained",
        "xrec_jax/llm/io/tokenizer.py",
        "[False] * len(begin) + [True] * len(answer)",
        "[True] * len(begin) + [True] * len(answer)",
        ("tests/llm/test_tokenizer.py::test_without_a_template",),
    ),
    Mutant(
        "eos_not_trained",
        "xrec_jax/llm/io/tokenizer.py",
        "[False] * len(begin) + [True] * len(answer)",
        "[False] * len(begin) + [True] * (len(answer) - 1) + [False]",
        ("tests/llm/test_tokenizer.py::test_without_a_template",),
    ),
    Mutant(
        "weights_a_token_off",
        "xrec_jax/data/packing.py",
        "weights[row, start : stop - 1] = example.trained[1:]",
        "weights[row, start : stop - 1] = example.trained[:-1]",
        ("tests/data/test_packing.py::test_a_row_by_hand",),
    ),
    Mutant(
        "packed_examples_see_each_other",
        "xrec_jax/data/packing.py",
        "segments[row, start:stop] = segment",
        "segments[row, start:stop] = 1",
        ("tests/data/test_packing.py::test_a_row_by_hand",),
    ),
    Mutant(
        "held_out_prompts_tuned_on",
        "xrec_jax/tasks/instructions.py",
        "train = [example for example in planted[spare:] if example.group not in groups]",
        "train = planted",
        ("tests/tasks/test_pretraining.py::test_a_world_is_split_by_prompt",),
    ),
    Mutant(
        "held_out_answers_pretrained_on",
        "xrec_jax/tasks/instructions.py",
        "if not any(phrase in level_of(text) for phrase in forbidden)",
        "if True",
        (
            "tests/tasks/test_pretraining.py::test_what_holds_a_held_out_prompt_or_answer_is_left_out",
        ),
    ),
    Mutant(
        "everything_trained",
        "xrec_jax/tasks/pretraining.py",
        "np.array(text.trained, bool)",
        "np.ones(len(text.ids), bool)",
        (
            "tests/tasks/test_pretraining.py::"
            "test_running_text_is_cut_and_of_readings_the_answer_is_trained",
        ),
    ),
    Mutant(
        "questions_show_the_answer",
        "xrec_jax/tasks/attributes.py",
        'hidden = tuple(cfg.item) if key == "item" else ()',
        "hidden: tuple[str, ...] = ()",
        ("tests/stages/test_attributes.py::test_questions_from_a_world",),
    ),
)

_JUDGING = (
    Mutant(
        "order_not_swapped",
        "xrec_jax/evaluation/judging/comparisons.py",
        "judge(questions + questions, ones + others, others + ones)",
        "judge(questions + questions, ones + ones, others + others)",
        ("tests/evaluation/test_judging.py::test_compare_asks_about_every_pair_in_both_orders",),
    ),
    Mutant(
        "ties_dropped",
        "xrec_jax/evaluation/judging/ratios.py",
        "    gained, played = _shares(table, points(table, margin=margin, soft=soft))\n",
        "    won = points(table, margin=margin, soft=soft)\n"
        "    gained, played = (x * (won != 0.5)[:, None] for x in _shares(table, won))\n",
        ("tests/evaluation/test_judging.py::test_win_ratios_by_hand",),
    ),
    Mutant(
        "inconsistent_verdicts_win",
        "xrec_jax/evaluation/judging/ratios.py",
        "won = (table.forward > 0.5) & (table.backward < 0.5)",
        "won = table.forward > 0.5",
        (
            "tests/evaluation/test_judging.py::test_points_keep_ties",
            "tests/evaluation/test_judging.py::test_one_undecided_order_is_a_tie",
        ),
    ),
    Mutant(
        "judge_trained_on_one_order",
        "xrec_jax/tasks/judgements.py",
        "for judgement in both_orders(records):",
        "for judgement in [judgement for judgement in records for _ in range(2)]:",
        ("tests/stages/test_judge.py::test_only_the_answer_is_trained_in_both_orders",),
    ),
    Mutant(
        "judgements_split_by_row",
        "xrec_jax/text/records/judgements.py",
        "cases or [judgement.prompt for judgement in judgements]",
        "[str(row) for row in range(len(judgements))]",
        ("tests/text/test_judgements.py::test_no_prompt_is_on_both_sides_of_the_split",),
    ),
    Mutant(
        "truth_prefers_the_worse",
        "xrec_jax/inference/judges/planted.py",
        "np.sign(scores[0] - scores[1])",
        "np.sign(scores[1] - scores[0])",
        ("tests/stages/test_judge.py::test_the_truth_judges_a_planted_world",),
    ),
)

_AUDIT = (
    Mutant(
        "audit_overlooks_test_pairs",
        "xrec_jax/evaluation/audit/split.py",
        "    held_out = np.union1d(valid, test)\n",
        "    held_out = valid\n",
        (
            "tests/evaluation/test_audit.py::test_pairs_in_several_parts",
            "tests/evaluation/test_audit.py::test_counts_against_loops",
        ),
    ),
    Mutant(
        "audit_sees_copies_only_word_for_word",
        "xrec_jax/evaluation/audit/prompts.py",
        "shared = [(place, match) for place, match in matches if match is not None]",
        "shared = [\n"
        "        (place, match) for place, match in matches\n"
        "        if match is not None and prompts[place].text == others[match].text\n"
        "    ]",
        ("tests/evaluation/test_audit_prompts.py::test_overlap",),
    ),
    Mutant(
        "audit_reads_time_backwards",
        "xrec_jax/evaluation/audit/times.py",
        "older = known[held_out.user] & (time < latest[held_out.user])",
        "older = known[held_out.user] & (time > latest[held_out.user])",
        ("tests/evaluation/test_audit.py::test_order_within_a_user",),
    ),
    Mutant(
        "audit_forgets_the_future",
        "xrec_jax/evaluation/audit/times.py",
        "early = time < end",
        "early = time > end",
        ("tests/evaluation/test_audit.py::test_global_time_leak",),
    ),
    Mutant(
        "audit_of_a_run_leaves_out_its_texts",
        "xrec_jax/auditing/run.py",
        "        *texts.check_run(rundir),\n",
        "",
        ("tests/evaluation/test_audit_files.py::test_run_directory",),
    ),
)

MUTANTS = (*_JOINT, *_RECOMMEND, *_LANGUAGE, *_JUDGING, *_AUDIT, *LANGUAGE_MODEL)
