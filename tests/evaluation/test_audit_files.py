"""`xrec audit` on files of texts, on generated worlds and on finished runs."""

import json

import pytest

from tests import tiny
from tests.evaluation.test_audit_judgements import grid
from xrec_jax import cli, defaults
from xrec_jax.api import audit
from xrec_jax.auditing import run as pipeline
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage.files import json_lines
from xrec_jax.data import run_data

TITLES = ["Alpine Inn", "Bamboo Bar", "Cedar Cafe", "Dune Diner", "Ember Eatery"]


def prompt(place):
    return (
        f"Seen:\n1. Old {place} Mill\n2. New {place} Mill\nRecommended place:\n{TITLES[place]}\n"
        "Say why, within 9 words."
    )


def write(folder, **sets):
    config = defaults.base()
    config.stages, config.data.format = (), "none"
    for role, records in sets.items():
        path = folder / f"{role}.jsonl"
        path.write_text(json_lines(records))
        config.audit[role] = str(path)
    return config


def texts(**changed):
    """Files without a fault: three prompts to tune on, two to compare two writers on."""
    prompts = [{"prompt_id": place, "prompt": prompt(place)} for place in (3, 4)]
    sets = {
        "instructions": [
            {"prompt": prompt(place), "completion": f"{TITLES[place]} is near."}
            for place in range(3)
        ],
        "prompts": prompts,
        "explanations": [
            {"prompt_id": one["prompt_id"], "model": model, "completion": f"{model} likes {n}."}
            for n, one in enumerate(prompts)
            for model in ("ours", "theirs")
        ],
    }
    return sets | changed


def audited(config, tmp_path):
    status = audit.audit(config, output=str(tmp_path / "audit.json"))
    record = json.loads((tmp_path / "audit.json").read_text())
    return status, record, {finding["code"]: finding for finding in record["findings"]}


def test_clean_files(tmp_path, capsys):
    status, record, found = audited(write(tmp_path, **texts()), tmp_path)
    assert status == 0 and not found and "data" not in record
    assert set(record["files"]) == {"instructions", "prompts", "explanations"}
    assert {"instructions/also_in_prompts", "explanations/missing"} <= set(record["passed"])
    assert capsys.readouterr().out.startswith(f"instructions: {tmp_path}")


def test_faulty_files(tmp_path):
    sets = texts()
    sets["instructions"].append({"prompt": prompt(4), "completion": "I'm sorry, no."})
    sets["explanations"][3]["completion"] = "It is"
    sets["explanations"].pop(1)
    status, _, found = audited(write(tmp_path, **sets), tmp_path)
    assert status == 1
    assert {code: (one["count"], one["severity"]) for code, one in found.items()} == {
        "instructions/also_in_prompts": (1, "error"),
        "instructions/refusals": (1, "warning"),
        "explanations/missing": (1, "warning"),
        "explanations/cut_off": (1, "warning"),
    }
    assert found["explanations/missing"]["examples"] == ["theirs: prompt 3"]
    assert found["explanations/cut_off"]["examples"][1] == "theirs, prompt 4: ... 'It is'"


def test_files_are_joined_and_read_as_messages(tmp_path):
    config = write(tmp_path, **texts())
    turns = [{"role": "user", "content": prompt(3)}, {"role": "assistant", "content": "Go!"}]
    (tmp_path / "more.jsonl").write_text(json_lines([{"messages": turns}]))
    config.audit.instructions += f"+{tmp_path / 'more.jsonl'}"
    _, _, found = audited(config, tmp_path)
    assert found["instructions/also_in_prompts"]["total"] == 4
    assert found["instructions/also_in_prompts"]["count"] == 1


def test_writers_are_named_in_judgements(tmp_path):
    judged = grid(("zoo",), 4)
    answers = [
        {"prompt": one["prompt"], "model": one["first"].split()[0], "completion": one["first"]}
        for one in judged
    ]
    config = write(tmp_path, judgements=judged, explanations=answers)
    _, _, found = audited(config, tmp_path)
    assert found["judgements/fixed_position"]["examples"] == [
        "ape (zoo) stands first in all of its 12 comparisons",
        "zoo system 4 stands second in all of its 12 comparisons",
    ]


