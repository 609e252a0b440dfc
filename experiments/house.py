"""Measurements of the source tree: sizes, imports, annotations, comments, way to a gradient.

    python experiments/house.py --output=experiments/results/house.json
    python experiments/house.py --tree=OLD_CHECKOUT --against=experiments/results/house.json

Counted are the modules of `xrec_jax/` in a checkout, `fmt: skip` and `fmt: off` everywhere in it.
With `--gradients` two configs are also run as `:tiny`, and at the first gradient of every stage the
files of the package on the call stack are counted: how many a reader passes between `xrec run` and
`value_and_grad`. Prints a table, with `--against` beside the figures of another tree.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
_SKIPPED = {".git", ".venv", ".venv-parity", "build", "runs", "site"}
_MARK = re.compile(r"#\s*fmt:\s*(skip|off)")
_DIRECTIVE = re.compile(r"#\s*(fmt|type|noqa|mypy)\b")
_CLAUSE = re.compile(r"(What|How|Which|Whether|Who|Where)\b")
_RUNS = {"recommend": "quickstart", "instruct": "quickstart", "joint": "recpie_world"}

# Runs a config in the current tree; prints the package's files on the stack of first gradients.
_PROBE = """
import json, sys, jax
from xrec_jax import cli
ways = {}
original = jax.value_and_grad
def watched(*args, **kwargs):
    frame, files, stage = sys._getframe(1), [], ""
    while frame is not None:
        name = frame.f_code.co_filename.replace("\\\\", "/")
        if "/xrec_jax/" in name:
            files.append(name.rsplit("/xrec_jax/", 1)[1])
        frame = frame.f_back
    for stage in ("recommend", "pretrain", "instruct", "judge", "attributes", "joint"):
        if any(name.endswith(f"/{stage}.py") for name in files):
            ways.setdefault(stage, list(dict.fromkeys(reversed(files))))
    return original(*args, **kwargs)
jax.value_and_grad = watched
status = cli.main(sys.argv[1:])
print("WAYS " + json.dumps(ways))
sys.exit(status)
"""


def sources(tree: pathlib.Path) -> dict[str, str]:
    """Source of every module of the package, by its dotted name."""
    modules = {}
    for path in sorted((tree / "xrec_jax").rglob("*.py")):
        parts = list(path.relative_to(tree).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = path.read_text(encoding="utf-8")
    return modules


def imports(modules: dict[str, str]) -> dict[str, set[str]]:
    """Modules that each module imports, wherever the import stands."""
    edges: dict[str, set[str]] = {name: set() for name in modules}
    for name, source in modules.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                edges[name] |= {n if n in modules else node.module for n in names}
            elif isinstance(node, ast.Import):
                edges[name] |= {alias.name for alias in node.names}
        edges[name] = (edges[name] & modules.keys()) - {name}
    return edges


def groups(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected groups of more than one module, and all others alone (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    result: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            cut = stack.index(name)
            result.append(stack[cut:])
            del stack[cut:]

    for name in edges:
        if name not in index:
            visit(name)
    return result


def longest_chain(edges: dict[str, set[str]]) -> int:
    """Modules on the longest chain of imports; a circle counts with all its members."""
    ordered = groups(edges)  # a group comes after all that it imports
    place = {name: number for number, group in enumerate(ordered) for name in group}
    length: list[int] = []
    for number, group in enumerate(ordered):
        below = [length[place[o]] for name in group for o in edges[name] if place[o] != number]
        length.append(len(group) + max(below, default=0))
    return max(length)


def annotation_nodes(tree: ast.AST) -> Iterator[ast.expr]:
    """Annotations of arguments, results and variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns is not None:
            yield node.returns
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation


def format_marks(tree: pathlib.Path) -> int:
    """Number of comments that turn the formatter off, in all Python files."""
    count = 0
    for path in tree.rglob("*.py"):
        if not _SKIPPED.intersection(path.relative_to(tree).parts):
            tokens = tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline)
            count += sum(
                t.type == tokenize.COMMENT and bool(_MARK.search(t.string)) for t in tokens
            )
    return count


def measure(tree: pathlib.Path) -> dict[str, Any]:
    """Figures of a checkout."""
    modules = sources(tree)
    edges = imports(modules)
    parsed = {name: ast.parse(source) for name, source in modules.items()}
    # Modules that a reader meets in a folder; `__init__` is the folder itself.
    folders = Counter(
        str(path.parent.relative_to(tree))
        for path in (tree / "xrec_jax").rglob("*.py")
        if path.name != "__init__.py"
    )
    lines = {name: source.count("\n") for name, source in modules.items()}
    functions = [
        (node.end_lineno - node.lineno + 1, f"{name}.{node.name}")
        for name, module in parsed.items()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
    ]
    kinds = [ast.unparse(a) for module in parsed.values() for a in annotation_nodes(module)]
    # Comments for people: directives to tools do not count.
    comments = sum(
        token.type == tokenize.COMMENT and not _DIRECTIVE.match(token.string)
        for source in modules.values()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
    )
    documented = [
        text
        for module in parsed.values()
        for node in ast.walk(module)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module))
        and (text := ast.get_docstring(node))
    ]
    return {
        "modules": len(modules),
        "lines": sum(lines.values()),
        "largest folder": max(folders.values()),
        "longest import chain": longest_chain(edges),
        "import circles": sum(len(group) > 1 for group in groups(edges)),
        "fmt: skip and fmt: off": format_marks(tree),
        "bare Any, % of annotations": round(100 * kinds.count("Any") / len(kinds), 1),
        "comments a 100 lines": round(100 * comments / sum(lines.values()), 1),
        "docstrings that begin with a question word, %": round(
            100 * sum(bool(_CLAUSE.match(text)) for text in documented) / len(documented), 1
        ),
        "largest file, lines": max(lines.values()),
        "largest function, lines": max(functions)[0],
        "README, bytes": (tree / "README.md").stat().st_size,
    }


def ways(tree: pathlib.Path) -> dict[str, list[str]]:
    """Files of the package between `xrec run` and the first gradient, by stage."""
    files_of_stage: dict[str, list[str]] = {}
    environment = os.environ | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    for name in sorted(set(_RUNS.values())):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", _PROBE, "run", f"--config=configs/{name}.py:tiny"]
            command.append(f"--workdir={folder}/run")
            done = subprocess.run(
                command, cwd=tree, env=environment, capture_output=True, text=True, check=True
            )
        files_of_stage |= json.loads(done.stdout.rpartition("WAYS ")[2])
    return files_of_stage


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tree", type=pathlib.Path, default=ROOT)
    parser.add_argument("--gradients", action="store_true", help="run two configs, too")
    parser.add_argument("--against", type=pathlib.Path, help="figures of another tree, as JSON")
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    figures = measure(args.tree.resolve())
    if args.gradients:
        stacks = ways(args.tree.resolve())
        for stage in _RUNS:
            figures[f"files from xrec run to value_and_grad, {stage}"] = len(stacks.get(stage, []))
        figures["ways"] = stacks
    other = json.loads(args.against.read_text()) if args.against else {}
    for name, value in figures.items():
        if name != "ways":
            print(f"{name:<56}{value:>10}" + (f"{other.get(name, '-')!s:>10}" if other else ""))
    if args.output:
        args.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
