"""PostgreSQL and Redis for tests: private servers on loopback, or those that PHALAR_TEST_DATABASE_URL and
PHALAR_TEST_REDIS_URL name. Each is started when a test first asks for it, and ended with the run."""

import asyncio
import atexit
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from pathlib import Path

import asyncpg
import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from sqlalchemy.engine import make_url

from benchmarks.installation import free_port
from service.local.valkey import valkey_binary

START_S = 60.0
# A test's database must survive its server, as commits promise, but not the machine: nobody waits for a disk.
OPTIONS = {"fsync": "off", "full_page_writes": "off", "max_connections": "200"}


def wanted() -> bool:
    """Whether installations under test use servers instead of what is embedded: `make test-servers`."""
    return os.environ.get("PHALAR_TEST_SERVERS") == "1"


def own_stores() -> dict[str, str]:
    """The settings of a new installation: a database and a key prefix of its own, where servers are wanted."""
    return new_stores() if wanted() else {}


def new_stores() -> dict[str, str]:
    """A new database and key prefix on the servers; skips the test where there is no PostgreSQL."""
    return {
        "PHALAR_DATABASE_URL": new_database(),
        "PHALAR_REDIS_URL": redis_url(),
        "PHALAR_REDIS_PREFIX": f"test-{uuid.uuid4().hex}",
    }


def new_database(url: str | None = None) -> str:
    """The URL of a new, empty database, on the server of `url`; by default on the tests', skipping the test where there
    is no PostgreSQL."""
    lasting = url is None and "PHALAR_TEST_DATABASE_URL" in os.environ  # a private cluster goes as a whole
    url = url or os.environ.get("PHALAR_TEST_DATABASE_URL") or _postgres_server().url
    name = f"test_{uuid.uuid4().hex}"
    execute(url, f'CREATE DATABASE "{name}"')
    if lasting:
        atexit.register(lambda: asyncio.run(_execute(url, f'DROP DATABASE "{name}" WITH (FORCE)')))
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def emptied_database() -> str:
    """The URL of one database that every caller finds empty: quicker than a new one. Skips where there is none."""
    url = _shared_database()
    execute(url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    return url


@cache
def _shared_database() -> str:
    return new_database()


def execute(url: str, *statements: str) -> list[list[object]]:
    """Run statements on a database; returns the rows of the last."""
    with ThreadPoolExecutor(1) as thread:  # the caller may be in an event loop
        return thread.submit(asyncio.run, _execute(url, *statements)).result()


async def _execute(url: str, *statements: str) -> list[list[object]]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        rows = [await connection.fetch(statement) for statement in statements]
    finally:
        await connection.close()
    return [list(row.values()) for row in rows[-1]]


def cut_connections(stores: Mapping[str, str]) -> None:
    """Cut every connection to an installation's database, and all of normal clients to its Redis."""
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    execute(stores["PHALAR_DATABASE_URL"], f"SELECT pg_terminate_backend(pid) {others}")
    with redis.Redis.from_url(stores["PHALAR_REDIS_URL"]) as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def forget(stores: Mapping[str, str]) -> None:
    """Delete every key of an installation at once, as if Redis had lost them."""
    with redis.Redis.from_url(stores["PHALAR_REDIS_URL"]) as client:
        client.delete(*client.scan_iter(f"{stores['PHALAR_REDIS_PREFIX']}:*"))


def redis_url() -> str:
    """The URL of a Redis or Valkey server that listens on TCP."""
    return os.environ.get("PHALAR_TEST_REDIS_URL") or _redis().url


@dataclass
class RedisServer:
    """A Redis (where none is installed, the embedded Valkey's binary) on a loopback port, with the options given."""

    folder: Path
    options: Mapping[str, str] = field(default_factory=dict)
    scheme: str = "redis"
    port: int = field(default_factory=free_port)
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/0"

    def start(self) -> "RedisServer":
        self.folder.mkdir(parents=True, exist_ok=True)
        port = "tls-port" if self.scheme == "rediss" else "port"
        options = {"port": "0", "bind": "127.0.0.1", "dir": str(self.folder), "appendonly": "yes", "save": ""}
        options |= {port: str(self.port), **self.options}
        command = [redis_binary(), *(part for name, value in options.items() for part in (f"--{name}", value))]
        self._process = _start(command, self.folder / "log.txt")
        _wait_for(self.port, self._process, self.folder / "log.txt")
        return self

    def __enter__(self) -> "RedisServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End it as `kill -9` does; `start` brings it back with what it had written."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Authority:
    """An authority that signs certificates for servers on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority {uuid.uuid4()}")])
        made = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, 0), critical=True)
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def issue(self, name: str, address: str) -> dict[str, str]:
        """A certificate for a server at an IP address, and its key, as Redis options."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
        made = self._builder(subject, key).add_extension(names, critical=False).sign(self._key, hashes.SHA256())
        certificate, private = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(made.public_bytes(Encoding.PEM))
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return {"tls-cert-file": str(certificate), "tls-key-file": str(private), "tls-ca-cert-file": str(self.ca)}

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now, day = datetime.now(UTC), timedelta(days=1)
        identified = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
        return (
            builder.not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(identified, critical=False)
            .add_extension(issued_by, critical=False)
        )


def redis_binary() -> str:
    return shutil.which("redis-server") or str(valkey_binary())


@cache
def _redis() -> RedisServer:
    folder = Path(tempfile.mkdtemp(prefix="phalar-test-redis-"))
    server = RedisServer(folder).start()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.kill)
    with redis.Redis.from_url(server.url) as client:
        client.ping()
    return server


