"""The judge stage and the comparison of runs, on minuscule models and hand-made runs."""

import json
import math
import pathlib
import shutil

import numpy as np
import pytest

from tests import tiny
from xrec_jax.api import compare
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files
from xrec_jax.data.run_data import prepare
from xrec_jax.inference import comparisons, judges
from xrec_jax.llm.io.tokenizer import load_tokenizer
from xrec_jax.llm.language_model import load_llm
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.run_config import read_config, start_run
from xrec_jax.stages import Context, judge
from xrec_jax.tasks.judgements import JudgementSet, judge_prompts, judgements
from xrec_jax.text.records.explanations import prompt_hash
from xrec_jax.text.records.judgements import Judgement, judge_prompt

WORDS = "cafe park museum bar quiet lively cheap far near good poor".split()
EXPLAINERS = ("template", "base", "tuned")


def prompt(number):
    lines = "".join(f"{i}: place {i + number} is a {WORDS[(i * number) % 4]}\n" for i in (1, 2, 3))
    return f"The places:\n{lines}\nWhy place {number}?"


def judgement(number):
    good, poor = f"it is good and {WORDS[number % 6]}", f"it is poor and {WORDS[number % 5]}"
    better = 1 + number % 2
    first, second = (good, poor) if better == 1 else (poor, good)
    return {
        "prompt": prompt(50 + number // 2),
        "first": first,
        "second": second,
        "better": better,
        "kind": "ab"[number % 2],
    }


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(files.json_lines(records))
    return path


def explained(folder, *, pairs=range(4), changed="", explainers=EXPLAINERS):
    """What an `explain` stage leaves; `changed` ends the texts of "tuned"."""
    made = [
        {
            "user": f"u{n}",
            "item": f"i{n}",
            "prompt": prompt(n),
            "prompt_hash": prompt_hash(prompt(n)),
        }
        for n in pairs
    ]
    write(folder / "pairs.jsonl", made)
    for name in explainers:
        end = changed if name == "tuned" else ""
        write(
            folder / f"{name}.jsonl",
            [
                {
                    **{key: pair[key] for key in ("user", "item", "prompt_hash")},
                    "explainer": name,
                    "text": f"{name} says {WORDS[n]}{end}",
                }
                for n, pair in enumerate(made)
            ],
        )


def config(folder, **changed):
    """Tunes a judge on a random model in a directory."""
    made = tiny.language("judge")
    made.data.format = "none"
    made.llm.path = str(folder / "model")
    made.llm.chat_template = "no"
    asked = made.judge
    asked.update(
        dict(source="file", path=str(folder / "judgements.jsonl"), pair="kind", length=180)
    )
    asked.update(dict(held_out=0.25, batch=4, max_prompt_tokens=20, by="part"))
    asked.lora.update(dict(rank=2, alpha=4.0))
    asked.train.update(dict(batch_size=4, epochs=2, learning_rate=0.01, checkpoint_every=1))
    asked.explanations = (f"{folder / 'prompts.jsonl'}+{folder / 'texts.jsonl'}",)
    asked.update(changed)
    return made


def stage(made, workdir, what="run"):
    """Runs the stage as `xrec run` does."""
    rundir = RunDir(workdir)
    with use_mesh(tiny.mesh()) as mesh:
        ctx = Context(made, prepare(made.data), mesh, rundir)
        if what == "run":
            judge.check(ctx)
            start_run(rundir, made)
            writer = MetricWriter(rundir.path)
            judge.run(ctx, writer)
            writer.close()
        else:
            getattr(judge, what)(ctx)
    return rundir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model, judgements, and explanations of three models to compare."""
    made = tmp_path_factory.mktemp("judge")
    records = [judgement(n) for n in range(16)]
    write(made / "judgements.jsonl", records)
    asked = [{"prompt_id": n, "prompt": prompt(n), "part": "xy"[n % 2]} for n in range(5)]
    write(made / "prompts.jsonl", asked)
    write(
        made / "texts.jsonl",
        [
            {"prompt_id": n, "model": model, "completion": f"{model} finds it {WORDS[n]}"}
            for n in range(5)
            for model in ("X", "Y", "Z")
            if (n, model) != (2, "Z")
        ],
    )
    texts = [" ".join(str(v) for v in r.values()) for r in records] + WORDS
    tiny.llama_directory(made / "model", texts, num_layers=1)
    return made


@pytest.fixture(scope="module")
def finished(folder):
    """A finished stage, with explanations of the run's own."""
    explained(folder / "run" / "explanations")
    stage(config(folder), folder / "run")
    return folder / "run"


def verdicts(workdir):
    return files.read_json_lines(workdir / "judge" / "verdicts.jsonl")


# What the stage leaves


def test_files_and_figures(finished):
    assert {path.name for path in (finished / "judge").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "xrec.json",
        "split.json",
        "verdicts.jsonl",
    }
    found = json.loads((finished / "evaluation.json").read_text())["judge"]
    own = {f"{a} vs {b}" for a, b in (EXPLAINERS[:2], EXPLAINERS[::2], EXPLAINERS[1:])}
    given = {"X", "Y", "Z", "X vs Y", "X vs Z", "Y vs Z"}
    assert found.keys() == {"judge", *EXPLAINERS, *own, *given}
    assert found["judge"].keys() >= {
        "test/accuracy",
        "test/accuracy_shown",
        "test/accuracy_swapped",
        "test/ece",
        "test/position_consistency",
        "test/log_loss",
        "baseline/constant",
        "baseline/pair_prior",
    }
    figures = {"win/ratio", "win/ties", "win/length_controlled", "bradley_terry/strength"}
    assert figures <= found["tuned"].keys() and figures <= found["X"].keys()
    assert {"win/ratio_x", "win/ratio_y"} <= found["X"].keys()
    assert found["X vs Y"].keys() == {"win/ratio", "win/ties", "win/consistency"}
    assert (found["X"]["win/ratio"]["count"], found["Z"]["win/ratio"]["count"]) == (5, 4)
    # Label and kind go together, so the pair-identity prior is always right.
    assert found["judge"]["baseline/pair_prior"]["value"] == 1.0
    assert found["judge"]["baseline/constant"]["value"] == 0.5
    mean = np.mean([found["judge"][f"test/accuracy_{k}"]["value"] for k in ("shown", "swapped")])
    assert found["judge"]["test/accuracy"]["value"] == pytest.approx(mean)
    for row in found.values():
        assert all(entry.keys() == {"value", "low", "high", "count"} for entry in row.values())


def test_no_prompt_is_learned_and_held_out(finished):
    split = json.loads((finished / "judge" / "split.json").read_text())
    train, held = (set(split[name]["prompts"]) for name in ("train", "held_out"))
    assert len(train) == 6 and len(held) == 2 and not train & held
    assert train | held == {prompt_hash(prompt(n)) for n in range(50, 58)}
    assert (split["train"]["judgements"], split["held_out"]["judgements"]) == (12, 4)


def test_verdicts_hold_every_pair_in_both_orders(finished):
    found = verdicts(finished)
    assert len(found) == 2 * (4 * 3 + 4 * 3 + 1)
    keys = {(one["prompt_hash"], one["first"], one["second"]) for one in found}
    assert len(keys) == len(found) and {(h, b, a) for h, a, b in keys} == keys
    own = [one for one in found if one["user"] is not None]
    assert {one["user"] for one in own} == {"u0", "u1", "u2", "u3"}
    assert all(0 < one["p_first"] < 1 for one in found)
    # The soft ratio of the evaluation, once more from the verdicts.
    p = {(one["prompt_hash"], one["first"], one["second"]): one["p_first"] for one in own}
    points = [(p[h, a, b] + 1 - p[h, b, a]) / 2 for h, a, b in p if a == "tuned"]
    figures = json.loads((finished / "evaluation.json").read_text())["judge"]["tuned"]
    assert figures["win/ratio_soft"]["value"] == pytest.approx(np.mean(points))
    assert len(points) == 8 and np.std(points) > 0


def test_probabilities_are_those_of_the_two_answer_tokens(finished, folder):
    """Read once more by the public model with the saved adapter."""
    lm = load_llm(folder / "model", finished / "judge")
    one, two = (lm.tokenizer.encode(answer, bos=False)[-1] for answer in "12")
    text = prompt(1).replace(prompt(1)[prompt(1).index("1:") : prompt(1).index("3:")], "")
    first, second = f"base says {WORDS[1]}", f"tuned says {WORDS[1]}"
    for a, b, names in ((first, second, ("base", "tuned")), (second, first, ("tuned", "base"))):
        ids = lm.tokenizer.encode(judge_prompt(text, a, b))
        logits = np.asarray(lm.logits([ids]))[0, -1]
        expected = 1 / (1 + math.exp(logits[two] - logits[one]))
        found = [
            v["p_first"]
            for v in verdicts(finished)
            if v["user"] == "u1" and (v["first"], v["second"]) == names
        ]
        assert found == [pytest.approx(expected, abs=1e-5)]


def test_a_finished_stage_is_skipped_and_evaluated_again(finished, folder):
    made = read_config(RunDir(finished))
    before = {path: path.read_bytes() for path in (finished / "judge").iterdir()}
    stage(made, finished)
    (finished / "judge" / "verdicts.jsonl").write_text("")
    evaluation = (finished / "evaluation.json").read_text()
    stage(made, finished, "evaluate")
    assert (finished / "evaluation.json").read_text() == evaluation
    assert {path: path.read_bytes() for path in (finished / "judge").iterdir()} == before


def test_other_judgements_are_refused(finished, folder, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").unlink()
    write(tmp_path / "other.jsonl", [judgement(n) for n in range(14)])
    made = config(folder, path=str(tmp_path / "other.jsonl"))
    with use_mesh(tiny.mesh()) as mesh, pytest.raises(UserError, match="content of the judgements"):
        judge.run(Context(made, prepare(made.data), mesh, RunDir(tmp_path / "run")), None)


def test_only_the_answer_is_trained_in_both_orders(folder):
    made = config(folder)
    tokenizer = load_tokenizer(made.llm.path)
    ask = judge_prompts(made, tokenizer, max_positions=256)
    one = judgements(made, prepare(made.data), seed=0).train[0]
    shown, swapped = ask.examples([one])
    for example, better in ((shown, one.better), (swapped, 3 - one.better)):
        assert example.trained.sum() == 1 and example.trained[-1]
        assert tokenizer.decode(example.ids[-1:]).strip() == str(better)
    assert "2 older history entries dropped" in ask.describe()


def test_rows_that_do_not_fit_are_refused_not_cut(folder):
    made = config(folder, length=70)
    with pytest.raises(UserError, match=r"does not fit judge\.length=70 tokens"):
        stage(made, folder / "never")
    assert not (folder / "never").exists()


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(path="no.jsonl"), "no.jsonl: no such file"),
        (dict(pair="kinds"), "did you mean 'kind'"),
        (dict(stratify="part"), "judge.stratify"),
        (dict(length=300), "judge.length=300, but the model takes"),
        (dict(margin=0.5), "judge.margin=0.5"),
        (dict(batch=0), "judge.batch=0 must be positive and divisible by the 1 devices"),
        (dict(prompts=-1), "judge.prompts=-1"),
        (dict(explanations=("a.jsonl",)), "must be two files"),
        (dict(by="parts"), "no key 'parts'; did you mean 'part'"),
        (dict(source="world"), "judge.source='world' needs config.data.format='world'"),
    ],
)
def test_values_that_cannot_work_are_refused_before_anything_is_written(folder, changed, message):
    with pytest.raises(UserError, match=message):
        stage(config(folder, **changed), folder / "never")
    assert not (folder / "never").exists()


