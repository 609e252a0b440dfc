"""The report's page on joint training: figures, wording, curves, texts by round, guards."""

import html
import json
import re

import pytest

from tests.report.test_page import HOSTILE, around, e, empty_run, read, section_of, write_lines
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files
from xrec_jax.joint.guards import Verdict
from xrec_jax.report import joint_files, run_files
from xrec_jax.report.sections.joint import controls, curves
from xrec_jax.report.sections.joint import samples as joint_samples
from xrec_jax.report.sections.joint import summary as section
from xrec_jax.text.synthetic.taste_pairs import Pair, join_pair, taste_pair

SCORES = {
    "alone": 0.1013,
    "joint": 0.10721,
    "sft": 0.1031,
    "untuned": 0.10142,
    "template": 0.1028,
    "summary": 0.10151,
    "why": 0.10533,
    "why_not": 0.1022,
    "shuffled": 0.10098,
    "null": 0.1013,
    "masked_titles": 0.10693,
    "features": 0.1049,
    "planted": 0.1189,
}
TEXTS = ("joint", "sft", "untuned", "template", "summary", "planted")
PLANTED = {
    "for": [
        {"attribute": "mood", "value": "quiet", "phrase": "likes quiet"},
        {"attribute": "kind", "value": "bar", "phrase": "likes bar"},
    ],
    "against": [{"attribute": "kind", "value": "park", "phrase": "dislikes park"}],
}


def compared(first, second, width=0.012, p=0.0041):
    relative = first / second - 1
    return {
        "ndcg@10/difference": around(first - second, width * second),
        "ndcg@10/relative": around(relative, width),
        "ndcg@10/p": e(p),
    }


def evaluation(scores=SCORES, **changes):
    systems = {}
    for name, value in scores.items():
        systems[name] = {
            "test/ndcg@10": around(value, 0.003),
            "test/recall@10": around(2 * value, 0.005),
            "test/mrr@10": around(0.8 * value, 0.002),
        }
        if name in TEXTS:
            systems[name] |= {
                "planted/f1": around(4 * value, 0.02),
                "text/words": around(17.25),
                "text/title_mention": around(0.0625, 0.01),
            }
        if name != "alone":
            p = 0.0041 if value / scores["alone"] > 1.013 else 0.61
            systems[f"{name} vs alone"] = compared(value, scores["alone"], p=p)
    if {"joint", "sft"} <= scores.keys():
        systems["joint vs sft"] = compared(scores["joint"], scores["sft"])
    systems["rounds"] = {
        "planted/f1_first": around(0.412),
        "planted/f1_best": around(0.5275),
        "planted/f1_difference": around(0.1155),
        "guards/stopped": e(2, count=3),
    }
    return systems | changes


def rounds(seed, count, *, last=None):
    out = []
    for n in range(count):
        best = min(n, count - 1)
        said = Verdict((), True, best, n, 0.01 * best + 0.001).line()
        out.append(
            {
                "round": n,
                "valid/ndcg@10": 0.1 + 0.002 * n + 0.001 * seed,
                "valid/alone_ndcg@10": 0.1 + 0.0003 * seed,
                "valid/gain": 0.0125 * n - 0.004 * seed,
                "valid/planted_f1": 0.41 + 0.03125 * n,
                "valid/log_prob_gain": 0.0475 + 0.003 * n,
                "valid/text_gain": 0.0021 * n,
                "cache/staleness": 0.37,
                "time/rollout": 11.25 + n,
                "time/scoring": 2.5,
                "time/ppo": 7.125,
                "time/encoding": 1.75,
                "time/recommender": 4.0,
                "time/evaluation": 0.875,
                "verdict": said,
            }
        )
        if n:
            out[-1] |= {
                "reward/score": 0.0371 * n,
                "reward/log_prob_gain": 0.05 * n,
                "reward/length": -0.003,
                "ppo/kl": 0.013 * n,
                "ppo/kl_beta": 0.05 / n,
                "ppo/entropy": 1.37 - 0.06 * n,
                "rollout/length": 23.5 - n / 3,
                "rollout/ended": 0.9375,
                "monitor/title_mention": 0.01 * n,
            }
    if last:
        out[-1]["verdict"] = last
    return out


def samples(count, users=("12", "57"), *, text=None, planted=PLANTED):
    out = []
    for user in users:
        for n in range(count):
            told = taste_pair(
                {"mood": ["quiet"], "kind": ["bar"] if n else ["cafe"]},
                {"kind": ["park"] if n > 1 else ["museum"]},
            )
            out.append(
                {
                    "round": n,
                    "user": user,
                    "part": "valid",
                    "prompt": "Say what they look for.\n1. x",
                    "text": text or join_pair(told),
                    "planted": planted,
                    "f1": None if planted is None else (0.3125, 0.625, 1.0)[min(n, 2)],
                }
            )
    return out


