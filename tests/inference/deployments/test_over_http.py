"""Aliases over real HTTP, against upstreams that misbehave on command."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.contracts.failures import Busy, Rejected
from services.inference.deployments.model import opened
from services.inference.deployments.settings import ModelSettings
from tests.inference.deployments.fakes import REQUEST, CountingMeter
from tests.upstream.misbehaviour import Conduct, Mix, Share
from tests.upstream.server import Upstream, upstream

KEY = "sk-nobodys-business"
QUICK = {"first_token_timeout": 0.3, "total_timeout": 1}
FAULTS = (
    "reset",
    "close",
    "stall",
    "reset_half_way",
    "cut",
    "malformed",
    "error_in_stream",
    "html",
    "empty",
)
SICK: list[dict[str, Any]] = [
    {"status": 401},
    {"status": 404},
    {"status": 408},
    {"status": 429},
    {"status": 429, "retry_after_s": 1},
    {"status": 429, "headers": {"Retry-After": "Mon, 01 Jan 2024 99999999999:00:00 GMT"}},
    {"status": 500},
    {"status": 503, "retry_after_s": 1},
    *({"fault": fault} for fault in FAULTS),
]


@pytest.fixture
async def sick() -> AsyncIterator[Upstream]:
    """The one that is asked first."""
    async with upstream() as running:
        yield running


@pytest.fixture
async def well() -> AsyncIterator[Upstream]:
    """The one that stands in."""
    async with upstream() as running:
        yield running


def _settings(*upstreams: Upstream, **changes: Any) -> ModelSettings:
    deployments = [
        {
            "name": name,
            "order": order,
            "endpoint": {"base_url": server.url, "model": "large", "provider": name, "api_key": KEY, **QUICK},
        }
        for order, (name, server) in enumerate(zip(("openai", "azure"), upstreams, strict=False))
    ]
    return ModelSettings.model_validate({"deployments": deployments, **changes})


@pytest.mark.parametrize("conduct", SICK, ids=str)
async def test_another_endpoint_stands_in(sick: Upstream, well: Upstream, conduct: dict[str, Any]) -> None:
    """However the first one fails."""
    sick.script.usual = Conduct.model_validate(conduct)
    meter = CountingMeter()
    async with opened("large", _settings(sick, well)) as alias:
        completion = await alias.completed(REQUEST, meter, time.monotonic() + 20)
    assert completion.text
    assert (len(well.requests), meter.open, meter.succeeded) == (1, 0, 1)


async def test_a_sick_endpoint_costs_no_answers(sick: Upstream, well: Upstream) -> None:
    """Every request is answered, and every call that the upstreams may charge has a tab that is not empty."""
    share = 0.6 / len(SICK)
    sick.script.mix = Mix(shares=tuple(Share(share=share, conduct=Conduct.model_validate(one)) for one in SICK))
    meter = CountingMeter()
    async with opened("large", _settings(sick, well)) as alias:

        async def caller() -> None:
            for _ in range(10):
                await alias.completed(REQUEST, meter, time.monotonic() + 20)

        await asyncio.gather(*(caller() for _ in range(16)))
    answered = sum(tab.tokens is not None and tab.tokens.output > 0 for tab in meter.settled)
    assert meter.succeeded == 160
    assert meter.open == 0
    assert answered >= 160


async def test_all_endpoints_down_and_back(sick: Upstream, well: Upstream) -> None:
    """A failure with both reasons while they are down, an answer when they are back: nothing is restarted."""
    for server in (sick, well):
        server.script.usual = Conduct(status=503)
    changes = {"breaker": {"min_calls": 2, "open_for": 0.05, "probes": 1}}
    async with opened("large", _settings(sick, well, **changes)) as alias:
        with pytest.raises(Busy, match=r"openai: .*503.*azure: .*503"):
            await alias.completed(REQUEST, CountingMeter(), time.monotonic() + 20)
        for server in (sick, well):
            server.script.usual = Conduct()
        await asyncio.sleep(0.06)
        assert (await alias.completed(REQUEST, CountingMeter(), time.monotonic() + 20)).text


async def test_a_wrong_key_is_not_the_callers_mistake(sick: Upstream) -> None:
    """The call fails as if the model were away, the deployment is soon left alone; the log names it but not its key."""
    sick.script.usual = Conduct(status=401)
    async with opened("large", _settings(sick, breaker={"min_calls": 2})) as alias:
        with capture_logs() as logs:
            for _ in range(5):
                with pytest.raises(Busy, match="openai: ") as caught:
                    await alias.completed(REQUEST, CountingMeter(), time.monotonic() + 20)
                assert caught.value.reason == "MODEL_UNAVAILABLE"
    assert len(sick.requests) == 2
    assert [entry["deployment"] for entry in logs if entry["log_level"] == "error"] == ["openai"] * 2
    assert KEY not in str(logs)


async def test_a_request_all_refuse_is_refused(sick: Upstream, well: Upstream) -> None:
    """Each is asked once."""
    for server in (sick, well):
        server.script.usual = Conduct(status=400)
    async with opened("large", _settings(sick, well)) as alias:
        with pytest.raises(Rejected):
            await alias.completed(REQUEST, CountingMeter(), time.monotonic() + 20)
    assert (len(sick.requests), len(well.requests)) == (1, 1)
