"""The `phalar` command. Commands parse and print; what they do stands elsewhere, and is imported when it is needed."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from model import DeviceUnavailable, evaluate_app, train_app
from service.client import Client, NewStem, Refused, ServiceUnreachable
from service.evaluation_commands import catalog
from service.key_commands import keys_app

FAILED, UNREACHABLE, REFUSED = 1, 3, 4
AUDIO_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".m4a", ".mp4", ".aac"}

app = typer.Typer(
    name="phalar",
    help="Find the stems of a catalog that fit a partial mix, in harmony and in time.",
    epilog="Exit codes: 0 fine; 1 something failed (a file, a job); 2 wrong usage; "
    "3 no service answers; 4 the service refused.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
checkpoint_app = typer.Typer(help="Convert and look at checkpoints.", no_args_is_help=True)
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(keys_app, name="keys")
evaluate_app.command()(catalog)
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(train_app, name="train")

out = Console()
err = Console(stderr=True)


class Align(StrEnum):
    """Where a mix starts in relation to the catalog's windows."""

    search = "search"
    grid = "grid"


Url = Annotated[str, typer.Option(envvar="PHALAR_URL", help="Where the service listens.")]
Key = Annotated[str | None, typer.Option(envvar="PHALAR_KEY", help="API key, where the service wants one.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="May be given several times.")]
LOCAL = "http://127.0.0.1:8000"


def main() -> None:
    """The entry point of the console script."""
    try:
        app()
    except DeviceUnavailable as error:
        err.print(f"phalar: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(FAILED)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if show_version:
        print(version("phalar-retrieval"))
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; beyond loopback, keys are required.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the catalog, audio, index and queue.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.")] = None,
    demo: Annotated[bool, typer.Option(help="Fill an empty catalog with music of our own composer.")] = False,
) -> None:
    """Run everything on this machine: the API and its page, workers, and a private queue. Ctrl-C ends it all.

    Every setting is also an environment variable; see docs/settings.md.
    """
    _waiting_threads_sleep()
    from pydantic import ValidationError

    from service.processes import ProcessError
    from service.serve import serve as run
    from service.settings import InsecureBind, Settings

    _log("supervisor")
    given: dict[str, Any] = {"host": host, "port": port, "data": data, "workers": workers}
    try:
        run(Settings(**{name: value for name, value in given.items() if value is not None}), demo=demo)
    except (ProcessError, InsecureBind) as error:
        _fail(str(error), FAILED)
    except ValidationError as error:
        _fail("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()), 2)


@app.command(hidden=True)
def api() -> None:
    """Only the HTTP interface, in this process; `serve` runs this, and so does a container."""
    _waiting_threads_sleep()
    import uvicorn

    from service.app import create_app
    from service.settings import InsecureBind, Settings
    from service.threads import keep_numpy_on_one_thread

    _log("api")
    keep_numpy_on_one_thread()
    settings = Settings()
    try:
        application = create_app(settings)
    except InsecureBind as error:
        _fail(str(error), FAILED)
    uvicorn.run(
        application,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=10,
    )


@app.command()
def worker(
    slot: Annotated[int | None, typer.Option(help="This worker's number on this machine; set by `serve`.")] = None,
) -> None:
    """Only a worker: embeds what the queue holds. Start more of them, on other machines too, to embed faster."""
    _waiting_threads_sleep()
    import asyncio

    from model import CheckpointError
    from service.processes import DEVICE_LOST
    from service.settings import Settings
    from service.threads import keep_numpy_on_one_thread
    from service.worker import DeviceLost, run_worker

    _log("worker")
    keep_numpy_on_one_thread()
    try:
        asyncio.run(run_worker(Settings(), slot))
    except CheckpointError as error:
        _fail(str(error), FAILED)
    except DeviceLost as error:
        _fail(str(error), DEVICE_LOST)


@app.command()
def ingest(
    paths: Annotated[list[Path], typer.Argument(exists=True, help="Audio files, and folders of them.")],
    url: Url = LOCAL,
    key: Key = None,
    instrument: Annotated[str | None, typer.Option(help="Said of every file.")] = None,
    track: Annotated[str | None, typer.Option(help="Default: the folder a file lies in, below the one given.")] = None,
    collection: Annotated[str | None, typer.Option(help="Said of every file.")] = None,
    tag: Tags = None,
    wait: Annotated[bool, typer.Option(help="Wait until every stem is ready.")] = True,
) -> None:
    """Put stems into the catalog.

    Files that are there already are skipped, so an ingest that was cut off is simply started again.

    Example: phalar ingest ~/stems --collection mine
    """
    said = {"instrument": instrument, "collection": collection, "tags": tag or []}
    files = [
        NewStem(path, {name: value for name, value in (said | {"track": track or folder}).items() if value})
        for path, folder in _audio_files(paths)
    ]
    if not files:
        _fail("no audio files there", FAILED)
    ready = known = failed = 0
    with _service(url, key) as client, _progress() as progress:
        task = progress.add_task("stems", total=len(files))
        for outcome in client.ingest(files, wait=wait):
            progress.advance(task)
            known += outcome.known
            if outcome.problem is not None:
                failed += 1
                detail = outcome.problem.get("detail") or ""
                progress.console.print(
                    f"{outcome.path}: {outcome.problem.get('title')}: {detail}", markup=False, soft_wrap=True
                )
            else:
                ready += not outcome.known
    err.print(f"{ready} {'ready' if wait else 'accepted'}, {known} known already, {failed} failed")
    if failed:
        raise typer.Exit(FAILED)


@app.command()
def retrieve(
    mix: Annotated[Path | None, typer.Argument(exists=True, dir_okay=False, help="The partial mix.")] = None,
    stem_id: Annotated[list[str] | None, typer.Option(help="Or: stems of the catalog that make up the mix.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Hits wanted.")] = 10,
    align: Annotated[
        Align, typer.Option(help="search: it starts anywhere; grid: on the windows' grid.")
    ] = Align.search,
    instrument: Annotated[list[str] | None, typer.Option(help="Any of these.")] = None,
    tag: Tags = None,
    track: Annotated[list[str] | None, typer.Option(help="Any of these.")] = None,
    collection: Annotated[list[str] | None, typer.Option(help="Any of these.")] = None,
    musical_key: Annotated[list[str] | None, typer.Option(help="Any of these, such as 'F# minor'.")] = None,
    tempo_min: Annotated[float | None, typer.Option(help="Beats a minute.")] = None,
    tempo_max: Annotated[float | None, typer.Option(help="Beats a minute.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the service's answer as it is.")] = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Find the stems that fit a mix, best first, each with the second where it fits.

    Example: phalar retrieve half-a-song.wav --instrument bass
    """
    if (mix is None) == (not stem_id):
        raise typer.BadParameter("give either a file or --stem-id")
    form: dict[str, Any] = {
        "stem_id": stem_id,
        "limit": limit,
        "align": align.value,
        "instrument": instrument,
        "tag": tag,
        "track": track,
        "collection": collection,
        "key": musical_key,
        "tempo_min": tempo_min,
        "tempo_max": tempo_max,
    }
    with _service(url, key) as client:
        answer = client.retrieve(mix, {name: value for name, value in form.items() if value not in (None, [])})
    for warning in answer["mix"]["warnings"]:
        err.print(f"[yellow]{escape(warning)}[/]")
    if answer["model"]["note"]:
        err.print(f"[yellow]{escape(answer['model']['note'])}[/]")
    if as_json:
        print(json.dumps(answer, indent=2))
    else:
        out.print(_table(answer))


@app.command()
def embed(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Audio files.")],
    out_file: Annotated[Path, typer.Option("--out", help="The .npz to write.")],
    checkpoint: Annotated[Path | None, typer.Option(exists=True, help="Default: the service's.")] = None,
    window: Annotated[float, typer.Option(help="Seconds.")] = 5.0,
    stride: Annotated[float, typer.Option(help="Seconds.")] = 2.5,
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
) -> None:
    """Embed files here, without a service.

    Writes the arrays `embedding` (n, 512) complex64, `start_s` (n,), `file` (n,), and `fingerprint`.
    Silent windows are left out.
    """
    _waiting_threads_sleep()
    from model import CheckpointError
    from service.embed import embed_files

    try:
        with _progress() as progress:
            task = progress.add_task("files", total=len(files))

            def done(path: Path, problem: str | None) -> None:
                progress.advance(task)
                if problem:
                    progress.console.print(f"{path}: {problem}", markup=False, soft_wrap=True)

            failed = embed_files(files, out_file, checkpoint, window, stride, device, done)
    except CheckpointError as error:
        _fail(str(error), FAILED)
    if failed:
        raise typer.Exit(FAILED)


@app.command()
def reindex(
    checkpoint: Annotated[str | None, typer.Option(help="A file in the service's checkpoints folder.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Eigenvalues the fold keeps; default: what fits.")] = None,
    index_type: Annotated[str | None, typer.Option(help="flat, fp16, sq8 or ivf; default: the best that fits.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until the new index answers.")] = True,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Build the next index beside the live one, and swap. Queries go on meanwhile."""
    with _service(url, key) as client:
        job = client.reindex(checkpoint, rank, index_type)
        if wait:
            with err.status("reindexing") as status:
                job = client.follow(job, lambda seen: status.update(f"reindexing: {escape(str(seen['progress']))}"))
    if job["state"] == "failed":
        _fail(f"{job['problem'].get('title')}: {job['problem'].get('detail')}", FAILED)
    print(json.dumps(job["result"] if wait else job, indent=2))


@app.command()
def rollback(url: Url = LOCAL, key: Key = None) -> None:
    """Let the previous index answer again."""
    with _service(url, key) as client:
        print(json.dumps(client.roll_back(), indent=2))


@app.command()
def doctor() -> None:
    """Tell what this machine has and what will be slow: device, driver, kernel, memory, disk, soundfonts, FFmpeg.

    Exit code 1 where the settings ask for a device that cannot be used.
    """
    _waiting_threads_sleep()
    from service.doctor import as_lines, examine
    from service.settings import Settings

    findings = examine(Settings())
    print("\n".join(as_lines(findings)))
    if any(finding.what == "PHALAR_DEVICE" and finding.drawback for finding in findings):
        raise typer.Exit(FAILED)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where the files go.")] = Path("data/demo"),
    tracks: Annotated[int, typer.Option(min=1)] = 12,
    seconds: Annotated[float, typer.Option(min=2.0)] = 20.0,
    seed: Annotated[int, typer.Option(help="Another seed, other music.")] = 0,
    url: Annotated[str | None, typer.Option(help="Ingest into the service there; default: only write files.")] = None,
    key: Key = None,
) -> None:
    """Compose a small catalog: tracks of drums, bass, pads, keys and lead that belong together."""
    _log("demo")
    if url is None:
        from service.demo import compose_demo

        for stems in compose_demo(folder, tracks, seconds, seed):
            print(stems[0].path.parent)
        return
    from service.serve import ingest_demo

    with _expected_errors():
        failed = ingest_demo(url, key or None, folder, tracks, seconds, seed)
    if failed:
        _fail(f"{failed} stems failed", FAILED)


@checkpoint_app.command()
def convert(
    source: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The authors' Lightning .ckpt, or ours.")],
    target: Annotated[Path, typer.Argument(dir_okay=False, help="The .safetensors to write.")],
) -> None:
    """Convert the authors' checkpoint into ours. Nothing in the file is ever executed."""
    from model import CheckpointError, load_phalar, save_phalar

    try:
        model = load_phalar(source)
        save_phalar(model, target, trained=model.trained)
    except (CheckpointError, OSError) as error:
        _fail(str(error), FAILED)
    print(f"{target}: {model.fingerprint}")


@checkpoint_app.command()
def average(
    files: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="Two or more, of one configuration.")
    ],
    out: Annotated[Path, typer.Option(dir_okay=False, help="The file to write.")],
) -> None:
    """Write the mean of checkpoints' weights: of a training run, say, and of the model that it began with.

    Example: phalar checkpoint average model/default.safetensors runs/further/model.safetensors --out mean.safetensors
    """
    from model import CheckpointError, NotAlike, average_models, save_phalar

    try:
        model = average_models(files)
    except (CheckpointError, NotAlike) as error:
        _fail(str(error), FAILED)
    save_phalar(model, out, trained=model.trained)
    print(f"{out}: {model.fingerprint}")


@checkpoint_app.command()
def show(file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)]) -> None:
    """Tell what a checkpoint holds."""
    from dataclasses import asdict

    from model import CheckpointError, count_heard, load_phalar

    try:
        model = load_phalar(file)
    except CheckpointError as error:
        _fail(str(error), FAILED)
    notes: dict[str, object] = dict(model.notes)
    if heard := model.notes.get("heard"):
        notes["heard"] = f"{count_heard(heard)} pieces"
    parameters = sum(weight.numel() for weight in model.parameters())
    facts = {
        "fingerprint": model.fingerprint,
        "trained": model.trained,
        "parameters": parameters,
        "config": asdict(model.config),
        "notes": notes,
    }
    print(json.dumps(facts, indent=2))


