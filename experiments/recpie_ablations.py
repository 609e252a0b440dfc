"""What each part of the joint method is worth: ablations of `configs/recpie_world.py`, one table.

    python experiments/recpie_ablations.py --workdir=runs/ablations
    python experiments/recpie_ablations.py --workdir=DIR --base=RUN --names=no_kl,ppo --seeds=0,1

`full` is the config as it is, every other name an entry of its `ABLATIONS`. Each has a run
directory in `--workdir`. All share one recommender and one small language model: those of `--base`,
a finished run of the same config (its stages `recommend` and `pretrain` are enough), or else of
`WORKDIR/base`, made first. Where `--base` holds the joint stage, too, and it is that of `full`, it
is read and not run again. `user_item` asks with another template than the language model's reading
exercises do; it shares the language model all the same.

A run has the jointly trained explanations (`joint`) and the controls that its ablation names. With
no rounds nothing is trained jointly: then only the controls are shown. Gains are over the same
recommender alone, with a 95 % interval and a paired p-value that draw users, not seeds; those of
`user_item` are of reranking, over fewer users. An ablation that is refused is named at the end and
holds up no other. Prints a table, writes JSON, and a plot with `--plot` (extra `report`). What is
cut off goes on where it stopped when it is called again.

`--override=joint.rounds=4` changes a value of the config before the ablation changes its own.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import importlib.util
import io
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from xrec_jax.api.run import run as run_stages
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage.files import write_atomic, write_json
from xrec_jax.evaluation.tables import text_table
from xrec_jax.run_config import read_config
from xrec_jax.training.recommender import seeds_of

ROOT = pathlib.Path(__file__).resolve().parents[1]
FULL, ALONE, JOINT = "full", "alone", "joint"
# What the recommender and the language model of a base were made from.
_MADE_FROM = (
    "data.",
    "recommend.",
    "pretrain.",
    "llm.",
    "joint.readings",
    "joint.states.history",
    "joint.states.template",
)
# Of those, and of a whole run, what changes nothing that is computed, or says it in another way.
_SAME = (
    "name",
    "stages",
    "imports",
    "llm.path",
    "llm.chat_template",
    "llm.generation_batch",
    "data.path",
    "data.users",
    "data.items",
)


# Configs.


def world_config(args: argparse.Namespace, *, tiny: bool | None = None) -> ConfigDict:
    """The config of all runs, with the values that flags change."""
    small = args.tiny if tiny is None else tiny
    sys.path.append(str(ROOT))
    module = importlib.import_module("configs.recpie_world")
    config = module.get_config("tiny" if small else "")
    config.data.split.kind = "leave_one_out"  # as a run of it keeps it
    if args.seeds:
        config.seeds = numbers(args.seeds, "--seeds", int)
    for entry in args.override:
        override(config, entry)
    return config


def numbers(text: str, flag: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """Numbers between commas.

    Raises:
      UserError: if one is none.
    """
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UserError(f"{flag}={text}: numbers with commas between them are needed") from error


def override(config: ConfigDict, entry: str) -> None:
    """Changes one value: `joint.kl.beta=0.1`.

    Raises:
      UserError: if there is no such key, or the value is of another kind.
    """
    key, equals, text = entry.partition("=")
    if not equals:
        raise UserError(f"--override={entry}: write it as key=value")
    *groups, last = key.split(".")
    node: Any = config
    for name in [*groups, last]:
        if not isinstance(node, ConfigDict) or name not in node:
            valid = list(node) if isinstance(node, ConfigDict) else []
            raise UserError(f"--override={entry}: no key {key!r}{did_you_mean(name, valid)}")
        parent, node = node, node[name]
    if isinstance(node, ConfigDict):
        raise UserError(f"--override={entry}: {key} is a group{did_you_mean('', node)}")
    try:
        parent[last] = _read(text, node)
    except TypeError as error:
        raise UserError(
            f"--override={entry}: {key} is {node!r}, which is of type {type(node).__name__}"
        ) from error


def _read(text: str, current: Any) -> Any:
    """A value of the kind of the one that it replaces, where there is one."""
    if isinstance(current, str):
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        value = tuple(p for p in text.split(",") if p) if isinstance(current, tuple) else text
    if isinstance(current, tuple):
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if isinstance(current, float) and type(value) is int:
        return float(value)
    if isinstance(current, bool) != isinstance(value, bool) and None not in (current, value):
        raise TypeError
    return value


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    if not isinstance(value, (dict, ConfigDict)):
        return {prefix[:-1]: value}
    out: dict[str, Any] = {}
    for key, item in value.items():
        out |= flat(item, f"{prefix}{key}.")
    return out


def different(first: Any, second: Any, *, among: tuple[str, ...] = ("",)) -> list[str]:
    """Keys that start with one of `among` and whose values matter and differ."""
    a, b = flat(first.to_dict()), flat(second.to_dict())
    return [
        key
        for key in sorted(a.keys() | b.keys())
        if key.startswith(among) and key not in _SAME and a.get(key) != b.get(key)
    ]


# The base, and runs that share it.


def base_of(args: argparse.Namespace, config: ConfigDict) -> RunDir:
    """The run whose recommender and language model all share; made if none is given.

    Raises:
      UserError: if the given one is not finished, or not of this config.
    """
    given = args.base or str(pathlib.Path(args.workdir) / "base")
    base = RunDir(given)
    if not args.base and not (base.path / "base").exists():
        mine = config.copy_and_resolve_references()
        mine.name, mine.stages = "recpie_world_base", ("recommend", "pretrain")
        run_stages(mine, base.path)
    theirs = read_config(base)
    for key in different(theirs, config, among=_MADE_FROM):
        raise UserError(
            f"{given} was made with {key}={flat(theirs.to_dict()).get(key)!r}, not "
            f"{flat(config.to_dict()).get(key)!r}; choose another --base or --workdir"
        )
    if not (base.path / "base").exists():
        raise UserError(f"{given}: its language model (stage pretrain) is not finished")
    for name in config.recommend:
        for seed in seeds_of(config, name):
            if not base.per_user(f"recommend/{name}/{seed}").exists():
                raise UserError(
                    f"{given}: recommend/{name}/{seed} is not finished; finish it, or "
                    "choose other --seeds"
                )
    return base


def share(base: RunDir, target: RunDir, *, language: bool = True) -> None:
    """Copies the finished recommender, and the language model, to another run directory."""
    parts = ["checkpoints/recommend", "per_user/recommend"]
    parts += ["tokenizer", "base"] if language else []
    for part in parts:
        there = pathlib.Path(str(target.path)) / part
        if there.exists():
            continue
        half = there.with_name(f".{there.name}.tmp")  # a kill must not leave half a model
        shutil.rmtree(half, ignore_errors=True)
        half.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(pathlib.Path(str(base.path)) / part, half)
        os.replace(half, there)
    done = target.evaluation()
    for stage in ("recommend", "pretrain")[: 1 + language]:
        if stage not in done and stage in base.evaluation():
            target.write_evaluation(stage, base.evaluation()[stage])


def is_finished(rundir: RunDir, config: ConfigDict, *, more_seeds: bool = False) -> bool:
    """Whether a run holds the joint stage of this config, maybe with more controls, or seeds."""
    if not rundir.config_path.exists() or JOINT not in rundir.evaluation():
        return False
    theirs = read_config(rundir)
    if not set(config.joint.systems) <= set(theirs.joint.systems):
        return False
    if not set(config.seeds) <= set(theirs.seeds):
        return False
    return set(different(theirs, config)) <= {"joint.systems", *(["seeds"] * more_seeds)}


def run_joint(config: ConfigDict, rundir: RunDir) -> RunDir:
    """Runs what is not finished; forgets what was compiled, as no other run needs it."""
    if not is_finished(rundir, config):
        run_stages(config, rundir.path)
        jax.clear_caches()
        gc.collect()
    return rundir


# Ablations.


def ablations() -> dict[str, dict[str, Any]]:
    """Name to what it changes of `config.joint`; `full` first."""
    sys.path.append(str(ROOT))
    module = importlib.import_module("configs.recpie_world")
    return {FULL: dict(systems=()), **module.ABLATIONS}


def chosen(text: str, known: Sequence[str]) -> list[str]:
    """Names between commas; all for "".

    Raises:
      UserError: if one is unknown.
    """
    names = [name for name in text.split(",") if name] or list(known)
    for name in names:
        if name not in known:
            raise UserError(f"--names: no ablation {name!r}{did_you_mean(name, known)}")
    return list(dict.fromkeys(names))


def changes_of(ablation: dict[str, Any]) -> dict[str, Any]:
    """What it changes but for the controls, by dotted key."""
    return {key: value for key, value in flat(ablation).items() if key != "systems"}


def rows_of(table: dict[str, Any], *, rounds: int, k: int) -> dict[str, dict[str, Any]]:
    """Figures of the systems of a run that its ablation is about.

    Args:
      table: `evaluation.json["joint"]`.
      rounds: of the run; without any, what it calls joint is trained by nobody jointly.
      k: cut-off of the NDCG.
    """
    found = {}
    for name, figures in table.items():
        against = table.get(f"{name} vs {ALONE}")
        if against is None or (name == JOINT and not rounds):
            continue
        found[name] = {
            "ndcg": figures[f"test/ndcg@{k}"],
            "gain": against[f"ndcg@{k}/relative"],
            "p": against[f"ndcg@{k}/p"]["value"],
            "planted_f1": figures.get("planted/f1"),
        }
    return found


def experiment(args: argparse.Namespace) -> dict[str, Any]:
    """All chosen ablations; see the head of this file."""
    known = ablations()
    names = chosen(args.names, list(known))
    config = world_config(args)
    base = base_of(args, config)
    k = 10 if 10 in config.ranking.ks else config.ranking.ks[0]
    result: dict[str, Any] = {
        "settings": {"seeds": config.seeds, "tiny": args.tiny, "override": args.override},
        "metric": f"ndcg@{k}",
        "ablations": {},
        "failed": {},
    }
    for number, name in enumerate(names, start=1):
        mine = config.copy_and_resolve_references()
        mine.name, mine.stages = f"recpie_world_{name}", ("recommend", "joint")
        mine.joint.update(known[name])
        if args.tiny:  # an ablation may ask for more
            mine.joint.states.max_users = config.joint.states.max_users
            mine.joint.rollout.per_round = config.joint.rollout.per_round
            mine.joint.ppo.batch_size = config.joint.ppo.batch_size
            mine.joint.valid_users = config.joint.valid_users
            mine.joint.explain.max_new_tokens = config.joint.explain.max_new_tokens
        rundir = RunDir(pathlib.Path(args.workdir) / name)
        print(f"{name} ({number} of {len(names)})", flush=True)
        try:
            if name == FULL and args.base and is_finished(base, mine):
                rundir = base
            else:
                share(base, rundir)
                run_joint(mine, rundir)
        except UserError as error:
            result["failed"][name] = str(error)
            print(f"{name}: {error}", flush=True)
            continue
        table = rundir.evaluation()[JOINT]
        shown = (JOINT, ALONE, *mine.joint.systems)  # a base may hold more controls
        result["ablations"][name] = {
            "changes": changes_of(known[name]),
            "alone": table[ALONE][f"test/ndcg@{k}"],
            "systems": {
                system: figures
                for system, figures in rows_of(table, rounds=mine.joint.rounds, k=k).items()
                if system in shown
            },
            "rounds": table["rounds"],
        }
    return result


def percent(gain: dict[str, Any]) -> str:
    """A relative gain with its interval."""
    low, high = gain["low"], gain["high"]
    bounds = "" if low is None or high is None else f" [{low:+.1%}, {high:+.1%}]"
    return f"{gain['value']:+.1%}{bounds}"


def show(result: dict[str, Any]) -> str:
    """A row for each system of each ablation, as text."""
    rows = []
    for name, found in result["ablations"].items():
        changes = ", ".join(f"{key}={value}" for key, value in found["changes"].items()) or "-"
        for system, figures in found["systems"].items():
            f1 = figures["planted_f1"]
            rows.append(
                [
                    name,
                    changes,
                    system,
                    f"{figures['ndcg']['value']:.4f}",
                    f"{found['alone']['value']:.4f}",
                    percent(figures["gain"]),
                    f"{figures['p']:.4f}",
                    "-" if f1 is None else f"{f1['value']:.3f}",
                ]
            )
            changes = ""
    metric = result["metric"].upper()
    header = ["ablation", "changes", "reads", metric, "alone", "gain over alone", "p", "planted F1"]
    lines = [text_table(header, rows)]
    return "\n".join([*lines, *(f"{name}: {why}" for name, why in result["failed"].items())])


def draw(result: dict[str, Any], panel: Any) -> None:
    """Gains over the recommender alone with their intervals, a line each."""
    bars = [
        (name if system == JOINT else f"{name}: {system}", system, figures["gain"])
        for name, found in result["ablations"].items()
        for system, figures in found["systems"].items()
    ]
    for place, (_, system, gain) in enumerate(bars):
        colour = "#0072B2" if system == JOINT else "#D55E00"
        if gain["low"] is not None:
            panel.plot([100 * gain["low"], 100 * gain["high"]], [place, place], color=colour, lw=2)
        panel.plot([100 * gain["value"]], [place], "o", color=colour, ms=5)
    panel.axvline(0.0, color="#666666", lw=1)
    panel.set_yticks(range(len(bars)), [label for label, *_ in bars])
    panel.invert_yaxis()
    panel.set_xlabel(f"gain in {result['metric'].upper()} over the recommender alone, %")
    panel.set_title("Jointly trained (blue) and controls (orange), 95 % intervals", fontsize=10)


# Output, for both experiments on this config.


def check_plot(path: str) -> None:
    """Refuses a plot that could not be drawn, before anything is run.

    Raises:
      UserError: on another format, or without matplotlib.
    """
    if not path:
        return
    if not path.endswith((".png", ".svg")):
        raise UserError(f"--plot={path}: the name of a plot ends in .png or .svg")
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(f"--plot={path} needs matplotlib: pip install 'xrec_jax[report]'")


def save_plot(path: str, drawn: Callable[[Any], None], *, size: tuple[float, float]) -> None:
    """Draws one panel into a PNG or SVG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panel = figure.subplots()
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)
    drawn(panel)
    image = io.BytesIO()
    figure.savefig(image, format=path[-3:])
    write_atomic(path, lambda temporary: pathlib.Path(temporary).write_bytes(image.getvalue()))


