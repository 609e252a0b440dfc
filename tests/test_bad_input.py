"""Every mistake ends in one line that names it, exit status 2, and nothing written."""

import gc
import json
import pathlib
import shutil
import sys

import pytest

from tests import runs
from tests.runs import finished  # noqa: F401 (a fixture)
from xrec_jax import cli

BPR = "--config.recommend.bpr."

FILES = {
    "users.txt": "u00000\n",
    "empty.txt": "\n \n",
    "binary.txt": b"\xff\xfe\x00u0",
    "file": "not a folder\n",
    "syntax.py": "def get_config(:\n    pass\n",
    "no_function.py": "seed = 1\n",
    "no_config.py": "def get_config():\n    return 3\n",
    "undefined.py": "def get_config():\n    return learning_rate\n",
    "import.py": "import no_such_module_anywhere\n",
    "value.py": "def get_config():\n    raise ValueError('seed must be even')\n",
    "model.py": "from xrec_jax import defaults\n\n\ndef get_config():\n"
    "    defaults.base().recommend.it = defaults.system('sasrce')\n",
    "hparam.py": "from xrec_jax import defaults\n\n\ndef get_config():\n"
    "    defaults.base().recommend.it = defaults.system('bpr', dims=8)\n",
    "train_key.py": "from xrec_jax import defaults\n\n\ndef get_config():\n"
    "    defaults.base().recommend.it = defaults.system('bpr', train=dict(epoch=8))\n",
    "good.csv": "user_id,item_id,timestamp\na,x,1\na,y,2\na,z,3\na,w,4\n",
    "column.csv": "user_id,itm_id,timestamp\na,x,1\n",
    "number.csv": "user_id,item_id,timestamp\na,x,1\na,y,soon\n",
    "twice.csv": "user_id,item_id,item_id\na,x,1\n",
    "ragged.csv": "user_id,item_id,timestamp\na,x,1\na,y\n",
    "empty.csv": "user_id,item_id,timestamp\n",
}


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch) -> pathlib.Path:
    """A folder with all of `FILES`; config modules loaded earlier are forgotten."""
    for name, text in FILES.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    return tmp_path


def refuses(capsys, folder: pathlib.Path, arguments: list[str], *named: str) -> None:
    """Checks the contract of a mistake on a command line that works on files in `folder`."""
    before = runs.contents(folder)
    status = cli.main(arguments)
    error = capsys.readouterr().err
    assert error.startswith("xrec: error: "), error
    assert error.endswith("\n") and error.count("\n") == 1, error
    assert "Traceback" not in error and "\\n" not in error and len(error) < 600, error
    for name in named:
        assert name in error
    assert status == 2
    assert runs.contents(folder) == before


COMMAND_LINE = {
    "unknown verb": (["rnu"], "'rnu'", "did you mean 'run'"),
    "flag without a verb": (["--config=a.py"], "--config"),
    "unknown flag": (["run", "--wrkdir=x"], "--wrkdir", "did you mean 'workdir'"),
    "flag of another verb": (["run", "--top_k=3"], "--top_k"),
    "stray argument": (["evaluate", "runs"], "'runs'"),
    "flag without a value": (["run", "--workdir"], "workdir"),
    "run without --config": (["run", "--workdir={folder}/w"], "--config is missing"),
    "run without --workdir": (["run", f"--config={runs.CONFIG}"], "--workdir is missing"),
    "evaluate without --workdir": (["evaluate"], "--workdir is missing"),
    "recommend without --workdir": (["recommend", "--output=o.jsonl"], "--workdir is missing"),
    "audit without --config": (["audit"], "--config is missing"),
    "audit of two things": (
        ["audit", f"--config={runs.CONFIG}", "--workdir=w"],
        "--config and --workdir",
    ),
    "half a verb": (["rate"], "rate make or rate collect"),
    "half a verb and flags": (["rate", "--output=o"], "rate make or rate collect"),
    "a verb's second word": (["rate", "mkae"], "rate make or rate collect"),
    "explain without --workdir": (["explain", "--output=o.jsonl"], "--workdir is missing"),
    "explain without --output": (["explain", "--workdir={folder}"], "--output is missing"),
    "explain: no run": (
        ["explain", "--workdir={folder}", "--output={folder}/o.jsonl"],
        "not a run directory",
    ),
    "compare without runs": (["compare"], "--workdir is missing"),
    "compare one run": (["compare", "--workdir={folder}"], "two"),
    "rate make without --output": (["rate", "make", "--workdir={folder}"], "--output is missing"),
    "rate make: no run": (
        ["rate", "make", "--workdir={folder}", "--output={folder}/o"],
        "{folder}",
    ),
    "rate collect nothing": (["rate", "collect"], "key"),
    "report: no run": (["report", "--workdir={folder}"], "not a run directory"),
    "top_k no number": (["recommend", "--workdir=w", "--top_k=many"], "top_k", "many"),
    "evaluate: no folder": (["evaluate", "--workdir={folder}/w"], "/w", "not a run directory"),
    "evaluate: no run": (["evaluate", "--workdir={folder}"], "not a run directory", "config.json"),
    "recommend: no run": (
        ["recommend", "--workdir={folder}", "--output={folder}/o.jsonl"],
        "not a run directory",
    ),
}