@pytest.mark.parametrize(
    "sets, message",
    [
        (dict(prompts=[{"promt": "x"}]), r"audit.prompts=.*, line 1: no key 'prompt'; did you"),
        (dict(prompts=[{"prompt": 3}]), r"line 1: expected a text as prompt"),
        (
            dict(judgements=[{"prompt": "a", "first": "b", "second": "c", "better": 3}]),
            r"line 1: expected 1 or 2 as better",
        ),
        (dict(explanations=texts()["explanations"]), r"audit.prompts must name the file"),
        (
            dict(explanations=texts()["explanations"], prompts=[{"prompt": "a"}]),
            r"record 1: no 'prompt_id' to join",
        ),
        ({}, r"nothing to audit: .* set one of audit.attributes, audit"),
    ],
)
def test_mistakes(tmp_path, sets, message):
    with pytest.raises(UserError, match=message):
        audit.audit(write(tmp_path, **sets))


def test_a_null_is_no_word(tmp_path):
    """An answer that is null has no text; what answers are joined by must not be null."""
    lines = [
        {"prompt": f"Why {n}?", "completion": text} for n, text in enumerate((None, "", "So."))
    ]
    _, _, found = audited(write(tmp_path, instructions=lines), tmp_path)
    assert found["instructions/empty"]["count"] == 2
    turns = [
        [{"role": "user", "content": f"Why {n}?"}, {"role": "assistant", "content": text}]
        for n, text in enumerate((None, "So."))
    ]
    lines = [{"messages": one} for one in turns]
    _, _, found = audited(write(tmp_path, instructions=lines), tmp_path)
    assert found["instructions/empty"]["count"] == 1
    prompts = [{"prompt_id": 1, "prompt": "Why 1?"}]
    said = {"prompt_id": 1, "model": "ape", "completion": None}
    _, _, found = audited(write(tmp_path, prompts=prompts, explanations=[said]), tmp_path)
    assert found["explanations/empty"]["count"] == 1
    judged = {"prompt": "Why?", "first": "a", "second": "b", "better": 1}
    for sets, message in (
        (
            dict(instructions=[{"prompt": None, "completion": "a"}]),
            "line 1: expected a text as prompt",
        ),
        (
            dict(instructions=[{"prompt": "a", "completion": ["b"]}]),
            "line 1: completion must be text",
        ),
        (
            dict(prompts=prompts, explanations=[said | {"prompt_id": None}]),
            "line 1: prompt_id is null",
        ),
        (dict(prompts=prompts, explanations=[said | {"model": None}]), "line 1: model is null"),
        (dict(judgements=[judged, judged | {"second": None}]), "line 2: second is null"),
    ):
        with pytest.raises(UserError, match=message):
            audit.audit(write(tmp_path, **sets))
    # A key that need not be there is the same as null.
    lines = [{"prompt": "a", "completion": '{"age": null, "sex": "f"}', "dataset": None}]
    assert audited(write(tmp_path, attributes=lines), tmp_path)[0] == 0


def test_ratings_table(tmp_path):
    config = write(tmp_path)
    config.audit.ratings = str(tmp_path / "r.csv")
    (tmp_path / "r.csv").write_text("item,model,rater,fun\n1,a,x,5\n1,b,x,12\n")
    status, _, found = audited(config, tmp_path)
    assert status == 1 and found["ratings/out_of_scale"]["examples"] == ["row 2, fun: '12'"]
    # The same table as others write it: another name, a line break in a cell, numbers of rows.
    (tmp_path / "r.csv").write_text(',item,system,rater_id,fun\n0,"1\n",a,x,5\n1,"1\n",b,x,12\n')
    status, _, found = audited(config, tmp_path)
    assert found["ratings/out_of_scale"]["examples"] == ["row 2, fun: '12'"]
    assert found["ratings/out_of_scale"]["total"] == 2
    (tmp_path / "r.csv").write_text("item,model,fun,fun\n1,a,5,12\n")
    with pytest.raises(UserError, match="column 'fun' stands twice"):
        audit.audit(config)
    (tmp_path / "r.csv").write_text("itm,model\n1,a\n")
    with pytest.raises(UserError, match="no column 'item'; did you mean 'itm'"):
        audit.audit(config)


def test_generated_world_and_its_instructions_are_clean(tmp_path):
    config = defaults.base()
    config.stages = ("recommend", "instruct")
    config.recommend.popularity = defaults.system("popularity")
    status, record, _ = audited(config, tmp_path)
    assert status == 0 and record["count"] == {"error": 0, "warning": 0, "info": 3}
    texts_checked = {code for code in record["passed"] if code.startswith("instruct/")}
    assert len(texts_checked) == 12 and "instruct/also_in_held_out" in texts_checked


