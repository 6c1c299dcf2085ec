"""Clients of the load test: what each asks over HTTP, what it was told, and what it saw that cannot be right."""

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx
import numpy as np

from benchmarks.bare import Waveform
from model.audio import SAMPLE_RATE
from tests.installation import encode

CLIP_S = 8.0
KNOWN, SENT = "known", "sent"  # collections: what is there before, and what clients upload
TAGS = 40  # a search by one of them is for all stems that have it: fewer than it may have hits
HITS = 10
TIMEOUT_S = 90.0  # of one request; the service gives a search 60
CUT_OFF_S = 0.2  # pause after a connection that was cut
SAME_SCORE = 1e-4
SHARES = {"search": 70, "upload": 20, "other": 10}
OTHERS = ("delete", "replace", "edit", "audio")
LOUD = 0.02  # root mean square of a clip that no stem of silence is

Hits = list[tuple[str, float, float, int, float]]
"""Of an answer: stem, second, speed, transposition and score."""


@dataclass(frozen=True)
class Music:
    """What clients send: mixes to search with, and stems that clips are cut from."""

    mixes: list[bytes]
    stems: list[Waveform]

    def clip(self, seed: int) -> bytes:
        """A clip that no other number gives: its own stretch of a stem, at its own level."""
        rng = np.random.default_rng(seed)
        length = round(CLIP_S * SAMPLE_RATE)
        while True:
            stem = self.stems[rng.integers(len(self.stems))]
            begin = int(rng.integers(len(stem) - length))
            clip = rng.uniform(0.5, 0.9) * stem[begin : begin + length]
            if float(np.sqrt(np.mean(clip**2))) > LOUD:
                return encode(clip.astype(np.float32))


@dataclass
class Sent:
    """An upload that was answered 202, and what is known of it."""

    seed: int
    stem: str
    title: str
    ready: bool = False
    leaving: bool = False  # somebody deletes it, or has
    busy: bool = False  # somebody changes it


@dataclass
class Books:
    """What all clients were told together."""

    sent: dict[str, Sent] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    known: dict[int, Hits] = field(default_factory=dict)  # the exact answer to each mix among the known stems
    known_audio: dict[str, bytes] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    again: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seeds: "count[int]" = field(default_factory=count)

    @property
    def kept(self) -> list[Sent]:
        return [sent for sent in self.sent.values() if not sent.leaving]


class GivenUp(Exception):
    """A search without an answer to compare: it failed, or was refused after the end."""


