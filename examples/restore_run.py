"""Opens a finished run: its figures, its recommendations, its explanations.

    python examples/restore_run.py --workdir=runs/example

after `examples/train_and_explain.py`, or `--workdir` of any other run.
"""

import argparse

import xrec_jax


def main(workdir: str) -> None:
    """Prints what a run found and recommends."""
    run = xrec_jax.restore(workdir)

    # Figures: [stage][system]["group/name"], each with its 95 % interval.
    for system in run.systems:
        ndcg = run.rundir.evaluation()["recommend"][system]["test/ndcg@10"]
        print(f"{system}: NDCG@10 {ndcg['value']:.4f} [{ndcg['low']:.4f}, {ndcg['high']:.4f}]")

    # Recommendations: plain records, over all events of a user.
    users = [str(user) for user in run.data.dataset.user_ids[:2]]
    recommended = run.recommend(users, top_k=2)
    for record in recommended:
        print(f"{record['user']} {record['rank']}. {record['item']} ({record['score']:.3f})")

    # Explanations of the same pairs; (user, item) ids do as well.
    for record in run.explain(recommended, explainer="template"):
        print(f"{record['user']} {record['item']}: {record['text']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", default="runs/example")
    main(parser.parse_args().workdir)