@pytest.mark.parametrize("case", COMMAND_LINE.values(), ids=COMMAND_LINE.keys())
def test_command_line(case, folder, capsys):
    arguments, *named = case
    named = [name.format(folder=folder) for name in named]
    refuses(capsys, folder, [a.format(folder=folder) for a in arguments], *named)


CONFIG_FILES = {
    "missing": ("cofnig.py", "cofnig.py", "no such file"),
    "a folder": ("", "--config"),
    "syntax error": ("syntax.py", "syntax.py", "line 1"),
    "no get_config": ("no_function.py", "no_function.py", "get_config"),
    "returns no config": ("no_config.py", "no_config.py"),
    "undefined name": ("undefined.py", "undefined.py", "learning_rate"),
    "failing import": ("import.py", "import.py", "no_such_module_anywhere"),
    "raises": ("value.py", "value.py", "seed must be even"),
    "unknown model": ("model.py", "'sasrce'", "did you mean 'sasrec'"),
    "unknown hyper-parameter": ("hparam.py", "'dims'", "did you mean 'dim'"),
    "unknown training key": ("train_key.py", "'epoch'", "did you mean 'epochs'"),
}


@pytest.mark.parametrize("case", CONFIG_FILES.values(), ids=CONFIG_FILES.keys())
def test_config_file(case, folder, capsys):
    name, *named = case
    refuses(capsys, folder, ["run", f"--config={folder / name}", f"--workdir={folder}/w"], *named)


