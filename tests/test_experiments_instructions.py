"""The curve over the number of instructions: its sets, its fit, and a run on a tiny model."""

import argparse
import gzip
import json

import numpy as np
import pytest
from scipy.optimize import curve_fit

from experiments import instruction_curve as curve
from experiments import instruction_sets
from experiments.instruction_sets import Sets, drawn, further_examples, same_user
from experiments.saturation import Curve, fit, saturation
from tests import runs
from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.files import read_json, write_json
from xrec_jax.evaluation.audit.contents import read_content
from xrec_jax.text import get
from xrec_jax.text.records.instructions import Instruction, read_instructions, write_instructions


def game(item, history):
    template = get("llmxrec_game")
    entries = [
        template.render_entry({"title": title, "tags": ["Action"]}, index)
        for index, title in enumerate(history, start=1)
    ]
    return template.assemble(
        user="", item=template.render_item({"title": item, "tags": ["Action"]}), entries=entries
    )


def steam(prompt, completion="Because."):
    return Instruction(prompt, completion, meta={"dataset": "steam"})


def test_what_would_give_a_held_out_prompt_away_is_left_out():
    held = steam(game("Rust", ["Ark", "Braid", "Celeste", "Doom"]))
    train = steam(game("Limbo", ["Myst", "Nier", "Ori"]))
    prompts = [
        game("Rust", ["Zork", "Ark", "Braid", "Celeste", "Doom"]),  # the same, in a longer form
        game("Limbo", ["Myst", "Nier", "Ori"]),
        game("Portal", ["Halo"]),  # of the row in which the held-out one is published
        game("Portal", ["Doom", "Celeste", "Braid", "Quake", "Tetris"]),  # three of four titles
        game("Portal", ["Doom", "Celeste", "Quake", "Tetris", "Uno"]),  # two are chance
        game("Portal", ["Heretic", "Hexen"]),
        game("Inside", ["Heretic", "Unreal"]),
    ]
    rows = [7, 1, 7, 2, 3, 4, 5]
    records = [
        {"prompt_id": n, "prompt": prompt, "dataset": "steam", "row": row}
        for n, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
    ]
    answers = dict.fromkeys(range(6), " Good. ") | {5: " "}
    more, dropped = further_examples(records, answers, [train], [held], shorten=str.upper)
    assert dropped == {"in the set": 2, "of held-out users": 2, "without an answer": 2}
    assert [(r.prompt, r.completion, r.meta["prompt_id"]) for r in more] == [
        (prompts[4].upper(), "Good.", 4)
    ]


def test_users_of_different_data_sets_are_never_the_same():
    text = game("Rust", ["Ark", "Braid", "Celeste"])
    assert same_user(read_content(text, dataset="a"), read_content(text, dataset="a"))
    assert not same_user(read_content(text, dataset="a"), read_content(text, dataset="b"))


def test_smaller_draws_are_parts_of_larger_ones():
    train, more = (
        [steam(f"{name} {n}") for n in range(count)] for name, count in (("set", 10), ("more", 8))
    )
    sets = Sets(train, [], more, {}, [])
    by_count = {n: {record.prompt for record in drawn(sets, n, seed=1)} for n in (3, 10, 13, 18)}
    assert [len(by_count[n]) for n in by_count] == [3, 10, 13, 18]
    assert by_count[3] < by_count[10] < by_count[13] < by_count[18]
    assert by_count[10] == {record.prompt for record in train}
    assert by_count[3] != {record.prompt for record in drawn(sets, 3, seed=2)}
    with pytest.raises(UserError, match="--counts: 19 instructions, but the set has 10 and"):
        drawn(sets, 19, seed=1)