def postgres_binaries() -> Path | None:
    """The folder of initdb and postgres: on the PATH, or where Debian keeps them, the newest first."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    kept = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return kept[-1].parent if kept else None


@contextmanager
def stopped_postgres() -> Iterator[None]:
    """The private cluster is away, with every connection to it; skips the test where it is not ours to stop."""
    if "PHALAR_TEST_DATABASE_URL" in os.environ:
        pytest.skip("the PostgreSQL of PHALAR_TEST_DATABASE_URL is not stopped")
    server = _postgres_server()
    server.stop()
    try:
        yield
    finally:
        server.start()


class PostgresServer:
    """A cluster in a folder of its own, on a loopback port."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._folder = Path(tempfile.mkdtemp(prefix="phalar-test-postgres-"))
        self._data, self._log = str(self._folder / "data"), self._folder / "log.txt"
        self._port = free_port()
        self._user: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            account = _account()
            os.chown(self._folder, account.pw_uid, account.pw_gid)
            self._user = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        # A collation unlike SQLite's, so that an order which depends on it fails here.
        locale = ["--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en"]
        made = self._run("initdb", "-D", self._data, "-U", "phalar", "-A", "trust", "-E", "UTF8", "--no-sync", *locale)
        assert made.wait() == 0, self._log.read_text()

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://phalar@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Run it and return when it answers."""
        options = {"listen_addresses": "127.0.0.1", "port": self._port, "unix_socket_directories": "", **OPTIONS}
        given = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._process = self._run("postgres", "-D", self._data, *given)
        _wait_for(self._port, self._process, self._log)
        deadline = time.monotonic() + START_S
        while True:
            try:
                execute(self.url, "SELECT 1")
            except asyncpg.CannotConnectNowError:  # it listens, and is still starting up
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """End it and every connection at once, as a crash does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(timeout=START_S)
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
        return _start([str(self._binaries / name), *arguments], self._log, self._user)


@cache
def _postgres_server() -> PostgresServer:
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL on this machine: nothing was tested on it")
    server = PostgresServer(binaries)
    atexit.register(server.remove)
    server.start()
    return server


def _account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AssertionError("no user to run PostgreSQL as")


def _start(command: Sequence[str], log: Path, user: Sequence[str] = ()) -> "subprocess.Popen[bytes]":
    """Run it; where the kernel can, so that it dies with the thread that calls: the main one, that is."""
    if setpriv := shutil.which("setpriv"):
        command = [setpriv, *user, "--pdeathsig", "KILL", *command]
    else:
        assert not user, "setpriv is needed to run PostgreSQL as somebody else than root"
    with log.open("ab") as said:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=log.parent)


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        else:
            return