def test_drawn_prompts_are_even_over_the_parts(folder):
    spec = config(folder).judge.explanations[0]
    whole = comparisons.read_comparison_set(spec, by="part")
    part = comparisons.draw(whole, 4, seed=1)
    assert sorted(part.groups) == ["x", "x", "y", "y"] and len(part.prompts) == 4
    assert comparisons.draw(whole, 0, seed=1) is whole
    for number, text in enumerate(part.prompts):
        place = whole.prompts.index(text)
        assert [row[number] for row in part.texts.values()] == [
            row[place] for row in whole.texts.values()
        ]


@pytest.mark.parametrize(("p", "bias"), [(0.5, 0.0), (0.7, 0.5), (0.3, -0.5)])
def test_position_bias_of_judges_that_do_not_read(p, bias):
    made = [Judgement(f"{n}", "a", "b", 1 + n % 2) for n in range(8)]
    found = judge.held_out_figures(
        lambda prompts, *_: np.full(len(prompts), p), JudgementSet(made[:4], made[4:]), resamples=0
    )
    assert found["test/position_bias"]["value"] == bias
    assert found["test/accuracy"]["value"] == 0.5
    assert found["test/position_consistency"]["value"] == (p == 0.5)


def prompt_of(item, entries):
    """A prompt by numbered lines; the latest entries are the same, however many are shown."""
    lines = [f"{n + 1}: Film {10 - entries + n}" for n in range(entries)]
    return "\n".join(["Seen:", *lines, "We recommend this title:", f"Movie {item}", "Why?"])


