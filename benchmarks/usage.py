"""Token usage: how many recorded payloads read and price as genai-prices reads and prices them.

The reference reads every payload as every provider whose format it could be; each such reading by a provider that we
claim is compared. What we do not claim is named with the reason.
"""

import gzip
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks.corpus import CannotMeasureError
from benchmarks.report import Figure, arguments, measured, progress
from services.contracts.events import TokenUsage
from services.contracts.prices import PriceBook
from services.inference.providers.usage import REASONING_ON_TOP, UsageFormat, read_usage

FILE = "usages.json.gz"
AS_OF = datetime(2026, 3, 1, 12, tzinfo=UTC)
"""The reference was derived without the price changes that came later; its own packaged snapshot has dated them."""

_HOSTS = "cerebras fireworks-ai groq hyperbolic nebius novita nscale ovhcloud publicai sambanova together"
_CHAT = (
    *("anthropic", "azure", "cerebras", "deepseek", "doubleword", "fireworks", "google", "minimax", "moonshotai"),
    *("openai", "openrouter", "ovhcloud", "x-ai", "zai", "zhipuai"),
    *(f"huggingface_{host}" for host in _HOSTS.split()),
)
CLAIMED: Mapping[tuple[str, str], UsageFormat] = {
    **{(provider, "chat"): "chat" for provider in _CHAT},
    **{(provider, "default"): "chat" for provider in ("groq", "mistral")},
    **{(provider, "embeddings"): "chat" for provider in ("azure", "doubleword", "openai")},
    **{(provider, "responses"): "responses" for provider in ("azure", "doubleword", "minimax", "openai")},
    **{(provider, "anthropic"): "messages" for provider in ("aws", "azure", "google")},
    ("anthropic", "default"): "messages",
    ("minimax", "default"): "messages",
    ("google", "default"): "gemini",
    ("aws", "default"): "converse",
}
UNCLAIMED = {
    "cohere": "its own format tells billed units and tokens that disagree",
    "modal": "recorded under no model of its own; reasoning is not told apart",
    "perplexity": "bills citations and searches besides tokens",
    "x-ai": "its first format; the present one (chat) is claimed",
}
"""Providers of readings that are not in `CLAIMED`, and why."""

_PARTS = {"cache_read": "input", "cache_write": "input", "reasoning": "output"}
_REFERENCE_NAMES = {
    "input": "input_tokens",
    "cache_read": "cache_read_tokens",
    "cache_write": "cache_write_tokens",
    "output": "output_tokens",
    "reasoning": "output_reasoning_tokens",
}
_TELL_NO_CACHE_WRITES = frozenset(
    {"azure", "deepseek", "fireworks", "google", "minimax", "moonshotai", "x-ai", "zai", "zhipuai"}
)
LUMPED: Mapping[tuple[str, str], frozenset[str]] = {
    **{(provider, "chat"): frozenset({"cache_write"}) for provider in _CHAT if provider in _TELL_NO_CACHE_WRITES},
    **{(provider, "chat"): frozenset({"cache_read", "cache_write"}) for provider in ("anthropic", "cerebras")},
    **{(provider, "default"): frozenset({"cache_write"}) for provider in ("groq", "mistral")},
    **{(provider, "responses"): frozenset({"cache_write", "reasoning"}) for provider in ("doubleword", "minimax")},
    **{(provider, "anthropic"): frozenset({"reasoning"}) for provider in ("aws", "azure", "google")},
    ("azure", "responses"): frozenset({"cache_write"}),
    ("minimax", "default"): frozenset({"reasoning"}),
}
"""Classes that the reference does not tell apart there and leaves in the whole; ours are put back before comparing."""


@dataclass
class Tally:
    """Of one provider and format."""

    readings: int = 0
    tokens_equal: int = 0
    priced: int = 0
    """By the reference, for what our classes can carry."""
    price_equal: int = 0
    lumped: Counter[str] = field(default_factory=Counter)
    apart: Counter[str] = field(default_factory=Counter)
    """Readings whose price covers what our classes cannot carry, by what that is."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it from the command line."""
    parser = arguments("usage", __doc__ or "", "--data FOLDER", squad=False)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help=f"the folder with {FILE}")
    given = parser.parse_args(argv)
    return measured("Token usage against genai-prices", given.json, lambda: usage(given.data))