def write_run(folder, *, seeds=(0, 1, 2), count=7, systems=None, last=None, done=True, **kept):
    """A run directory of the stage alone."""
    empty_run(folder)
    found = evaluation() if systems is None else systems
    if found:
        files.write_json(folder / "evaluation.json", {"joint": found})
    for seed in seeds:
        ended = (last or {}).get(seed)
        write_lines(folder / f"joint/{seed}/rounds.jsonl", rounds(seed, count, last=ended))
        write_lines(folder / f"joint/{seed}/samples.jsonl", samples(count, **kept))
        if done:
            (folder / "per_user/joint").mkdir(parents=True, exist_ok=True)
            (folder / f"per_user/joint/{seed}.npz").touch()
    return folder


def told(text):
    """What a reader reads."""
    return re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]*>", " ", text))).replace("\u202f", " ")


def page_of(folder):
    text, page = read(folder)
    return section_of(text, "joint"), page


STOP = Verdict(
    ("the KL to the reference is 0.71, above guards.kl_ceiling=0.5",), False, 4, 6, 0.05
).line()
EARLY = Verdict(
    ("no better held-out gain in 5 rounds (valid/gain 0.01; guards.patience=5)",), False, 1, 6, 0.1
).line()


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint") / "run"
    write_run(folder, last={1: STOP, 2: EARLY})
    return (folder, *page_of(folder))


def test_figures_are_those_of_the_evaluation(full):
    _, _, page = full
    values = page.data["joint"]
    for name, value in SCORES.items():
        assert {value, 2 * value, 0.8 * value} <= set(values), name
        if name != "alone":
            assert value / SCORES["alone"] - 1 in values
        if name in TEXTS:
            assert 4 * value in values
    assert {0.412, 0.5275, 0.1155, 2, SCORES["joint"] / SCORES["sft"] - 1} <= set(values)
    assert page.data[""][0] == SCORES["joint"] / SCORES["alone"] - 1  # at the top of the page


def test_the_result_in_one_sentence(full):
    said = told(full[1])
    assert (
        "A gain. NDCG@10 of joint training 0.1072 against 0.1013 of the same recommender alone: "
        "5.8 % [4.6, 7.0] , a difference of 0.0059 [0.0047, 0.0071] , p = 0.004, 3 seeds." in said
    )
    assert "0.1031 of its warm start (SFT): 4.0 % [2.8, 5.2]" in said
    assert "[0.0047, 0.0071]" in said and "chance: the interval" not in said.split("Controls")[0]


def test_texts_alone_are_held_against_the_warm_start(tmp_path):
    """By recommenders that were trained alike: what joint adds may be its recommender's."""
    systems = evaluation(
        **{"refit vs sft": {"ndcg@10/relative": e(0.0142, -0.0023, 0.0304), "ndcg@10/p": e(0.092)}}
    )
    systems["refit"] = {"test/ndcg@10": e(0.1062, 0.1, 0.112)}
    text, _ = page_of(write_run(tmp_path / "run", count=2, systems=systems))
    said = told(text.split("<h3>Controls")[0])
    assert (
        "chance: the interval holds 0. NDCG@10 of joint texts, read anew, 0.1062 against 0.1031 of "
        "the warm start's: 1.4 % [-0.2, 3.0] , p = 0.092." in said.replace("\u2212", "-")
    ), said


def verdict_of(tmp_path, **changes):
    text, _ = page_of(write_run(tmp_path / "run", count=2, systems=evaluation(**changes)))
    return re.search(r'class="verdict (\w+)"', text)[1], told(text.split("<h3>Controls")[0])


@pytest.mark.parametrize(
    ("relative", "p", "kind", "words"),
    [
        (e(0.02, -0.01, 0.05), 0.2, "open", "told from chance: the interval holds 0"),
        (e(0.02, 0.001, 0.05), 0.07, "open", "p is not below 0.05"),
        (e(-0.02, -0.03, -0.01), 0.01, "bad", "A loss."),
        (e(0.02), 0.01, "open", "there is no interval"),
        (e(0.02, 0.001, 0.05), 0.01, "good", "A gain."),
    ],
)
def test_a_gain_is_claimed_only_where_it_is_one(tmp_path, relative, p, kind, words):
    metrics = {"ndcg@10/relative": relative, "ndcg@10/p": e(p)}
    found = verdict_of(tmp_path, **{"joint vs alone": metrics})
    assert found[0] == kind and words in found[1]