def _audio_files(paths: list[Path]) -> Iterator[tuple[Path, str | None]]:
    """Every audio file at or below the paths, sorted, with the folder it lies in below a given one."""
    for path in paths:
        if path.is_file():
            yield path, None
            continue
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file() and not file.name.startswith("._"):
                yield file, file.parent.name if file.parent != path else None


def _table(answer: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("", "score", "title", "instrument", "track", "place", "id"):
        table.add_column(name, justify="right" if name in ("", "score") else "left", no_wrap=name == "id")
    for hit in answer["hits"]:
        stem, start_s = hit["stem"], hit["start_s"]
        minutes, seconds = divmod(abs(start_s), 60)
        place = f"from {minutes:.0f}:{seconds:05.2f}" if start_s >= 0 else f"enters at {minutes:.0f}:{seconds:05.2f}"
        cells = (stem["title"], stem["instrument"] or "", stem["track"] or "", place, stem["id"])
        table.add_row(str(hit["rank"]), f"{hit['score']:.3f}", *map(escape, cells))
    return table


@contextmanager
def _service(url: str, key: str | None) -> Iterator[Client]:
    with _expected_errors(), Client(url, key) as client:
        yield client


@contextmanager
def _expected_errors() -> Iterator[None]:
    try:
        yield
    except ServiceUnreachable as error:
        _fail(str(error), UNREACHABLE)
    except Refused as error:
        _fail(str(error), REFUSED)


def _progress() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=err
    )


def _fail(sentence: str, code: int) -> Any:
    err.print(f"phalar: {sentence}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def _log(name: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpcore", "uvicorn.error", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _waiting_threads_sleep() -> None:
    """Before torch is loaded, and for the processes that are started: see docs/decisions."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


if __name__ == "__main__":
    main()
