"""The `attributes` stage in whole runs: what it leaves, skipping, comparing, bad settings."""

import json

import numpy as np
import pytest

from tests import runs, tiny
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter
from xrec_jax.core.rundir import RunDir
from xrec_jax.data.run_data import prepare
from xrec_jax.inference import attribute_answers
from xrec_jax.inference.attribute_answers import Answers
from xrec_jax.llm.generation.readout import Readout
from xrec_jax.llm.language_model import load_llm
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.stages import Context, attributes
from xrec_jax.tasks import attributes as attribute_cases
from xrec_jax.text.records.attributes import Attribute, Question

SEXES = ("female", "male")
AGES = (20, 31, 47)


def write_set(folder, count=24):
    """Questions on users of whom some come twice, some of them malformed."""
    records = []
    for n in range(count):
        user = n % 17
        answer = {"age": AGES[user % 3], "user sex": SEXES[user % 2]}
        records.append(
            {
                "prompt": f"1: film {user}\n2: film {user + 30}\n(turn {n // 17})\nsay who",
                "completion": json.dumps(answer) if n % 9 else "{age: no}",
            }
        )
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path, [f"{record['prompt']} {record['completion']}" for record in records]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A folder with a random model and a file of questions."""
    folder = tmp_path_factory.mktemp("attributes")
    _, texts = write_set(folder)
    tiny.llama_directory(folder / "model", texts, num_layers=1, max_positions=128)
    return folder


def from_file(folder, **changed):
    made = tiny.language("attributes")
    made.data.format = "none"
    made.llm.path, made.llm.chat_template = str(folder / "model"), "no"
    asked = made.attributes
    asked.update(dict(source="file", path=str(folder / "questions.jsonl"), length=128))
    asked.update(dict(held_out=0.3, valid=0.2, max_new_tokens=4) | changed)
    asked.lora.update(dict(rank=2, alpha=4.0))
    asked.train.update(dict(batch_size=4, epochs=2, learning_rate=0.01, log_every=1))
    return made


def do(config, workdir, *steps):
    """Runs steps of the stage as a run does."""
    rundir, mesh = RunDir(workdir), tiny.mesh()
    writer = MetricWriter(rundir.path, enabled=True) if "run" in steps else None
    with use_mesh(mesh):
        data = prepare(config.data)
        for step in steps:
            more = {"writer": writer} if step == "run" else {}
            getattr(attributes, step)(Context(config, data, mesh, rundir), **more)
    if writer is not None:
        writer.close()
    return rundir


@pytest.fixture(scope="module")
def finished(directory, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    do(from_file(directory), workdir, "check", "run")
    return workdir


def jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluation(workdir):
    return json.loads((workdir / "evaluation.json").read_text())["attributes"]


# What a run leaves


def test_files_of_the_stage(finished):
    assert {path.name for path in (finished / "attributes").iterdir()} == {
        "adapter",
        "answers.jsonl",
        "identity.json",
    }
    assert {path.name for path in (finished / "attributes" / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "xrec.json",
    }
    lines = runs.metrics(finished, "attributes")
    assert lines[-1]["train/epoch"] == 2 and "valid/loss" in lines[-1]


def test_schema_of_the_evaluation(finished):
    found = evaluation(finished)
    assert found.keys() == {
        "base",
        "tuned",
        "majority",
        "tuned vs base",
        "tuned vs majority",
        "data",
    }
    age = {f"age/{name}" for name in ("accuracy", "macro_f1", "mae")}
    sex = {f"user_sex/{name}" for name in ("accuracy", "macro_f1")}
    constrained = {name.replace("/", "/readout_") for name in age | sex}
    failures = {"age/parse_failures", "user_sex/parse_failures"}
    assert found["base"].keys() == found["tuned"].keys() == age | sex | constrained | failures
    assert found["majority"].keys() == age | sex
    tests = {
        f"{key}/{way}{name}"
        for key in ("age", "user_sex")
        for way in ("", "readout_")
        for name in ("accuracy_difference", "p")
    }
    tests |= {
        f"age/{way}{name}" for way in ("", "readout_") for name in ("mae_difference", "mae_p")
    }
    assert found["tuned vs base"].keys() == found["tuned vs majority"].keys() == tests
    for row in found.values():
        for entry in row.values():
            assert entry.keys() == {"value", "low", "high", "count"}
    assert found["data"]["data/malformed_completions"]["value"] == 3
    assert found["data"]["data/held_out_users"]["value"] == found["base"]["age/mae"]["count"]


def test_answers_are_those_of_held_out_users(finished, directory):
    config = from_file(directory)
    asked = attribute_cases.questions(config, prepare(config.data))
    records = jsonl(finished / "attributes" / "answers.jsonl")
    assert [one["user"] for one in records] == [one.user for one in asked.held_out]
    assert not {one["user"] for one in records} & {one.user for one in (*asked.train, *asked.valid)}
    for record in records:
        assert record.keys() == {
            "prompt_hash",
            "user",
            "truth",
            "base",
            "tuned",
            "parsed",
            "readout",
        }
        # A random model writes no JSON, the readout fills it in all the same.
        assert record["parsed"]["base"] == {"age": None, "user sex": None}
        for chosen in record["readout"].values():
            assert chosen["age"] in AGES and chosen["user sex"] in SEXES
    right = [one["readout"]["tuned"]["user sex"] == one["truth"]["user sex"] for one in records]
    value = evaluation(finished)["tuned"]["user_sex/readout_accuracy"]["value"]
    assert value == pytest.approx(np.mean(right))
    assert evaluation(finished)["tuned"]["user_sex/parse_failures"]["value"] == 1.0


def test_a_finished_stage_is_skipped_and_evaluated_alike(finished, directory, capsys):
    before = runs.contents(finished)
    do(from_file(directory), finished, "run")
    assert runs.contents(finished) == before and "attributes" not in capsys.readouterr().out
    do(from_file(directory), finished, "evaluate")
    assert runs.contents(finished) == before


def test_an_adapter_of_another_base_is_refused(finished, directory, tmp_path):
    config = from_file(directory)
    other = tmp_path / "model"
    texts = write_set(tmp_path)[1]
    tiny.llama_directory(other, texts, num_layers=1, max_positions=128, intermediate_size=16)
    config.llm.path = str(other)
    with pytest.raises(UserError, match="adapter: this adapter was tuned on other weights"):
        do(config, finished, "evaluate")
    with pytest.raises(UserError, match="no adapter; stage 'attributes' is not finished"):
        do(config, tmp_path / "none", "evaluate")


def test_a_start_with_other_questions_is_refused(directory, tmp_path):
    folder = tmp_path / "run" / "attributes"
    folder.mkdir(parents=True)
    (folder / "identity.json").write_text('{"base": "0", "questions": "0"}')
    with pytest.raises(UserError, match="started with another content of the base"):
        do(from_file(directory), tmp_path / "run", "run")


# Questions from tables


def world(**changed):
    made = tiny.language("pretrain", "attributes")
    made.attributes.update(dict(history=2) | changed)
    return made


def test_questions_from_a_world():
    config = world(held_out=0.25)
    data = prepare(config.data)
    found = attribute_cases.questions(config, data)
    parts = [{one.user for one in part} for part in (found.train, found.valid, found.held_out)]
    assert all(parts) and not parts[0] & parts[2] and not parts[1] & (parts[0] | parts[2])
    items = {row["name"]: row for row in data.dataset.items.to_dicts()}
    users = {row["user_id"]: row for row in data.dataset.users.to_dicts()}
    for one in (*found.train, *found.valid, *found.held_out):
        line = next(x for x in one.prompt.split("\n") if x.startswith("Recommended place: "))
        name = line.removeprefix("Recommended place: ").partition(",")[0].partition(":")[0]
        about = next(x for x in one.prompt.split("\n") if x.startswith("About the user: "))
        profile = users[one.user]
        assert profile["occupation"] in about and profile["gender"] not in about.split()
        assert profile["age_band"] not in about
        assert f". {name}:" not in one.prompt  # never in its own history
        if "kind" in one.truth:
            assert one.truth == {"kind": items[name]["kind"], "price": items[name]["price"]}
            assert items[name]["kind"] not in line and "price" not in line
            assert items[name]["mood"] in line
        else:
            assert one.truth == {key: profile[key] for key in ("gender", "age_band")}
    assert len(found.attributes) == 4 and set(found.known("price")) <= {1.0, 2.0, 3.0, 4.0}


def test_evaluated_and_examples_choose_a_part():
    data = prepare(world().data)
    whole = attribute_cases.questions(world(), data)
    few = attribute_cases.questions(world(examples=7, evaluated=3), data)
    assert len(few.train) == 7 and len(few.held_out) == 3
    assert all(one in whole.train for one in few.train)
    assert all(one in whole.held_out for one in few.held_out)
    assert few.unseen == whole.unseen == whole.held_out


def test_another_window_of_a_held_out_history_is_not_tuned_on(tmp_path):
    """Twenty users, each asked about twice: of ten entries the second prompt shows another one."""
    records = [
        {
            "prompt": "Seen:\n" + "\n".join(f"{n + 1}: film {user}.{n + late}" for n in range(10)),
            "completion": json.dumps({"sex": "mf"[user % 2]}),
        }
        for user in range(20)
        for late in (0, 1)
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    config = tiny.language("attributes")
    config.attributes.update(
        dict(source="file", path=str(path), held_out=0.2, valid=0.2, examples=0, evaluated=0)
    )
    for seed in range(3):
        config.seeds = (seed,)
        found = attribute_cases.questions(config, tiny.data())
        whose = [
            {one.prompt.split("film ")[1].split(".")[0] for one in part}
            for part in (found.train + found.valid, found.unseen)
        ]
        assert not whose[0] & whose[1]
        assert any("most of a held-out user's history" in note for note in found.notes)


def test_what_a_base_must_not_learn_from(directory):
    config = world()
    data = prepare(config.data)
    names = {one.user for one in attribute_cases.questions(config, data).unseen}
    rows = attribute_cases.held_out_rows(config, data)
    assert {data.dataset.user_ids[row] for row in rows} == names and 0 < len(rows) < 20
    assert attribute_cases.without_held_out(["a text"], config, data) == (["a text"], 0)

    config = from_file(directory, evaluated=1)
    data = prepare(config.data)
    assert attribute_cases.held_out_rows(config, data) == frozenset()
    held = attribute_cases.questions(config, data).unseen
    assert len({one.user for one in held}) > 1
    texts = [f"1: film {user + 30}\n2: film {user}\nof age 20" for user in range(17)]
    kept, count = attribute_cases.without_held_out(texts, config, data)
    assert count == len({one.user for one in held}) and len(kept) == 17 - count
    for one in held:
        lines = one.prompt.split("\n")
        assert not [text for text in kept if lines[0].removeprefix("1: ") in text.split(": ")]
    config.stages = ("pretrain",)
    assert attribute_cases.without_held_out(texts, config, data) == (texts, 0)


# The constrained readout


def test_the_readout_takes_the_most_likely_value(directory):
    lm = load_llm(directory / "model")
    readout = Readout(lm.model, lm.params, lm.tokenizer)
    sex, age = Attribute("user sex", SEXES), Attribute("age", numeric=True, low=20, high=47)
    question = Question("1: film 3\nsay who", (sex, age), {"user sex": "male", "age": 31.0}, "u")
    options = {
        "user sex": list(SEXES),
        "age": attribute_answers.allowed(age, [47.0, 20.0, 31.0, 20.0]),
    }
    assert options["age"] == [20.0, 31.0, 47.0]
    opened = readout.open(question.prompt)

    def best(key, texts):
        return options[key][int(np.argmax([opened.log_probs([text])[0] for text in texts]))]

    first = best("user sex", [f'{{"user sex": "{x}", "age":' for x in SEXES])
    second = best("age", [f'{{"user sex": "{first}", "age": {x:g}}}' for x in options["age"]])
    assert attribute_answers.choose(readout, question, options) == {
        "user sex": first,
        "age": second,
    }


def test_free_answers_are_compared_too(directory):
    """Answers set by hand: figures and tests of a system that is right in all but one case."""
    config = from_file(directory)
    found = attribute_cases.questions(config, prepare(config.data))
    truth = [dict(one.truth) for one in found.held_out]
    failed = [{"age": None, "user sex": None} for _ in truth]
    near = [failed[0], *truth[1:]]
    table = attribute_answers.figures(
        config, found, {"base": Answers([], failed, truth), "tuned": Answers([], near, truth)}
    )
    cases = len(truth)
    assert table["tuned"]["age/accuracy"]["value"] == pytest.approx((cases - 1) / cases)
    assert table["base"]["age/parse_failures"]["value"] == 1.0
    difference = table["tuned vs base"]["age/accuracy_difference"]
    assert difference["value"] == pytest.approx((cases - 1) / cases)
    assert table["tuned vs base"]["age/p"]["value"] < 0.2
    assert table["tuned vs base"]["age/readout_p"]["value"] == 1.0
    text = attribute_answers.figures_table(found, table)
    assert "user_sex/readout_accuracy" in text and f"age: {cases} asked" in text


@pytest.mark.parametrize("epochs", [1, 2])
def test_tuning_that_breaks_the_weights_leaves_no_adapter(directory, tmp_path, epochs):
    config = from_file(directory)
    config.attributes.train.update(dict(epochs=epochs, batch_size=64, learning_rate=1e38))
    with pytest.raises(UserError, match=r"attributes: .* at step 1; stopped, .* learning rate"):
        do(config, tmp_path / "run", "run")
    assert not (tmp_path / "run" / "attributes" / "adapter").exists()


# Bad settings


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(source="files"), "attributes.source='files' is not valid; valid: world, file"),
        (dict(source="world"), "attributes.source='world' needs config.data.format='world'"),
        (dict(path=""), "needs attributes.path"),
        (dict(only=("sex",)), "no completion has the key 'sex'"),
        (dict(held_out=1.0), "attributes.held_out=1.0 must be above 0 and below 1"),
        (dict(valid=0.0), "attributes.valid=0.0 must be above 0"),
        (dict(examples=99), "attributes.examples=99, but .* are left to tune on; 0 takes all"),
        (dict(evaluated=-1), "attributes.evaluated=-1 must be at least 0"),
        (dict(max_new_tokens=0), "attributes.max_new_tokens=0 must be at least 1"),
        (dict(max_new_tokens=120), "max_new_tokens=120 more do not fit the 128"),
        (dict(length=500), "attributes.length=500, but the model takes 128"),
        (dict(length=9), "attributes, training questions: .* has 38 tokens, more than the 9"),
    ],
)
def test_bad_settings_are_refused(directory, tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        do(from_file(directory, **changed), tmp_path / "run", "check")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(user=("age",)), "attributes.user: no column 'age'"),
        (dict(item=("kindd",)), "attributes.item: no column 'kindd'; did you mean 'kind'"),
        (dict(profile=("user_text",)), "column 'user_text', which the prompt shows, holds"),
        (dict(user=(), item=()), "nothing is asked"),
        (dict(length=9999), "attributes.length=9999, but llm.max_positions=512"),
    ],
)
def test_bad_columns_are_refused(tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        do(world(**changed), tmp_path / "run", "check")
