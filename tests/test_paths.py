"""Paths and keys as people have them: "+", blanks, quotes, commas, brackets, names of methods."""

import json
import pathlib

import pytest
from ml_collections import ConfigDict

from tests import runs
from tests.test_bad_input import refuses
from xrec_jax import cli
from xrec_jax.api import restore
from xrec_jax.commands import overrides
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files
from xrec_jax.inference import comparisons, explainers
from xrec_jax.rating import items
from xrec_jax.tasks import pretraining
from xrec_jax.text.records.explanations import answer_files

ODD = "c++ a,b 'q' \"é 日\" #%20=x"
EVENTS = "user_id,item_id,timestamp\nann,a,1\nann,b,2\nann,c,3\nben,b,1\nben,c,2\nben,d,3\n"


# Files joined by "+".


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("a", ["a"]),
        ("a+b", ["a", "b"]),
        ("a+b+gone", ["a", "b", "gone"]),
        ("c+d", ["c+d"]),
        ("c+d+a", ["c+d", "a"]),
        ("a+c+d", ["a", "c+d"]),
        ("e++/f+a+e++/f", ["e++/f", "a", "e++/f"]),
        ("a+", ["a", ""]),
        ("s3://a+b/c+d", ["s3://a", "b/c", "d"]),
    ],
)
def test_joined_files(spec, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e++").mkdir()
    for name in ("a", "b", "c+d", "e++/f"):
        (tmp_path / name).touch()
    assert files.joined(spec) == expected


def test_a_joined_file_may_lie_in_a_folder_with_a_plus(tmp_path):
    folder = tmp_path / ODD
    folder.mkdir()
    prompts, texts = folder / "p+p.jsonl", folder / "t.jsonl"
    prompts.write_text(json.dumps({"prompt_id": 1, "prompt": "why?"}) + "\n")
    texts.write_text(
        files.json_lines([{"prompt_id": 1, "model": m, "completion": f"because {m}"} for m in "AB"])
    )
    spec = f"{prompts}+{texts}"
    assert comparisons.read_comparison_set(spec).texts == {"A": ["because A"], "B": ["because B"]}
    [case] = items.of_files([spec])
    assert case.prompt == "why?" and case.texts == {"A": "because A", "B": "because B"}
    asked = ConfigDict(dict(files=(spec,), fields=("prompt", "completion"), keep=dict(field="")))
    found = pretraining.file_texts(ConfigDict(dict(pretrain=asked)))
    assert found == ["why?\n\nbecause A", "why?\n\nbecause B"]
    with pytest.raises(UserError, match="more than two files"):
        items.of_files([f"{spec}+{texts}"])


def test_an_adapter_in_a_folder_with_an_equals_sign(tmp_path, monkeypatch):
    folder = tmp_path / "lr=0.1" / "mine"
    folder.mkdir(parents=True)
    monkeypatch.setattr(
        explainers.selection, "is_adapter", lambda path: pathlib.Path(path) == folder
    )
    for text, name in ((f"{folder}", "mine"), (f"other={folder}", "other")):
        spec = explainers.parse(text, RunDir(tmp_path))
        assert (spec.name, spec.adapter) == (name, str(folder))


def test_answers_are_found_below_brackets(tmp_path):
    folder = tmp_path / "run [1]" / "explanations"
    assert answer_files(folder) == []
    folder.mkdir(parents=True)
    for name in ("tuned.jsonl", "base.jsonl", "pairs.jsonl", ".half.jsonl", "base.parquet"):
        (folder / name).touch()
    assert [path.name for path in answer_files(folder)] == ["base.jsonl", "tuned.jsonl"]


# Keys of the command line.


def test_keys_that_are_names_of_methods():
    config = ConfigDict(
        {"items": {"keys": 1, "values": (1,), "get": "", "update": True, "x": {"pop": 0.5}}}
    )
    arguments = [
        "--config=a.py",
        "--config.items.keys=3",
        "--config.items.get",
        "c,d e='",
        "-config.a=4",
        "--config.items.values=1",
        "--config.items.values=2",
        "--config.items.update=false",
        "--config.items.x.pop=2",
    ]
    rest, found = overrides.separate(arguments)
    assert rest == ["--config=a.py", "-config.a=4"]
    overrides.apply(config, found)
    assert config.to_dict() == {
        "items": {"keys": 3, "values": (1, 2), "get": "c,d e='", "update": False, "x": {"pop": 2.0}}
    }


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config.items.kyes=3"], "--config.items.kyes: no key 'kyes'; did you mean 'keys'"),
        (["--config.itms.keys=3"], "--config.itms.keys: no key 'itms'; did you mean 'items'"),
        (["--config.items.keys=x"], "config.items.keys.*x"),
        (["--config.items.keys.get=x"], "--config.items.keys.get: no key 'get'"),
        (["--config.items.keys"], "has no value"),
    ],
)
def test_such_a_key_with_a_wrong_name_or_value(arguments, named):
    with pytest.raises(UserError, match=named):
        overrides.apply(ConfigDict({"items": {"keys": 1}}), overrides.separate(arguments)[1])