def usage(folder: Path) -> list[Figure]:
    """Reads and prices all payloads.

    Raises:
        CannotMeasureError: they are not there.
    """
    if not (folder / FILE).is_file():
        raise CannotMeasureError(f"there is no {FILE} in {folder}: name the folder that holds it with --data")
    with gzip.open(folder / FILE, "rt") as file:
        payloads = json.load(file)
    book = PriceBook({})
    tallies: dict[tuple[str, str], Tally] = defaultdict(Tally)
    unclaimed: Counter[str] = Counter()
    claimed = right = 0
    for payload in payloads:
        verdicts = []
        for extracted in payload["extracted"]:
            for reader in extracted["extractors"]:
                key = reader["provider_id"], reader["api_flavor"]
                if key in CLAIMED:
                    verdicts.append(_compare(tallies[_row(key)], key, payload, extracted["usage"], reader, book))
                else:
                    unclaimed[key[0]] += 1
        claimed += bool(verdicts)
        right += bool(verdicts) and all(verdicts)
    return _figures(len(payloads), claimed, right, tallies, unclaimed)


def _compare(
    tally: Tally,
    key: tuple[str, str],
    payload: Mapping[str, Any],
    reference: Mapping[str, int],
    reader: Mapping[str, str],
    book: PriceBook,
) -> bool:
    """Whether one reading is right: its tokens, and its price where the reference has one that tokens alone explain."""
    body = payload["body"]
    told = body.get("usage") or body.get("usageMetadata") or body.get("meta")
    reading = read_usage(told, CLAIMED[key], reasoning_on_top=key[0] in REASONING_ON_TOP)
    tally.readings += 1
    if reading is None:
        progress(f"not read as {key}: {body['file']}")
        return False
    tokens = _without_output(reading.tokens) if key[1] == "embeddings" else reading.tokens
    for part in LUMPED.get(key, frozenset()):
        if count := getattr(tokens, part):
            tally.lumped[part] += 1
            whole = "uncached_input" if _PARTS[part] == "input" else "output"
            tokens = tokens.model_copy(update={part: 0, whole: getattr(tokens, whole) + count})
    equal = _as_reference(tokens) == {name: reference.get(name, 0) for name in _REFERENCE_NAMES.values()}
    tally.tokens_equal += equal
    tally.apart.update(reading.priced_apart)
    price_right = True
    if "input_price" in reader and not reading.priced_apart:
        price = Decimal(reader["input_price"]) + Decimal(reader["output_price"])
        cost = book.cost(key[0], payload["model"], tokens, AS_OF)
        price_right = not cost.estimated and cost.usd == price.quantize(cost.usd)
        tally.priced += 1
        tally.price_equal += price_right
    if not (equal and price_right):
        progress(f"{'price' if equal else 'tokens'} of {key} differ: {body['file']}")
    return equal and price_right


def _row(key: tuple[str, str]) -> tuple[str, str]:
    """Hugging Face's router is one row, whoever serves the model."""
    return ("huggingface" if key[0].startswith("huggingface_") else key[0]), key[1]


def _as_reference(tokens: TokenUsage) -> dict[str, int]:
    """As the reference tells it, where wholes contain their parts."""
    wholes = {
        "input": tokens.uncached_input + tokens.cache_read + tokens.cache_write,
        "output": tokens.output + tokens.reasoning,
    }
    return {name: (tokens.model_dump() | wholes)[ours] for ours, name in _REFERENCE_NAMES.items()}


def _without_output(tokens: TokenUsage) -> TokenUsage:
    """What the reference takes of an embedding: its input, undivided."""
    return TokenUsage(uncached_input=tokens.uncached_input + tokens.cache_read + tokens.cache_write)


def _figures(
    payloads: int,
    claimed: int,
    right: int,
    tallies: Mapping[tuple[str, str], Tally],
    unclaimed: Counter[str],
) -> list[Figure]:
    figures = [
        Figure("payloads that a claimed provider could send", f"{claimed} of {payloads}"),
        Figure("of these right in every claimed reading", f"{right} of {claimed}", "all"),
    ]
    for (provider, flavor), tally in sorted(tallies.items()):
        notes = [f"{count} lump {part}" for part, count in sorted(tally.lumped.items())]
        notes += [f"{count} price {what} apart" for what, count in sorted(tally.apart.items())]
        figures.append(
            Figure(
                f"{provider} {flavor}",
                f"tokens {tally.tokens_equal} of {tally.readings}, price {tally.price_equal} of {tally.priced}",
                "all",
                ", ".join(notes),
            )
        )
    figures += [
        Figure(f"not claimed: {provider}", f"{count} readings", "", UNCLAIMED[provider])
        for provider, count in sorted(unclaimed.items())
    ]
    return figures


if __name__ == "__main__":
    sys.exit(main())
