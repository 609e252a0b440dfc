"""A user's own explainer and judge, one file each: stored, resumed, measured, in the report."""

import json
import shutil
import sys

import pytest

from tests import runs, tiny
from xrec_jax import cli
from xrec_jax.api import compare, run
from xrec_jax.api import explain as explain_api
from xrec_jax.api.report import report
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.inference import explainers, judges
from xrec_jax.inference.explainers import base as explainers_base
from xrec_jax.inference.judges import base as judges_base
from xrec_jax.inference.options import GenerationOptions
from xrec_jax.report import run_files, wording
from xrec_jax.report.sections import pairs as pairs_section

EXPLAINER = '''
"""Names the place that the user visited last."""

from xrec_jax.inference import explainers

EDITION = "1"
TEXT = "{title} comes after {seen}."


@explainers.register(
    "last_visit", label="last visit", colour="purple", identity=lambda config, rundir: EDITION
)
class LastVisit(explainers.Explainer):
    def write(self, cases):
        for place, case in enumerate(cases):
            pair = self.setup.builder.pair(case)
            seen = pair["history"][-1]["title"] if pair["history"] else "nothing"
            yield place, explainers.Written(TEXT.format(title=pair["title"], seen=seen))
'''
JUDGE = '''
"""Prefers the shorter of two texts."""

from xrec_jax.inference import judges


@judges.register("shorter", label="The shorter text")
class Shorter:
    def __init__(self, setup):
        self.prompts = {pair["prompt"] for pair in setup.pairs}

    def __call__(self, prompts, first, second):
        assert self.prompts >= set(prompts)
        pairs = zip(first, second, strict=True)
        return [0.5 + 0.5 * (len(a) < len(b)) - 0.5 * (len(a) > len(b)) for a, b in pairs]
'''


@pytest.fixture
def registries():
    """What a test registers is gone after it."""
    kept = [(found, dict(found)) for found in (explainers_base._REGISTRY, judges_base._REGISTRY)]
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)


