"""Broken audio files of every kind that we read, through the decoder's children and over HTTP.

    python -m benchmarks.mutations --files 20000 --over-http 2000 --page docs/faults.md

A file is made from one of the formats' test files (tests/audio_files.py), every row in turn, and broken by one to three
things: bits flipped, an end cut off, stretches swapped, left out or put in twice, and numbers that lie. All of it comes
from the file's number alone: `--only NUMBER` does one again and says what came of it; those over HTTP begin at a
million. Exit code 1 where anything hung, was left behind, or was a server's error.
"""

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import httpx

from benchmarks.page import page_parser, publish, today
from benchmarks.processes import children, resident
from model.audio import AudioError
from model.evaluation.results import markdown_table
from service.work.decoding import DecodeLimits, DecoderCrashed
from service.work.uploads import Decoder
from tests.audio_files import CELLS, ROWS, channels_of
from tests.installation import Installation, save_small_checkpoint

LIMITS = DecodeLimits(max_seconds=60, max_channels=8, memory_bytes=512 * 2**20, timeout_s=20, processes=3)
LATE_S = 3.0  # beyond the limit: a child that was killed on a busy machine
SHORT_S = 1.1
HEADER = 600  # bytes at the front, where half of the damage is done
LIES = (0, 1, 0xFF, 0x7F, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 2**63 - 1, 2**64 - 1)
WARM = 0.2  # of all files: memory is compared from there on
FLAT_MIB = 32.0  # by which memory may grow from there to the end: allocators keep what they once had


@cache
def seed(row: int) -> bytes:
    cell = next(cell for cell in CELLS if cell.row is ROWS[row])
    samples = channels_of(cell.rate, cell.channels)
    seconds = 0.1 if cell.row.codec == "DSD" else SHORT_S  # 2.8 million samples a second take their time
    return cell.row.make(samples[: round(seconds * cell.rate)], cell.rate)


def mutated(number: int) -> tuple[int, bytes]:
    """The row that the file of this number is made of, and the file."""
    rng = random.Random(number)
    row = number % len(ROWS)
    data = bytearray(seed(row))
    for _ in range(rng.choice((1, 1, 2, 3))):
        if data:
            rng.choice((_flip, _cut, _swap, _lie, _lie, _repeat))(data, rng)
    return row, bytes(data)


def _somewhere(data: bytearray, rng: random.Random) -> int:
    return rng.randrange(min(len(data), HEADER) if rng.random() < 0.5 else len(data))


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 4, 32))):
        data[_somewhere(data, rng)] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[_somewhere(data, rng) :]


def _swap(data: bytearray, rng: random.Random) -> None:
    length = rng.choice((4, 64, 1024))
    first, second = _somewhere(data, rng), _somewhere(data, rng)
    one, other = data[first : first + length], data[second : second + length]
    data[first : first + length], data[second : second + length] = other, one


def _lie(data: bytearray, rng: random.Random) -> None:
    at, size = _somewhere(data, rng) & ~1, rng.choice((1, 2, 4, 8))
    number = rng.choice((*LIES, rng.getrandbits(64))) & (2 ** (8 * size) - 1)
    data[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))


def _repeat(data: bytearray, rng: random.Random) -> None:
    at, length = _somewhere(data, rng), rng.choice((1, 7, 188, 4096))
    if rng.random() < 0.5:
        del data[at : at + length]
    else:
        data[at:at] = data[at : at + length]