class Caller:
    """One client at an address of its own, which asks again as often as it takes, until the end."""

    def __init__(self, url: str, number: int, music: Music, books: Books, align: str) -> None:
        transport = httpx.AsyncHTTPTransport(local_address=f"127.0.{1 + number // 250}.{1 + number % 250}")
        self._http = httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, transport=transport)
        self._music, self._books, self._rng, self._align = music, books, random.Random(number), align
        self._ending = asyncio.Event()

    async def close(self) -> None:
        await self._http.aclose()

    async def work(self, ending: asyncio.Event, shares: Mapping[str, int] = SHARES) -> None:
        """One request after the other until the end; what changes something is asked until it is answered."""
        self._ending = ending
        while not ending.is_set():
            (kind,) = self._rng.choices([*shares], weights=[*shares.values()])
            with suppress(GivenUp):
                await getattr(self, f"_{kind}")()

    async def asked(self, method: str, path: str, *expected: int, kind: str = "", **request: Any) -> httpx.Response:
        """The answer. Seconds count from the first time it was asked; by a new connection each time, as of a proxy."""
        began, headers = time.monotonic(), {"Connection": "close", **request.pop("headers", {})}
        for attempt in count():
            if attempt and kind == "search" and self._ending.is_set():
                raise GivenUp
            try:
                answer = await self._http.request(method, path, headers=headers, **request)
            except httpx.TransportError as error:
                self._books.again[f"{kind or method}: cut off ({type(error).__name__})"] += 1
                await asyncio.sleep(CUT_OFF_S)
                continue
            if answer.status_code in (429, 503) and (named := _named(answer)):
                self._books.again[f"{kind or method}: {named}"] += 1
                await asyncio.sleep(float(answer.headers["retry-after"]) * self._rng.uniform(0.8, 1.2))
                continue
            if kind:
                self._books.seconds[kind].append(time.monotonic() - began)
            if answer.status_code not in expected:
                self.complain(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
            return answer
        raise AssertionError

    def complain(self, what: str) -> None:
        self._books.wrong.append(what)

    # Searches: of what is known, of what was sent, and of everything.

    async def _search(self) -> None:
        which = self._rng.choice(("known", "sent", "all"))
        mix = self._rng.randrange(len(self._music.mixes))
        if which == "known":
            await self.check_known(mix)
        elif which == "sent" and self._books.sent:
            await self.check_tag(self._rng.randrange(TAGS), mix)
        else:
            gone = set(self._books.deleted)
            self._no_ghosts(await self.search(mix, limit=HITS), gone)

    async def search(self, mix: int, **form: Any) -> Hits:
        files = {"file": ("mix.flac", self._music.mixes[mix])}
        answer = await self.asked(
            "POST", "/retrieve", 200, kind="search", files=files, data={"align": self._align, **form}
        )
        if answer.status_code != 200:
            raise GivenUp
        told = answer.json()["hits"]
        return [(h["stem"]["id"], h["start_s"], h["speed"], h["transpose"], h["score"]) for h in told]

    async def check_known(self, mix: int) -> None:
        """The answer among stems that nobody changes is the one in quiet."""
        hits, right = await self.search(mix, collection=KNOWN, limit=HITS), self._books.known[mix]
        # The last bits of a place between two shifts follow what else was in the batch.
        apart = [max(abs(a[1] - b[1]), abs(a[-1] - b[-1])) for a, b in zip(hits, right, strict=False)]
        same = [(hit[0], *hit[2:4]) for hit in hits] == [(hit[0], *hit[2:4]) for hit in right]
        if not same or max(apart, default=0.0) > SAME_SCORE:
            self.complain(f"mix {mix}: {hits} instead of {right}")

    async def check_tag(self, tag: int, mix: int) -> None:
        """Of the stems with one tag a search finds all that were ready before it, and none that was gone.

        On the grid, where a stem's tempo does not keep it out.
        """
        mine = [sent for sent in self._books.sent.values() if sent.seed % TAGS == tag]
        ready, gone = [sent for sent in mine if sent.ready and not sent.leaving], set(self._books.deleted)
        hits = await self.search(mix, tag=f"t{tag}", limit=100, group_duplicates="false", align="grid")
        found = self._no_ghosts(hits, gone)
        if missing := [sent.seed for sent in ready if not sent.leaving and sent.stem not in found]:
            self.complain(f"tag {tag}: {missing} were ready and not found")
        others = [stem for stem in found if (sent := self._books.sent.get(stem)) and sent.seed % TAGS != tag]
        if others:
            self.complain(f"tag {tag}: {others} do not have it")

    def _no_ghosts(self, hits: Hits, gone: set[str]) -> set[str]:
        found = {hit[0] for hit in hits}
        if len(found) < len(hits):
            self.complain(f"a stem twice: {hits}")
        if ghosts := found & gone:
            self.complain(f"deleted before the search began, and found: {ghosts}")
        return found

    # Uploads, and what becomes of them.

    async def _upload(self) -> None:
        await self.upload(next(self._books.seeds))

    async def upload(self, seed: int, kind: str = "upload") -> str | None:
        """The id that the stem was given."""
        audio = await asyncio.to_thread(self._music.clip, seed)
        told = {"title": str(seed), "collection": SENT, "tags": [f"t{seed % TAGS}"]}
        files, said = {"files": (f"{seed}.flac", audio)}, {"metadata": json.dumps(told)}
        answer = await self.asked("POST", "/stems", 202, kind=kind, files=files, data=said)
        if answer.status_code != 202:
            return None
        stem = str(answer.json()["items"][0]["stem_id"])
        self._books.sent.setdefault(stem, Sent(seed, stem, str(seed)))
        return stem

    async def _other(self) -> None:
        chosen = [sent for sent in self._books.kept if not sent.busy]
        what = self._rng.choice(OTHERS)
        if what == "audio" or not chosen:
            return await self._audio()
        sent = self._rng.choice(chosen)
        sent.busy = True
        await getattr(self, f"_{what}")(sent)
        sent.busy = False

    async def _delete(self, sent: Sent) -> None:
        sent.leaving = True
        # 404: an earlier attempt took it out, whose answer was cut off.
        answer = await self.asked("DELETE", f"/stems/{sent.stem}", 204, 404, kind="other")
        if answer.status_code in (204, 404):
            self._books.deleted.add(sent.stem)

    async def _replace(self, sent: Sent) -> None:
        """The same bytes are taken out and put in at once: whichever comes last, nothing is left by half."""
        _, stem = await asyncio.gather(self._delete(sent), self.upload(sent.seed, kind="other"))
        if stem is not None and stem != sent.stem:
            await self.check_audio(stem, await asyncio.to_thread(self._music.clip, sent.seed))

    async def _edit(self, sent: Sent) -> None:
        title = f"{sent.seed} edited {self._rng.randrange(10**6)}"
        answer = await self.asked("PATCH", f"/stems/{sent.stem}", 200, kind="other", json={"title": title})
        if answer.status_code == 200:
            sent.title = title

    async def _audio(self) -> None:
        await self.check_audio(*self._rng.choice([*self._books.known_audio.items()]))

    async def check_audio(self, stem: str, audio: bytes) -> None:
        """A range of a stem's audio is that range of what was uploaded."""
        first = self._rng.randrange(len(audio))
        last = self._rng.randrange(first, len(audio))
        ranged = {"Range": f"bytes={first}-{last}"}
        answer = await self.asked("GET", f"/stems/{stem}/audio", 206, 404, kind="other", headers=ranged)
        sent = self._books.sent.get(stem)
        if answer.status_code == 404 and not (sent and sent.leaving):
            self.complain(f"the audio of {stem} is not there")
        if answer.status_code == 206 and answer.content != audio[first : last + 1]:
            self.complain(f"the audio of {stem} from {first} to {last} is another")

    async def listed(self, **wanted: Any) -> list[dict[str, Any]]:
        """Every stem that passes the filters."""
        stems: list[dict[str, Any]] = []
        cursor: Mapping[str, Any] = {}
        while True:
            answer = await self.asked("GET", "/stems", 200, params={"limit": 500, **wanted, **cursor})
            page = answer.json()
            stems += page["stems"]
            if page["next_cursor"] is None:
                return stems
            cursor = {"cursor": page["next_cursor"]}


def _named(answer: httpx.Response) -> str | None:
    """Which problem a refusal is, where it is one of ours and says when to come back."""
    try:
        kind = answer.json()["type"] if "retry-after" in answer.headers else None
    except (ValueError, KeyError):
        return None
    return kind and f"{answer.status_code} {str(kind).rpartition('/')[2]}"
