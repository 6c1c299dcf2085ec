"""The queue while its Redis is away, full, killed, or somewhere else."""

import asyncio
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from service.local.valkey import EmbeddedValkey
from service.work.jobs import Job, Kind, QueryJob, UploadJob
from service.work.streams import QueueUnavailable, connect
from tests.servers import Authority, RedisServer
from tests.service.work.queues import (
    MODEL,
    SOON_MS,
    WAVEFORM,
    WINDOWS,
    Open,
    deny_disk,
    drain,
    is_answered,
    query_waits,
    take_query,
)
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


async def test_unreachable_redis_is_named_after_a_short_while(opened: Open, tmp_path: Path) -> None:
    api = opened(url=f"unix://{tmp_path}/nothing", retry_s=0.2)
    begun = time.monotonic()
    with pytest.raises(QueueUnavailable):
        await api.submit_upload("s1", MODEL)
    assert 0.1 < time.monotonic() - begun < 2.0
    with pytest.raises(QueueUnavailable):
        await api.embed(MODEL, WAVEFORM, WINDOWS, 10)


async def test_redis_that_cannot_write_to_its_disk_is_unavailable_until_it_can(opened: Open, tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as own:
        api, worker = opened(url=own.url, retry_s=0.2), opened("a", url=own.url, retry_s=0.2)
        asking = asyncio.create_task(api.embed(MODEL, WAVEFORM, WINDOWS, 20))
        job = await take_query(worker)
        answer = np.ones((3, 512), np.complex64)
        redis = connect(own.url)
        await deny_disk(redis, tmp_path)
        with pytest.raises(QueueUnavailable, match="MISCONF"):
            await api.submit_upload("s1", MODEL)
        with pytest.raises(QueueUnavailable, match="MISCONF"):
            await worker.reply(job, answer)
        await redis.config_set("save", "")
        await worker.reply(job, answer)
        np.testing.assert_array_equal(await asking, answer)
        await api.submit_upload("s1", MODEL)
        assert await api.outstanding_uploads() == {"s1"}
        await redis.aclose()


async def test_killed_redis_keeps_uploads_and_answers_the_query_that_waited(opened: Open, tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as own:
        api, worker = opened(url=own.url), opened("a", url=own.url)
        await api.submit_upload("s1", MODEL)
        (upload,) = await worker.take(8, 0)
        await api.submit_upload("s2", MODEL)
        asking = asyncio.create_task(api.embed(MODEL, WAVEFORM, WINDOWS, 20))
        await query_waits(api)
        own.kill()
        taking = asyncio.create_task(take_query(worker))
        await asyncio.sleep(0.1)
        own.start()
        job = await taking
        await is_answered(asking, worker, job)
        assert await api.outstanding_uploads() == {"s1", "s2"}
        await worker.done(upload)
        assert await api.outstanding_uploads() == {"s2"}


async def test_a_query_that_was_read_as_redis_went_is_answered(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedValkey(tmp_path) as own:
        api, worker = opened(url=own.url), opened("a", url=own.url, retry_s=0.1)
        assert await worker.take(8, 0) == []
        asking = asyncio.create_task(api.embed(MODEL, WAVEFORM, WINDOWS, 20))
        await query_waits(api)
        read = worker._read

        async def read_before_it_goes(kinds: list[Kind], count: int, block_ms: int) -> list[Job]:
            found = await read(kinds, count, block_ms)
            await deny_disk(worker._redis, tmp_path)
            return found

        monkeypatch.setattr(worker, "_read", read_before_it_goes)
        (job,) = await worker.take(8, 0)
        assert isinstance(job, QueryJob)
        with pytest.raises(QueueUnavailable):
            await worker.take(8, 0)
        await worker._redis.config_set("save", "")
        await is_answered(asking, worker, job)


async def test_an_upload_beside_one_that_cannot_be_read_is_taken_as_redis_goes(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedValkey(tmp_path) as own:
        api, worker = opened(url=own.url), opened("a", url=own.url, retry_s=0.1)
        await api.submit_upload("s1", MODEL)
        await api._redis.xadd(api._streams["uploads"], {"something": "else"})
        await api.submit_upload("s2", MODEL)
        forget = worker._forget

        async def forget_when_it_has_gone(kind: Kind, entry: str) -> None:
            await deny_disk(worker._redis, tmp_path)
            await forget(kind, entry)

        with monkeypatch.context() as going:
            going.setattr(worker, "_forget", forget_when_it_has_gone)
            taken = await worker.take(8, 0)
        await worker._redis.config_set("save", "")
        for job in taken:
            await worker.done(job)
        assert [job.stem_id for job in taken if isinstance(job, UploadJob)] == ["s1", "s2"]
        worker._reclaim_at = 0.0
        assert await worker.take(8, 0) == []
        assert (await api.depths())["uploads"] == 0, "what could not be read came again, and was dropped"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_a_password_is_needed_where_one_is_set(opened: Open, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", {"requirepass": "open sesame/1"}) as server:
        api = opened(url=server.url.replace("redis://", "redis://:open%20sesame%2F1@"))
        await api.submit_upload("s1", MODEL)
        assert await api.outstanding_uploads() == {"s1"}
        for refused in (server.url, server.url.replace("redis://", "redis://:wrong@")):
            with pytest.raises(QueueUnavailable) as said:
                await opened(url=refused, retry_s=0.1).ping()
            assert "sesame" not in str(said.value) + said.value.reason


async def test_tls_reaches_a_server_whose_authority_is_trusted_and_no_other(
    opened: Open, tmp_path: Path, authority: Authority
) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on this machine: TLS was NOT tested")
    options = authority.issue("server", "127.0.0.1") | {"tls-auth-clients": "no", "requirepass": "secret"}
    with RedisServer(tmp_path / "redis", options, scheme="rediss") as server:
        url = server.url.replace("rediss://", "rediss://:secret@")
        api, worker = opened(url=url, ca=authority.ca), opened("a", url=url, ca=authority.ca)
        await api.submit_upload("s1", MODEL)
        (job,) = await worker.take(8, SOON_MS)
        await worker.done(job)
        (tmp_path / "other").mkdir()
        for ca in (None, Authority(tmp_path / "other").ca):
            with pytest.raises(QueueUnavailable, match="certificate"):
                await opened(url=url, ca=ca, retry_s=0.1).ping()


async def test_a_server_killed_and_started_again_has_lost_no_job(opened: Open, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", {"appendfsync": "always"}) as server:
        limits = {"url": server.url, "retry_s": 60}
        api, worker = opened(**limits), opened("a", **limits)
        for n in range(3):
            await api.submit_upload(f"s{n}", MODEL)
        (first,) = await worker.take(1, 0)
        server.kill()
        finishing = asyncio.create_task(worker.done(first))
        adding = asyncio.create_task(api.submit_upload("s3", MODEL))
        await asyncio.sleep(0.3)
        assert not finishing.done()
        server.start()
        await asyncio.gather(finishing, adding)
        assert await api.outstanding_uploads() == {"s1", "s2", "s3"}
        assert {job.stem_id for job in await drain(worker) if isinstance(job, UploadJob)} == {"s1", "s2", "s3"}


async def test_a_server_that_takes_nothing_is_waited_for(opened: Open, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:
        api, patient = opened(url=server.url, retry_s=0.1), opened(url=server.url, retry_s=60)
        states = (
            (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
            (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
            (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
        )
        for n, (refuse, accept) in enumerate(states):
            await api._redis.execute_command(*refuse)
            with pytest.raises(QueueUnavailable):
                await api.submit_upload("refused", MODEL)
            adding = asyncio.create_task(patient.submit_upload(f"s{n}", MODEL))
            await asyncio.sleep(0.1)
            await api._redis.execute_command(*accept)
            await adding
        assert await api.outstanding_uploads() == {"s0", "s1", "s2"}


async def test_a_query_is_answered_that_was_waited_for_when_its_server_followed_another_for_a_while(
    opened: Open, tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "redis") as server:
        api, worker = opened(url=server.url, retry_s=60), opened("a", url=server.url, retry_s=60)
        asking = asyncio.create_task(api.embed(MODEL, WAVEFORM, WINDOWS, 20))
        job = await take_query(worker)

        async def is_waited_for() -> bool:
            return int((await worker._redis.info("clients"))["blocked_clients"]) > 0

        await eventually(is_waited_for)
        await worker._redis.execute_command("REPLICAOF", "127.0.0.1", "1")
        await asyncio.sleep(0.1)
        assert not asking.done()
        await worker._redis.execute_command("REPLICAOF", "NO", "ONE")
        await is_answered(asking, worker, job)
