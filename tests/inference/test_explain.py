"""Explanations of a run's recommendations: records, shards, resuming, the stage."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import polars as pl
import pytest

import xrec_jax
from tests import runs, tiny
from xrec_jax.api import explain as explain_command
from xrec_jax.commands.explain import EXPLAIN
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.data.histories import Histories
from xrec_jax.data.run_data import prepare
from xrec_jax.inference import explainers
from xrec_jax.inference.options import AS_THE_RUN, GenerationOptions
from xrec_jax.llm.io.peft_io import save_adapter
from xrec_jax.llm.language_model import load_llm
from xrec_jax.llm.model import lora
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.run_config import read_config, start_run
from xrec_jax.stages import Context, explain
from xrec_jax.tasks.requests import RequestBuilder, UserItem, request_builder
from xrec_jax.text.prompts.render import render_prompt
from xrec_jax.text.prompts.templates import get
from xrec_jax.text.records.explanations import EXPLANATION_COLUMNS, join, prompt_hash
from xrec_jax.text.synthetic.template_explainer import template_explanation

NEW_TOKENS = 5
USERS = "u00003,u00011,u00007"


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Programs for one device compile in a fraction of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xrec_jax.api.saved_mesh", lambda config: tiny.mesh())
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, one_device):
    """A run with a recommender, a random base and a random adapter for it; nothing is tuned."""
    folder = tmp_path_factory.mktemp("explain") / "run"
    config = tiny.language("recommend")
    config.instruct.update({"history": 3, "max_prompt_tokens": 0})
    config.instruct.samples.max_new_tokens = NEW_TOKENS
    config.llm.generation_batch = 2  # few shapes to compile
    start_run(RunDir(folder), config)
    # What is most popular needs no training, only to be known as finished.
    done = {"popularity": {"valid/ndcg@10": {"value": 0.1}}}
    RunDir(folder).write_evaluation("recommend", done)
    builder = RequestBuilder(config, prepare(config.data))
    texts = [case.prompt for case in builder.many([UserItem(u, u % 16) for u in range(20)])]
    tiny.llama_directory(folder / "base", texts, num_layers=1, max_positions=512)
    shape = runs.llama_config(folder / "base")
    adapter = lora.LoraConfig(2, 8.0, 0.0, ("q", "v"))
    shapes = jax.eval_shape(lambda key: lora.init(adapter, shape, key), jax.random.key(0))
    draw = np.random.default_rng(1)
    save_adapter(folder / "adapter", jax.tree.map(lambda x: draw.normal(0, 0.5, x.shape), shapes))
    return folder


@pytest.fixture(scope="module")
def session(finished):
    return xrec_jax.restore(finished)


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """Records of `xrec explain` for three users, two items each, by the tuned model."""
    path = tmp_path_factory.mktemp("exported") / "o.jsonl"
    explain_command.explain(
        finished, users=USERS, top_k=2, output=str(path), options=GenerationOptions(shard=4)
    )
    assert [file.name for file in path.parent.iterdir()] == ["o.jsonl"]
    return jsonl(path)


def jsonl(path):
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def prompts_by_hand(session, records, latest=3):
    """Prompts straight from the world's tables."""
    data = session.data
    histories = Histories.of(
        [data.split.train, data.split.valid, data.split.test], data.dataset.num_users
    )
    items, users = data.dataset.items.to_dicts(), data.dataset.users.to_dicts()
    found = []
    for record in records:
        user, item = int(record["user"][1:]), int(record["item"][1:])
        seen = histories.items[histories.start[user] : histories.start[user + 1]]
        entries = [items[row] for row in seen if row != item][-latest:]
        prompt = render_prompt(
            get("places"), item=items[item], history=entries, user=users[user]
        ).text
        found.append((prompt, items[item], entries, users[user]))
    return found


# Records


