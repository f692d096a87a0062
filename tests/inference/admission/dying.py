"""A process that reserves a call and kills itself, as hard as can be, in one phase of it."""

import asyncio
import os
import signal
import sys
from decimal import Decimal

from services.inference.admission.admission import Admission
from services.runtime.bus import Bus, connected
from services.runtime.settings import BusSettings
from tests.inference.admission.accounts import ACME, admission, hold


async def main(url: str, phase: str) -> None:
    """Dies in `phase`."""
    async with connected(url, BusSettings(), "dying") as bus, admission(bus, monthly_cap_usd=1) as admits:
        await _call(bus, admits, phase)


async def _call(bus: Bus, admits: Admission, phase: str) -> None:
    if phase == "entering":
        entering = asyncio.create_task(admits.enter(ACME, 1, hold("0.01", label="é\nü")))
        await _sent()
        die()
        await entering
    first = hold("0.01", label="é\nü")
    entry = await admits.enter(ACME, 1, first)
    reservation = await entry.reserve(first)
    if phase == "reserved":
        die()
    truth = first.event.model_copy(update={"provisional": False, "estimated": False, "cost_usd": Decimal("0.004")})
    await bus.publish("inference", truth)
    if phase == "told":
        die()
    settling = asyncio.create_task(reservation.settle(Decimal("0.004")))
    await _sent()
    if phase == "settling":
        die()
    await settling
    die()


async def _sent() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def die() -> None:
    """Ends this process without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
