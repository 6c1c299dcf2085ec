"""Every PHALAR_* variable, with its unit and meaning. Nothing else in the project reads the environment."""

import errno
import hashlib
import os
import stat
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model.errors import Told

if TYPE_CHECKING:
    from indexer import Limits

Scope = Literal["read", "ingest", "admin"]
SOCKET_PATH_BYTES = 107  # sun_path on Linux, less its final zero; macOS has 103


@dataclass(frozen=True)
class Rate:
    """`per_s` requests a second in the long run, `burst` at once."""

    per_s: float
    burst: int


class InsecureBind(Told):
    """The service would listen beyond this machine without a single API key."""

    says = (
        "refusing to listen on {host} without API keys: set PHALAR_REQUIRE_KEYS=true and use `phalar keys create`, "
        "or set PHALAR_READ_KEY, PHALAR_INGEST_KEY and PHALAR_ADMIN_KEY, or listen on 127.0.0.1"
    )
    host: str


class Settings(BaseSettings):
    """What one installation can choose; the defaults run everything on one laptop."""

    model_config = SettingsConfigDict(env_prefix="PHALAR_", frozen=True, extra="forbid")

    # Where things live.
    data: Path = Field(Path("data"), description="folder of the embedded database, audio, index and queue")
    database_url: str | None = Field(
        None,
        description="`postgresql+asyncpg://user:password@host/name` (TLS: `?ssl=verify-full`); unset: SQLite in the "
        "data folder",
    )
    redis_url: str | None = Field(
        None,
        description="Redis or Valkey, `redis://:password@host:6379/0`, with TLS `rediss://`; unset: a private Valkey "
        "in the data folder",
    )
    redis_ca: Path | None = Field(
        None, description="PEM file of the authority that signed a `rediss://` server; unset: those the system trusts"
    )
    redis_prefix: str = Field("phalar", description="every key in Redis starts with it")
    blob_url: str | None = Field(
        None,
        description="`s3://bucket/prefix` (with `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION` and, for "
        "another's store, `AWS_ENDPOINT_URL`) or `file:///folder`; unset: the data folder",
    )
    index_url: str | None = Field(
        None, description="a Qdrant server, as `http://host:6333`; unset: FAISS in memory and in the data folder"
    )
    index_key: SecretStr | None = Field(None, description="API key of Qdrant")
    index_prefix: str = Field("phalar", description="every collection and alias in Qdrant starts with it", min_length=1)
    index_timeout_s: float = Field(30.0, description="a request to Qdrant that takes longer has failed, seconds", gt=0)

    # The listening side.
    host: str = Field("127.0.0.1", description="address to listen on; beyond loopback, keys are required")
    port: int = Field(8000, description="TCP port", ge=0, le=65535)
    root_path: str = Field(
        "",
        description="where a proxy in front shows the service, `/music`; it must send on what lies behind that, as "
        "nginx does with `location /music/ { proxy_pass http://127.0.0.1:8000/; }`",
        pattern=r"^(/[\w.~-]+)*$",
    )
    read_key: SecretStr | None = Field(None, description="key that may search and listen")
    ingest_key: SecretStr | None = Field(None, description="key that may also add and change stems")
    admin_key: SecretStr | None = Field(None, description="key that may also reindex and roll back")
    require_keys: bool = Field(
        False, description="requests need a key, also where none of the three is set: one of `phalar keys create`"
    )
    allowed_hosts: str = Field(
        "",
        description="host names that requests may be for, beside this machine's own: with commas between, `*.` before "
        "a name for all below it; unset: none, and where keys are needed, any",
    )
    trusted_proxies: str = Field(
        "",
        description="addresses or networks of proxies whose `X-Forwarded-For` is believed, with commas between; "
        "`*`: that of whoever connects",
    )
    max_connections: int = Field(
        1000, description="connections at a time; one address may have a quarter, a trusted proxy all", ge=4
    )
    max_body_bytes: int = Field(
        256 * 2**20, description="largest request with files, bytes; any other may have 64 KiB", gt=0
    )

    # How much one may ask for: each API key, or, where no key is needed or given, each client address.
    read_rate: float = Field(0.0, description="requests a second that search, list or listen; 0: no limit", ge=0)
    read_burst: int = Field(100, description="and so many at once", ge=1)
    ingest_rate: float = Field(0.0, description="requests a second that add, change or delete; 0: no limit", ge=0)
    ingest_burst: int = Field(100, description="and so many at once", ge=1)
    admin_rate: float = Field(0.0, description="requests a second that administer; 0: no limit", ge=0)
    admin_burst: int = Field(10, description="and so many at once", ge=1)
    quota_key_stems: int | None = Field(None, description="stems that one key may hold; unset: no limit", ge=0)
    quota_key_bytes: int | None = Field(None, description="bytes of audio that one key may hold; unset: no limit", ge=0)
    quota_stems: int | None = Field(None, description="stems that all keys may hold together; unset: no limit", ge=0)
    quota_bytes: int | None = Field(
        None, description="bytes of audio that all keys may hold together; unset: no limit", ge=0
    )

    # The model.
    checkpoint: Path | None = Field(None, description="a checkpoint; unset: the default one")
    checkpoints: Path | None = Field(
        None, description="folder a reindex may name checkpoints in; unset: data/checkpoints"
    )
    device: str = Field(
        "cpu", description="torch device of the worker; `cuda`: a card for each worker that `phalar serve` starts"
    )
    torch_threads: int = Field(0, description="threads of the worker's network; 0: torch decides", ge=0)

    # Windows.
    window_s: float = Field(5.0, description="length of a window, seconds", gt=1.024, le=60)
    stride_s: float = Field(2.5, description="from one window's start to the next, seconds", gt=0)

    # A query.
    grid_query_s: float = Field(
        60.0, description="longest stretch of a mix that align=grid looks at, seconds", gt=1.024
    )
    query_timeout_s: float = Field(60.0, description="a query that takes longer answers 503, seconds", gt=0)

    kept_mix_s: int = Field(
        3600,
        description="how long a mix is kept, for its `mix_id` to be searched with again, since its last use, seconds",
        ge=1,
    )
    kept_mix_bytes: int = Field(
        128 * 2**20, description="mixes and embeddings of them that Redis keeps, bytes, those used last; 0: none", ge=0
    )

    # Untrusted audio.
    max_clip_s: float = Field(1200.0, description="longest clip accepted, seconds", gt=0)
    max_channels: int = Field(8, description="most channels accepted", ge=1)
    decode_memory_bytes: int = Field(
        1536 * 2**20, description="address space of a decoder beside its libraries, bytes", gt=0
    )
    decode_timeout_s: float = Field(60.0, description="a decoder that takes longer is killed, seconds", gt=0)
    decoders: int = Field(2, description="decoder processes at a time", ge=1)
    decoded_bytes: int = Field(
        384 * 2**20, description="decoded audio that the API holds at a time, bytes; what is more waits", gt=0
    )

    fitted_bytes: int = Field(
        2**30, description="disk that fitted audio may take; what nobody asked for longest goes first", ge=0
    )

    # The queue and the worker.
    workers: int = Field(1, description="worker processes that `phalar serve` starts", ge=0)
    batch_windows: int = Field(
        0,
        description="most windows embedded at once, which a query may have to wait for; 0: 4 on a CPU, "
        "64 on a card, or what fits there",
        ge=0,
    )
    max_queued_uploads: int = Field(10_000, description="stems waiting before POST /stems answers 429", ge=1)
    max_queued_queries: int = Field(64, description="queries waiting before POST /retrieve answers 503", ge=1)
    max_deliveries: int = Field(2, description="a job that killed its worker this often ends as failed", ge=2)
    claim_after_s: float = Field(30.0, description="a silent worker's jobs are taken over after, seconds", gt=0)
    job_days: float = Field(7.0, description="how long finished jobs are remembered, days", gt=0)
    sweep_s: float = Field(5.0, description="how often the catalog is swept for stems the queue forgot, seconds", gt=0)

    # The index.
    rank: int | None = Field(
        None, description="directions kept by the fold; unset: as many as the catalog's music needs", ge=1
    )
    minimum_recall: float = Field(
        0.95,
        description="a new index that misses more of the exact top 10, after scoring its first 50 again, stays out",
        ge=0,
        le=1,
    )
    index_type: Literal["flat", "fp16", "sq8", "ivf"] | None = Field(
        None, description="flat, fp16, sq8 or ivf; unset: the most exact one that memory and size allow (FAISS)"
    )
    index_memory_bytes: int | None = Field(
        None, description="memory of one index generation, bytes; unset: a quarter of the machine's (FAISS)", gt=0
    )
    exact_windows: int = Field(
        500_000, description="windows beyond which an approximate index is tried, behind its recall (FAISS)", ge=1
    )
    qdrant_mode: Literal["exact", "graph", "int8"] = Field(
        "exact",
        description="exact: compare every key; graph: HNSW; int8: HNSW over 8-bit keys, the best scored again (Qdrant)",
    )
    seal_windows: int = Field(20_000, description="windows in the fresh part before it is merged into the base", ge=1)

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any, info: ValidationInfo) -> Any:
        """As compose files and units write it; but a key that came out empty is no reason to let everybody in."""
        if value != "":
            return value
        if info.field_name in ("read_key", "ingest_key", "admin_key"):
            raise ValueError("it is empty; unset it where no key is wanted")
        return cls.model_fields[str(info.field_name)].default

    @field_validator("blob_url")
    @classmethod
    def _names_a_place(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "file:///")
        if not parts.scheme or (parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/"))):
            raise ValueError("write file:///folder or s3://bucket/prefix")
        return url

    @cached_property
    def data_folder(self) -> Path:
        return Path(os.path.realpath(os.path.expanduser(self.data)))  # which names links in a circle, too

    def make_data_folder(self) -> None:
        """Raises OSError, which names it."""
        self.data_folder.mkdir(parents=True, exist_ok=True)
        if not writable(self.data_folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.data_folder))

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite+aiosqlite:///{quote(str(self.data_folder / 'catalog.sqlite'))}"

    @property
    def most_windows(self) -> int:
        """Windows embedded at once, unless memory is short."""
        return self.batch_windows or (4 if self.device.startswith("cpu") else 64)

    @property
    def resolved_redis_url(self) -> str:
        return self.redis_url or f"unix://{quote(str(self.valkey_socket))}"

    @property
    def resolved_blob_url(self) -> str:
        return self.blob_url or (self.data_folder / "audio").as_uri()

    @property
    def valkey_socket(self) -> Path:
        return socket_path(self.data_folder / "valkey")

    @property
    def index_folder(self) -> Path:
        return self.data_folder / "index"

    @property
    def index_limits(self) -> "Limits":
        """What a FAISS index may take."""
        from indexer import Limits  # which brings SQL and FAISS: half a second that the supervisor does not wait for

        limits = Limits.of_this_machine()
        return Limits(self.index_memory_bytes or limits.memory_bytes, self.exact_windows, self.minimum_recall)

    @property
    def fitted_folder(self) -> Path:
        return self.data_folder / "fitted"

    @property
    def checkpoint_folder(self) -> Path:
        return self.checkpoints or self.data_folder / "checkpoints"

    @property
    def keys(self) -> dict[Scope, str]:
        """The keys set here, by scope."""
        own: dict[Scope, SecretStr | None] = {"read": self.read_key, "ingest": self.ingest_key, "admin": self.admin_key}
        return {scope: key.get_secret_value() for scope, key in own.items() if key is not None}

    @property
    def rates(self) -> dict[Scope, Rate]:
        """The rate of each scope that has one."""
        named: dict[Scope, Rate] = {
            "read": Rate(self.read_rate, self.read_burst),
            "ingest": Rate(self.ingest_rate, self.ingest_burst),
            "admin": Rate(self.admin_rate, self.admin_burst),
        }
        return {scope: rate for scope, rate in named.items() if rate.per_s > 0}

    @property
    def keys_needed(self) -> bool:
        """Whether a request must carry a key."""
        return self.require_keys or bool(self.keys)

    def keep_private(self) -> None:
        """What this process and its children write is their user's alone, and so is a data folder that is here, unless
        it is for everybody, as /tmp is."""
        os.umask(0o077)
        with suppress(OSError):  # none yet, or another user's
            here = self.data_folder.stat()
            if here.st_uid == os.getuid() and not here.st_mode & stat.S_IWOTH:
                self.data_folder.chmod(here.st_mode & 0o700)

    def refuse_insecure_bind(self) -> None:
        """Raise InsecureBind when anyone on the network could read and write."""
        if not is_loopback(self.host) and not self.keys_needed:
            raise InsecureBind(self.host)


def writable(folder: Path) -> bool:
    """Whether this process may make files in a folder."""
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def is_loopback(name: str) -> bool:
    """Whether a host's name or address can only be this machine's own."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def socket_path(folder: Path) -> Path:
    """Where the Valkey of this folder listens: in it, or, where the path is too long, in a private short folder.

    The same folder always has the same socket, so that a worker started by hand finds it too.
    """
    inside = folder / "valkey.sock"
    limit = SOCKET_PATH_BYTES if sys.platform == "linux" else SOCKET_PATH_BYTES - 4
    if len(os.fsencode(inside)) <= limit:
        return inside
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"phalar-{os.getuid()}-{name}" / "valkey.sock"


def as_markdown() -> str:
    """docs/settings.md: every variable, its default and its meaning. Made by `make docs`, held by a test."""
    lines = [
        "# Settings",
        "",
        "Every one is an environment variable; an empty one is an unset one. Command-line options of the same name win "
        "over it.",
        "",
        "| variable | default | meaning |",
        "| --- | --- | --- |",
    ]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, "") else f"`{field.default}`"
        lines.append(f"| `PHALAR_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
