"""Fitted audio on disk."""

import os
from pathlib import Path
from typing import BinaryIO

import pytest

from service.work.encoding import Order
from service.work.fitted import FittedFiles


@pytest.mark.anyio
async def test_a_file_that_is_being_made_is_not_what_makes_room_for_another(tmp_path: Path) -> None:
    files, others = FittedFiles(tmp_path, most_bytes=10), ["b"]

    async def write(into: BinaryIO) -> None:
        into.write(b"12345678")
        into.flush()
        if others:
            await files.make(others.pop() * 64, Order(), write)

    kept = await files.make("a" * 64, Order(), write)
    assert b"".join([piece async for piece in kept.read(0, kept.size)]) == b"12345678"
    assert len(os.listdir(tmp_path)) == 1