def test_every_recommendation_has_a_record(session, exported):
    recommended = session.recommend(USERS.split(","), top_k=2)
    keys = ("user", "item", "rank", "score", "system")
    assert [{key: record[key] for key in keys} for record in exported] == [
        {key: record[key] for key in keys} for record in recommended
    ]
    assert all(tuple(record) == EXPLANATION_COLUMNS for record in exported)
    assert {record["explainer"] for record in exported} == {"tuned"}
    assert len({(record["base"], record["adapter"]) for record in exported}) == 1
    assert all(len(exported[0][key]) == 16 for key in ("base", "adapter"))


def test_the_text_is_what_the_model_says_to_the_prompt_alone(session, exported):
    """One prompt at a time, by a model that was loaded by its own function."""
    folder = session.rundir.path
    lm = load_llm(str(folder / "base"), str(folder / "adapter"), batch=2)
    prompts = [prompt for prompt, *_ in prompts_by_hand(session, exported)]
    assert [record["prompt_hash"] for record in exported] == [*map(prompt_hash, prompts)]
    for record, prompt in zip(exported, prompts, strict=True):
        alone = lm.generate([prompt], max_new_tokens=NEW_TOKENS, template=False)[0]
        assert {key: record[key] for key in ("text", "tokens", "stop")} == {
            key: alone[key] for key in ("text", "tokens", "stop")
        }
        assert record["log_prob"] == pytest.approx(alone["log_prob"], abs=1e-3)


def test_python_gives_the_records_of_the_file(session, exported):
    asked = [{key: r[key] for key in ("user", "item", "rank", "score", "system")} for r in exported]
    for given, expected in zip(session.explain(asked), exported, strict=True):
        assert given.pop("log_prob") == pytest.approx(expected["log_prob"], abs=1e-4)
        assert given.items() <= expected.items()
    ids = [(record["user"], record["item"]) for record in exported[:2]]
    first, again = session.explain([ids[0], ids[1], ids[0]])[::2]
    assert first == again and first["text"] == exported[0]["text"]
    assert first["rank"] is first["score"] is first["system"] is None


def test_another_adapter_by_its_directory(session, exported, tmp_path):
    other = shutil.copytree(session.rundir.path / "adapter", tmp_path / "other")
    pair = [(exported[0]["user"], exported[0]["item"])]
    for name in ("other", "mine"):
        label = "" if name == "other" else name
        (found,) = session.explain(pair, adapter=str(other), explainer=label)
        assert (found["explainer"], found["adapter"]) == (name, exported[0]["adapter"])
        assert found["text"] == exported[0]["text"]


def test_the_template_without_any_base(copy, session, tmp_path):
    shutil.rmtree(copy / "base")
    shutil.rmtree(copy / "adapter")
    output = tmp_path / "o.jsonl"
    explain_command.explain(copy, users=USERS, top_k=2, output=str(output))
    records = jsonl(output)
    for record, (prompt, item, entries, user) in zip(
        records, prompts_by_hand(session, records), strict=True
    ):
        told = template_explanation(item, entries, user, key=prompt_hash(prompt), seed=0)
        assert record["text"] == told and record["explainer"] == "template"
        assert {record[k] for k in ("tokens", "log_prob", "base", "adapter")} == {None}
    with pytest.raises(UserError, match="has no base; give one with --base, or use --explainer"):
        explain_command.explain(
            copy,
            users="all",
            output=str(tmp_path / "b.jsonl"),
            options=GenerationOptions(explainer="base"),
        )