def test_tiny_variant_needs_no_files(capsys):
    path = tiny.CHECKOUT / "configs" / "llmxrec_audit.py"
    assert cli.main(["audit", f"--config={path}:tiny"]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out


def test_run_directory(tmp_path):
    run = tmp_path / "run"
    prompts = [prompt(place) for place in range(5)]
    instructions = [{"prompt": prompts[n], "completion": f"{TITLES[n]} is near."} for n in range(3)]
    pairs = [
        {
            "user": str(n),
            "item": str(n),
            "system": "bpr",
            "prompt": prompts[n],
            "prompt_hash": f"h{n}",
        }
        for n in (2, 3, 4)
    ]
    answers = [
        {
            "user": str(n),
            "item": str(n),
            "prompt_hash": f"h{n}",
            "explainer": "tuned",
            "text": f"Go to place {n}.",
            "stop": "eos",
        }
        for n in (2, 3, 4)
    ]
    answers[1]["stop"] = "length"
    verdict = {"user": "2", "item": "2", "prompt_hash": "h2", "first": "base", "second": "tuned"}
    verdict |= {"p_first": 0.25}
    for name, records in {
        "instructions/train": instructions,
        "instructions/held_out": [{"prompt": prompts[0], "completion": "Near."}],
        "explanations/pairs": pairs,
        "explanations/tuned": answers,
        "explanations/held_out": [{"prompt": prompts[0], "base": "", "tuned": "Fine."}],
        "judge/verdicts": [verdict],
    }.items():
        path = run / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json_lines(records))
    config = write(tmp_path)
    found = pipeline.audit_run(RunDir(run), config, run_data.prepare(config.data))
    assert json.loads((run / "audit.json").read_text()) == json.loads(json.dumps(found.record()))
    assert {one.code: one.count for one in found.findings} == {
        "instruct/also_in_held_out": 1,
        "instruct/also_in_pairs": 1,
        "instruct/reanswered": 1,
        "held_out/empty": 1,
        "explanations/cut_off": 1,
        "verdicts/fixed_position": 1,
    }


@tiny.needs_shared_data
def test_published_files_show_their_known_faults(tmp_path, monkeypatch):
    """Counts of ../shared/data/README.md and PEERS.md, or recounted by hand beside them."""
    monkeypatch.chdir(tiny.CHECKOUT)
    status = cli.main(
        ["audit", "--config=configs/llmxrec_audit.py", f"--output={tmp_path / 'audit.json'}"]
    )
    record = json.loads((tmp_path / "audit.json").read_text())
    found = {finding["code"]: finding for finding in record["findings"]}
    assert status == 1
    expected = {
        "judgements/label_imbalance": (1190, 1440),  # 82.6 % are 2
        "judgements/pair_prior": (1338, 1440),  # .9056 on its test set
        "judgements/uneven_groups": (2, 18),  # two groups of mind hold steam prompts
        "judgements/group_copies": (2, 18),  # of steam twins, with other labels
        "judgements/contradictory_labels": (30, 160),
        "judgements/fixed_position": (1440, 1440),  # no pair is shown in both orders
        "prompts/target_in_history": (304, 2944),
        "instructions/also_in_prompts": (240, 240),
        "attributes/malformed_answers": (174, 700),
        "attributes/answer_in_prompt": (168, 1172),  # free games are tagged as such
        "attributes/other_keys": (229, 700),
        "attributes/majority_class": (5, 5),
        "explanations/missing": (5, 14720),
        "explanations/refusals": (1014, 14715),
        "prompts/recommendation_collapse": (2, 3),
        "ratings/no_rater": (7500, 7500),
        "ratings/repeated_rows": (1344, 1500),
    }
    assert {code: (found[code]["count"], found[code]["total"]) for code in expected} == expected
    assert "mind: 281 of 1,001 (28.1 %)" in found["prompts/target_in_history"]["examples"][0]
    assert "80 comparisons in common, 60 labels" in found["judgements/group_copies"]["examples"][0]
    assert "user gender: 'male' in 165 of 236 (69.9 %" in str(found["attributes/majority_class"])
    assert "user occupation: 'student' in 57 of 236 (24.2 %" in str(
        found["attributes/majority_class"]
    )
