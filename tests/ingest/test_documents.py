"""Documents' records, on a real bucket."""

from uuid import uuid4

import pytest

from services.contracts.failures import Rejected
from services.contracts.streams import DOCUMENTS_BUCKET
from services.contracts.tenants import TenantId
from services.ingest.documents import Documents, accepted, key_of
from services.runtime.bus import Bus

ACME = TenantId("acme")


async def test_documents_are_listed_by_id_in_pages(bus: Bus) -> None:
    """Following page tokens lists each once; a token that no page gave is refused."""
    documents = Documents(await bus.bucket(DOCUMENTS_BUCKET))
    records = [accepted(document_id, "name", 1, "version", uuid4()) for document_id in ("AAAA", "b", "x")]
    for record in records:
        await documents.replace(ACME, record, None)
    first, token = await documents.page(ACME, after="", limit=2, state=None)
    assert (first + (await documents.page(ACME, after=token, limit=2, state=None))[0], token != "") == (records, True)
    for garbage in ("x", "-1", "AAAA"):
        with pytest.raises(Rejected, match="next_page_token"):
            await documents.page(ACME, after=garbage, limit=2, state=None)


async def test_a_record_of_an_earlier_release_is_read(bus: Bus) -> None:
    """It does not say which key put the document."""
    bucket = await bus.bucket(DOCUMENTS_BUCKET)
    document = accepted("doc", "name", 1, "version", uuid4(), "k1")
    await bucket.put(key_of(ACME, "doc"), document.model_dump_json(exclude={"key_id"}).encode())
    found, _ = await Documents(bucket).get(ACME, "doc")
    assert found == document.model_copy(update={"key_id": ""})


async def test_a_damaged_document_is_left_out_of_the_lists(bus: Bus) -> None:
    """Its tenant's others are listed, and those that wait are found."""
    bucket = await bus.bucket(DOCUMENTS_BUCKET)
    documents = Documents(bucket)
    document = accepted("doc", "name", 1, "version", uuid4())
    await documents.replace(ACME, document, None)
    for key in (key_of(ACME, "bad"), "00junk"):
        await bucket.put(key, b"{junk")
    assert await documents.page(ACME, after="", limit=10, state=None) == ([document], "")
    assert await documents.everyones() == [(ACME, document)]
