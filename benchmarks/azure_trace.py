"""The Azure LLM inference trace of 2023: the requests of two services in an hour, with their tokens.

Published by Azure under CC BY 4.0 with Splitwise (ISCA 2024), github.com/Azure/AzurePublicDataset.
"""

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Final

from benchmarks.corpus import CannotMeasureError

FILES: Final = {
    "conv": "AzureLLMInferenceTrace_conv.csv.gz",
    "code": "AzureLLMInferenceTrace_code.csv.gz",
}
"""By service; each is a tenant here."""
MODELS: Final = {"conv": "gpt-4o", "code": "gpt-4o-mini"}
"""The trace names none."""
USD_PER_MILLION: Final = {"gpt-4o": (Decimal("2.5"), Decimal(10)), "gpt-4o-mini": (Decimal("0.15"), Decimal("0.6"))}
"""OpenAI's list prices of input and output, to check the book by."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the trace."""

    at: datetime
    tenant: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Of requests."""

    calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal


def requests(folder: Path) -> list[Request]:
    """All requests in order.

    Raises:
        CannotMeasureError: the files are not there.
    """
    found: list[Request] = []
    for tenant, name in FILES.items():
        if not (folder / name).is_file():
            raise CannotMeasureError(f"there is no {name} in {folder}: name the folder that holds it with --data")
        with gzip.open(folder / name, "rt", newline="") as file:
            for row in csv.DictReader(file):
                # Times have seven digits after the point.
                at = datetime.fromisoformat(row["TIMESTAMP"][:26]).replace(tzinfo=UTC)
                found.append(Request(at, tenant, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    return sorted(found, key=lambda request: request.at)


def totals(some: Sequence[Request]) -> Totals:
    """Summed up here, by list prices, with nothing of Headwater."""
    cost = Decimal(0)
    for request in some:
        per_input, per_output = USD_PER_MILLION[MODELS[request.tenant]]
        cost += (request.input_tokens * per_input + request.output_tokens * per_output) / 1_000_000
    given = sum(request.input_tokens for request in some)
    return Totals(len(some), given, sum(request.output_tokens for request in some), cost)


def whole_days_until(then: datetime, now: datetime) -> timedelta:
    """What to add to `then` for it to be no more than a day ago, at the same time of day."""
    return timedelta(days=(now - then) // timedelta(days=1))
