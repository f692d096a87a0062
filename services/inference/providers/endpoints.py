"""Opens the model that settings describe."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.inference.providers.anthropic import AnthropicDialect
from services.inference.providers.exchange import Dialect, HttpChatModel
from services.inference.providers.http import HttpClient
from services.inference.providers.openai import OpenAIDialect
from services.inference.providers.settings import EndpointSettings


@asynccontextmanager
async def open_model(settings: EndpointSettings) -> AsyncIterator[HttpChatModel]:
    """The model with its connections, closed at the end."""
    dialect: Dialect = AnthropicDialect(settings) if settings.protocol == "anthropic" else OpenAIDialect(settings)
    client = HttpClient(
        settings.base_url,
        dialect.path,
        headers=dialect.headers(),
        query=dialect.query(),
        connections=settings.connections,
        connect_timeout=settings.connect_timeout,
        idle_timeout=settings.idle_timeout,
    )
    try:
        yield HttpChatModel(settings, dialect, client)
    finally:
        await client.aclose()
