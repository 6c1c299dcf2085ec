"""`phalar ingest --watch`: the catalog follows what lies in folders.

The system says that something has changed, and all that lies there is looked at then: a folder that was moved, or what
was missed while others were busy, is found as a single file is.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from service.commands.client import Client, NewStem, Outcome
from service.commands.folders import Found, look_through

WHOLE_S = 1.0  # a file that has not changed for so long is whole
GONE_S = 2.5  # a file that is away for so long was removed, and its other name, if it has one, was looked at
LOOK_MS = 500
AT_ONCE = 64  # files sent before it is looked again

Look = tuple[int, int]
"""A file's size and time of change."""


@dataclass
class _Seen:
    """A file: how it looks and since when, how it looked when it was taken, and what it was taken as."""

    found: Found
    look: Look
    since: float
    taken: Look | None = None
    stems: list[Outcome] = field(default_factory=list)
    gone_since: float | None = None


@dataclass
class Watched:
    """Folders, as they were when last looked at, and what the service was told of them."""

    client: Client
    paths: Sequence[Path]  # files and folders
    stems_in: Callable[[Found], Iterable[NewStem]]
    told: Callable[[Outcome], None]  # called with what became of each stem that was sent
    noted: Callable[[str], None]  # called with a sentence, where a name was followed or a stem deleted
    mirror: bool  # a removed file's stems are deleted
    wait: bool = True  # until a stem is ready, before it is told

    def __post_init__(self) -> None:
        self._seen: dict[Path, _Seen] = {}
        self._disks = {path: _disk(path) for path in self.paths}

    def follow(self, stop: Event | None = None) -> None:
        """Follow what happens there until `stop` is set, or Ctrl-C."""
        from watchfiles import watch

        self.look()
        busy = True  # what came before the folders were watched is seen at the first yield, when they are
        how: dict[str, Any] = {"debounce": LOOK_MS, "rust_timeout": LOOK_MS, "yield_on_timeout": True}
        for changed in watch(*self.paths, watch_filter=None, stop_event=stop, **how):
            if changed or busy:
                busy = self.look()

    def look(self) -> bool:
        """Look once, and do what is due. Whether something waits, and it is to be looked again soon."""
        now = time.monotonic()
        there, unknown = self._there()
        for path, (found, look) in there.items():
            seen = self._seen.setdefault(path, _Seen(found, look, now))
            if seen.look != look:
                seen.look, seen.since = look, now
            seen.gone_since = None
        for path in self._seen.keys() - there.keys():
            if not any(path.is_relative_to(out_of_sight) for out_of_sight in unknown):
                self._seen[path].gone_since = self._seen[path].gone_since or now
        new = [path for path in there if self._seen[path].taken != self._seen[path].look]
        whole = [path for path in new if now - self._seen[path].since >= WHOLE_S]
        for path in whole[:AT_ONCE]:
            self._seen[path].taken = self._seen[path].look
        self._take(whole[:AT_ONCE])
        gone = [path for path, seen in self._seen.items() if seen.gone_since is not None]
        if len(whole) <= AT_ONCE:  # else one of the others may be its other name
            for path in gone:
                if now - (self._seen[path].gone_since or now) >= GONE_S:
                    self._let_go(self._seen.pop(path).stems)
        return bool(new or gone)

    def _there(self) -> tuple[dict[Path, tuple[Found, Look]], list[Path]]:
        """Every file with how it looks; and paths of which nobody knows what lies below them."""
        there: dict[Path, tuple[Found, Look]] = {}
        unknown: list[Path] = []
        for found in look_through(self.paths, Counter()):
            try:
                status = found.path.stat()
            except OSError:  # it went while it was looked at, or cannot be reached
                unknown.append(found.path)
                continue
            if found.problem is None:
                there[found.path] = found, (status.st_size, status.st_mtime_ns)
            else:
                unknown.append(found.path)
        # A disk that was taken out leaves an empty folder.
        return there, [*unknown, *(path for path, disk in self._disks.items() if _disk(path) != disk)]

    def _take(self, paths: Sequence[Path]) -> None:
        """Send files that are whole; those whose bytes the service has are not sent."""
        before = {path: self._seen[path].stems for path in paths}
        for path in paths:
            self._seen[path].stems = []
        stems = (stem for path in paths for stem in self.stems_in(self._seen[path].found))
        for outcome in self.client.ingest(stems, wait=self.wait):
            self._seen[outcome.file.path].stems.append(outcome)
            self.told(outcome)
        for path, stems_before in before.items():  # other bytes are another stem
            now = {outcome.sha256 for outcome in self._seen[path].stems}
            self._let_go(outcome for outcome in stems_before if outcome.sha256 not in now)

    def _let_go(self, stems: Iterable[Outcome]) -> None:
        """The bytes of these are not there any more; or there they are, under another name."""
        for gone in stems:
            if gone.stem_id is None:
                continue
            others = [
                outcome.file
                for seen in self._seen.values()
                if seen.gone_since is None
                for outcome in seen.stems
                if outcome.sha256 == gone.sha256
            ]
            if others:
                self._rename(gone.stem_id, gone.file, others[0])
            elif self.mirror:
                self.client.delete(gone.stem_id)
                self.noted(f"{gone.file.path}: removed, and so is its stem")

    def _rename(self, stem_id: str, old: NewStem, new: NewStem) -> None:
        """Title and track follow the name, where they are the old name's; what a person has said since stays."""
        stem = self.client.stem(stem_id)
        if stem is None:
            return
        said: dict[str, Any] = {}
        if stem["title"] == old.title != new.title:
            said["title"] = new.title
        if stem["track"] == old.metadata.get("track") != new.metadata.get("track"):
            said["track"] = new.metadata.get("track")
        if said:
            self.client.change(stem_id, said)
            self.noted(f"{old.path}: is {new.path} now")


def _disk(path: Path) -> int | None:
    """On which a path lies; None: it is not there."""
    try:
        return path.stat().st_dev
    except OSError:
        return None
