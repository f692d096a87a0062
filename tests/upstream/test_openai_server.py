"""The upstream that the tests ask is one that OpenAI's own client accepts."""

import pytest
from openai import AsyncOpenAI, RateLimitError

from tests.upstream.openai_server import upstream


async def test_official_client_reads_the_stream() -> None:
    """Text, log-probabilities and usage arrive as the client's own types."""
    async with upstream() as server, AsyncOpenAI(base_url=server.url, api_key="k") as client:
        stream = await client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "?"}],
            stream=True,
            logprobs=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "The answer is 42 [1]."
    assert chunks[0].choices[0].logprobs is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 100


async def test_official_client_understands_a_refusal() -> None:
    """A 429 is a rate limit to the client as well."""
    async with upstream() as server, AsyncOpenAI(base_url=server.url, api_key="k", max_retries=0) as client:
        server.status = 429
        with pytest.raises(RateLimitError) as refusal:
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "?"}])
    assert refusal.value.code == "told_to"
