"""The documents name what is there, docs/architecture.md every room, the index of decisions each of them, and the
threat model each test in the file where it says."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
OURS = "model|indexer|service|benchmarks|tests|unit|parity|browser|docs|deploy"
NAMED = re.compile(rf"`((?:{OURS})/[\w/.-]+\.\w+)(?:::(\w+))?`")
EARLIER = re.compile(r"`[\w/.]+` of commit [0-9a-f]{7}")  # how a page names what is not there any more
DEFINED = set(re.findall(r"def (test_\w+)", "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))))


def missing(page: str) -> list[str]:
    """Files and tests that a page names and the tree does not have."""
    named = NAMED.findall(EARLIER.sub("", page))
    files = [name for name, _ in named if not any((ROOT / above / name).exists() for above in ("", "tests"))]
    tests = {test for _, test in named} | set(re.findall(r"`(?:…::|::)?(test_\w*[^\W_])`", page))
    return files + sorted(tests - DEFINED - {""})


def test_what_the_documents_name_is_there() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*.md")]
    assert {page.name: gone for page in pages if (gone := missing(page.read_text(encoding="utf-8")))} == {}
    assert len(NAMED.findall(PAGE)) > 40
    assert missing("`service/no_such_file.py`, `service/settings.py`") == ["service/no_such_file.py"]
    assert missing("`unit/test_imports.py::test_that_went`, `::test_as_well`") == ["test_as_well", "test_that_went"]


def test_every_room_is_on_the_picture() -> None:
    rooms = {path.parent.name for package in ("service", "indexer", "model") for path in ROOT.glob(f"{package}/*/*.py")}
    assert rooms
    assert [room for room in sorted(rooms) if f"{room}/" not in PAGE] == []


def test_no_module_is_longer_than_450_lines() -> None:
    modules = [path for room in OURS.split("|") for kind in ("py", "js") for path in ROOT.glob(f"{room}/**/*.{kind}")]
    assert modules
    assert [path.name for path in modules if len(path.read_text(encoding="utf-8").splitlines()) > 450] == []


def test_every_decision_is_listed_once() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert sorted([*listed, "README.md"]) == sorted(path.name for path in folder.glob("*.md"))


def test_every_test_that_the_threat_model_names_is_there() -> None:
    page, found = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8"), 0
    for row in page.splitlines():
        file = ROOT
        for path, name in re.findall(r"`(\S*?/test_\w+\.py|\u2026)?(?:::(test_\w+))?`", row):
            if path.endswith(".py"):
                file = ROOT / "tests" / path
                assert file.is_file(), path
            if name:
                assert f"def {name}(" in file.read_text(encoding="utf-8"), f"{file.name} has no {name}"
                found += 1
    assert found > 50