CSV = ["--config.data.format=csv", "--config.data.path={folder}/good.csv"]
OVERRIDES = {
    "unknown key": (["--config.recomend.x=1"], "recomend", "recommend"),
    "unknown training key": ([BPR + "train.lerning_rate=1"], "lerning_rate", "learning_rate"),
    "unknown hyper-parameter": ([BPR + "hparams.dims=3"], "dims", "dim"),
    "text for an integer": ([BPR + "train.batch_size=abc"], "train.batch_size", "abc"),
    "fraction for an integer": ([BPR + "train.batch_size=64.5"], "train.batch_size", "64.5"),
    "unknown model": ([BPR + "model=bpt"], "'bpt'", "did you mean 'bpr'"),
    "hyper-parameter out of range": ([BPR + "hparams.dim=0"], "dim=0"),
    "unknown metric": ([BPR + "train.metric=valid/ndgc@10"], "ndgc@10", "valid/ndcg@10"),
    "metric at an absent cut-off": ([BPR + "train.metric=valid/ndcg@7"], "valid/ndcg@7"),
    "unknown stage": (["--config.stages=('recomend',)"], "'recomend'", "did you mean 'recommend'"),
    "no stage": (["--config.stages=()"], "stages"),
    "no seed": (["--config.seeds=()"], "seeds"),
    "seed that is no integer": (["--config.seeds=(0.5,)"], "seeds", "0.5"),
    "seed as text": (["--config.seeds='a'"], "seeds"),
    "negative seed": (["--config.seeds=(-1,)"], "seeds", "-1"),
    "cut-off 0": (["--config.ranking.ks=(0, 10)"], "ks", "0"),
    "negative resamples": (["--config.ranking.resamples=-1"], "resamples", "-1"),
    "mesh that does not fit": (["--config.mesh.fsdp=3"], "fsdp=3", "8 available devices"),
    "mesh axis of 0": (["--config.mesh.tensor=0"], "tensor=0"),
    "two open mesh axes": (["--config.mesh.tensor=-1"], "tensor=-1"),
    "batch not divisible": ([BPR + "train.batch_size=60"], "batch_size=60", "8 devices"),
    "no epoch": ([BPR + "train.epochs=0"], "epochs=0"),
    "negative learning rate": ([BPR + "train.learning_rate=-0.1"], "learning_rate=-0.1"),
    "learning rate nan": ([BPR + "train.learning_rate=nan"], "learning_rate=nan"),
    "unknown optimiser": ([BPR + "train.optimizer=adm"], "'adm'", "did you mean 'adam'"),
    "unknown schedule": ([BPR + "train.schedule=cosin"], "'cosin'", "did you mean 'cosine'"),
    "warm-up above 1": ([BPR + "train.warmup=2.0"], "warmup=2.0"),
    "negative clipping": ([BPR + "train.clip_norm=-1.0"], "clip_norm=-1.0"),
    "second system wrong": (
        ["--config.recommend.lightgcn.train.learning_rate=-0.1"],
        "learning_rate=-0.1",
    ),
    "world key out of range": (["--config.data.world.num_users=0"], "world.num_users"),
    "unknown format": (["--config.data.format=atomc"], "'atomc'", "did you mean 'atomic'"),
    "unknown split": (["--config.data.split.kind=leave_on_out"], "leave_on_out", "leave_one_out"),
    "no path": ([CSV[0]], "path"),
    "missing data file": ([CSV[0], "--config.data.path={folder}/god.csv"], "god.csv", "good.csv"),
    "missing data folder": (
        ["--config.data.format=atomic", "--config.data.path={folder}/ml"],
        "/ml",
        "no such",
    ),
    "missing column": ([CSV[0], "--config.data.path={folder}/column.csv"], "item_id", "itm_id"),
    "named column missing": ([*CSV, "--config.data.columns.user=usr_id"], "usr_id", "user_id"),
    "unparsable number": (
        [CSV[0], "--config.data.path={folder}/number.csv"],
        "number.csv",
        "line 3",
        "'soon'",
    ),
    "column twice": ([CSV[0], "--config.data.path={folder}/twice.csv"], "'item_id'", "twice.csv"),
    "record too short": ([CSV[0], "--config.data.path={folder}/ragged.csv"], "line 3"),
    "no event": ([CSV[0], "--config.data.path={folder}/empty.csv"], "no events"),
    "empty after filtering": ([*CSV, "--config.data.filters.user_core=9"], "user_core=9"),
}


@pytest.mark.parametrize("case", OVERRIDES.values(), ids=OVERRIDES.keys())
def test_override(case, folder, capsys):
    overrides, *named = case
    arguments = [
        "run",
        f"--config={runs.CONFIG}:bpr,lightgcn",
        f"--workdir={folder}/w",
        *(text.format(folder=folder) for text in overrides),
    ]
    refuses(capsys, folder, arguments, *named)


@pytest.fixture
def copied(finished, folder) -> pathlib.Path:  # noqa: F811
    """`folder` with a copy of the finished run as `run`."""
    shutil.copytree(finished, folder / "run")
    return folder


RECOMMEND = {
    "unknown user": (["--users=u0000"], "'u0000'", "did you mean 'u0"),
    "users file missing": (["--users={folder}/usrs.txt"], "usrs.txt", "no such file"),
    "users file empty": (["--users={folder}/empty.txt"], "empty.txt"),
    "users file not text": (["--users={folder}/binary.txt"], "binary.txt"),
    "no user": (["--users=,"], "--users"),
    "top_k 0": (["--top_k=0"], "top_k=0"),
    "unknown system": (["--system=lightgnc"], "'lightgnc'", "did you mean 'lightgcn'"),
    "output of another kind": (["--output={folder}/o.csv"], "o.csv", ".jsonl", ".parquet"),
    "no output": (["--output="], "--output"),
    "output below a file": (["--output={folder}/file/o.jsonl"], "file"),
    "unknown user, output in a new folder": (
        ["--users=nobody", "--output={folder}/new/o.jsonl"],
        "'nobody'",
    ),
}