def test_all_prompts_are_cut_and_held_out_ones_are_known_whole(tmp_path, monkeypatch):
    """The histories overlap in what is cut off: those are still one user's."""

    class Words:
        encode = staticmethod(str.split)

    monkeypatch.setattr(instruction_sets, "load_tokenizer", lambda path: Words())
    titles = ["Doom", "Celeste", "Braid", "Quake", "Tetris"]
    instructions = [
        {"prompt": game(f"Game {n}", [f"Old {n} {k}" for k in range(5)]), "completion": "Good."}
        for n in range(7)
    ]
    write_instructions(
        tmp_path / "set.jsonl",
        [Instruction(r["prompt"], r["completion"], meta={"dataset": "steam"}) for r in instructions]
        + [Instruction(game("Portal", titles), "Good.", meta={"dataset": "steam"})],
    )
    config = curve.curve_config(arguments(tmp_path, tiny=False))
    config.instruct.update(dict(path=str(tmp_path / "set.jsonl"), held_out=0.5))
    # Whichever half is held out: published prompts by a user of each of the set's.
    published = [
        game(f"Other {n}", [f"Old {n} {k}" for k in (0, 1, 2)] + [f"New {n}"]) for n in range(7)
    ] + [game("Other", [*titles[:3], "Uno"])]
    folder = tmp_path / "published"
    folder.mkdir()
    for name, records in (
        (
            "prompts",
            [
                {"prompt_id": n, "prompt": prompt, "dataset": "steam", "row": n}
                for n, prompt in enumerate(published)
            ],
        ),
        (
            "explanations",
            [{"prompt_id": n, "model": "GPT4", "completion": "Fine."} for n in range(8)],
        ),
    ):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    limit = len(game("Portal", ["Doom"]).split()) + 4
    args = arguments(tmp_path, tiny=False, published=str(folder), max_prompt_tokens=limit)
    sets = instruction_sets.published_sets(args, config)
    assert (len(sets.train), len(sets.held_out), len(sets.more)) == (4, 4, 4)
    assert sets.dropped["of held-out users"] == 4
    for records in sets[:3]:
        assert max(len(record.prompt.split()) for record in records) <= limit
    whole = {r["prompt"] for r in instructions} | {game("Portal", titles)}
    assert set(sets.uncut) < whole and len(sets.uncut) == 4
    assert not whole & {record.prompt for record in sets.held_out}


COUNTS = np.array([0, 10, 20, 50, 100, 216, 500, 1000, 2000], np.float64)


@pytest.mark.parametrize("power", [1.0, 0.4])
def test_the_fit_is_that_of_least_squares(power):
    noise = np.random.default_rng(0).normal(0, 0.01, len(COUNTS))

    def law(n, floor, drop, scale, power):
        return floor + drop / (1 + n / scale) ** power

    losses = law(COUNTS, 1.2, 0.9, 40, power) + noise
    expected, _ = curve_fit(law, COUNTS, losses, p0=(1.2, 0.9, 40.0, power), bounds=(0, 1e4))
    found = fit(COUNTS, losses)
    # On a flat bottom scale and power may trade, the curve and its error may not.
    np.testing.assert_allclose(found(COUNTS), law(COUNTS, *expected), atol=2e-3)
    least = np.sum((law(COUNTS, *expected) - losses) ** 2)
    assert least <= np.sum((found(COUNTS) - losses) ** 2) < 1.02 * least
    assert fit(COUNTS, losses, np.ones(1)).power == 1.0


def test_numbers_of_a_curve_by_hand():
    curve = Curve(1.0, 2.0, 30.0, 0.5)
    assert curve.half == pytest.approx(90.0)  # 1 / sqrt(1 + 90 / 30) = 1 / 2
    np.testing.assert_allclose(curve(np.array([0.0, 90.0])), [3.0, 2.0])
    np.testing.assert_allclose(curve.gained(np.array([0.0, 240.0])), [0.0, 2 / 3])


def test_a_floor_is_no_negative_loss():
    losses = 2.0 - 0.25 * np.log1p(COUNTS / 10)
    curve = fit(COUNTS, losses)
    assert curve.floor == 0.0 and "floor" in curve.open_parts and curve.endless
    # No other curve from 0 is better.
    error = np.sum((curve(COUNTS) - losses) ** 2)
    for scale, power in ((1.05, 1.0), (1.0, 1.05), (0.9, 0.95)):
        falling = (1 + COUNTS / curve.scale / scale) ** (-curve.power * power)
        drop = falling @ losses / (falling @ falling)
        assert np.sum((drop * falling - losses) ** 2) > error