def parser_of(doc: str) -> argparse.ArgumentParser:
    """Flags that both experiments have."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="where the run directories go")
    parser.add_argument("--base", default="", help="finished run that is shared; default: made")
    parser.add_argument("--seeds", default="", help="default: those of the config")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--tiny", action="store_true", help="a smoke test of minutes")
    parser.add_argument(
        "--output", default="", help="default: in experiments/results; tiny: WORKDIR"
    )
    parser.add_argument("--plot", default="", help="PNG or SVG")
    return parser


def output_of(args: argparse.Namespace, name: str) -> pathlib.Path:
    """Where the result goes; a smoke test never replaces one that counts."""
    if args.output:
        return pathlib.Path(args.output)
    folder = pathlib.Path(args.workdir) if args.tiny else ROOT / "experiments" / "results"
    return folder / f"{name}.json"


def run_shares(
    args: argparse.Namespace,
    name: str,
    experiment: Callable[[argparse.Namespace], dict[str, Any]],
    *,
    draw: Callable[[dict[str, Any], Any], None],
    show: Callable[[dict[str, Any]], str],
) -> None:
    """Runs an experiment over shares of the data; writes its JSON and plot, prints its table."""
    try:
        check_plot(args.plot)
        result = experiment(args)
        write_json(output_of(args, name), result)
        if args.plot:
            save_plot(args.plot, lambda panel: draw(result, panel), size=(6.5, 4.2))
    except UserError as error:
        sys.exit(f"error: {error}")
    print(show(result))


def main() -> None:
    """Parses the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--names", default="", help="ablations, with commas; default: all")
    args = parser.parse_args()
    try:
        check_plot(args.plot)
        result = experiment(args)
        if result["ablations"]:
            write_json(output_of(args, "recpie_ablations"), result)
            if args.plot:
                rows = sum(len(one["systems"]) for one in result["ablations"].values())
                save_plot(args.plot, lambda panel: draw(result, panel), size=(8, 1.2 + 0.3 * rows))
    except UserError as error:
        sys.exit(f"error: {error}")
    print(show(result))
    if result["failed"]:
        sys.exit(f"error: refused: {', '.join(result['failed'])}")


if __name__ == "__main__":
    main()
