"""The command line itself: help, exit statuses, a real process."""

import json
import subprocess
import sys

import pytest

import xrec_jax
from tests import runs, tiny
from tests.runs import finished  # noqa: F401 (a fixture)
from xrec_jax import cli
from xrec_jax.inference.options import GenerationOptions
from xrec_jax.training.loop import Interrupted

FLAGS = {
    "run": {"config", "workdir"},
    "evaluate": {"workdir", "allow_imports"},
    "recommend": {"workdir", "users", "top_k", "output", "system", "allow_imports"},
    "explain": {
        "workdir",
        "users",
        "top_k",
        "output",
        "system",
        "pairs",
        "explainer",
        "adapter",
        "base",
        "prompt",
        "history",
        "max_new_tokens",
        "temperature",
        "batch",
        "shard",
        "allow_imports",
    },
    "compare": {"workdir", "output", "judge", "allow_imports"},
    "rate make": {
        "workdir",
        "explanations",
        "system",
        "output",
        "pairs",
        "raters",
        "gold",
        "preferences",
        "seed",
        "allow_imports",
    },
    "rate collect": {
        "workdir",
        "answers",
        "key",
        "ratings",
        "output",
        "partial",
        "exclude",
        "allow_imports",
    },
    "audit": {"config", "workdir", "output", "allow_imports"},
    "report": {"workdir", "allow_imports"},
    "encode": {*("items", "output", "base", "id", "text", "layer", "max_tokens", "batch", "dtype")},
    "import": {"path", "output", "dtype"},
    "export-hf": {"workdir", "base", "adapter", "output", "dtype", "allow_imports"},
    "export-gguf": {"workdir", "base", "adapter", "output", "outtype", "allow_imports"},
    "export-peft": {"workdir", "adapter", "base", "output", "allow_imports"},
    "configs": set(),
}
# Of a flag, or of a verb's flag; the others are "".
DEFAULTS = {
    "config": None,
    "allow_imports": False,
    "users": "all",
    "top_k": 10,
    "history": 0,
    "max_new_tokens": 0,
    "temperature": -1.0,
    "batch": 0,
    "shard": 0,
    ("compare", "workdir"): [],
    ("rate make", "system"): [],
    ("rate make", "pairs"): 20,
    "explanations": [],
    "outtype": "f16",
    "layer": "last",
    "max_tokens": 128,
    ("encode", "batch"): 64,
    ("encode", "dtype"): "auto",
    "raters": 1,
    "gold": 2,
    "preferences": -1,
    "seed": 0,
    "answers": [],
    "exclude": [],
    "partial": False,
}


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_lists_every_verb(word, capsys):
    assert cli.main([word]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "usage: xrec VERB" in out
    for name, verb in cli.VERBS.items():
        assert any(line.split() == f"{name} {verb.summary}".split() for line in out.splitlines())


def test_answers_may_be_given_as_files(monkeypatch):
    found = {}
    monkeypatch.setattr("xrec_jax.api.rate.collect", lambda *a, **k: found.update(k, files=a))
    line = "rate collect ada.json bela.json --key=KEY.json --answers=eve.json --partial"
    assert cli.main(line.split()) == 0
    assert found["files"] == (["eve.json", "ada.json", "bela.json"],)
    assert found["key"] == "KEY.json" and found["partial"] is True


def test_every_flag_of_explain_arrives(monkeypatch):
    calls = []
    monkeypatch.setattr("xrec_jax.api.explain.explain", lambda *a, **k: calls.append((a, k)))
    options = {
        "explainer": "base",
        "adapter": "a",
        "base": "b",
        "prompt": "places",
        "history": 1,
        "max_new_tokens": 2,
        "temperature": 0.5,
        "batch": 3,
        "shard": 4,
    }
    others = {"users": "u", "top_k": 5, "output": "o.jsonl", "system": "s", "pairs": "p"}
    line = [f"--{name}={value}" for name, value in (options | others).items()]
    assert cli.main(["explain", "--workdir=w", *line, "--allow_imports"]) == 0
    wanted = others | {"options": GenerationOptions(**options), "allow_imports": True}
    assert calls == [(("w",), wanted)]


def test_without_a_verb_the_usage_and_status_2(capsys):
    assert cli.main([]) == 2
    assert "usage: xrec VERB" in capsys.readouterr().out


def test_every_verb_of_this_file_exists():
    assert FLAGS.keys() == cli.VERBS.keys()


@pytest.mark.parametrize("word", ["--help", "-h"])
@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb_lists_its_flags(verb, word, capsys):
    assert cli.main([*verb.split(), word]) == 0
    out, err = capsys.readouterr()
    assert err == "" and f"usage: xrec {verb}" in out and cli.VERBS[verb].summary in out
    described = [
        line.split(":")[0].strip().removeprefix("--")
        for line in out.splitlines()
        if line.strip().startswith("--") and line.split(":", 1)[1].strip()
    ]
    assert described == sorted(FLAGS[verb])
    flags = cli.VERBS[verb].define([])
    assert {name: flags[name].default for name in described} == {
        name: DEFAULTS.get((verb, name), DEFAULTS.get(name, "")) for name in described
    }


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"xrec {xrec_jax.__version__}\n"


def test_configs_lists_each_with_the_first_line_of_its_docstring(capsys):
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = dict(line.split(maxsplit=1) for line in lines[: lines.index("")])
    files = {path.stem: path for path in (tiny.CHECKOUT / "configs").glob("*.py")}
    assert listed.keys() == files.keys() and len(files) >= 15
    for name, summary in listed.items():
        assert files[name].read_text().startswith(f'"""{summary}\n'), name


@pytest.mark.parametrize("flag", [["--config={}"], ["-config={}"], ["--config", "{}"]])
def test_a_config_by_name_from_any_folder(flag, tmp_path, monkeypatch):
    found = {}
    monkeypatch.setattr("xrec_jax.api.run.run", lambda config, workdir: found.update(config=config))
    monkeypatch.chdir(tmp_path)
    line = [part.format("quickstart:tiny") for part in flag]
    arguments = ["--config.seeds=4,", "--config.name=other"]
    assert cli.main(["run", *line, "--workdir=w", *arguments]) == 0
    assert found["config"].seeds == (4,) and found["config"].name == "other"
    assert found["config"].data.world.num_users == 80  # the variant


def test_a_file_in_the_folder_wins_over_a_name(tmp_path, monkeypatch):
    found = {}
    monkeypatch.setattr("xrec_jax.api.run.run", lambda config, workdir: found.update(config=config))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n"
        "  return ConfigDict({'mine': True})\n"
    )
    assert cli.main(["run", "--config=quickstart", "--workdir=w"]) == 0
    assert found["config"].mine