@dataclass
class Seen:
    """What came of files, by its name, and what must not come."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    memory_mib: list[float] = field(default_factory=list)  # once warm, and at the end

    def took(self, number: int, seconds: float, limit_s: float) -> None:
        self.longest_s = max(self.longest_s, seconds)
        if seconds > limit_s:
            self.wrong.append(f"file {number} took {seconds:.1f} s")

    def flat(self) -> None:
        warm, end = self.memory_mib
        if end > warm + FLAT_MIB:
            self.wrong.append(f"memory grew from {warm:.0f} to {end:.0f} MiB")


def memory_mib(processes: list[int]) -> float:
    """Resident, of these processes."""
    return sum(map(resident, processes)) / 2**20


def _through_children(numbers: range) -> Seen:
    return asyncio.run(through_children(numbers))


async def through_children(numbers: range) -> Seen:
    seen = Seen()
    turns = asyncio.Semaphore(LIMITS.processes)

    async def one(number: int) -> None:
        _, data = mutated(number)
        async with turns:
            began = time.monotonic()
            outcome = await decoded(decoder, data)
            seen.took(number, time.monotonic() - began, LIMITS.timeout_s + LATE_S)
            seen.outcomes[outcome] += 1

    async with Decoder(LIMITS) as decoder:
        batches = [numbers[at : at + 100] for at in range(0, len(numbers), 100)]
        for done, batch in enumerate(batches):
            await asyncio.gather(*(one(number) for number in batch))
            if done % 10 == 9:
                print(f"{100 * (done + 1):,} files: {dict(seen.outcomes)}", file=sys.stderr, flush=True)
            if done == int(WARM * len(batches)):
                seen.memory_mib.append(memory_mib([os.getpid(), *children(os.getpid())]))
        servers = children(os.getpid())
        seen.memory_mib.append(memory_mib([os.getpid(), *servers]))
        await asyncio.sleep(0.5)
        seen.wrong += [f"child {child} is left" for server in servers for child in children(server)]
    seen.flat()
    return seen


async def decoded(decoder: Decoder, data: bytes) -> str:
    try:
        clip = await decoder.decode(data)
    except DecoderCrashed as error:  # ours to mend, whichever library it was
        return f"{error.code}: {error.reason}"
    except AudioError as error:
        return error.code
    return "heard, with a warning" if clip.warnings else "heard"


def over_http(numbers: range) -> Seen:
    """Each file sent alone: its problem is the answer. Memory is that of the API, a worker and their children."""
    seen = Seen()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "small.safetensors"
        save_small_checkpoint(checkpoint)
        with Installation(Path(folder), {"PHALAR_CHECKPOINT": str(checkpoint)}) as installation:
            with installation.client() as client:
                for done, number in enumerate(numbers):
                    if done % 100 == 0:
                        print(f"{done:,} over HTTP: {dict(seen.outcomes)}", file=sys.stderr, flush=True)
                    if done == int(WARM * len(numbers)):
                        seen.memory_mib.append(_settled_mib(installation, client))
                    row, data = mutated(number)
                    began = time.monotonic()
                    answer = client.post("/stems", files={"files": (f"{number}.wav", data)})
                    seen.took(number, time.monotonic() - began, installation.client_timeout_s)
                    if answer.status_code >= 500:
                        seen.wrong.append(f"file {number} ({ROWS[row].container}): {answer.status_code}")
                    kind = answer.json().get("type", "").rpartition("/")[2]
                    seen.outcomes[f"{answer.status_code} {kind}".strip()] += 1
                seen.memory_mib.append(_settled_mib(installation, client))
                alive = client.get("/readyz")
                if alive.status_code != 200:
                    seen.wrong.append(f"/readyz says {alive.status_code}")
            left = [child for server in _family(installation)[2:] for child in children(server)]
            seen.wrong += [f"child {child} is left" for child in left]
    seen.flat()
    return seen


def _family(installation: Installation) -> list[int]:
    """The API, a worker, and the decoders' servers."""
    heads = [pid for name, pid in installation.pids().items() if name in ("api", "worker")]
    return [*heads, *(child for head in heads for child in children(head))]


def _settled_mib(installation: Installation, client: httpx.Client) -> float:
    deadline = time.monotonic() + 120
    while client.get("/stems", params={"state": "queued", "limit": 1}).json()["stems"]:
        assert time.monotonic() < deadline, "stems stay queued"
        time.sleep(0.2)
    time.sleep(0.5)
    return memory_mib(_family(installation))


def table(seen: Seen, title: str) -> str:
    rows = [[name, f"{count:,}"] for name, count in seen.outcomes.most_common()]
    rows += [["longest of one file, s", f"{seen.longest_s:.1f}"]]
    warm, end = seen.memory_mib
    rows += [[f"memory after {WARM:.0%} of the files, and at the end, MiB", f"{warm:.0f}, {end:.0f}"]]
    rows += [["hung, left behind or a server's error", str(len(seen.wrong))]]
    return markdown_table([title, "files"], rows)


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--files", type=int, default=20_000, help="through the decoder's children")
    parser.add_argument("--over-http", type=int, default=2_000, help="to a whole installation")
    parser.add_argument("--only", type=int, help="the file of this number alone, through a child")
    arguments: argparse.Namespace = parser.parse_args()
    if arguments.only is not None:
        row, data = mutated(arguments.only)

        async def alone() -> str:
            async with Decoder(LIMITS) as decoder:
                return await decoded(decoder, data)

        print(ROWS[row].container, ROWS[row].codec, len(data), asyncio.run(alone()))
        return
    for row in range(len(ROWS)):  # they take their time, and a child's is running
        seed(row)
    wrong: list[str] = []
    first = 0
    for section, title, count, send in (
        ("mutations", "through the decoder's children", arguments.files, _through_children),
        ("mutations-over-http", "over HTTP", arguments.over_http, over_http),
    ):
        if count:
            numbers = range(first, first + count)
            seen = send(numbers)
            when = f"Measured {today()}: numbers {numbers[0]:,} to {numbers[-1]:,}, of {len(ROWS)} "
            when += f"kinds of file; load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores."
            publish(f"{when}\n\n{table(seen, title)}", arguments.page, section)
            wrong += seen.wrong
        first += 1_000_000
    print(*wrong, sep="\n", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