def put_in(seed):
    """Losses of three seeds and 24 prompts around 1.8 + 0.9 / (1 + n / 40)."""
    rng = np.random.default_rng(seed)
    of_prompt = rng.normal(0, 0.2, 24)
    results = {}
    for count in (0, 10, 50, 216, 1000):
        for run in (0,) if not count else (0, 1, 2):
            tokens = np.full(24, 80.0)
            noise = rng.normal(0, 0.02) if count else 0.0
            loss = 1.8 + 0.9 / (1 + count / 40) + of_prompt + noise
            results[count, run] = {"loss": (loss * tokens).tolist(), "tokens": tokens.tolist()}
    return results


def test_intervals_hold_what_was_put_in():
    truth = {"half": 40, "drop": 0.9, "power": 1.0}
    held = []
    for seed in range(5):
        fitted = saturation(put_in(seed), resamples=60)
        for name, value in truth.items():
            assert fitted[name]["low"] <= fitted[name]["value"] <= fitted[name]["high"], name
            held.append(fitted[name]["low"] < value < fitted[name]["high"])
        held += [
            fitted["gained"][str(n)]["low"] < n / (n + 40) < fitted["gained"][str(n)]["high"]
            for n in (10, 50, 216, 1000)
        ]
        assert 0.7 * 40 < fitted["half"]["value"] < 1.4 * 40
        assert fitted["open"] == [] and fitted["rms"] <= fitted["rms_hyperbola"] < 0.02
        assert fitted["gained"]["0"]["value"] == 0.0
        assert fitted["curve"][0]["value"] > fitted["curve"][-1]["value"]
    assert np.mean(held) > 0.75  # those of 95 % with three seeds a count


def of_law(law, counts=(0, 10, 20, 50, 100, 216), spread=0.0):
    """Results whose prompts have the losses of `law` and a spread of their own."""
    rng = np.random.default_rng(2)
    slopes = 1.0 + rng.normal(0, spread, 24)
    return {
        (count, 0): {"loss": (80 * (1.5 + law(count) * slopes)).tolist(), "tokens": [80.0] * 24}
        for count in counts
    }


@pytest.mark.parametrize(
    ("law", "endless", "part"),
    [
        (lambda n: 1.0 - 0.1 * np.log2(1 + n / 10), True, "power"),  # a straight line in log n
        (lambda n: 1.0 - 1e-3 * n, True, ""),  # and one in n
        (lambda n: np.exp(-n / 10), False, "power"),  # over early
        (lambda n: 1.0 if n < 10 else 0.0, False, ""),  # at once
        (lambda n: 1 / (1 + n / 15), False, None),  # as the curve itself
    ],
)
def test_a_fall_without_an_end_is_said(law, endless, part):
    fitted = saturation(of_law(law), resamples=5)
    assert fitted["endless"] == endless
    if part is None:
        assert fitted["open"] == []
    else:
        assert part in fitted["open"] or (not part and fitted["open"])


def test_intervals_that_end_where_the_search_ends_are_said():
    """The best fit lies inside; that of some samples does not."""
    rng = np.random.default_rng(4)
    results = of_law(lambda n: 1 / (1 + n / 8) ** 0.4)
    for result in results.values():
        result["loss"] = (np.array(result["loss"]) + rng.normal(0, 8, 24)).tolist()
    fitted = saturation(results, resamples=40)
    low, high = fitted["power"]["low"], fitted["power"]["high"]
    assert ("power" in fitted["open"]) == (low < 0.105 or high > 3.8)
    assert fitted["open"]


def arguments(folder, **changed):
    values = dict(workdir=str(folder / "w"), tiny=True, counts="0,4,12", seeds="0", override=[])
    values |= dict(seeds_beyond="1")  # the set of the world has 6
    values |= dict(judge="", published="", epochs=1, updates=2, max_prompt_tokens=600, resamples=5)
    return argparse.Namespace(**(values | changed))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    def make(folder):
        with runs.one_device():
            write_json(folder / "result.json", curve.experiment(arguments(folder)))

    return runs.once(tmp_path_factory, "instruction_curve", make)


