"""Imports point one way: service -> indexer -> model, and into another package through its root only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {"model": set(), "indexer": {"model"}, "service": {"indexer", "model"}}
ONLY_BUILD_NEEDS_TORCH = ROOT / "indexer" / "build.py"


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Every absolute import of a file, wherever it stands, as (line, module)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or ""


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    assert files_of(package)
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files_of(package)
        for line, module in imports_of(path)
        if (top := module.split(".")[0]) in MAY_IMPORT and top != package and top not in MAY_IMPORT[package]
    ]
    assert not wrong


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_another_through_its_root(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files_of(package)
        for line, module in imports_of(path)
        if (top := module.split(".")[0]) in MAY_IMPORT and top != package and "." in module
    ]
    assert not wrong


def test_the_indexer_runs_without_torch() -> None:
    needing = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files_of("indexer")
        for line, module in imports_of(path)
        if module.split(".")[0] in {"torch", "model"} and path != ONLY_BUILD_NEEDS_TORCH
    ]
    assert not needing
