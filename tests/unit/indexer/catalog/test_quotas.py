"""Quotas on a real SQLite file and a real PostgreSQL: counted with the stems, never overshot, given back."""

import asyncio

import pytest

from indexer import Catalog, Charge, Job, Quota, QuotaExceeded
from indexer.catalog.quotas import EVERYBODY, Usage
from tests.embeddings import upload

pytestmark = pytest.mark.anyio

SIZE = 1000


def charge(owner: str, *names: str, own: Quota | None = None, overall: Quota | None = None) -> Charge:
    return Charge(owner, {upload(name).sha256: SIZE for name in names}, own or Quota(), overall or Quota())


async def add(catalog: Catalog, owner: str, *names: str, own: Quota | None = None, overall: Quota | None = None) -> Job:
    job, _ = await catalog.add([*map(upload, names)], charge(owner, *names, own=own, overall=overall))
    return job


async def test_uploads_at_once_do_not_overshoot(catalog: Catalog) -> None:
    own = Quota(stems=5)
    adding = [add(catalog, "daw", f"{n}", own=own) for n in range(20)]
    results = await asyncio.gather(*adding, return_exceptions=True)
    refused = [result for result in results if isinstance(result, QuotaExceeded)]
    assert len(refused) == 15
    assert await catalog.usage("daw") == await catalog.usage(EVERYBODY) == Usage(5, 5 * SIZE)
    assert (await catalog.counts())["queued"] == 5


async def test_upload_over_the_quota_records_nothing(catalog: Catalog) -> None:
    with pytest.raises(QuotaExceeded) as caught:
        await add(catalog, "daw", "a", "b", "c", own=Quota(bytes=3 * SIZE - 1))
    assert vars(caught.value) == {
        "whose": "key", "what": "bytes", "used": 0, "asked": 3 * SIZE, "quota": 3 * SIZE - 1
    }  # fmt: skip
    assert await catalog.counts() == {"queued": 0, "ready": 0, "failed": 0}
    assert await catalog.usage("daw") == await catalog.usage(EVERYBODY) == Usage()


async def test_quota_is_counted_by_key_and_for_all_together(catalog: Catalog) -> None:
    limits = {"own": Quota(stems=2), "overall": Quota(bytes=3 * SIZE)}
    await add(catalog, "one", "a", "b", **limits)
    with pytest.raises(QuotaExceeded, match="key holds 2 stems of the 2"):
        await add(catalog, "one", "c", **limits)
    await add(catalog, "two", "c", **limits)
    with pytest.raises(QuotaExceeded, match="installation holds 3000 bytes"):
        await add(catalog, "two", "d", **limits)
    assert await catalog.usage("two") == Usage(1, SIZE)


async def test_bytes_that_are_here_already_cost_nothing(catalog: Catalog) -> None:
    own = Quota(stems=1)
    await add(catalog, "one", "a", "a", own=own)
    await catalog.refuse_if_over(charge("one", "a", own=own), await catalog.known([upload("a").sha256]))
    await add(catalog, "one", "a", own=own)
    await add(catalog, "two", "a", own=Quota(stems=0))
    assert await catalog.usage("one") == Usage(1, SIZE)
    assert await catalog.usage("two") == Usage()


async def test_deleting_gives_quota_back_to_whoever_had_paid(catalog: Catalog) -> None:
    own = Quota(stems=1)
    job = await add(catalog, "one", "a", own=own)
    with pytest.raises(QuotaExceeded):
        await catalog.refuse_if_over(charge("one", "b", own=own), ())
    assert job.items[0].stem_id is not None
    await catalog.delete(job.items[0].stem_id)
    assert await catalog.usage("one") == await catalog.usage(EVERYBODY) == Usage()
    await add(catalog, "one", "b", own=own)
    await add(catalog, "two", "a")
    assert await catalog.usage("two") == Usage(1, SIZE)


async def test_stem_that_nobody_was_charged_for_is_deleted_like_any(catalog: Catalog) -> None:
    _, (stem_id,) = await catalog.add([upload("a")])
    await catalog.delete(stem_id)
    assert await catalog.usage(EVERYBODY) == Usage()
