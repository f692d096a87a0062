"""What may be called, how it is signed, and what comes back of a call."""

import json
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import SecretStr

from services.contracts.failures import Rejected
from services.contracts.tenants import TenantId
from services.metering.alerts.alert import PLATFORM, alert
from services.metering.alerts.webhook_calls import WebhookCalls, body_of, check_url, is_public, signed, webhook_calls
from services.metering.alerts.webhooks import WebhookRecord
from tests.metering.alerts.receiver import Receiver, receiving

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def record(url: str) -> WebhookRecord:
    """A webhook of everyone's alerts."""
    return WebhookRecord(
        webhook_id="w1", tenant=None, url=url, kinds=(), secret=SecretStr(SECRET), created_at=datetime.now(UTC)
    )


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """On loopback."""
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
async def calls() -> AsyncIterator[WebhookCalls]:
    """Impatient, and free to call this machine."""
    async with webhook_calls(private_networks=True, time_limit=timedelta(seconds=0.3)) as calls:
        yield calls


def test_a_signature_is_that_of_the_specification() -> None:
    """The example of the specification's reference implementations."""
    body = b'{"test": 2432232314}'
    headers = signed(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3",
        "127.0.0.1",
        "169.254.169.254",
        "192.168.0.1",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "::ffff:169.254.169.254",
        "2002:a9fe:a9fe::1",
        "64:ff9b::a9fe:a9fe",
    ],
)
def test_addresses_inside_are_not_public(address: str) -> None:
    """Nor those that carry such an address in another form."""
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    """In either version, and in both at once."""
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/x",
        "ftp://hooks.example.com",
        "https://user:pass@hooks.example.com",
        "https://",
        "https://hooks.example.com/#x",
        "https://hooks.example.com:99999/",
        "https://hooks.example.com/\r\nhost: x",
        "https://127.0.0.1/x",
        "https://[::ffff:10.0.0.1]/x",
        "https://localhost/x",
        "https://127.1/x",
        "https://2130706433/x",
        "https://0x7f.1/x",
        "https://0x7f000001/x",
    ],
)
def test_what_may_not_be_called_is_refused_when_it_is_set(url: str) -> None:
    """With a reason."""
    with pytest.raises(Rejected):
        check_url(url, private_networks=False)


def test_loopback_without_tls_needs_the_setting() -> None:
    """And another machine without TLS is refused even then."""
    check_url("https://hooks.example.com/x", private_networks=False)
    check_url("http://127.0.0.1:8080/x", private_networks=True)
    with pytest.raises(Rejected):
        check_url("http://10.0.0.1/x", private_networks=True)


class Rebinding(AbstractResolver):
    """A name server that answers with an address inside, as after the name was checked."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """This machine, twice."""
        one = ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)
        return [one, {**one, "host": "127.0.0.2"}]

    async def close(self) -> None:
        """Nothing to close."""


async def test_a_name_that_resolves_inside_is_not_called(receiver: Receiver) -> None:
    """The address is judged where the socket is made, so nothing reaches it."""
    url = receiver.url.replace("http://127.0.0.1", "https://hooks.example.com")
    async with webhook_calls(private_networks=False, time_limit=timedelta(seconds=5), resolver=Rebinding()) as calls:
        outcome = await calls.post(record(url), "m1", b"{}")
    assert outcome.reason == "its address is not a public one"
    assert receiver.got == {}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (200, ""),
        (204, ""),
        (500, "it answered HTTP 500"),
        (302, "it answered HTTP 302, and redirects are not followed"),
        (410, "it answered HTTP 410"),
        (0, "it did not answer in time"),
    ],
)
async def test_what_came_back_is_told(receiver: Receiver, calls: WebhookCalls, status: int, reason: str) -> None:
    """Only 2xx is delivered; nothing is called in another place."""
    receiver.statuses["/x"] = [status]
    outcome = await calls.post(record(receiver.url + "/x"), "m1", b"{}")
    assert (outcome.http_status, outcome.reason) == (status, reason)
    assert list(receiver.got) == ["/x"]
    assert receiver.got["/x"][0].is_signed_with(SECRET)


async def test_nobody_there_is_told_without_the_url(calls: WebhookCalls) -> None:
    """URLs hold secrets."""
    outcome = await calls.post(record("http://127.0.0.1:1/secret-path"), "m1", b"{}")
    assert outcome.reason == "there is no connection to it"


def test_an_alert_is_sent_with_its_type_and_figures() -> None:
    """The platform's own has no tenant."""
    for tenant, sent in ((TenantId("acme"), "acme"), (PLATFORM, "")):
        raised = alert(
            "price_missing", tenant, severity="warning", about="o/m", period="202611", message="M", facts={"calls": "2"}
        )
        body = json.loads(body_of(raised))
        assert (body["type"], body["data"]["tenant_id"]) == ("alert.price_missing", sent)
        assert (body["data"]["alert_id"], body["data"]["facts"]) == (str(raised.event_id), {"calls": "2"})


def test_a_secret_does_not_show() -> None:
    """Neither printed nor logged."""
    assert SECRET[6:] not in f"{record('https://x')!r} {record('https://x')}"
