"""The documents name files and tests that are there, docs/architecture.md every room, and the index of decisions each
of them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    page: page.read_text(encoding="utf-8")
    for pages in ("*.md", "docs/**/*.md", "deploy/*.md")
    for page in ROOT.glob(pages)
}
PAGE = PAGES[ROOT / "docs" / "architecture.md"]
OURS = "model|indexer|service|benchmarks|tests|unit|parity|browser|docs|deploy"
NAMED = re.compile(rf"`((?:{OURS})/[\w/.-]+\.\w+)?(…?::)?(test_\w*[^\W_])?`")
EARLIER = re.compile(r"`[\w/.]+` of commit [0-9a-f]{7}")  # how a page names what is not there any more
TESTS = {path: set(re.findall(r"def (test_\w+)", path.read_text("utf-8"))) for path in ROOT.glob("tests/**/test_*.py")}
ANYWHERE = set().union(*TESTS.values())


def missing(page: str) -> list[str]:
    """Files that a page names and the tree does not have, and tests that are not in the file named before them in the
    line; a test that is named alone may be in any."""
    gone = []
    for line in EARLIER.sub("", page).splitlines():
        file = ROOT
        for name, in_it, test in NAMED.findall(line):
            if name:
                file = ROOT / name if (ROOT / name).exists() else ROOT / "tests" / name
            if name and not file.exists():
                gone.append(name)
            elif test and test not in (TESTS.get(file, set()) if in_it else ANYWHERE):
                gone.append(test)
    return gone


def test_what_the_documents_name_is_there() -> None:
    assert {page.name: gone for page, text in PAGES.items() if (gone := missing(text))} == {}
    assert len(NAMED.findall(PAGE)) > 40


def test_every_link_of_the_documents_leads_to_a_file_and_a_heading() -> None:
    headings = {page: re.findall(r"^#+ (.+)$", text, re.MULTILINE) for page, text in PAGES.items()}
    for page, text in PAGES.items():
        for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {path}"
            known = {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings.get(target, [])}
            assert not anchor or anchor in known, f"{page.name}: {path}#{anchor}"


def test_what_a_document_names_and_is_not_there_is_found() -> None:
    there = "unit/test_architecture.py::test_every_room_is_on_the_picture"
    assert missing(f"`service/settings.py`, `{there}`, `…::test_every_decision_is_listed_once`") == []
    assert missing("`service/no_such_file.py`, `test_that_went`") == ["service/no_such_file.py", "test_that_went"]
    assert missing("`unit/test_imports.py::test_every_room_has_a_floor`, `::test_as_well`") == ["test_as_well"]
    assert missing(f"`unit/test_imports.py`, `…::{there.partition('::')[2]}`") == ["test_every_room_is_on_the_picture"]


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