def test_a_key_that_there_is_not_is_named_with_its_group():
    config = ConfigDict({"mesh": {"data": 1}, "seeds": (1,)})
    right = ["--config=c.py", "--config.mesh.data=2", "--config.seeds[0]=2", "--workdir=w", "-x"]
    overrides.check_keys(right, config)
    for argument, message in (
        ("--config.mesh.xyz=1", "--config.mesh.xyz: no key 'xyz'; valid: data"),
        ("-config.mesg.data", "--config.mesg.data: no key 'mesg'; did you mean 'mesh'"),
        ("--config.seeds.x=1", "--config.seeds.x: no key 'x'"),
    ):
        with pytest.raises(UserError, match=message):
            overrides.check_keys([*right, argument], config)


def test_a_path_for_a_tuple_reads_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a b,c.jsonl", "it's.jsonl", "0"):
        (tmp_path / name).touch()
    config = ConfigDict({"pretrain": {"files": (), "text": ""}, "seeds": (0,)})
    kept = ["--config.seeds=0", "--config.pretrain.files=gone,b", "--config.pretrain.text=0"]
    assert overrides.quoted(kept, config) == kept
    for name in ("a b,c.jsonl", "it's.jsonl", "0", "a b,c.jsonl+it's.jsonl"):
        [made] = overrides.quoted([f"--config.pretrain.files={name}"], config)
        assert made == f"--config.pretrain.files={(name,)!r}"


def test_a_verb_without_a_config_has_no_such_flag(tmp_path, capsys):
    refuses(capsys, tmp_path, ["report", "--config.data.items=x"], "--config.data.items")


def test_a_run_in_odd_folders(tmp_path, capsys, monkeypatch):
    folder = tmp_path / ODD
    folder.mkdir()
    (folder / "e+.csv").write_text(EVENTS)
    (folder / "i, 'é'.csv").write_text("item_id,title\na,A\nb,B\nc,C\nd,D\n")
    (folder / "u [1].txt").write_text("ben\n")
    monkeypatch.chdir(folder)  # relative paths are kept as absolute ones
    arguments = [
        f"--config={runs.CONFIG}:bpr",
        "--workdir=w +",
        "--config.data.path=e+.csv",
        "--config.data.format=csv",
        "--config.data.items=i, 'é'.csv",
        "--config.recommend.bpr.train.batch_size=8",
    ]
    with runs.one_device():
        assert cli.main(["run", *arguments]) == 0
    monkeypatch.chdir(tmp_path)
    run = restore(folder / "w +")
    assert run.config.data["items"] == str(folder / "i, 'é'.csv")
    output = folder / "o,[*] +.parquet"
    for arguments in (
        ["recommend", f"--output={output}", f"--users={folder}/u [1].txt"],
        ["explain", f"--pairs={output}", f"--output={folder}/x,[*].jsonl", "--explainer=template"],
    ):
        assert cli.main([*arguments, f"--workdir={folder}/w +"]) == 0
    users = {record["user"] for record in files.read_records(folder / "x,[*].jsonl")}
    assert users == {"ben"}


@pytest.mark.parametrize("sign", "[]*?\\")
def test_a_folder_from_which_checkpoints_cannot_be_read_is_refused(sign, tmp_path, capsys):
    arguments = ["run", f"--config={runs.CONFIG}:popularity", f"--workdir={tmp_path}/a{sign}b"]
    refuses(capsys, tmp_path, arguments, f"a{sign}b", "choose another")
