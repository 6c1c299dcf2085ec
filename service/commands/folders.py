"""Paths that a person gives -> the audio files there, and what else lies among them."""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from model.audio import ENDINGS


@dataclass(frozen=True)
class Found:
    """A file to be sent, with the name of the folder it lies in below the one given; or a path and what is wrong."""

    path: Path
    folder: str | None = None
    problem: str | None = None


def look_through(paths: Iterable[Path], passed_over: Counter[str]) -> Iterator[Found]:
    """Every audio file at or below the paths, each folder's sorted; nothing on a disk ends the walk.

    A file that is given itself is taken whatever its name ends with. Of the others, those whose name does not end as
    audio's are counted in `passed_over`, by ending. Links to folders are followed; each folder is looked through once.
    """
    seen: set[tuple[int, int]] = set()
    for given in paths:
        waiting = [given]
        while waiting:
            path = waiting.pop()
            ending = path.name.lower().rpartition(".")[2] if "." in path.name else ""
            try:
                there = path.stat()
                if stat.S_ISDIR(there.st_mode):
                    if path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve()):
                        yield Found(path, problem="Links to a folder that it lies in")
                    elif (there.st_dev, there.st_ino) not in seen:
                        seen.add((there.st_dev, there.st_ino))
                        # What macOS leaves beside each file on a foreign disk begins with "._".
                        below = sorted((name for name in os.listdir(path) if not name.startswith("._")), reverse=True)
                        waiting += [path / name for name in below]
                        if ending in ENDINGS and path != given:
                            yield Found(path, problem="A folder, although its name is a file's; what it holds is taken")
                elif path != given and ending not in ENDINGS:
                    passed_over[ending] += 1
                elif stat.S_ISREG(there.st_mode):
                    yield Found(path, None if given in (path, path.parent) else path.parent.name)
                else:
                    yield Found(path, problem="Not a file, but a pipe, a socket or a device")
            except OSError as error:
                yield Found(path, problem=error.strerror or str(error))
