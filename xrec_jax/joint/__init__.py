"""Joint training of a recommender and its explainer (RecPIE, arXiv 2502.16759).

A language model (the *actor*) explains what a user looks for, and a recommender reads the
explanation beside the user's history. Each is trained by the other: the recommender on what the
actor writes, the actor by how much its texts help the recommender to find the next item. The method
on one page; the file of each line is on its right, below `joint/`:

    open_sides                                                              sides.py
        states: users at points of their histories, with prompts            states/, states/setup.py
        or the candidates that the recommender alone retrieves for them     granularity.py
    train                                                                   trainer.py
        warm start
            actor <- supervised tuning on a teacher's explanations          actor.py
            cache <- explanations of all training states, encoded           explanations.py
            recommender <- updates on the cache                             recommender/fused.py
        baseline <- the recommender alone, without a text                   held_out.py
        round 0 is the warm start; for every round after it:                round.py
            roll_out
                states <- drawn from users that the recommender
                          does not learn from
                answers <- sampled by the actor                             rollout.py
            learn
                stop if answers do not end or are empty                     guards/verdicts.py
                reward <- log p(next item | answer) - log p(next item)      scoring.py, rewards/
                          and further parts, by their weights
                error if a reward is not finite or beyond its scale         guards/values.py
                monitors <- signs of a policy that games its reward         monitors.py
                advantages <- rewards, less KL to the warm start            round.py: policy_rows
                actor <- PPO (or GRPO) updates on the answers               actor.py, training/rl/
                cache <- the oldest texts written anew by the actor         explanations.py
                recommender <- updates on the cache                         recommender/fused.py
                gain <- tracked validation users, over the baseline         held_out.py
                stop at a limit, or without a better gain for long          guards/verdicts.py
                best <- both sides, if no round had a better gain
            checkpoint after each of the two                                state.py
    test
        joint and every control, on test users                              controls/
        figures over seeds, paired tests                                    results.py

Two recommenders read texts: `FusedTask` one a user, `RerankTask` (`recommender/reranker.py`) one a
candidate. `config.py` has the section's defaults, `checks.py` what is refused before a run begins,
`setup.py` what all seeds share.

Why users are divided: a gain is only worth a reward where the recommender has not learned the
answer, so rollouts are of other users than those it is trained on (`states.base.divided`). Why a
cache: texts are written by a policy that moves, a quarter of them a round, so that the recommender
can follow. Why two baselines in the reward and the controls: any text may move a score, and only
what it says of the user should count.
"""