def test_figures_of_a_tiny_model(finished):
    result = read_json(finished / "result.json")
    assert result["counts"].keys() == {"0", "4", "12"} and result["held_out"] == 3
    # The experiment measures prompt by prompt what the stage measures in packed rows.
    for count, name in (("0", "base"), ("4", "tuned"), ("12", "tuned")):
        run = finished / "w" / ("12_1" if count == "12" else "4_0")
        expected = read_json(run / "evaluation.json")["instruct"][name]["held_out/perplexity"]
        found = result["counts"][count]["held_out/perplexity"]
        assert found["value"] == pytest.approx(expected["value"], rel=1e-4)
        assert found["runs"] == 1
        assert result["counts"][count]["grounding/item_named"]["value"] <= 1.0
    held_out = {r.group for r in read_instructions(finished / "w" / "sets" / "held_out.jsonl")}
    assert not (finished / "w" / "12_0").exists() and not (finished / "w" / "4_1").exists()
    for count, seed in ((4, 0), (12, 1)):
        run = finished / "w" / f"{count}_{seed}"
        used = read_instructions(run / "instructions" / "train.jsonl")
        assert len(used) == count and not held_out & {record.group for record in used}
    assert "instructions" in curve.show(result)
    fitted = result["saturation"] | {"endless": False, "open": ["power"]}
    text = curve.show(result | {"saturation": fitted})
    assert "perplexity falls to" in text and "(the data does not bound power)" in text
    text = curve.show(result | {"saturation": fitted | {"endless": True}})
    assert "no end of the fall is seen: the data does not bound power" in text


def test_what_is_done_is_read_and_not_made_again(finished, monkeypatch):
    def refused(*args):
        raise AssertionError("trained or measured again")

    monkeypatch.setattr(curve, "Meter", refused)
    monkeypatch.setattr("xrec_jax.training.language.fit", refused)
    with runs.one_device():
        again = curve.experiment(arguments(finished))
    assert again["counts"] == read_json(finished / "result.json")["counts"]


def test_a_judge_compares_with_the_base_in_both_orders(finished, monkeypatch, tmp_path):
    """A judge that likes the longer text: the set's own answers win over a base's few words."""

    def longer(prompts, first, second):
        lengths = zip(map(len, first), map(len, second), strict=True)
        return np.array([0.5 + 0.4 * np.sign(a - b) for a, b in lengths])

    monkeypatch.setattr(curve.run_base, "load_base", lambda *args: None)
    monkeypatch.setattr(curve, "load_judge", lambda *args: judge)
    monkeypatch.setattr(curve, "judge_identity", lambda path: judge.__name__)
    judge = longer
    args = arguments(finished, judge=str(finished / "w" / "4_0"), workdir=str(tmp_path))
    results = {
        (count, 0): read_json(finished / "w" / ("4_0" if not count else f"{count}_0") / name)
        for count, name in ((0, "base.json"), (4, "measured.json"))
    }
    held_out = read_instructions(finished / "w" / "sets" / "held_out.jsonl")
    sets = Sets([], held_out, [], {}, [record.prompt for record in held_out])
    with runs.one_device():
        ratios, learned = curve.win_ratios(args, sets, results)
    assert ratios[-1, 0]["value"] == 1.0 and learned == 0
    points = [
        (1 + np.sign(len(a) - len(b))) / 2
        for a, b in zip(results[4, 0]["texts"], results[0, 0]["texts"], strict=True)
    ]
    assert ratios[4, 0]["value"] == pytest.approx(np.mean(points))

    # Another judge is asked anew; what the first one said is kept for its return.
    def shorter(prompts, first, second):
        return 1.0 - longer(prompts, first, second)

    judge = shorter
    with runs.one_device():
        assert curve.win_ratios(args, sets, results)[0][-1, 0]["value"] == 0.0
        judge = longer
        monkeypatch.setattr(curve, "load_judge", None)
        assert curve.win_ratios(args, sets, results)[0] == ratios


def test_a_run_without_a_judge_is_refused_before_any_training(finished, tmp_path):
    args = arguments(tmp_path, judge=str(finished / "w" / "4_0"))
    with pytest.raises(UserError, match=r"--judge=.*4_0: no judge there; finish a run"):
        curve.experiment(args)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("counts", ["0", "5", "-1,5", "a,b"])
def test_wrong_counts_are_refused(counts, tmp_path):
    with pytest.raises(UserError, match="--counts"):
        curve.experiment(arguments(tmp_path, counts=counts))
