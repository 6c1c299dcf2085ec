"""Imports point one way: between packages, and between the floors of a package; and never in a circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT: dict[str, set[str]] = {"model": set(), "indexer": {"model"}, "service": {"indexer", "model"}}

# What other packages import of one: its root; or of model, whose root is empty, these rooms and modules.
DOORS = {
    "indexer": {"indexer"},
    "model": {
        "model.audio",
        "model.audio.analysis",
        "model.audio.grid",
        "model.audio.harmony",
        "model.audio.hearing",
        "model.audio.said",
        "model.axial_kernel",
        "model.checkpoints",
        "model.cqt",
        "model.demo",
        "model.device",
        "model.errors",
        "model.evaluation.commands",
        "model.evaluation.retimed",
        "model.evaluation.retrieval",
        "model.phalar",
        "model.training.commands",
        "model.training.console",
        "model.training.processes",
        "model.training.render",
        "model.training.stems",
        "model.training.tracks",
    },
}
ONLY_BUILD_NEEDS_TORCH = "indexer/index/build.py"

# From the top down. A room imports from its own floor and from those below; what is named nowhere is held to nothing.
FLOORS = {
    "model": [
        {"evaluation"},
        {"training"},
        {"checkpoints", "demo"},
        {"audio", "axial", "axial_kernel", "complex_layers", "cqt", "device", "phalar", "pooling", "similarity"},
        {"errors"},
    ],
    "indexer": [{"search"}, {"diagonals"}, {"index"}, {"catalog"}],
    "service": [{"commands", "local"}, {"api"}, {"search"}, {"work"}, {"settings", "metrics", "text"}],
}
MADE_UP = {
    "service/settings.py": "",
    "service/work/__init__.py": "",
    "service/work/queue.py": "from service.settings import Settings",
    "service/api/app.py": "from service.work.queue import Queue",
}


def modules_of(root: Path, package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name; a package's is that of its `__init__`."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    assert found
    return found


def imports_of(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Every absolute import of a file, wherever it stands, as (line, module, names taken from it)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or "", [alias.name for alias in node.names]


def wrong_between_packages(root: Path, package: str) -> list[str]:
    return [
        f"{path.relative_to(root)}:{line} imports {module}"
        for path in modules_of(root, package).values()
        for line, module, _ in imports_of(path)
        if (top := module.split(".")[0]) in MAY_IMPORT
        and top != package
        and (top not in MAY_IMPORT[package] or module not in DOORS[top])
    ]


def wrong_between_floors(root: Path, package: str) -> list[str]:
    height = {room: -floor for floor, rooms in enumerate(FLOORS[package]) for room in rooms}
    wrong = []
    for name, path in modules_of(root, package).items():
        own = height.get(name.split(".")[1]) if "." in name else None
        for line, module, taken in imports_of(path):
            parts = module.split(".")
            rooms = parts[1:2] if len(parts) > 1 else taken
            if own is not None and parts[0] == package and any(height.get(room, own) > own for room in rooms):
                wrong.append(f"{path.relative_to(root)}:{line} imports {module}, which lies above it")
    return wrong


def circle_in(root: Path, package: str) -> list[str]:
    """The modules of a circle, the first one last again; empty where there is none."""
    modules = modules_of(root, package)
    uses = {
        name: {
            used
            for _, module, taken in imports_of(path)
            for used in (module, *(f"{module}.{one}" for one in taken))
            if used in modules and used != name and used != package
        }
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name not in done:
            for used in sorted(uses[name]):
                if found := visit(used, [*way, name]):
                    return found
            done.add(name)
        return []

    return next(filter(None, (visit(name, []) for name in modules)), [])


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_lies_below_it_and_through_its_doors(package: str) -> None:
    assert not wrong_between_packages(ROOT, package)


@pytest.mark.parametrize("package", FLOORS)
def test_no_room_imports_one_above_it(package: str) -> None:
    assert not wrong_between_floors(ROOT, package)


@pytest.mark.parametrize("package", FLOORS)
def test_every_room_has_a_floor(package: str) -> None:
    rooms = {name.split(".")[1] for name in modules_of(ROOT, package) if "." in name}
    assert rooms == {room for rooms in FLOORS[package] for room in rooms}


@pytest.mark.parametrize("package", FLOORS)
def test_no_imports_go_round_in_a_circle(package: str) -> None:
    assert not circle_in(ROOT, package)


@pytest.mark.parametrize(
    ("file", "line", "check"),
    [
        ("service/settings.py", "from service.work.queue import Queue", wrong_between_floors),
        ("service/work/queue.py", "def later():\n    from service.api import app", wrong_between_floors),
        ("service/work/queue.py", "from service import api", wrong_between_floors),
        ("service/api/app.py", "from indexer.catalog.tables import stems", wrong_between_packages),
        ("service/api/app.py", "from model.audio.decode import load_clip", wrong_between_packages),
        ("service/settings.py", "from service.work import queue", circle_in),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, line: str, check: object) -> None:
    for name, text in MADE_UP.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert callable(check)
    assert not check(tmp_path, "service")
    (tmp_path / file).write_text(f"{MADE_UP[file]}\n{line}\n")
    assert check(tmp_path, "service")


def test_the_indexer_runs_without_torch() -> None:
    needing = {
        str(path.relative_to(ROOT))
        for path in modules_of(ROOT, "indexer").values()
        for _, module, _ in imports_of(path)
        if module.split(".")[0] in {"torch", "model"} and module != "model.errors"  # it lies under all and imports none
    }
    assert needing <= {ONLY_BUILD_NEEDS_TORCH}
