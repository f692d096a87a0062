"""Calling webhooks: signed POSTs to addresses that may be called. The only module of metering that speaks HTTP.

Signed as the Standard Webhooks specification says (standardwebhooks.com, version 1.0.0). The address is checked where
the socket is made, so what is called is what was checked, whatever a name resolves to a moment later.
"""

import base64
import errno
import hashlib
import hmac
import ipaddress
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from services.contracts.events import AlertRaised
from services.contracts.failures import Rejected
from services.metering.alerts.alert import PLATFORM
from services.metering.alerts.webhooks import SECRET_PREFIX, WebhookRecord

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.abc import AbstractResolver

GONE: Final = 410
TEST_TYPE: Final = "alert.test"
_NOT_PUBLIC: Final = "its address is not a public one"
_LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
_NUMBER_NAME: Final = re.compile("[0-9]+|0x[0-9a-f]*", re.IGNORECASE)
"""No name ends so, but resolvers take 127.1 and 0x7f000001 for addresses."""
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back of one call."""

    http_status: int
    """0: nothing."""
    reason: str
    """Why it was not taken; empty: it was."""
    latency_ms: int

    @property
    def delivered(self) -> bool:
        """It was taken."""
        return not self.reason


def check_url(url: str, *, private_networks: bool) -> None:
    """Checks what can be checked of a URL without calling it.

    Raises:
        Rejected: it is not https, or has a user, a fragment or no host, or names an address that may not be called.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise Rejected("WEBHOOK_URL_INVALID", "the webhook's URL cannot be read") from error
    if not url.isascii() or not url.isprintable() or " " in url or not host:
        raise Rejected("WEBHOOK_URL_INVALID", "the webhook's URL has no host, or a character no URL has")
    if _NUMBER_NAME.fullmatch(host.rpartition(".")[2]) and not _is_address(host):
        raise Rejected("WEBHOOK_URL_INVALID", "the webhook's URL has an address in an unusual form")
    if parts.username is not None or parts.fragment:
        raise Rejected("WEBHOOK_URL_INVALID", "a webhook's URL has no user, password or fragment")
    loopback = private_networks and host in _LOOPBACK_NAMES
    if parts.scheme != "https" and not (loopback and parts.scheme == "http"):
        raise Rejected("WEBHOOK_URL_INVALID", "a webhook's URL begins with https://")
    if not private_networks and (host == "localhost" or (_is_address(host) and not is_public(host))):
        raise Rejected(
            "WEBHOOK_ADDRESS_REFUSED",
            "the webhook's address is not a public one; HEADWATER_METERING__WEBHOOK_PRIVATE_NETWORKS lets it be called",
        )


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's, also when IPv6 carries it as an IPv4 one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        carried = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            carried.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if not all(each is None or is_public(str(each)) for each in carried):
            return False
        if ip.ipv4_mapped is not None:
            return True
    return ip.is_global and not ip.is_multicast


def signed(secret: str, message_id: str, at: int, body: bytes) -> dict[str, str]:
    """The headers of a request that is sent `at`, in seconds since 1970."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    digest = hmac.new(key, f"{message_id}.{at}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def body_of(alert: AlertRaised) -> bytes:
    """An alert as it is sent: its type, its time, and under `data` the fields that WatchAlerts has too."""
    return _body(
        f"alert.{alert.kind}",
        alert.event_time,
        {
            "alert_id": str(alert.event_id),
            "tenant_id": "" if alert.tenant == PLATFORM else alert.tenant,
            "kind": alert.kind,
            "severity": alert.severity,
            "about": alert.about,
            "period": alert.period,
            "message": alert.message,
            "facts": alert.facts,
        },
    )


def test_body(record: WebhookRecord, now: datetime) -> bytes:
    """What TestWebhook sends."""
    data = {"webhook_id": record.webhook_id, "tenant_id": record.tenant or "", "message": "This is a test."}
    return _body(TEST_TYPE, now, data)


def _body(kind: str, time_: datetime, data: Mapping[str, Any]) -> bytes:
    return json.dumps({"type": kind, "timestamp": time_.isoformat(), "data": data}).encode()


class WebhookCalls:
    """Calls webhooks; what a receiver answers beyond its status is never read."""

    def __init__(self, session: "aiohttp.ClientSession", *, private_networks: bool) -> None:
        self._session = session
        self.private_networks = private_networks

    async def post(self, record: WebhookRecord, message_id: str, body: bytes) -> Outcome:
        """Sends `body` once."""
        started = time.monotonic()
        status, reason = 0, ""
        try:
            check_url(record.url, private_networks=self.private_networks)
            status = await self._status(record, message_id, body)
        except Rejected as failure:
            reason = failure.reason
        except TimeoutError:
            reason = "it did not answer in time"
        except OSError as error:
            reason = _NOT_PUBLIC if _NOT_PUBLIC in str(error) else "there is no connection to it"
        except Exception as error:  # noqa: BLE001 - whatever a receiver sends is its failure; the text may quote the URL
            reason = f"what it answered is not HTTP ({type(error).__name__})"
        if status and not 200 <= status < 300:
            reason = f"it answered HTTP {status}" + (", and redirects are not followed" if 300 <= status < 400 else "")
        return Outcome(status, reason, round((time.monotonic() - started) * 1000))

    async def _status(self, record: WebhookRecord, message_id: str, body: bytes) -> int:
        headers = signed(record.secret.get_secret_value(), message_id, int(time.time()), body)
        headers["content-type"] = "application/json"
        async with self._session.post(record.url, data=body, headers=headers, allow_redirects=False) as response:
            response.close()
            return response.status


@asynccontextmanager
async def webhook_calls(
    *, private_networks: bool, time_limit: timedelta, resolver: "AbstractResolver | None" = None
) -> AsyncIterator[WebhookCalls]:
    """Opens what calls are made with; each ends after `time_limit`, its name's resolution included.

    Without a `resolver` names mean what they mean to the system.
    """
    import aiohttp

    def checked_socket(info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, address = info
        if not (private_networks or is_public(address[0])):
            raise PermissionError(errno.EACCES, _NOT_PUBLIC)
        return socket.socket(family, kind, protocol)

    # Neither the environment's proxies nor cookies, and a new connection for each call: calls are few.
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(socket_factory=checked_socket, resolver=resolver, force_close=True, limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=time_limit.total_seconds()),
        headers={"user-agent": "headwater"},
        auto_decompress=False,
        trust_env=False,
    )
    async with session:
        yield WebhookCalls(session, private_networks=private_networks)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