@pytest.mark.parametrize("flag", [["--config=quikstart:tiny"], ["--config", "quikstart"]])
def test_an_unknown_name_of_a_config_is_one_line(flag, tmp_path, capsys):
    assert cli.main(["run", *flag, f"--workdir={tmp_path}/w"]) == 2
    assert capsys.readouterr().err == (
        "xrec: error: --config=quikstart: no config of that name and no such file; "
        "`xrec configs` lists the names; did you mean 'quickstart'?\n"
    )


def test_help_wins_over_other_arguments_and_does_nothing(tmp_path, capsys):
    arguments = [f"--config={runs.CONFIG}:bpr", f"--workdir={tmp_path}/w", "--help"]
    assert cli.main(["run", *arguments]) == 0
    assert "usage: xrec run" in capsys.readouterr().out
    assert not (tmp_path / "w").exists()


def test_flags_with_a_space_or_an_equals_sign(finished, tmp_path, capsys):  # noqa: F811
    for n, flags in enumerate([["--top_k", "2"], ["--top_k=2"], ["-top_k=2"]]):
        output = tmp_path / f"{n}.jsonl"
        common = ["--workdir", str(finished), f"--output={output}", "--users=u00001"]
        assert cli.main(["recommend", *common, *flags]) == 0
        assert len(output.read_text().splitlines()) == 2


