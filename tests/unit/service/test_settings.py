"""Settings: what is refused, and that all of it is documented."""

import os
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from pydantic import ValidationError

from indexer import IndexType
from service.settings import InsecureBind, Settings, as_markdown

ROOT = Path(__file__).parents[3]


def test_every_setting_is_documented_as_it_is() -> None:
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == as_markdown()


def test_the_index_types_are_the_ones_that_the_indexer_builds() -> None:
    """Written out in the settings, so that whoever only reads them does not load faiss."""
    assert set(get_args(get_args(get_type_hints(Settings)["index_type"])[0])) == set(get_args(IndexType))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "example.org"])
def test_listening_beyond_this_machine_needs_a_key(host: str) -> None:
    with pytest.raises(InsecureBind):
        Settings(host=host).refuse_insecure_bind()
    Settings(host=host, admin_key="secret").refuse_insecure_bind()
    Settings(host=host, require_keys=True).refuse_insecure_bind()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_needs_no_key(host: str) -> None:
    Settings(host=host).refuse_insecure_bind()


@pytest.mark.parametrize(("name", "value"), [
    ("window_s", 1.0),
    ("blob_url", "file://audio"),  # a host named audio, and the root of its disk
    ("blob_url", "/srv/audio"),
    ("admin_key", ""),
])  # fmt: skip
def test_a_setting_that_cannot_be_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: value})  # type: ignore[arg-type]


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("data", "database_url", "redis_url", "blob_url", "index_url", "checkpoint", "port", "root_path"):
        monkeypatch.setenv(f"PHALAR_{name.upper()}", "")
    assert Settings().model_dump() == Settings.model_construct().model_dump()


@pytest.mark.parametrize(("before", "after"), [(0o755, 0o700), (0o500, 0o500), (0o1777, 0o1777)])
def test_a_data_folder_is_kept_private_unless_it_is_for_everybody(tmp_path: Path, before: int, after: int) -> None:
    tmp_path.chmod(before)
    umask = os.umask(0o022)
    try:
        Settings(data=tmp_path).keep_private()
        assert tmp_path.stat().st_mode & 0o7777 == after
    finally:
        os.umask(umask)
        tmp_path.chmod(0o700)