@pytest.mark.parametrize("case", RECOMMEND.values(), ids=RECOMMEND.keys())
def test_recommend(case, copied, capsys):
    changed, *named = case
    arguments = ["recommend", f"--workdir={copied}/run", f"--output={copied}/o.jsonl"]
    refuses(capsys, copied, arguments + [text.format(folder=copied) for text in changed], *named)


def test_workdir_with_another_configuration(copied, capsys):
    arguments = ["run", f"--config={runs.CONFIG}", f"--workdir={copied}/run"]
    changed = [BPR + "train.learning_rate=0.5"]
    refuses(capsys, copied, arguments + changed, "bpr.train.learning_rate", "0.01", "0.5")


def test_workdir_with_more_systems_than_the_configuration(copied, capsys):
    arguments = ["run", f"--config={runs.CONFIG}:bpr", f"--workdir={copied}/run"]
    refuses(capsys, copied, arguments, "recommend.")


def test_workdir_is_a_file(folder, capsys):
    arguments = ["run", f"--config={runs.CONFIG}:bpr", f"--workdir={folder}/file"]
    refuses(capsys, folder, arguments, f"--workdir={folder}/file")


def _truncate_arrays(checkpoint: pathlib.Path) -> None:
    for path in (checkpoint / "state" / "d").iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _truncate_metadata(checkpoint: pathlib.Path) -> None:
    for path in checkpoint.rglob("*METADATA*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _remove_arrays(checkpoint: pathlib.Path) -> None:
    shutil.rmtree(checkpoint / "state")


# Orbax closes its event loop under reads that have failed, which shows when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [_truncate_arrays, _truncate_metadata, _remove_arrays])
@pytest.mark.parametrize("verb", ["evaluate", "recommend", "run"])
def test_damaged_checkpoint(verb, damage, copied, capsys):
    checkpoint = copied / "run" / "checkpoints" / "recommend" / "bpr" / "0" / "22"
    damage(checkpoint)
    arguments = [verb, f"--workdir={copied}/run"]
    if verb == "recommend":
        arguments += [f"--output={copied}/o.jsonl", "--system=bpr"]
    if verb == "run":
        (copied / "run" / "per_user" / "recommend" / "bpr" / "0.npz").unlink()
        arguments += [f"--config={runs.CONFIG}"]
    refuses(capsys, copied, arguments, str(checkpoint), "damaged")
    gc.collect()


def test_checkpoint_of_another_shape(copied, capsys):
    path = copied / "run" / "config.json"
    config = json.loads(path.read_text())
    config["recommend"]["bpr"]["hparams"]["dim"] = 16
    path.write_text(json.dumps(config))
    (copied / "run" / "done" / "config.json").unlink()  # else the other value is refused
    refuses(capsys, copied, ["evaluate", f"--workdir={copied}/run"], "embedding", "12", "16")


@pytest.mark.parametrize("name", ["config.json", "evaluation.json"])
def test_damaged_json(name, copied, capsys):
    (copied / "run" / name).write_text('{"recommend": \n')
    arguments = ["recommend", f"--workdir={copied}/run", f"--output={copied}/o.jsonl"]
    refuses(capsys, copied, arguments, name, "line 2")


def test_run_is_not_finished(copied, capsys):
    """`evaluate` must not mark a run that was cut off as finished."""
    shutil.rmtree(copied / "run" / "checkpoints" / "recommend" / "bpr" / "0" / "22")
    (copied / "run" / "per_user" / "recommend" / "bpr" / "0.npz").unlink()
    refuses(capsys, copied, ["evaluate", f"--workdir={copied}/run"], "recommend/bpr/0", "xrec run")


def test_run_has_no_checkpoint(copied, capsys):
    shutil.rmtree(copied / "run" / "checkpoints" / "recommend" / "bpr")
    arguments = ["recommend", f"--workdir={copied}/run", f"--output={copied}/o.jsonl"]
    refuses(capsys, copied, [*arguments, "--system=bpr"], "recommend/bpr/0", "no checkpoint")