def test_intervals_that_disagree_are_no_gain():
    found = {"relative": e(0.02, 0.001, 0.05), "difference": e(0.002, -0.001, 0.004)}
    assert joint_files.sign(found) == 0 and joint_files.covers_zero(found)
    assert joint_files.sign({**found, "difference": e(0.002, 0.0001, 0.004)}) == 1


def test_systems_stand_by_their_score(full):
    table = full[1][full[1].index("<table") : full[1].index("</table>")]
    rows = re.findall(r'<th scope="row">([^<]*)', table)
    order = sorted(SCORES, key=lambda name: (-SCORES[name], name == "null"))
    assert rows == [controls.control(name).label for name in order]
    for name in SCORES:
        one = controls.CONTROLS[name]
        assert one.description in told(full[1]) and one.shows in told(full[1])


def test_what_each_control_says():
    systems = evaluation()
    say = {name: controls.verdict(systems, name) for name in SCORES}
    assert say["joint"] is say["alone"] is say["planted"] is None
    assert say["shuffled"][0] == say["null"][0] == "good"
    assert say["template"] == (
        "open",
        "Here: it gains too; it reaches 25\u202f% of joint's gain; the two were not tested "
        "against each other.",
    )
    assert say["sft"][1] == "Here: joint is above it; it reaches 30\u202f% of joint's gain."
    assert say["untuned"][0] == "good" and say["masked_titles"][0] == "good"
    gains = compared(0.105, 0.1)
    wrong = evaluation(**{"null vs alone": gains, "masked_titles vs alone": compared(0.1, 0.1)})
    assert controls.verdict(wrong, "null") == (
        "bad",
        "Here: it gains, which speaks against the claim.",
    )
    assert controls.verdict(wrong, "masked_titles")[0] == "bad"
    above = evaluation(**{"joint vs sft": compared(0.1, 0.11)})
    assert controls.verdict(above, "sft")[0] == "bad"
    flat = evaluation(**{"joint vs alone": compared(0.1, 0.1)})
    assert controls.verdict(flat, "template")[0] == "open"


def test_another_cutoff_than_ten(tmp_path):
    systems = {
        s: {k.replace("@10", "@4"): v for k, v in metrics.items()}
        for s, metrics in evaluation().items()
    }
    text, page = page_of(write_run(tmp_path / "run", count=2, systems=systems))
    said = told(text)
    assert "NDCG@4 of joint training 0.1072 against 0.1013" in said and "Recall@4" in said
    assert page.data[""][0] == SCORES["joint"] / SCORES["alone"] - 1


def test_what_is_attainable_stands_beside(tmp_path):
    text, page = page_of(
        write_run(
            tmp_path / "run", count=1, systems=evaluation(attainable={"test/ndcg@10": e(0.3141)})
        )
    )
    assert 0.3141 in page.data["joint"]
    assert "Of what is attainable here (0.3141) alone has 32 %, joint 34 %." in told(text)


def test_curves_hold_every_seed_and_round(full):
    charts = {}
    for figure in re.findall(r"<figure.*?</figure>", full[1], re.DOTALL):
        if found := re.search(r'data-lines="([^"]*)"', figure):
            title = re.search("<figcaption>(.*?)</figcaption>", figure)[1]
            charts[title] = json.loads(html.unescape(found[1]))
    assert {curve.title for curve in curves.MAIN} <= charts.keys()
    gains = charts["Gain over alone, validation, %"]
    assert [line["label"] for line in gains] == ["seed 0", "seed 1", "seed 2"]
    assert gains[1]["x"] == list(range(7))
    assert gains[1]["y"][3] == f"{100 * (0.0125 * 3 - 0.004):.2f}"
    assert charts["Reward of a text, nats"][0]["x"] == [1, 2, 3, 4, 5, 6]  # none at the start
    beside = charts["NDCG@10, validation"]
    assert [line["label"] for line in beside[3:]] == [f"seed {n}, alone" for n in range(3)]
    assert {"Log prob gain", "Length", "Title mention"} <= charts.keys()


def test_rounds_are_whole_numbers_below_the_curves():
    few = joint_files.Joint({}, [joint_files.Seed("0", rounds(0, 3), [], True)])
    drawing = curves.build(few)
    below = re.findall(r'y="226" class="middle">([^<]*)', drawing[: drawing.index("</svg>")])
    assert below == ["1", "2"]


