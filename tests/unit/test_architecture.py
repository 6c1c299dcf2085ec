"""docs/architecture.md names files that are there, and every room; every decision is in their index."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def missing(page: str) -> list[str]:
    """Files that a page names and the tree does not have."""
    return [name for name in re.findall(r"`([\w/]+\.(?:py|js|md))`", page) if not (ROOT / name).is_file()]


def test_every_file_of_the_page_is_there() -> None:
    assert len(re.findall(r"`[\w/]+\.(?:py|js)`", PAGE)) > 40
    assert not missing(PAGE)
    assert missing("`service/no_such_file.py` and `service/settings.py`") == ["service/no_such_file.py"]


def test_every_room_is_on_the_picture() -> None:
    rooms = {path.parent.name for package in ("service", "indexer", "model") for path in ROOT.glob(f"{package}/*/*.py")}
    assert rooms
    assert [room for room in sorted(rooms) if f"{room}/" not in PAGE] == []


def test_every_decision_is_listed_once() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert sorted([*listed, "README.md"]) == sorted(path.name for path in folder.glob("*.md"))