@pytest.fixture
def modules(tmp_path, monkeypatch, registries):
    """Both files in a folder of the user's."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "my_explainer.py").write_text(EXPLAINER)
    (folder / "my_judge.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in ("my_explainer", "my_judge"):
        sys.modules.pop(name, None)


def config(**changed):
    """Recommends what is popular, explains it twice, lets the shorter text win, reports."""
    made = tiny.config("popularity")
    made.stages = ("recommend", "explain", "judge", "report")
    made.imports = ("my_explainer", "my_judge")
    made.explain.update(dict(explainers=("template", "last_visit"), users=6, shard=4) | changed)
    made.judge.source = "shorter"
    return made


def jsonl(path):
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_an_explainer_and_a_judge_in_one_file_each(modules, tmp_path, capsys):
    workdir = tmp_path / "run"
    run.run(config(), workdir)
    pairs = jsonl(workdir / "explanations" / "pairs.jsonl")
    records = jsonl(workdir / "explanations" / "last_visit.jsonl")
    assert [record["text"] for record in records] == [
        f"{pair['title']} comes after {pair['history'][-1]['title']}." for pair in pairs
    ]
    nothing = {"explainer": "last_visit", "tokens": None, "log_prob": None, "stop": "eos"}
    assert all(nothing.items() <= record.items() for record in records)

    # Its figures
    table = RunDir(workdir).evaluation()
    assert table["explain"].keys() == {"template", "last_visit"}
    template = jsonl(workdir / "explanations" / "template.jsonl")
    wins = [
        0.5
        + 0.5 * (len(own["text"]) < len(other["text"]))
        - 0.5 * (len(own["text"]) > len(other["text"]))
        for own, other in zip(records, template, strict=True)
    ]
    assert table["judge"].keys() == {"template", "last_visit", "template vs last_visit"}
    ratio = table["judge"]["last_visit"]["win/ratio"]["value"]
    assert ratio == pytest.approx(sum(wins) / len(wins)) and ratio > 0.5
    assert len(jsonl(workdir / "judge" / "verdicts.jsonl")) == 2 * len(pairs)

    # The page, beside the template
    page = (workdir / "report.html").read_text()
    assert "The shorter text compares two explanations of one recommendation" in page
    material = run_files.load(RunDir(workdir))
    assert material.explainers() == ["template", "last_visit"]
    assert material.colour("last_visit") == "k3" and wording.label("last_visit") == "last visit"
    shown = pairs_section.pairs_data(material)
    assert shown["explainers"] == [
        {"name": "template", "title": "Template", "colour": "k5"},
        {"name": "last visit", "title": "Last visit", "colour": "k3"},
    ]
    assert [row["x"][1][0] for row in shown["pairs"]] == [record["text"] for record in records]
    assert {text for row in shown["pairs"] for text in row["v"]} <= {
        "last visit beats template",
        "template beats last visit",
        "last visit and template tie",
    }
    assert page.count(">last visit<") > 1 and ">last_visit<" not in page

    # Again: nothing is left to do, and what is lost is made again.
    before = runs.contents(workdir / "explanations")
    run.run(config(), workdir)
    (workdir / "explanations" / "last_visit.jsonl").unlink()
    capsys.readouterr()
    run.run(config(), workdir)
    assert runs.contents(workdir / "explanations") == before
    said = capsys.readouterr().out
    assert "by last_visit" in said and "by template" not in said


def test_one_of_ones_own_in_other_verbs(modules, tmp_path, capsys):
    """`xrec explain`, `xrec evaluate`, `xrec compare`, and a report that may not import it."""
    workdir, other, output = tmp_path / "run", tmp_path / "other", tmp_path / "o.jsonl"
    run.run(config(), workdir)
    table = RunDir(workdir).evaluation()
    run.evaluate(workdir)
    assert RunDir(workdir).evaluation() == table
    line = ["explain", f"--workdir={workdir}", f"--output={output}", "--users=u00001,u00002"]
    assert cli.main([*line, "--top_k=2", "--explainer=last_visit"]) == 0
    assert [record["explainer"] for record in jsonl(output)] == ["last_visit"] * 4
    sys.modules["my_explainer"].TEXT = "Because."
    run.run(config(), other)
    capsys.readouterr()
    found = compare.compare([workdir, other])["explanations"]["figures"]
    assert found["other: last_visit"]["win/ratio"]["value"] == 1.0
    for name in ("my_explainer", "my_judge"):
        sys.modules.pop(name)
    explainers_base._REGISTRY.pop("last_visit")
    judges_base._REGISTRY.pop("shorter")
    report(workdir)  # the page needs no code of the user's: how the explainer looks is kept
    page = (workdir / "report.html").read_text()
    assert "shorter compares two explanations" in page
    assert page.count(">last visit<") > 1 and ">last_visit<" not in page
    material = run_files.load(RunDir(workdir))
    assert wording.label("last_visit") == "last_visit"  # of this run alone
    kept = workdir / "explanations" / "explainers.json"
    with explainers.stored(RunDir(workdir)):
        assert material.colour("last_visit") == "k3"
        shown = pairs_section.pairs_data(material)["explainers"]
        assert shown[1] == {"name": "last visit", "title": "Last visit", "colour": "k3"}
    content = kept.read_text()
    for damage in ("[1]", '{"last_visit": 1}', content.replace("purple", "k9"), content[:-9]):
        kept.write_text(damage)
        with pytest.raises(UserError, match=r"explainers\.json"):
            report(workdir)
    kept.unlink()  # as of a run of an earlier version: names stand in for labels
    report(workdir)
    assert ">last_visit<" in (workdir / "report.html").read_text()


def test_an_output_of_another_edition_is_not_continued(modules, tmp_path):
    workdir, output = tmp_path / "run", tmp_path / "o.jsonl"
    made = config()
    made.stages = ("recommend",)
    run.run(made, workdir)

    def explain():
        options = GenerationOptions(explainer="last_visit", shard=4)
        explain_api.explain(workdir, output=str(output), top_k=1, options=options)

    write = sys.modules["my_explainer"].LastVisit.write

    def fails(self, cases):
        yield from list(write(self, cases))[:-1]

    sys.modules["my_explainer"].LastVisit.write = fails
    with pytest.raises(UserError, match="'last_visit' wrote nothing about 1 of 4 pairs"):
        explain()
    sys.modules["my_explainer"].LastVisit.write = write
    sys.modules["my_explainer"].EDITION = "2"
    with pytest.raises(UserError, match="explainer_identity='1', now '2'"):
        explain()
    sys.modules["my_explainer"].EDITION = "1"
    explain()
    assert len(jsonl(output)) == 75


def test_explainers_that_cannot_be_registered(registries):
    for name, options, message in (
        ("a b", {}, "cannot be its name"),
        ("pairs", {}, "cannot be its name"),
        ("tuned", {}, "'tuned' is registered already"),
        ("mine", {"label": "base"}, "'base' has the label 'base'"),
        ("mine", {"colour": "pink"}, "colour='pink'; valid: blue, orange"),
        ("mine", {"needs": "model"}, "needs='model'; valid: nothing, base"),
    ):
        with pytest.raises(UserError, match=message):
            explainers.register(name, **options)(lambda setup: None)
    assert explainers.names() == ["template", "base", "tuned"]


def test_names_that_nobody_registered(modules, tmp_path):
    import my_explainer  # noqa: F401
    import my_judge  # noqa: F401

    made = config(explainers=("last_vist",))
    with pytest.raises(UserError, match=r"neither template, base, tuned nor last_visit.*'last_vi"):
        explainers.specs(made, RunDir(tmp_path))
    made.judge.source = "longer"
    with pytest.raises(UserError, match="'longer' is not valid; valid: world, file, planted, sho"):
        judges.of(made)
    with pytest.raises(UserError, match="judge 'world' is registered already"):
        judges.register("world")(lambda setup: None)


def test_an_explainer_with_an_adapter_of_its_own(tmp_path, monkeypatch, registries):
    explainers.register("brief", needs="adapter", label="brief")(explainers.Model)
    monkeypatch.setattr(explainers.selection, "is_adapter", lambda path: path == "some/adapter")
    rundir, made = RunDir(tmp_path), tiny.config("popularity")
    spec = explainers.parse("brief=some/adapter", rundir)
    assert spec.name == "brief" and explainers.needs_model([spec])
    chosen = explainers.choose(made, rundir, explainer="brief", adapter="some/adapter", base="")
    assert chosen == spec and explainers.registration(spec).label == "brief"
    with pytest.raises(UserError, match="'brief' needs the directory of an adapter: brief=DIR"):
        explainers.parse("brief", rundir)
    with pytest.raises(UserError, match="give one of them"):
        explainers.choose(made, rundir, explainer="tuned", adapter="some/adapter", base="")


def test_a_judge_needs_something_to_compare(modules, tmp_path):
    made = config()
    made.stages = ("recommend", "judge")
    with pytest.raises(UserError, match=r"judge\.source='shorter' needs stage 'explain'"):
        run.run(made, tmp_path / "run")


def test_the_truth_judges_between_runs(modules, tmp_path, capsys):
    """The planted reasons know the pairs of all runs; without any there is no judge."""
    made = config(users=12)
    made.stages, made.judge.source = ("recommend", "explain"), "planted"
    workdirs = [tmp_path / "run", tmp_path / "other"]
    run.run(made, workdirs[0])
    sys.modules["my_explainer"].TEXT = "You like bars."
    run.run(made, workdirs[1])
    found = compare.compare(workdirs)["explanations"]
    ratio = {name: row["win/ratio"]["value"] for name, row in found["figures"].items()}
    assert ratio["run: template"] == max(ratio.values()) > 0.5
    for workdir in workdirs:
        path = workdir / "explanations" / "pairs.jsonl"
        path.write_text(
            "".join(json.dumps(pair | {"planted": None}) + "\n" for pair in jsonl(path))
        )
        shutil.rmtree(workdir / "done")
    capsys.readouterr()
    assert compare.compare(workdirs)["explanations"] is None
    assert "run has no judge; give --judge=module:function" in capsys.readouterr().out
