"""Settings: what is refused, who is let in, and that all of it is documented."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import InsecureBind, Settings, as_markdown, key_allows

ROOT = Path(__file__).parents[2]


def test_every_setting_is_documented_as_it_is() -> None:
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == as_markdown()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "example.org"])
def test_listening_beyond_this_machine_needs_a_key(host: str) -> None:
    with pytest.raises(InsecureBind):
        Settings(host=host).refuse_insecure_bind()
    Settings(host=host, admin_key="secret").refuse_insecure_bind()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_needs_no_key(host: str) -> None:
    Settings(host=host).refuse_insecure_bind()


def test_a_larger_scope_includes_the_smaller_ones() -> None:
    keys = Settings(read_key="r", ingest_key="i", admin_key="a").keys
    granted = {(key, scope) for key in "ria" for scope in keys if key_allows(keys, key, scope)}
    assert granted == {("r", "read"), ("i", "read"), ("i", "ingest"), ("a", "read"), ("a", "ingest"), ("a", "admin")}
    assert not key_allows(keys, None, "read")
    assert not key_allows(keys, "", "read")


def test_without_keys_everything_is_open() -> None:
    assert key_allows({}, None, "admin")


def test_a_setting_out_of_range_is_refused() -> None:
    with pytest.raises(ValidationError, match="window_s"):
        Settings(window_s=1.0)