def test_given_pairs_from_a_file(finished, exported, tmp_path):
    rows = [
        {"user": "u00002", "item": "p00005"},
        {"user": "u00002", "item": "p00001", "rank": 7, "score": 0.1, "system": "mine"},
        {"user": "u00002", "item": "p00005"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pl.DataFrame(rows).write_parquet(tmp_path / "p.parquet")
    made = []
    for kind in ("jsonl", "parquet"):
        output = tmp_path / f"o-{kind}.jsonl"
        explain_command.explain(
            finished,
            pairs=str(tmp_path / f"p.{kind}"),
            output=str(output),
            options=GenerationOptions(explainer="template"),
        )
        made.append(jsonl(output))
    assert made[0] == made[1]
    first, second, third = made[0]
    assert first == third and first["rank"] is None
    assert (second["rank"], second["score"], second["system"]) == (7, 0.1, "mine")
    (tmp_path / "p.jsonl").write_text('{"user": "u00002", "item": "p0000x"}\n')
    with pytest.raises(UserError, match=r"p.jsonl, line 1: no item 'p0000x' in the data"):
        explain_command.explain(
            finished, pairs=str(tmp_path / "p.jsonl"), output=str(tmp_path / "x.jsonl")
        )
    assert not (tmp_path / "x.jsonl.parts").exists()


# Prompts


def test_a_prompt_longer_than_the_model_takes_loses_its_oldest_entries(session):
    config, data = session.config.copy_and_resolve_references(), session.data
    whole = request_builder(config, session.rundir, data)
    case = whole(UserItem(3, 5))
    assert len(case.history) == 3 and not whole.cut
    tight = RequestBuilder(
        config, data, tokenizer=whole.tokenizer, max_positions=len(case.ids) + NEW_TOKENS - 1
    )
    shorter = tight(UserItem(3, 5))
    assert len(shorter.ids) < len(case.ids) and tight.cut == 1
    assert shorter.history == case.history[-len(shorter.history) :] and len(shorter.history) < 3
    config.instruct.max_prompt_tokens = len(case.ids) - 1
    budget = request_builder(config, session.rundir, data)
    assert budget(UserItem(3, 5)) == shorter and not budget.cut


# Flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"output": "o.txt"}, "must end in .jsonl or .parquet"),
        ({"users": "u00003,nobody"}, "no user 'nobody'"),
        ({"top_k": 0}, "--top_k=0 must be positive"),
        ({"system": "popularty"}, "'popularty' in the run.*popularity"),
        ({"explainer": "tunde"}, "--explainer='tunde' is not valid.*tuned"),
        ({"explainer": "base", "adapter": "a"}, "give one of them"),
        ({"adapter": "nowhere"}, "nor the directory of an adapter"),
        ({"max_new_tokens": -1}, "--max_new_tokens=-1 must not be negative"),
        ({"max_new_tokens": 600}, "leaves no room for a prompt: the model takes 512"),
        ({"prompt": "place"}, "--prompt='place'.*places"),
        ({"prompt": "llmxrec_news"}, "item table"),
        ({"pairs": "nowhere"}, "--pairs=nowhere: no such file"),
        ({"base": "nowhere"}, "nowhere"),
    ],
)
def test_a_wrong_flag_writes_nothing(finished, tmp_path, flags, message):
    given = {"users": "all", "output": "o.jsonl"} | flags
    given["output"] = str(tmp_path / given["output"])
    fields = {field.name for field in dataclasses.fields(GenerationOptions)} & given.keys()
    given["options"] = GenerationOptions(**{name: given.pop(name) for name in fields})
    with pytest.raises(UserError, match=message) as error:
        explain_command.explain(finished, **given)
    assert "\n" not in str(error.value) and not [*tmp_path.iterdir()]


def test_every_option_is_a_flag_with_its_default():
    flags = EXPLAIN.define([])
    for field in dataclasses.fields(GenerationOptions):
        assert flags[field.name].default == field.default, field.name


def test_options_leave_the_config_of_the_run_as_it_is(session):
    before = session.config.to_dict()
    options = GenerationOptions(
        base="b", prompt="generic", history=2, max_new_tokens=9, temperature=0.5, batch=8, shard=3
    )
    config = options.applied(session.config, session.data)
    assert session.config.to_dict() == before
    instruct, samples = config.instruct, config.instruct.samples
    assert (instruct.history, samples.max_new_tokens, samples.temperature) == (2, 9, 0.5)
    assert config.llm.generation_batch == 8 and instruct.template["name"] == "generic"
    assert config.llm.path.endswith("/b") and config.data.to_dict() == before["data"]
    assert AS_THE_RUN.applied(session.config, session.data).to_dict() == before


def test_an_adapter_of_another_base_is_refused(copy):
    mark = {"format": 1, "base": {"path": "x", "fingerprint": "0" * 64}}
    (copy / "adapter" / "xrec.json").write_text(json.dumps(mark))
    with pytest.raises(UserError, match="tuned on another base"):
        xrec_jax.restore(copy).explain([("u00001", "p00001")])


