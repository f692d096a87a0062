"""Questions through the whole platform, and the money they cost, to the last decimal."""

import asyncio
import re
from decimal import Decimal

import grpc
import pytest
from headwater.inference.v1 import inference_pb2
from headwater.inference.v1.inference_pb2_grpc import InferenceServiceStub
from headwater.ingest.v1 import ingest_pb2
from headwater.ingest.v1.ingest_pb2_grpc import IngestServiceStub
from headwater.metering.v1 import metering_pb2
from headwater.metering.v1.metering_pb2_grpc import MeteringServiceStub
from headwater.retrieval.v1 import retrieval_pb2
from headwater.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceStub

from services.contracts.events import EVENTS
from tests.system.conftest import Metadata, Platform, Stranger, events_told, put_and_wait, sql

ACME = b"# Leave policy\n\nEvery employee of acme has 31 days of paid leave a year.\n\nUnused leave lapses in March.\n"
GLOBEX = b"# Leave policy\n\nEvery employee of globex has 26 days of paid leave a year.\n\nUnused leave is paid out.\n"
QUESTION = "How many days of paid leave does every employee have a year?"


async def ask(channel: grpc.aio.Channel, key: Metadata, question: str, feature: str = "") -> inference_pb2.Answer:
    """The answer to `question`."""
    request = inference_pb2.GenerateRequest(question=question, feature=feature)
    response = await InferenceServiceStub(channel).Generate(request, metadata=key, timeout=30)
    answer: inference_pb2.Answer = response.answer
    return answer


async def test_two_tenants_get_their_own_answers(platform: Platform, channel: grpc.aio.Channel) -> None:
    """The same question, each tenant's own fact, cited from its own document, with the stages it went through."""
    acme, globex = platform.tenant("answers-acme"), platform.tenant("answers-globex")
    await put_and_wait(channel, acme, "leave.md", ACME)
    await put_and_wait(channel, globex, "leave.md", GLOBEX)
    for key, own, others in ((acme, "31 days", "26 days"), (globex, "26 days", "31 days")):
        answer = await ask(channel, key, QUESTION)
        assert own in answer.text
        assert others not in str(answer)
        assert answer.status in {inference_pb2.ANSWER_STATUS_CONFIDENT, inference_pb2.ANSWER_STATUS_BEST_EFFORT}
        assert answer.stages[0].stage == "local/extract-1"
        assert all(stage.reason for stage in answer.stages)
        citation = answer.citations[0]
        source = (ACME if own == "31 days" else GLOBEX).decode()
        assert source[citation.start_char : citation.end_char] == citation.quote
        assert citation.document_name == "leave.md"
        parts = [Decimal(stage.cost_usd) for stage in answer.stages] + [Decimal(answer.retrieval_cost_usd)]
        assert Decimal(answer.cost_usd) == sum(parts) > 0


async def test_nothing_on_the_question_is_no_answer(platform: Platform, channel: grpc.aio.Channel) -> None:
    """A tenant without documents is told so, not told something made up."""
    answer = await ask(channel, platform.tenant("answers-empty"), QUESTION)
    assert answer.status == inference_pb2.ANSWER_STATUS_NO_ANSWER
    assert answer.text == ""
    assert not answer.citations


async def test_a_streamed_answer_is_the_same_answer(platform: Platform, channel: grpc.aio.Channel) -> None:
    """Stages as they end, the words as they come, the whole account last."""
    key = platform.tenant("answers-acme")
    await put_and_wait(channel, key, "leave.md", ACME)
    stream = InferenceServiceStub(channel).GenerateStream(
        inference_pb2.GenerateStreamRequest(question=QUESTION), metadata=key, timeout=30
    )
    events = [event async for event in stream]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "stage"
    assert kinds[-1] == "answer"
    assert kinds.count("answer") == 1
    text = "".join(event.delta for event in events if event.WhichOneof("event") == "delta")
    assert text == events[-1].answer.text
    assert text == (await ask(channel, key, QUESTION)).text


async def test_the_cost_tables_hold_every_event_told_to_the_last_decimal(
    platform: Platform, channel: grpc.aio.Channel
) -> None:
    """The stream is the ledger: truth, rollup, view and QueryCosts each sum to it, by tenant and in all."""
    key = platform.tenant("answers-money")
    await put_and_wait(channel, key, "leave.md", ACME)
    answers = [await ask(channel, key, f"{QUESTION} {n}", feature=f"feature-{n % 2}") for n in range(6)]
    told = await events_told(platform.data_dir)
    mine = sum((cost for tenant, cost in told if tenant == "answers-money"), Decimal(0))
    assert mine > sum(Decimal(answer.cost_usd) for answer in answers)  # indexing was told too
    total = sum((cost for _, cost in told), Decimal(0))

    async def stored(statement: str) -> Decimal:
        return Decimal((await sql(channel, platform.admin, statement))[0][0])

    async with asyncio.timeout(30):
        while await stored("SELECT sum(cost_usd) FROM headwater.cost_hourly") < total:
            await asyncio.sleep(0.2)
    for statement in (
        "SELECT sum(cost_usd) FROM headwater.usage_events",
        "SELECT sum(cost_usd) FROM headwater.cost_hourly",
        "SELECT sum(cost_usd) FROM headwater.tenant_cost_daily",
        "SELECT sum(cost_usd) FROM headwater.feature_cost_daily",
        "SELECT sum(cost_usd) FROM headwater.model_cost_daily",
    ):
        assert await stored(statement) == total, statement
    assert await stored("SELECT count() FROM headwater.usage_events") == len(told)
    stub = MeteringServiceStub(channel)
    request = metering_pb2.QueryCostsRequest(
        group_by=[metering_pb2.COST_DIMENSION_TENANT, metering_pb2.COST_DIMENSION_FEATURE]
    )
    own = await stub.QueryCosts(request, metadata=key, timeout=30)
    assert {row.tenant for row in own.rows} == {"answers-money"}
    assert {row.feature for row in own.rows} == {"", "feature-0", "feature-1"}
    assert Decimal(own.total_cost_usd) == mine
    everyones = await stub.QueryCosts(request, metadata=platform.admin, timeout=30)
    assert Decimal(everyones.total_cost_usd) == total


