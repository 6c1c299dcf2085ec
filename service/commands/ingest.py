"""`phalar ingest`: files and folders into the catalog of a running service."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from service.commands.client import NewStem, Outcome, Refused, ServiceUnreachable
from service.commands.console import FAILED, LOCAL, Key, Tags, Url, bar, fail, say, service, words
from service.commands.folders import look_through
from service.commands.tracks import stems_of
from service.commands.watch import Watched


def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Audio files, and folders of them.")],
    url: Url = LOCAL,
    key: Key = None,
    instrument: Annotated[str | None, typer.Option(help="Said of every file.", callback=words)] = None,
    track: Annotated[
        str | None, typer.Option(help="Default: the folder a file lies in, below the one given.", callback=words)
    ] = None,
    collection: Annotated[str | None, typer.Option(help="Said of every file.", callback=words)] = None,
    tag: Tags = None,
    wait: Annotated[bool, typer.Option(help="Wait until every stem is ready.")] = True,
    watch: Annotated[bool, typer.Option("--watch", help="Go on: follow what is added, changed and renamed.")] = False,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="With --watch: delete the stems of files that are removed.")
    ] = False,
) -> None:
    """Put stems into the catalog.

    A file that cannot be used is named and keeps no other out. Files that are there already are skipped, so an ingest
    that was cut off is simply started again.

    A Native Stem file (.stem.mp4) becomes a track of its four stems, and so does a folder that a separator has
    written: drums, bass, vocals, other.

    Example: phalar ingest ~/stems --collection mine --watch
    """
    missing = [path for path in paths if not (path.exists() or path.is_symlink())]
    if missing and (watch or len(missing) == len(paths)):
        raise typer.BadParameter(f"{missing[0]} does not exist")
    if mirror and not watch:
        raise typer.BadParameter("--mirror needs --watch")
    said = {"instrument": instrument, "collection": collection, "tags": tag, "track": track}
    stems_in = partial(stems_of, {name: value for name, value in said.items() if value})
    told = _Told("ready" if wait else "accepted")
    if watch:
        with service(url, key, for_ever=True) as client:
            client.readiness()
            say("watching; Ctrl-C ends it")
            try:
                Watched(client, paths, stems_in, told.watched, say, mirror, wait).follow()
            finally:
                told.summary()
        return
    files: list[NewStem] = []
    for found in look_through(paths, told.passed_over):
        if found.problem is not None:
            told.failed(found.path, found.problem)
            continue
        files += stems_in(found)
    if not files and not told.reasons:
        told.summary()
        fail("no audio files there", FAILED)
    with service(url, key) as client:
        try:
            with bar() as progress:
                for outcome in progress.track(client.ingest(files, wait=wait), len(files), description="stems"):
                    told.outcome(outcome)
        except (KeyboardInterrupt, ServiceUnreachable, Refused):
            told.summary(unsettled=client.unsettled, unsent=len(files) - told.settled - client.unsettled)
            raise
    told.summary()
    if told.reasons:
        raise typer.Exit(FAILED)


class _Told:
    """What became of files, as it is told: a line for each that failed, and a summary at the end."""

    def __init__(self, done: str) -> None:
        self.reasons: Counter[str] = Counter()
        self.passed_over: Counter[str] = Counter()
        self.settled = 0  # of those that were to be sent
        self._done = done
        self._new = self._known = 0

    def failed(self, path: Path, title: str, detail: str = "") -> None:
        self.reasons[title] += 1
        say(f"{path}: {title}{f': {detail}' if detail else ''}")

    def outcome(self, outcome: Outcome) -> None:
        self.settled += 1
        self._known += outcome.known
        if outcome.problem is not None:
            problem = outcome.problem
            self.failed(outcome.file.path, str(problem.get("title")), str(problem.get("detail") or ""))
        else:
            self._new += not outcome.known

    def watched(self, outcome: Outcome) -> None:
        """An outcome, with a line for each stem that is new."""
        self.outcome(outcome)
        if outcome.problem is None and not outcome.known:
            say(f"{outcome.file.path}: {self._done}")

    def summary(self, unsettled: int = 0, unsent: int = 0) -> None:
        """`unsettled`: sent, and nothing more is known of them; `unsent`: for another time."""
        failed = self.reasons.total()
        lines = [f"{self._new} {self._done}, {self._known} known already, {failed} failed"]
        if unsettled or unsent:
            lines.append(
                f"{unsettled} more were sent and go on by themselves, {unsent} were not sent. "
                "Start the same command again: it skips what is there."
            )
        if failed:
            lines.append("failed: " + _counted(self.reasons))
        if self.passed_over:
            endings = Counter({f".{ending}" if ending else "no ending": n for ending, n in self.passed_over.items()})
            lines.append("passed over, by their names' endings: " + _counted(endings))
        for line in lines:
            say(line)


def _counted(reasons: Counter[str]) -> str:
    return "; ".join(f"{n} {reason}" for reason, n in reasons.most_common())
