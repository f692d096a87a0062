"""`headwater forecast`: what will have been spent by the end of the month."""

from datetime import timedelta
from decimal import Decimal
from typing import Annotated

import typer
from headwater.metering.v1 import metering_pb2

from services.cli.client_command import Session, client_command
from services.cli.errors import CommandFailed, Exit
from services.cli.rendering import aligned, as_json, plain, print_json, stdout, table

TIMEOUT = timedelta(minutes=2)
_PAGE = 100
"""So many at a time are forecast well within the deadline."""


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    client_command(app, "forecast", role="either", timeout=TIMEOUT, example="headwater forecast acme --confidence 90")(
        forecast
    )


async def forecast(
    session: Session,
    whose: Annotated[
        str,
        typer.Argument(help="The tenant; left out, the key's own, or everyone for an admin key.", metavar="[TENANT]"),
    ] = "",
    confidence: Annotated[
        int, typer.Option(help="How often the truth should lie between LOW and HIGH, in percent.", metavar="PERCENT")
    ] = 80,
) -> Exit | None:
    """Forecast what will have been spent by the end of the month, with an interval."""
    if not 1 <= confidence <= 99:
        raise CommandFailed(Exit.USAGE, "--confidence is between 1 and 99 percent")
    request = metering_pb2.ForecastRequest(tenant_id=whose, confidence_percent=confidence, page_size=_PAGE)
    forecasts: list[metering_pb2.MonthForecast] = []
    async for page in session.pages(session.connection.metering.Forecast, request):
        forecasts.extend(page.forecasts)
    if session.json:
        print_json([as_json(one) for one in forecasts])
    elif forecasts:
        _show(forecasts)
    else:
        stdout().print("Nobody spent anything in the last 13 weeks.")
    return None


def _show(forecasts: list[metering_pb2.MonthForecast]) -> None:
    amounts = ("SPENT $", "EXPECTED $", "LOW $", "HIGH $")
    listing = table("TENANT", "MONTH", *((name, "right") for name in (*amounts, "DAYS")), "METHOD")
    columns = zip(
        aligned([one.spent_usd for one in forecasts]),
        *(
            aligned([_rounded(getattr(one, name)) for one in forecasts])
            for name in ("expected_usd", "low_usd", "high_usd")
        ),
        strict=True,
    )
    for one, money in zip(forecasts, columns, strict=True):
        listing.add_row(plain(one.tenant_id), plain(one.month), *money, str(one.history_days), plain(one.method))
    stdout().print(listing)


def _rounded(amount: str) -> str:
    """A guess has no digits past the hundredth of a cent."""
    exact = Decimal(amount)
    return str(exact.quantize(Decimal("0.0001"))) if exact >= 1 else amount