async def test_every_view_of_an_outcome_has_all_calls_of_its_request(
    platform: Platform, channel: grpc.aio.Channel
) -> None:
    """The answer, the request's row and the outcome's cost the same; all its rows say who asked, by one pseudonym."""
    key = platform.tenant("answers-outcome")
    await put_and_wait(channel, key, "leave.md", ACME)
    attribution = inference_pb2.Attribution(outcome_id="ticket-7", user="Ada Lovelace", labels={"team": "north"})
    request = inference_pb2.GenerateRequest(question=QUESTION, attribution=attribution)
    answer = (await InferenceServiceStub(channel).Generate(request, metadata=key, timeout=30)).answer
    rows = (
        "SELECT service, key_id != '', outcome_id, user, labels['team'] FROM headwater.usage_events "
        "WHERE tenant_id = 'answers-outcome'"
    )
    calls = 1 + sum(stage.calls for stage in answer.stages)
    async with asyncio.timeout(30):
        while len(found := await sql(channel, platform.admin, rows)) < calls + 1:
            await asyncio.sleep(0.2)
    (pseudonym,) = {row[3] for row in found if row[0] != "ingest"}
    assert re.fullmatch("[0-9a-f]{32}", pseudonym)
    expected = {(service, "1", "ticket-7", pseudonym, "north") for service in ("retrieval", "inference")}
    assert {tuple(row) for row in found} == {*expected, ("ingest", "1", "", "", "")}
    for view in ("interactions", "cost_per_outcome"):
        sums = f"SELECT calls, cost_usd FROM headwater.{view} WHERE outcome_id = 'ticket-7'"  # noqa: S608
        ((count, usd),) = await sql(channel, platform.admin, sums)
        assert (int(count), Decimal(usd)) == (calls, Decimal(answer.cost_usd)), view


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE headwater.usage_events",
        "INSERT INTO headwater.usage_events (tenant_id) VALUES ('x')",
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
        "SELECT 1 SETTINGS readonly = 0",
        "SET readonly = 0",
        "SELECT 1; DROP TABLE headwater.usage_events",
        "SELEC 1",
    ],
)
async def test_sql_only_reads_the_cost_tables(platform: Platform, channel: grpc.aio.Channel, statement: str) -> None:
    """An admin's statement changes nothing and reads nothing else; the next one works."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await sql(channel, platform.admin, statement)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await sql(channel, platform.admin, "SELECT 1") == [["1"]]


async def test_a_malformed_event_is_dead_lettered_and_listed_whatever_its_stream(
    platform: Platform, channel: grpc.aio.Channel
) -> None:
    """Also where no service acts on it; whoever runs the platform sees it with its reason and not its values."""
    subjects = {event.subject(owner, "acme") for event in EVENTS for owner in event.owners}
    async with Stranger(platform.data_dir) as stranger:
        for subject in subjects:
            await stranger.jetstream().publish(subject, b'{"cost_usd": "-5"}')
    stub = IngestServiceStub(channel)
    found: dict[str, str] = {}
    async with asyncio.timeout(20):
        while found.keys() != subjects:
            request = ingest_pb2.ListDeadLettersRequest()
            letters = (await stub.ListDeadLetters(request, metadata=platform.admin, timeout=10)).dead_letters
            found = {letter.subject: letter.reason for letter in letters if letter.subject in subjects}
            await asyncio.sleep(0.1)
    assert all(reason and "-5" not in reason for reason in found.values())


async def test_a_call_whose_caller_left_is_charged_all_the_same(platform: Platform, channel: grpc.aio.Channel) -> None:
    """Hanging up while the model works does not make it free."""
    key = platform.tenant("hangs-up")
    request = retrieval_pb2.EmbedRequest(texts=["a text of some words " * 40] * 48, feature="hang-up")
    call = RetrievalServiceStub(channel).Embed(request, metadata=key, timeout=30)
    await asyncio.sleep(0.2)
    call.cancel()
    async with asyncio.timeout(30):
        while not any(tenant == "hangs-up" for tenant, _ in await events_told(platform.data_dir)):
            await asyncio.sleep(0.2)