def test_pairs_that_are_none(session):
    for pairs, message in (
        ("u00001", "must be a list"),
        ([("u00001",)], "a pair is"),
        ([{"user": "u00001"}], "no 'item'"),
        ([("u00001", "q")], "no item 'q'"),
    ):
        with pytest.raises(UserError, match=message):
            session.explain(pairs)


def test_a_table_without_the_worlds_columns_gets_generic_prompts(copy, exported, tmp_path):
    """Events and titles from files, no world and no tuning: the template works out of the box."""
    events = "user,item,time\n" + "".join(f"a{n % 5},b{n * 7 % 20},{n}\n" for n in range(60))
    (tmp_path / "events.csv").write_text(events)
    names = "".join(f"b{n},Film {n},genre {n % 2}\n" for n in range(20))
    (tmp_path / "items.csv").write_text("item,title,genre\n" + names)
    config = tiny.config("popularity")
    config.data.update({"format": "csv", "path": str(tmp_path / "events.csv")})
    config.data.items = str(tmp_path / "items.csv")
    config.data.columns.update({"user": "user", "item": "item", "timestamp": "time"})
    start_run(RunDir(tmp_path / "run"), config)
    found = xrec_jax.restore(tmp_path / "run").explain([("a1", "b0")])
    assert "Film 0" in found[0]["text"]
    (tmp_path / "pair.jsonl").write_text('{"user": "a1", "item": "b0"}')
    explain_command.explain(
        tmp_path / "run",
        pairs=str(tmp_path / "pair.jsonl"),
        output=str(tmp_path / "o.jsonl"),
        options=GenerationOptions(
            base=str(copy / "base"), max_new_tokens=NEW_TOKENS, history=2, batch=2
        ),
    )
    (record,) = jsonl(tmp_path / "o.jsonl")
    assert record["explainer"] == "base" and record["adapter"] is None
    assert record["base"] == exported[0]["base"] and record["tokens"] == NEW_TOKENS


def test_ones_own_with_the_tuned_model(copy, session, exported, monkeypatch):
    """One that needs the run's adapter gets the model with it, and says so in its records."""
    monkeypatch.setattr(explainers.base, "_REGISTRY", dict(explainers.base._REGISTRY))

    @explainers.register("loud", needs="tuned")
    class Loud(explainers.Model):
        def write(self, cases):
            for place, written in super().write(cases):
                yield place, written._replace(text=written.text.upper() + "!")

    pairs = [(record["user"], record["item"]) for record in exported]
    records = session.explain(pairs, explainer="loud")
    asked = {key: exported[0][key] for key in ("base", "adapter")}
    for record, one in zip(records, exported, strict=True):
        assert record["text"] == one["text"].upper() + "!" and record["explainer"] == "loud"
        assert asked.items() <= record.items()
        # Another batch may round a sum otherwise.
        assert record["log_prob"] == pytest.approx(one["log_prob"], rel=1e-6)
    shutil.rmtree(copy / "adapter")
    with pytest.raises(UserError, match=r"explain\.explainers: 'loud' needs stage 'instruct'"):
        staged(copy, stages=("recommend", "explain"), explainers=("loud",))


# The stage


def staged(folder, stages=("recommend", "instruct", "explain"), **changed):
    """Runs the stage in a run directory whose adapter was tuned on somebody's prompt."""
    rundir = RunDir(folder)
    config = read_config(rundir)
    config.stages = stages
    settings = {"users": 6, "top_k": 2, "shard": 5, "explainers": ("template", "tuned")}
    config.explain.update(settings | changed)
    data, mesh = prepare(config.data), tiny.mesh()
    with use_mesh(mesh):
        ctx = Context(config, data, mesh, rundir)
        explain.check(ctx)
        explain.run(ctx, None)
    return ctx


