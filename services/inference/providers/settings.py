"""What an operator may change about how one model is reached."""

import re
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from services.contracts.prices import Price
from services.runtime.settings import Section

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]{0,4096}")
_OURS = frozenset({"accept-encoding", "connection", "content-length", "content-type", "host", "transfer-encoding"})
"""Headers that the transport writes itself."""


def _header_name(name: str) -> str:
    if not _HEADER_NAME.fullmatch(name) or name.lower() in _OURS:
        raise ValueError(f"{name!r} is no header that may be set")
    return name


def _header_value(value: SecretStr) -> SecretStr:
    # A line break in it would start a header, or a request, of its own.
    if not _HEADER_VALUE.fullmatch(value.get_secret_value()):
        raise ValueError("a header's value is printable ASCII, 4096 characters at most")
    return value


HeaderName = Annotated[str, AfterValidator(_header_name)]
HeaderValue = Annotated[SecretStr, AfterValidator(_header_value)]
Timeout = Annotated[timedelta, Field(ge=timedelta(milliseconds=1), le=timedelta(hours=1))]


class EndpointSettings(Section):
    """A model behind an OpenAI-compatible or Anthropic API."""

    protocol: Literal["openai", "anthropic"] = Field(default="openai", description="chat completions or messages")
    base_url: str = Field(
        pattern=r"^https?://[^\s?#]+$",
        description="up to and without /chat/completions or /messages, such as https://api.openai.com/v1; "
        "at Azure https://NAME.openai.azure.com/openai/deployments/DEPLOYMENT",
    )
    api_key: HeaderValue | None = Field(default=None, description="the credential there")
    api_key_header: HeaderName | None = Field(
        default=None,
        description="what carries it; unset: Authorization or, for anthropic, x-api-key; Azure: api-key",
    )
    model: str = Field(min_length=1, max_length=180, description="the model's name there")
    provider: str = Field(default="", max_length=200, description="whose prices apply; unset: the protocol's own")
    price: Price | None = Field(
        default=None, description="own price in US dollars per million tokens; unset looks it up by provider and model"
    )
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict, description="further headers of every request")
    api_version: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._-]{1,40}$",
        description="openai: Azure's api-version parameter; anthropic: the anthropic-version header",
    )
    query: dict[str, SecretStr] = Field(default_factory=dict, description="further query parameters of every request")
    body: dict[str, Any] = Field(
        default_factory=dict,
        description="further fields of every request, such as reasoning_effort or thinking; its temperature goes "
        "before ours for samples and verifiers but not before a caller's, and null asks for none",
    )
    stream: bool = Field(
        default=True, description="ask for a stream; false costs less CPU but the text comes in one piece at the end"
    )
    max_tokens_field: Literal["max_completion_tokens", "max_tokens"] = Field(
        default="max_completion_tokens",
        description="openai: what it calls that limit; older servers: max_tokens",
    )
    structured_output: Literal["native", "tool"] = Field(
        default="native",
        description="anthropic: how an answer is held to a JSON schema; models without that feature: a forced tool",
    )
    connections: int = Field(default=64, ge=1, le=10_000, description="connections at a time; further calls wait")
    idle_timeout: Timeout = Field(
        default=timedelta(seconds=20), description="a connection unused for longer is not used again"
    )
    connect_timeout: Timeout = Field(default=timedelta(seconds=5), description="longest wait for a connection")
    first_token_timeout: Timeout = Field(
        default=timedelta(seconds=20), description="longest wait for the first token of a stream, thoughts included"
    )
    total_timeout: Timeout = Field(default=timedelta(seconds=60), description="longest time for the whole answer")

    @property
    def priced_as(self) -> str:
        """The provider whose prices apply."""
        return self.provider or self.protocol

    @property
    def query_values(self) -> dict[str, str]:
        """The query parameters as they are sent."""
        return {name: value.get_secret_value() for name, value in self.query.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if reserved := _WRITTEN & self.body.keys():
            raise ValueError(f"body must not hold {', '.join(sorted(reserved))}: requests bring these themselves")
        return self


_WRITTEN = frozenset(
    {
        "model",
        "messages",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "tools",
        "tool_choice",
    }
)
