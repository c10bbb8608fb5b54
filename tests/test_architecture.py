"""The house keeps its shape: imports point downwards, constructors stay small, modules hold one idea."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "medmdm"

#: From the ground up; what stands on one line may not import each other.
FLOORS = [
    {"errors"},
    {"components", "files", "labels", "averaging", "patients", "progress"},
    {"schemas", "intact"},
    {"corruption"},
    {"objectives"},
    {"data"},
    {"prepare", "check", "backbones", "metrics"},
    {"stats", "heads"},
    {"artifacts"},
    {"runs"},
    {"pretrain", "reports"},
    {"segment"},
    {"zoo"},
    {"cli"},
]
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
#: Old names for other programs, and ``python -m medmdm``.
EXEMPT = {"engines", "losses", "networks", "__main__"}
#: Architectures, whose arguments are the published configuration.
ARCHITECTURES = {"ADMUNet", "MONAIDiffusionBackbone"}
MOST_ARGUMENTS = 12
MOST_LINES = 360


@functools.cache
def modules() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text())) for path in sorted(PACKAGE.rglob("*.py"))]


def room(path: Path) -> str:
    """The room, or the module on the ground floor, that a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "medmdm":
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "medmdm" else [node.module]
            yield from names
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("medmdm."))


def test_imports_point_downwards() -> None:
    wrong = []
    for path, tree in modules():
        own = room(path)
        if own in EXEMPT or (path.parent == PACKAGE and path.name == "__init__.py"):
            continue
        assert own in HEIGHT, f"{own} has no floor: add it to FLOORS"
        for name in imported(tree):
            other = name.split(".")[1]
            if other == "__version__" or other == own:
                continue
            if other not in HEIGHT or HEIGHT[other] >= HEIGHT[own]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_circles_between_modules() -> None:
    """Also within a room: a module may not import, directly or by others, what imports it."""
    dotted = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path, _ in modules()}
    names = {name.removesuffix(".__init__"): path for path, name in dotted.items()}
    trees = dict(modules())
    graph = {n: {i for i in imported(trees[path]) if i in names and i != n} for n, path in names.items()}
    for name, found in graph.items():
        if names[name].name != "__init__.py":
            # A package's __init__ collects names; what is inside it imports its siblings by their own names.
            assert name.rpartition(".")[0] not in found, f"{name} imports its own package's __init__"
    done: set[str] = set()

    def visit(name: str, below: tuple[str, ...]) -> None:
        assert name not in below, " -> ".join([*below[below.index(name) :], name])
        if name not in done:
            for other in graph[name]:
                visit(other, (*below, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.slow
@pytest.mark.parametrize("package", ["objectives", "metrics", "corruption", "stats"])
def test_low_floors_load_no_data(package: str) -> None:
    code = f"import sys, medmdm.{package}; print([m for m in sys.modules if m.startswith('medmdm.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    loaded = {name.split(".")[1] for name in ast.literal_eval(done.stdout.splitlines()[-1])}
    assert package in loaded
    above = {name for name in loaded if name != package and HEIGHT[name] >= HEIGHT[package]}
    assert not above, f"importing medmdm.{package} loads {sorted(above)}"


def test_few_arguments() -> None:
    wrong = []
    for path, tree in modules():
        for owner in ast.walk(tree):
            if isinstance(owner, ast.ClassDef) and owner.name in ARCHITECTURES:
                continue
            for node in ast.iter_child_nodes(owner):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                    count = len([a for a in arguments if a.arg not in ("self", "cls")])
                    if count > MOST_ARGUMENTS:
                        wrong.append(f"{path.relative_to(PACKAGE)}: {node.name} takes {count}")
            if isinstance(owner, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in owner.decorator_list):
                fields = [n for n in owner.body if isinstance(n, ast.AnnAssign) and "ClassVar" not in ast.unparse(n)]
                count = len([n for n in fields if "init=False" not in ast.unparse(n)])
                if count > MOST_ARGUMENTS:
                    wrong.append(f"{path.relative_to(PACKAGE)}: {owner.name} has {count} fields")
    assert not wrong, "\n".join(wrong)


def test_short_modules() -> None:
    long = {str(p.relative_to(PACKAGE)): n for p, _ in modules() if (n := p.read_text().count("\n")) > MOST_LINES}
    assert not long, long