def test_several_prompts_of_a_user_are_drawn_together():
    rng = np.random.default_rng(0)
    texts = {"A": ["good"] * 60, "B": ["bad"] * 60}
    users = [f"u{n // 6}" for n in range(60)]
    mood = rng.integers(0, 2, 10)  # of a user: all of a user's prompts are judged alike

    def judge(prompts, firsts, seconds):
        likes = np.array([mood[int(p) // 6] for p in prompts])
        return np.where(np.array([t == "good" for t in firsts]), likes, 1 - likes) * 1.0

    found = {}
    for name, ids in (("users", users), ("nobody", [None] * 60)):
        asked = comparisons.ComparisonSet(
            "s", [str(n) for n in range(60)], texts, ids, [None] * 60, [""] * 60
        )
        whole = config(pathlib.Path("nowhere"))
        found[name] = comparisons.compare(judge, asked, whole).figures["A vs B"]["win/ratio"]
    assert (found["users"]["count"], found["nobody"]["count"]) == (10, 60)
    width = {name: one["high"] - one["low"] for name, one in found.items()}
    assert width["users"] > 1.7 * width["nobody"]
    assert found["users"]["value"] == found["nobody"]["value"] == pytest.approx(mood.mean())


def test_prompts_that_the_judge_learned_from_are_left_out(folder):
    whole = comparisons.read_comparison_set(config(folder).judge.explanations[0], by="part")
    learned = {" ".join(prompt(n).split()) for n in (1, 3, 77)}
    left = comparisons.without(whole, learned)
    assert left.prompts == [prompt(n) for n in (0, 2, 4)] and left.groups == ["x"] * 3
    assert left.texts["Z"] == [whole.texts["Z"][n] for n in (0, 2, 4)]
    assert "without 2 prompts" in left.source
    assert comparisons.without(whole, {"another"}) is whole
    # One case in two wordings, and with a longer history, is one case.
    own = [prompt_of(3, 5), prompt_of(4, 5)]
    texts = {"A": ["x", "y"], "B": ["v", "w"]}
    part = comparisons.ComparisonSet("s", own, texts, [None] * 2, [None] * 2, [""] * 2)
    left = comparisons.without(part, {f"Dear judge!\n{prompt_of(3, 7)}"})
    assert left.prompts == own[1:] and left.texts == {"A": ["y"], "B": ["w"]}
    with pytest.raises(UserError, match="trained on all of its prompts"):
        comparisons.without(whole, {" ".join(prompt(n).split()) for n in range(5)})


# Comparison of runs


def longest(prompts, first, second):
    """A judge of one's own: the longer text is better."""
    return np.array([0.9 if len(a) > len(b) else 0.1 for a, b in zip(first, second, strict=True)])


def hand_made(workdir, values, *, users=4, seed=3, **explain):
    """A run directory with per-user figures and explanations, without any training."""
    made = tiny.config("popularity")
    made.data.world.seed = seed
    rundir = RunDir(workdir)
    start_run(rundir, made)
    path = rundir.per_user("recommend/popularity/0")
    path.parent.mkdir(parents=True)
    np.savez(
        path,
        **{
            "test/ndcg@10": np.array(values),
            "test_users": np.arange(users),
            "valid/ndcg@10": values,
            "valid_users": np.arange(users),
        },
    )
    figure = {"value": float(np.mean(values)), "low": 0.0, "high": 1.0, "count": users}
    rundir.write_evaluation(
        "recommend",
        {"popularity": {"test/ndcg@10": figure}, "upper_bound": {"test/ndcg@10": figure}},
    )
    explained(workdir / "explanations", **explain)
    return workdir


def test_differences_are_paired_and_explanations_judged_on_shared_pairs(tmp_path, capsys):
    a = hand_made(tmp_path / "a", [0.1, 0.2, 0.3, 0.4])
    b = hand_made(tmp_path / "b", [0.2, 0.3, 0.4, 0.5], pairs=range(1, 6), changed=" and more")
    found = compare.compare(
        [a, b], output=tmp_path / "out.json", judge="tests.stages.test_judge:longest"
    )
    row = found["figures"]["recommend"]["popularity"]["test/ndcg@10"]
    difference = row["differences"]["b"]
    assert [difference[k] for k in ("value", "low", "high")] == pytest.approx([0.1] * 3)
    assert found["figures"]["recommend"]["upper_bound"]["test/ndcg@10"]["differences"]["b"] is None
    figures = found["explanations"]["figures"]
    assert found["explanations"]["note"].count("3 pairs of user and item")
    # Texts of b begin with another word for the same pair, so only the length tells them apart.
    assert figures["b: tuned"]["win/ratio"]["value"] == 1.0
    assert figures["a: base vs b: tuned"]["win/ratio"]["value"] == 0.0
    matrix = found["explanations"]["matrix"]
    assert matrix["b: tuned"]["a: base"] == 3 and matrix["a: base"]["b: tuned"] == 0
    assert json.loads((tmp_path / "out.json").read_text())["runs"] == {"a": str(a), "b": str(b)}
    printed = capsys.readouterr().out
    assert "+0.1000 [+0.1000, +0.1000]" in printed and "b: tuned" in printed


def test_other_data_and_equal_texts_are_not_compared(tmp_path, capsys):
    a = hand_made(tmp_path / "a", [0.1, 0.2, 0.3, 0.4])
    b = hand_made(tmp_path / "b", [0.2, 0.3, 0.4, 0.5], seed=4)
    found = compare.compare([a, b], judge=longest)
    assert found["figures"]["recommend"]["popularity"]["test/ndcg@10"]["differences"] == {"b": None}
    note = found["explanations"]["note"]
    assert "the same texts as an earlier one: b: template, b: base, b: tuned" in note
    assert compare.compare([a, b])["explanations"] is None
    assert "a has no judge" in capsys.readouterr().out


def test_the_judge_of_the_first_run_is_the_default(finished, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    explained(other / "explanations", changed=" and more")
    found = compare.compare([finished, other])["explanations"]
    systems = {"run: template", "run: base", "run: tuned", "other: tuned"}
    assert systems == {name for name in found["figures"] if " vs " not in name}
    own = json.loads((finished / "evaluation.json").read_text())["judge"]["base vs tuned"]
    assert (
        found["figures"]["run: base vs run: tuned"]["win/ratio"]["value"]
        == (own["win/ratio"]["value"])
    )


def test_a_judge_of_a_run_is_not_asked_what_it_learned_from(finished, tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    shutil.copytree(finished, first)
    shutil.copytree(finished, other)
    explained(other / "explanations", changed=" and more")
    path = first / "judge" / "split.json"
    split = json.loads(path.read_text())
    split["train"]["prompts"] += [prompt_hash(prompt(1)), prompt_hash(prompt(2))]
    path.write_text(json.dumps(split))
    found = compare.compare([first, other])["explanations"]
    assert "without 2 prompts that the judge of first learned from" in found["note"]
    assert found["figures"]["first: base"]["win/ratio"]["count"] == 2
    whole = compare.compare([first, other], judge=longest)["explanations"]
    assert whole["figures"]["first: base"]["win/ratio"]["count"] == 4


def test_what_cannot_be_compared_is_refused(tmp_path):
    a = hand_made(tmp_path / "a", [0.1, 0.2, 0.3, 0.4])
    b = hand_made(tmp_path / "b", [0.1, 0.2, 0.3, 0.4])
    for workdirs, judge_name, message in (
        ([a], None, "needs two runs"),
        ([a, a], None, "given twice"),
        ([a, tmp_path], None, "not a run directory"),
        ([a, b], "nothing", "must be module:function"),
        ([a, b], "no.such:judge", "cannot import 'no.such'"),
        ([a, b], "tests.stages.test_judge:longes", "did you mean 'longest'"),
    ):
        with pytest.raises(UserError, match=message):
            compare.compare(workdirs, judge=judge_name)


def planted_pairs():
    def why(kind):
        phrase = f"likes {kind}s"
        return {"for": [{"attribute": "kind", "value": kind, "phrase": phrase}], "against": []}

    return [{"prompt": f"why {kind}?", "planted": why(kind)} for kind in ("cafe", "bar")]


def test_the_truth_judges_a_planted_world():
    ask = judges.planted_judge(planted_pairs())
    true, wrong, silent = "You like cafes, and this is one.", "You like museums.", "It is there."
    prompts = ["why cafe?"] * 4 + ["why bar?"]
    first, second = [true, wrong, wrong, true, true], [wrong, true, silent, true, "You like bars."]
    assert ask(prompts, first, second).tolist() == [1.0, 0.0, 0.5, 0.5, 0.0]
    with pytest.raises(UserError, match=r"knows only the run's own pairs.*'why gym"):
        ask(["why gym?"], [true], [wrong])
    with pytest.raises(UserError, match="pairs of a finished stage 'explain'"):
        judges.planted_judge([])


def test_the_stage_with_the_truth_as_judge(tmp_path, capsys):
    pairs = [
        {
            "user": f"u{n}",
            "item": f"i{n}",
            "prompt": pair["prompt"],
            "prompt_hash": prompt_hash(pair["prompt"]),
            "planted": pair["planted"],
        }
        for n, pair in enumerate(planted_pairs())
    ]
    rundir = RunDir(tmp_path / "run")
    write(rundir.path / "explanations" / "pairs.jsonl", pairs)
    texts = {"tuned": ["You like cafes.", "You like bars."], "base": ["A place.", "You like bars."]}
    for name, said in texts.items():
        records = [
            {
                "user": pair["user"],
                "item": pair["item"],
                "explainer": name,
                "text": text,
                "prompt_hash": pair["prompt_hash"],
            }
            for pair, text in zip(pairs, said, strict=True)
        ]
        write(rundir.path / "explanations" / f"{name}.jsonl", records)
    config = tiny.config("popularity")
    config.judge.source = "planted"
    config.stages = ("judge",)
    ctx = Context(config, prepare(config.data), tiny.mesh(), rundir)
    judge.check(ctx)
    for _ in range(2):  # the second time nothing is left to do
        judge.run(ctx, None)
    table = rundir.evaluation()["judge"]
    assert table["tuned"]["win/ratio"]["value"] == 0.75  # a win and a tie
    assert table["tuned"]["win/ties"]["value"] == 0.5
    assert len(files.read_json_lines(rundir.path / "judge" / "verdicts.jsonl")) == 4
    config.data.format = "none"
    with pytest.raises(UserError, match=r"judge\.source"):
        judge.check(Context(config, prepare(config.data), tiny.mesh(), rundir))
    assert capsys.readouterr().out.count("both orders agree") == 1