def test_seconds_of_the_phases(full):
    seed = joint_files.Seed("0", rounds(0, 7), [], True)
    assert curves.seconds(seed, "rollout") == pytest.approx((14.75, 99.75))
    table = full[1][full[1].index("Seconds of the phases") :]
    cells = told(table[: table.index("</table>")])
    whole = 14.75 + 2.5 + 7.125 + 1.75 + 4 + 0.875
    assert f"Rollout 14.75 {100 * 14.75 / whole:.1f} % 299.2" in cells
    assert f"All {whole:.2f} 100.0 %" in cells
    bar = full[1][full[1].index("Seconds a round") :]
    widths = [float(w) for w in re.findall(r'width="([\d.]*)%"', bar[: bar.index("</svg>")])]
    assert sum(widths) == pytest.approx(100, abs=0.05) and len(widths) == 6
    assert widths[0] == pytest.approx(100 * 14.75 / whole, abs=0.01)


def test_texts_of_a_user_by_round(full):
    articles = re.findall(r'<article class="pair joint".*?</article>', full[1], re.DOTALL)
    assert len(articles) == 6
    first = articles[0]
    heads = re.findall("<h4>(.*?)</h4>", first)
    assert heads == [
        "True reasons",
        "Round 0 (warm start)",
        "Round 3",
        "Round 6 (best)",
        "Round 1",
        "Round 2",
        "Round 4",
        "Round 5",
    ]
    assert re.findall("<h4>(.*?)</h4>", articles[2])[2] == "Round 4 (best)"  # seed 1 was stopped
    said = told(first)
    assert "Why you like cafes, quiet places. Why not you avoid museums." in said
    assert "F1 31.2 %, 8 words, 1 of 3 true reasons likes quiet" in said
    assert "F1 100.0 %, 8 words, 3 of 3 true reasons likes quiet likes bar against:" in said
    assert "Say what they look for." in said


def test_true_reasons_that_a_text_gives():
    text = join_pair(Pair("you like quiet places.", "you avoid bars and parks."))
    assert joint_samples.named_reasons(text, PLANTED) == [0, 2]
    assert joint_samples.named_reasons(text, {"for": ["quiet"], "against": []}) == []


def test_verdicts_of_the_guards(full):
    findings = re.findall(r'<article class="finding (\w+)">(.*?)</article>', full[1], re.DOTALL)
    assert [kind for kind, _ in findings] == ["info", "warning", "info"]
    said = [told(text) for _, text in findings]
    assert "nothing tripped" in said[0] and "best round 6" in said[0]
    assert "a guard tripped" in said[1] and STOP in said[1] and "best round 4" in said[1]
    assert "stopped early, no further gain" in said[2] and EARLY in said[2]
    assert "round 5: goes on" in said[0]
    change = "at the start, 52.8 % [48.8, 56.8] in the best round; change 11.6 %"
    assert change in told(full[1]).replace(" ,", ",")
    assert "Seeds that ended before their last round: 2 of 3." in told(full[1])


def test_a_weak_start_stops_nothing(tmp_path):
    folder = write_run(tmp_path / "run", seeds=(0,), count=3)
    found = rounds(0, 3)
    weak = Verdict(("the share of answers that end is 0.01",), False, None, 0, None).line()
    found[0] |= {"verdict": weak, "stopped": 0}
    write_lines(folder / "joint/0/rounds.jsonl", found)
    said = told(page_of(folder)[0])
    assert "a limit was broken at the start, none later" in said and weak in said
    assert "a guard tripped" not in said


def test_recorded_verdicts_are_read_and_not_their_words(tmp_path):
    folder = write_run(tmp_path / "run", seeds=(0, 1), count=3)
    for seed, cause in ((0, "patience"), (1, "guard")):
        records = [record | {"best_round": 1, "verdict": "any words"} for record in rounds(seed, 3)]
        records[-1] |= {"stop_cause": cause, "stopped": 1}
        write_lines(folder / f"joint/{seed}/rounds.jsonl", records)
    text = page_of(folder)[0]
    findings = re.findall(r'<article class="finding (\w+)">(.*?)</article>', text, re.DOTALL)
    assert [kind for kind, _ in findings] == ["info", "warning"]
    said = [told(part) for _, part in findings]
    assert all("best round 1" in part and "any words" in part for part in said)
    assert "stopped early, no further gain" in said[0] and "a guard tripped" in said[1]


# What may be missing


def test_a_run_without_the_stage_shows_nothing(tmp_path):
    text, page = read(empty_run(tmp_path / "run"))
    assert "joint" not in page.sections and section.TITLE not in text and section.HOW not in text
    files.write_json(tmp_path / "run" / "evaluation.json", {"recommend": {}, "joint": {}})
    (tmp_path / "run/joint/0").mkdir(parents=True)
    assert "joint" not in read(tmp_path / "run")[1].sections


