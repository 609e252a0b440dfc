"""README and docs: every code block is run or parsed, every path, key and link is there."""

import ast
import functools
import importlib
import json
import pathlib
import re
import shlex
import sys
import tomllib
from typing import NamedTuple

import jax.numpy as jnp
import pytest

from tests import runs, tiny
from xrec_jax import cli, defaults, stages
from xrec_jax.api.run import run
from xrec_jax.commands import configs
from xrec_jax.inference.explainers import base as explainers
from xrec_jax.inference.judges import base as judges
from xrec_jax.joint.config import joint
from xrec_jax.joint.controls import registry
from xrec_jax.joint.rewards import base as rewards
from xrec_jax.recommenders import base as recommenders

ROOT = tiny.CHECKOUT
PAGES = sorted(
    [
        *(ROOT / f"{name}.md" for name in ("README", "BUILD", "CONTRIBUTING", "CHANGELOG")),
        ROOT / "examples" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
)
TOOLS = ("pip", "pre-commit")  # of other projects; their arguments are not checked
SECTIONS = ("data", "recommend", "instruct", "judge", "joint", "llm", "mesh", "pretrain", "explain")


def name_of(page: pathlib.Path) -> str:
    return page.relative_to(ROOT).as_posix()


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def split(page: pathlib.Path) -> tuple[list[Block], str]:
    """Fenced blocks of a page, and what is outside of them."""
    blocks, prose, block = [], [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if block is None and (fence := re.fullmatch(r"```(\S*)", line)):
            block = Block(name_of(page), number, fence[1], "")
        elif block is not None and line == "```":
            blocks.append(block)
            block = None
        elif block is not None:
            block = block._replace(text=block.text + line + "\n")
        else:
            prose.append(line)
    assert block is None, f"{block} has no end"
    return blocks, "\n".join(prose)


BLOCKS = [block for page in PAGES for block in split(page)[0]]
SHELL = [block for block in BLOCKS if block.language == "sh"]
PYTHON = [block for block in BLOCKS if block.language == "python"]
SPANS = [
    (name_of(page), span)
    for page in PAGES
    for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", split(page)[1])
]


def the_block(page: str, text: str) -> Block:
    """The block of a page that holds a text."""
    (block,) = [block for block in BLOCKS if block.page == page and text in block.text]
    return block


def test_every_block_says_its_language():
    assert {block.language for block in BLOCKS} <= {"sh", "python", "text", "{toctree}"}


# Shell.


def commands(text: str) -> list[list[str]]:
    """Words of every command; continued lines are joined, comments and set variables left out."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found


@functools.cache
def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))


def check(words: list[str]) -> None:
    """Fails if a command names a verb, flag, config, key, script or target that is not there."""
    program, *arguments = words
    program = program.rsplit("/", 1)[-1]
    if program == "xrec":
        if arguments in (["--version"], ["VERB", "--help"], ["VERB"]):
            return
        verb, rest = cli._split_verb(arguments)
        if "--help" not in rest:
            cli._parse(verb, rest)
    elif program == "make":
        targets = [word for word in arguments if "=" not in word]
        assert targets and make_targets().issuperset(targets), words
    elif re.fullmatch(r"python[\d.]*", program):
        check_python(arguments)
    else:
        assert program in TOOLS, words


def check_python(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        assert arguments[1] in ("venv", "pytest"), arguments
        if arguments[1] == "pytest":
            assert (ROOT / arguments[2]).exists(), arguments
        return
    if not arguments[0].endswith(".py"):
        assert arguments in (["--version"],)
        return
    check_script(arguments)


def check_script(arguments: list[str]) -> None:
    """Fails if a script does not exist, or neither it nor what it imports takes a flag."""
    source = source_of(ROOT / arguments[0])
    for word in arguments[1:]:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag != "--help":
            named = f'"{flag}"', f'"{flag[2:]}"'  # argparse; absl
            assert any(name in source for name in named), (flag, arguments)


def source_of(path: pathlib.Path) -> str:
    """A script and the experiments that it imports."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("experiments"):
            folder = ROOT / str(node.module).replace(".", "/")
            for file in (folder.with_suffix(".py"), *(folder / f"{n.name}.py" for n in node.names)):
                source += file.read_text(encoding="utf-8") if file.exists() else ""
    return source


@pytest.fixture
def shown_modules(tmp_path, monkeypatch):
    """The modules that the guides show, by the name in their first line, can be imported."""
    registries = (stages.base, judges, explainers, recommenders, rewards)
    for module in registries:
        monkeypatch.setattr(module, "_REGISTRY", dict(module._REGISTRY))
    texts: dict[str, str] = {}
    for block in PYTHON:
        if named := re.match(r"# (\w+)\.py\b", block.text):
            texts[named[1]] = texts.get(named[1], "") + block.text
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield texts
    for name in texts:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_shell(block, monkeypatch, shown_modules):
    monkeypatch.chdir(ROOT)
    for words in commands(block.text):
        check(words)


def test_mistakes_in_commands_are_noticed(monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in (
        "xrec rnu --config=quickstart",
        "xrec run --confg=quickstart",
        "xrec run --config=configs/none.py --workdir=x",
        "xrec run --config=quickstart --config.seed=1",
        "make quickstrat",
        "python experiments/none.py",
        "python experiments/seeds.py --sed=1",
    ):
        with pytest.raises((AssertionError, OSError, cli.UserError)):
            check(commands(line)[0])
    for span in ("joint.nothing.here=1", "ppo.no_key", "--config.data.pathh"):
        with pytest.raises(AssertionError):
            check_key(span)


SCRIPTS = sorted(
    path for name in ("configs", "examples", "experiments") for path in (ROOT / name).glob("*.py")
)


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_commands_of_docstrings(script, monkeypatch):
    """The commands that configs, examples and experiments show at their head."""
    monkeypatch.chdir(ROOT)
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    shown = [block for block in re.split(r"\n\n+", text) if block.startswith("    ")]
    for block in shown:
        for words in commands(re.sub(r"\\\n *", " ", block)):
            if words[0] in ("xrec", "make", "python"):
                check(words)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_spans(page, monkeypatch):
    """Commands, files, modules and keys within a text."""
    monkeypatch.chdir(ROOT)
    for where, span in SPANS:
        if where != name_of(page) or where == "docs/faults.md":
            continue
        first = span.split()[0] if span.split() else ""
        if first in ("xrec", "make", "python") and " " in span and "..." not in span:
            check(commands(span)[0])
        elif re.match(r"(configs|experiments|examples|tests|docs|xrec_jax)/", first):
            check_file(span)
        elif re.fullmatch(r"xrec_jax(\.\w+)+(\(.*\))?", span):
            resolve(span.partition("(")[0])
        elif where != "CHANGELOG.md":
            check_key(span)


def check_file(span: str) -> None:
    path, *flags = span.split()
    path = re.sub(r":\w+$", "", path)  # an argument of a config
    if "X.py" in path or "NAME" in path:
        path = path.rpartition("/")[0]
    assert (ROOT / path).exists(), span
    if flags:
        check_script([path, *flags])


def resolve(name: str) -> object:
    """The module, or the attribute of one, of a dotted name."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def check_key(span: str) -> None:
    """Fails if a span reads as a config key and is none."""
    key = re.fullmatch(r"(?:--config\.)?([a-z]\w*(?:\.\w+)+)(?:=.*)?", span)
    if not key:
        return
    first = key[1].split(".")[0]
    short = first in joint()  # `ppo.scale` for `joint.ppo.scale`
    if key[1].endswith((".json", ".jsonl", ".py", ".csv")):
        return
    if first not in SECTIONS and not short:
        return
    value = joint() if short and first not in SECTIONS else defaults.base()
    for part in key[1].split("."):
        if part in defaults.base().recommend or part in ("sasrec", "bpr"):
            return  # systems have keys of their own
        assert part in value, span
        value = value[part]


def test_every_config_is_listed():
    text = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    assert [name for name in configs.names() if f"`{name}.py`" not in text] == []


def test_every_verb_is_shown():
    shown = "\n".join(block.text for block in SHELL if block.page == "docs/command_line.md")
    assert [verb for verb in cli.VERBS if f"xrec {verb}" not in shown] == []


def test_extras_are_listed():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert [name for name in extras["optional-dependencies"] if f"`{name}`" not in text] == []


# Python.


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles_and_imports(block):
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                resolve(alias.name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                resolve(f"{node.module}.{alias.name}")


@pytest.fixture(scope="module")
def shown_run(tmp_path_factory):
    """A folder with the run of the README's example, as `runs/example` and `runs/q`."""
    folder = tmp_path_factory.mktemp("readme")
    block = the_block("README.md", "defaults.base()")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code = block.text.replace("num_users=300", "num_users=60")
        exec(compile(code, str(block), "exec"), {})
    (folder / "runs" / "q").symlink_to("example")
    return folder


def test_readme_example(shown_run, capsys):
    assert (shown_run / "runs" / "example" / "report.html").exists()
    evaluation = json.loads((shown_run / "runs" / "example" / "evaluation.json").read_text())
    assert set(evaluation["recommend"]["bpr"]["test/ndcg@10"]) == {"value", "low", "high", "count"}


def test_readme_example_is_short():
    block = the_block("README.md", "defaults.base()")
    assert sum(bool(line.strip()) for line in block.text.splitlines()) <= 15


def test_restoring(shown_run, monkeypatch):
    monkeypatch.chdir(shown_run)
    block = the_block("docs/command_line.md", "xrec_jax.restore")
    names: dict = {}
    exec(compile(block.text, str(block), "exec"), names)
    assert len(names["run"].recommend(["u00000"], top_k=5)) == 5


def test_judges_of_the_guide(monkeypatch):
    names: dict = {}
    exec(the_block("docs/guides/judge.md", "def longer").text, names)
    assert names["longer"](["?"], ["abc"], ["a"]) == [0.75]
    monkeypatch.setattr(judges, "_REGISTRY", dict(judges._REGISTRY))
    exec(the_block("docs/guides/judge.md", "def shorter").text, {"__name__": "my_judge"})
    judge = judges.find("shorter").build(None)
    assert judge(["?"] * 3, ["abc", "a", "b"], ["a", "abc", "c"]) == [0.0, 1.0, 0.5]


def test_reward_of_the_guide(monkeypatch):
    monkeypatch.setattr(rewards, "_REGISTRY", dict(rewards._REGISTRY))
    exec(the_block("docs/guides/reward.md", '"brief"').text, {})
    exec(the_block("docs/guides/reward.md", '"parroting"').text, {})
    zeros, evidence = jnp.zeros(2), {"parroting": jnp.array([1.0, 0.0])}
    scored = rewards.Scored(log_prob=zeros, length=jnp.array([3, 31]), evidence=evidence)
    assert rewards.get("brief")(scored, **rewards.options("brief")).tolist() == [0.0, -1.0]
    assert rewards.get("parroting")(scored).tolist() == [-1.0, 0.0]


def test_control_of_the_guide(monkeypatch):
    monkeypatch.setattr(registry, "CONTROLS", dict(registry.CONTROLS))
    exec(the_block("docs/joint_training.md", "shouted").text, {})
    assert registry.CONTROLS["shouted"].label == "in capitals"


def test_stage_of_the_guide(tmp_path, monkeypatch):
    monkeypatch.setattr(stages.base, "_REGISTRY", dict(stages.base._REGISTRY))
    exec(the_block("docs/guides/stage.md", "def section").text, {})
    config = tiny.config("popularity")
    config.stages = ("lengths",)
    config.lengths.least = 3
    with runs.one_device():
        run(config, tmp_path / "run")
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert 0 < evaluation["lengths"]["histories"]["test/long"]["value"] <= 1


def methods(text: str) -> dict[str, list[str]]:
    """The statements of every method of a text's classes."""
    return {
        f"{one.name}.{node.name}": [ast.unparse(line) for line in node.body]
        for one in ast.parse(text).body
        if isinstance(one, ast.ClassDef)
        for node in one.body
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("name", ["recommender", "explainer"])
def test_guides_show_the_classes_of_the_examples(name):
    """The examples run, see `test_examples.py`."""
    shown = the_block(f"docs/guides/{name}.md", "class ").text
    example = (ROOT / "examples" / f"own_{name}.py").read_text(encoding="utf-8")
    assert methods(shown) == methods(example) != {}


# Links.


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links(page):
    text = split(page)[1]
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{name_of(page)}: {target}"
        if anchor:
            assert anchor in anchors(linked), f"{name_of(page)}: {target}"
        if page.is_relative_to(ROOT / "docs"):
            assert linked.is_relative_to(ROOT / "docs"), f"{target}: not in the site"


def anchors(page: pathlib.Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", split(page)[1], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def test_every_page_is_in_the_site():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = (ROOT / "docs").rglob("*.md")
    inside = {page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in pages}
    assert inside - {"index"} <= set(index.split())


def test_api_pages_name_modules_that_are_there():
    for page in (ROOT / "docs" / "api").glob("*.rst"):
        for name in re.findall(r"automodule:: (\S+)", page.read_text(encoding="utf-8")):
            importlib.import_module(name)


def test_sizes():
    assert (ROOT / "README.md").stat().st_size <= 10_240