def test_overrides_reach_the_run(tmp_path):
    arguments = ["--config.recommend.bpr.train.epochs=1", "--config.seeds=(4,)"]
    arguments += ["--config.data.world.num_users=40", "--config.ranking.resamples=20"]
    status = cli.main(["run", f"--config={runs.CONFIG}:bpr", f"--workdir={tmp_path}/w", *arguments])
    assert status == 0
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    assert config["recommend"]["bpr"]["train"]["epochs"] == 1 and config["seeds"] == [4]
    assert config["data"]["world"]["num_users"] == 40
    assert {line["stage"] for line in runs.metrics(tmp_path / "w")} == {"recommend/bpr/4"}


def test_a_run_prints_its_data_and_its_table(tmp_path, capsys):
    config = f"--config={runs.CONFIG}:popularity"
    assert cli.main(["run", config, f"--workdir={tmp_path}/w"]) == 0
    out = capsys.readouterr().out
    assert "75 users, 61 items" in out and "8 cpu devices" in out
    assert "test/ndcg@10" in out and "popularity" in out and "upper_bound" in out


def test_sigterm_ends_with_status_143(monkeypatch, capsys, tmp_path):
    def interrupted(*_):
        raise Interrupted("recommend/bpr/0", 7)

    monkeypatch.setattr("xrec_jax.api.run.run", interrupted)
    status = cli.main(["run", f"--config={runs.CONFIG}:bpr", f"--workdir={tmp_path}/w"])
    assert status == 143
    error = capsys.readouterr().err
    assert error.startswith("xrec: recommend/bpr/0: saved at step 7") and error.count("\n") == 1


def test_an_interrupt_ends_with_status_130_and_one_line(monkeypatch, capsys, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("xrec_jax.api.run.run", interrupted)
    status = cli.main(["run", f"--config={runs.CONFIG}:bpr", f"--workdir={tmp_path}/w"])
    assert status == 130
    error = capsys.readouterr().err
    assert error.startswith("xrec: interrupted") and error.count("\n") == 1


def test_audit_returns_1_where_it_finds_errors(tmp_path, capsys):
    rows = "\n".join(f"u{n % 9},i{n % 7},{n}" for n in range(60))
    (tmp_path / "good.csv").write_text(f"user_id,item_id,timestamp\n{rows}\n")
    data = ["--config.data.format=csv", f"--config.data.path={tmp_path}/good.csv"]
    status = cli.main(["audit", f"--config={runs.CONFIG}:bpr", *data])
    out = capsys.readouterr().out
    assert status == int("0 errors" not in out) and "users" in out


# Real processes


def test_python_m_xrec_jax(finished, tmp_path):  # noqa: F811
    """A restored run on one device: the answer of 8, and nothing on stderr."""
    output = tmp_path / "o.jsonl"
    out, err = runs.finish(
        runs.start(
            "recommend",
            f"--workdir={finished}",
            f"--output={output}",
            "--users=u00001",
            "--top_k=3",
            "--system=bpr",
        )
    )
    assert "3 recommendations for 1 users written to" in out and err == ""
    expected = tmp_path / "expected.jsonl"
    arguments = ["--users=u00001", "--top_k=3", "--system=bpr", f"--output={expected}"]
    assert cli.main(["recommend", f"--workdir={finished}", *arguments]) == 0
    found, wanted = (
        [json.loads(line) for line in path.read_text().splitlines()] for path in (output, expected)
    )
    assert [record["item"] for record in found] == [record["item"] for record in wanted]


def test_a_mistake_in_a_real_process():
    out, err = runs.finish(runs.start("rnu"), status=2)
    assert (out, err) == ("", "xrec: error: no verb 'rnu'; did you mean 'run'?\n")


def test_help_imports_no_jax():
    """`xrec --help` answers at once."""
    code = (
        "import sys; from xrec_jax import cli; cli.main(['--help']);"
        "[cli.main([*verb.split(), '--help']) for verb in cli.VERBS];"
        "cli.main(['--version']); cli.main(['configs']); sys.exit('jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tiny.CHECKOUT, capture_output=True)