def test_one_seed_with_the_start_alone(tmp_path):
    text, _ = page_of(write_run(tmp_path / "run", seeds=(3,), count=1, systems={}, done=False))
    said = told(text)
    assert "No test figures yet" in said and "Round 0 (warm start)" in said
    assert "seed 3 31" not in said and "Controls" not in said
    assert "Seconds a round" in said and "nothing tripped" in said


def test_one_seed_says_little(tmp_path):
    text, _ = page_of(write_run(tmp_path / "run", seeds=(0,), count=2))
    assert "p = 0.004, 1 seed." in told(text) and "One seed says little" in told(text)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"ppo": {"estimator": "group"}}, "within their prompt's group (GRPO)"),
        ({"ppo": {"estimator": "gae"}}, "PPO with a critic"),
        ({"encoder": "embedding"}, "a bag of tokens, without order"),
        ({"encoder": "last"}, "last hidden states"),
        ({"readings": 128000}, "128,000 reading exercises"),
    ],
)
def test_what_the_figures_rest_on(settings, words):
    says = told(str(section._conditions({"joint": settings})))
    assert "draw users; the seeds are averaged first" in says
    assert words in says
    assert words not in told(str(section._conditions({})))


def test_what_the_figures_rest_on_is_on_the_page(full):
    assert "draw users; the seeds are averaged first" in told(full[1])


def test_figures_without_rounds_and_rounds_without_their_numbers(tmp_path):
    folder = write_run(tmp_path / "run", seeds=())
    text, _ = page_of(folder)
    assert "A gain." in text and "Over the rounds" not in text and "seeds." not in text
    write_lines(folder / "joint/0/rounds.jsonl", [{"round": 0}, {"round": 1, "ppo/kl": None}])
    write_lines(
        folder / "joint/0/samples.jsonl",
        [{"round": 0, "user": 4, "text": "free words", "planted": None, "f1": None}],
    )
    text, _ = page_of(folder)
    for title in ("Over the rounds", "Where the time goes", "goes on"):
        assert title not in text
    assert "Why free words Why not (nothing) 2 words" in told(text)


def test_figures_without_value_are_left_out(tmp_path):
    broken = json.loads(json.dumps(evaluation()))
    for metrics in broken.values():
        for estimate in metrics.values():
            estimate.update(value=None, low=None, high=None)
    text, page = page_of(write_run(tmp_path / "run", count=2, systems=broken))
    assert "No test figures yet" in told(text) and page.data.get("joint", []) == []


def test_a_round_that_was_done_again_counts_once(tmp_path):
    folder = write_run(tmp_path / "run", seeds=(10, 9), count=2)
    again = [*rounds(0, 2), {"round": 1, "valid/gain": 0.5, "valid/ndcg@10": float("inf")}]
    write_lines(folder / "joint/9/rounds.jsonl", again)
    with (folder / "joint/9/rounds.jsonl").open("a") as file:
        file.write('{"round": 2, "val')  # cut by a kill
    found = joint_files.load(run_files.load(RunDir(folder)))
    assert [seed.name for seed in found.seeds] == ["9", "10"]
    assert found.seeds[0].curve("valid/gain") == ([0, 1], [0.0, 0.5])
    assert found.seeds[0].curve("valid/ndcg@10") == ([0], [0.1])


def test_a_damaged_file_is_named(tmp_path):
    folder = write_run(tmp_path / "run", count=1)
    write_lines(folder / "joint/1/rounds.jsonl", [{"round": "one"}])
    with pytest.raises(
        UserError, match=r"joint/1/rounds.jsonl, line 1 is damaged: 'round' is 'one'"
    ):
        read(folder)


def test_texts_of_a_run_never_become_markup(tmp_path):
    planted = {
        "for": [{"attribute": "kind", "value": HOSTILE, "phrase": HOSTILE}],
        "against": [HOSTILE],
    }
    folder = tmp_path / "run"
    systems = evaluation({**SCORES, HOSTILE: 0.1})
    write_run(
        folder,
        count=2,
        systems=systems,
        users=(HOSTILE,),
        text=HOSTILE,
        planted=planted,
        last={0: HOSTILE},
    )
    write_lines(
        folder / "joint/7/rounds.jsonl",
        [
            {"round": n, f"reward/{HOSTILE}": 0.5, f"time/{HOSTILE}": 1.5, "verdict": HOSTILE}
            for n in (0, 1)
        ],
    )
    text, page = page_of(folder)
    assert not any(tag == "img" or name.startswith("on") for tag, name, _ in page.attributes)
    assert "<script" not in text and "</script" not in text
    assert HOSTILE in "".join(page.texts)
