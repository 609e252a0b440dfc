"""Imports point downward only: a walk over the syntax tree of every module."""

import ast
import pathlib

import pytest

import xrec_jax

ROOT = pathlib.Path(xrec_jax.__file__).parent
# From the bottom up; packages of one level do not import each other.
FLOORS = (
    ("core",),
    ("parallel",),
    ("data", "llm", "recommenders", "text"),
    ("evaluation",),
    ("training",),
    ("tasks",),
    ("inference",),
    ("joint",),
    ("auditing", "rating", "report"),
    ("stages",),
    ("defaults",),
    ("run_config",),
    ("api",),
    ("commands",),
    ("cli",),
    ("__init__", "__main__"),
)
LEVELS = {package: level for level, floor in enumerate(FLOORS) for package in floor}
LARGEST_FOLDER = 15  # modules, besides `__init__`
# (importing package, imported package) on one level or upward: the entry points are one layer.
ALLOWED_SIBLINGS: set[tuple[str, str]] = set()


def package_of(module: str) -> str:
    """The part of the package that a dotted name below xrec_jax belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported(source: str, module: str, *, is_package: bool = False) -> list[tuple[int, str]]:
    """Line and dotted name of every import of the package's own modules, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = module.split(".")
                up = up[: len(up) - node.level + is_package]
                base = ".".join([*up, base]) if base else ".".join(up)
            if base == "xrec_jax":
                # `from xrec_jax import x` means the module x, or else a name of xrec_jax itself.
                for alias in node.names:
                    own = package_of(f"xrec_jax.{alias.name}") in LEVELS
                    found.append((node.lineno, f"xrec_jax.{alias.name}" if own else "xrec_jax"))
            else:
                found.append((node.lineno, base))
    return [(line, name) for line, name in found if name.split(".")[0] == "xrec_jax"]


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What `module` imports and must not."""
    here = package_of(module)
    wrong = []
    for line, name in imported(source, module, is_package=is_package):
        there = package_of(name)
        if there == here or (here, there) in ALLOWED_SIBLINGS:
            continue
        if there not in LEVELS or LEVELS[there] >= LEVELS[here]:
            wrong.append(f"{module}:{line} imports {name}")
    return wrong


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["xrec_jax", *path.relative_to(ROOT).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        yield path, ".".join(parts[:-1] if is_package else parts), is_package


def test_every_import_points_downward():
    wrong = []
    for path, module, is_package in modules():
        wrong += violations(path.read_text(), module, is_package=is_package)
    assert wrong == []


def test_every_package_has_a_level():
    assert {package_of(module) for _, module, _ in modules()} <= set(LEVELS)


def test_the_walk_sees_the_whole_library():
    found = {module: (path, package) for path, module, package in modules()}
    for module in ("xrec_jax", "xrec_jax.core", "xrec_jax.data.world.world", "xrec_jax.cli"):
        assert module in found
    path, package = found["xrec_jax.recommenders.sasrec"]
    names = {name for _, name in imported(path.read_text(), "xrec_jax.recommenders.sasrec")}
    assert "xrec_jax.parallel.mesh" in names and not package


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("xrec_jax.core.files", "from xrec_jax.parallel import mesh"),
        ("xrec_jax.core.files", "import xrec_jax.parallel.mesh as m"),
        ("xrec_jax.core.files", "def f():\n  from xrec_jax import training"),
        ("xrec_jax.data.load", "from xrec_jax.recommenders.base import names"),
        (
            "xrec_jax.data.load",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
            "  from xrec_jax.recommenders import base",
        ),
        ("xrec_jax.data.world.world", "from ...recommenders import base"),
        ("xrec_jax.data.load", "from .. import training"),
        ("xrec_jax.training.loop", "from xrec_jax import restore"),
        ("xrec_jax.evaluation.ranking.ranks", "import xrec_jax"),
        ("xrec_jax.evaluation.bias", "from xrec_jax.training import loop"),
        ("xrec_jax.joint.round", "from xrec_jax.stages import joint"),
        ("xrec_jax.commands.run", "from xrec_jax import __version__"),
        ("xrec_jax.commands.run", "from xrec_jax.novelty import x"),
    ],
)
def test_the_walk_catches(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("xrec_jax.commands.run", "from xrec_jax import recommenders"),
        ("xrec_jax.stages.report", "from xrec_jax.report import page"),
        ("xrec_jax.data.world.world", "from . import config\nfrom ...core import errors"),
        ("xrec_jax.recommenders.mf", "import numpy as np\nfrom jax import numpy"),
        ("xrec_jax.evaluation.ranking.ranks", "from xrec_jax.data.histories import Histories"),
    ],
)
def test_the_walk_lets_pass(module, source):
    assert violations(source, module) == []


def test_a_package_resolves_relative_imports_from_itself():
    source = "from . import base\nfrom ..training import loop"
    assert violations(source, "xrec_jax.recommenders", is_package=True) == [
        "xrec_jax.recommenders:2 imports xrec_jax.training"
    ]


def imports_of_modules() -> dict[str, set[str]]:
    """Every module with the modules that it imports, wherever the import stands."""
    sources = {module: path.read_text() for path, module, _ in modules()}
    edges: dict[str, set[str]] = {}
    for module, source in sources.items():
        edges[module] = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                edges[module] |= {name if name in sources else node.module for name in names}
            elif isinstance(node, ast.Import):
                edges[module] |= {alias.name for alias in node.names}
    return {module: edges[module] & set(sources) - {module} for module in sources}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, straight or through others."""
    reached: dict[str, set[str]] = {}
    for start in edges:
        seen, left = set(), [start]
        while left:
            for module in edges[left.pop()] - seen:
                seen.add(module)
                left.append(module)
        reached[start] = seen
    groups = {
        tuple(sorted(other for other in reached[one] if one in reached[other]))
        for one in edges
        if one in reached[one]
    }
    return [list(group) for group in sorted(groups)]


def test_no_circle_of_imports():
    assert circles(imports_of_modules()) == []


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]


def test_no_stage_imports_another():
    edges = imports_of_modules()
    stages = {m for m in edges if m.startswith("xrec_jax.stages.") and is_stage(m)}
    assert len(stages) == 10
    assert {(one, other) for one in stages for other in edges[one] & stages} == set()


def is_stage(module: str) -> bool:
    """Whether a module of `stages` is a stage: it says so by a record of that type."""
    path = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    assigned = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Assign)]
    return any(getattr(target, "id", "") == "STAGE" for n in assigned for target in n.targets)


def test_no_folder_is_too_large():
    counts: dict[str, int] = {}
    for path, _, is_package in modules():
        folder = str(path.parent.relative_to(ROOT))
        counts[folder] = counts.get(folder, 0) + (not is_package)
    assert max(counts.values()) <= LARGEST_FOLDER, counts