def test_the_stage(copy, session, capsys):
    """Fifteen of the twenty users were tuned on, one of them with a prompt of the stage itself."""
    recommended = session.recommend(top_k=2)
    known = [f"u{row:05d}" for row in range(20) if row % 4]
    lines = [
        {"prompt": f"another {user}", "completion": "x", "user": user, "item": ""} for user in known
    ]
    for (prompt, *_), one in zip(prompts_by_hand(session, recommended), recommended, strict=True):
        if one["user"] in known and one["rank"] == 2:
            lines.append({"prompt": prompt, "completion": "x", "user": one["user"], "item": "i"})
    (copy / "instructions").mkdir()
    (copy / "instructions" / "train.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    ctx = staged(copy)
    data, rundir = ctx.data, ctx.rundir
    pairs = jsonl(copy / "explanations" / "pairs.jsonl")
    users = list(dict.fromkeys(pair["user"] for pair in pairs))
    assert len(users) == 6 and {*users[:5]} == {f"u{row:05d}" for row in range(0, 20, 4)}
    assert users[5] in known
    assert [pair["rank"] for pair in pairs] == [1, 2] * 5 + [1]
    assert "11 pairs of 6 users, 1 of whom" in capsys.readouterr().out
    by_hand = prompts_by_hand(session, pairs)
    world, table = data.world, rundir.evaluation()["explain"]
    for pair, (prompt, item, entries, user) in zip(pairs, by_hand, strict=True):
        assert (pair["prompt"], pair["prompt_hash"]) == (prompt, prompt_hash(prompt))
        assert pair["title"] == item["name"] and pair["profile"] == user["user_text"]
        assert {**pair["attributes"], "item_id": pair["item"]} == item
        assert {**pair["profile_attributes"], "user_id": pair["user"]} == user
        assert [entry["title"] for entry in pair["history"]] == [row["name"] for row in entries]
        assert [e["attributes"] | {"item_id": e["item"]} for e in pair["history"]] == entries
        row = int(pair["user"][1:])
        visits = np.array([(data.dataset.interactions.user == row).sum()])
        true = world.reasons(np.array([row]), np.array([int(pair["item"][1:])]), visits)[0]
        assert pair["reasons"] == true.describe()
        for side, reasons in (("for", true.for_), ("against", true.against)):
            told = (
                [tuple(r[k] for k in reasons[0]._fields) for r in pair["planted"][side]]
                if (reasons)
                else []
            )
            assert told == [tuple(reason) for reason in reasons]
    for name in ("template", "tuned"):
        records = jsonl(copy / "explanations" / f"{name}.jsonl")
        assert [one.pair for one in join(pairs, records)] == pairs
        assert {record["explainer"] for record in records} == {name}
        words = np.mean([len(record["text"].split()) for record in records])
        assert table[name]["text/words"]["value"] == pytest.approx(words)
        ended = np.mean([record["stop"] == "eos" for record in records])
        assert (
            table[name]["text/ended"] | {"value": ended, "count": 11} == table[name]["text/ended"]
        )
    asked = [{k: pair[k] for k in ("user", "item")} for pair in pairs]
    again = [one["text"] for one in session.explain(asked)]
    assert again == [one["text"] for one in jsonl(copy / "explanations" / "tuned.jsonl")]
    before = runs.contents(copy)
    explain.run(ctx, None)
    assert runs.contents(copy) == before, "a finished stage does nothing"
    (copy / "explanations" / "template.jsonl").unlink()
    explain.run(ctx, None)
    assert runs.contents(copy) == before
    explain.evaluate(ctx)
    assert runs.contents(copy) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"users": -1}, "explain.users=-1 must be at least 0"),
        ({"shard": 0}, "explain.shard=0 must be at least 1"),
        ({"system": "popular"}, "explain.system='popular' is no system"),
        ({"explainers": ()}, "explain.explainers is empty"),
        ({"explainers": ("base", "base")}, "names 'base' twice"),
        ({"explainers": ("bse",)}, "explainer 'bse' is neither.*base"),
    ],
)
def test_a_stage_that_cannot_run_is_refused(copy, changed, message):
    before = runs.contents(copy)
    with pytest.raises(UserError, match=message):
        staged(copy, **changed)
    assert runs.contents(copy) == before
