"""Every RPC that is served, from the descriptors: without a key, with wrong ones, with another tenant's key and ids.

`CALLS` says how to call each method about something of tenant acme's; a method without an entry fails the tests.
"""

import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from headwater.auth.v1 import auth_pb2
from headwater.inference.v1 import inference_pb2, policies_pb2
from headwater.ingest.v1 import ingest_pb2
from headwater.metering.v1 import metering_pb2, prices_pb2, reports_pb2, tenants_pb2, webhooks_pb2
from headwater.retrieval.v1 import retrieval_pb2

from tests.system.conftest import Metadata, Platform, bearer, put_and_wait

MODULES = (
    inference_pb2,
    policies_pb2,
    ingest_pb2,
    metering_pb2,
    prices_pb2,
    reports_pb2,
    tenants_pb2,
    webhooks_pb2,
    retrieval_pb2,
)
SECRET = "The vault of acme opens with the word heliotrope."
ACME_MONTH = metering_pb2.BudgetName(tenant_id="acme", period=metering_pb2.BUDGET_PERIOD_MONTH)
REASON = re.compile("[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
_DEEPEST = 4
"""Levels of messages within messages that are filled."""
QUESTION = "Which word opens the vault of acme?"


@dataclass(frozen=True)
class Call:
    """How to call a method about acme's document, and what a stranger with the right scope must be answered."""

    requests: Callable[[str], list[Message]]
    stranger: str = "OK"
    """The status code for a tenant that owns nothing."""


CALLS: dict[str, Call] = {
    "IngestService/PutDocument": Call(
        lambda document_id: [
            ingest_pb2.PutDocumentRequest(header=ingest_pb2.DocumentHeader(name="theirs.md", document_id=document_id)),
            ingest_pb2.PutDocumentRequest(data=b"# Theirs\n\nNothing to see here."),
        ]
    ),
    "IngestService/GetDocument": Call(lambda d: [ingest_pb2.GetDocumentRequest(document_id=d)], "NOT_FOUND"),
    "IngestService/ListDocuments": Call(lambda _: [ingest_pb2.ListDocumentsRequest()]),
    "IngestService/WatchDocument": Call(lambda d: [ingest_pb2.WatchDocumentRequest(document_id=d)], "NOT_FOUND"),
    "IngestService/DeleteDocument": Call(lambda d: [ingest_pb2.DeleteDocumentRequest(document_id=d)], "NOT_FOUND"),
    "IngestService/ListDeadLetters": Call(lambda _: [ingest_pb2.ListDeadLettersRequest()]),
    "RetrievalService/Search": Call(
        lambda d: [retrieval_pb2.SearchRequest(query=QUESTION, document_ids=[d])], "NOT_FOUND"
    ),
    "RetrievalService/Embed": Call(lambda _: [retrieval_pb2.EmbedRequest(texts=["x"])]),
    "InferenceService/Generate": Call(
        lambda d: [inference_pb2.GenerateRequest(question=QUESTION, document_ids=[d])], "NOT_FOUND"
    ),
    "InferenceService/GenerateStream": Call(
        lambda d: [inference_pb2.GenerateStreamRequest(question=QUESTION, document_ids=[d])], "NOT_FOUND"
    ),
    "PolicyService/PutPolicy": Call(
        lambda _: [policies_pb2.PutPolicyRequest(text="name: theirs\nstages: [{name: s, model: local/extract-1}]")],
        "PERMISSION_DENIED",
    ),
    "PolicyService/GetPolicy": Call(lambda _: [policies_pb2.GetPolicyRequest(name="acme")], "PERMISSION_DENIED"),
    "PolicyService/ListPolicies": Call(lambda _: [policies_pb2.ListPoliciesRequest()], "PERMISSION_DENIED"),
    "PolicyService/ActivatePolicy": Call(
        lambda _: [policies_pb2.ActivatePolicyRequest(tenant_id="acme", feature="*", name="theirs", version=1)],
        "PERMISSION_DENIED",
    ),
    "PolicyService/GetActivePolicy": Call(
        lambda _: [policies_pb2.GetActivePolicyRequest(tenant_id="acme")], "PERMISSION_DENIED"
    ),
    "MeteringService/QueryCosts": Call(
        lambda _: [
            metering_pb2.QueryCostsRequest(
                group_by=[metering_pb2.COST_DIMENSION_TENANT],
                filters=[metering_pb2.CostFilter(dimension=metering_pb2.COST_DIMENSION_TENANT, values=["acme"])],
            )
        ]
    ),
    "MeteringService/RunSql": Call(lambda _: [metering_pb2.RunSqlRequest(sql="SELECT 1")], "PERMISSION_DENIED"),
    "MeteringService/SetBudget": Call(
        lambda _: [metering_pb2.SetBudgetRequest(name=ACME_MONTH, cap_usd="1")], "PERMISSION_DENIED"
    ),
    "MeteringService/GetBudget": Call(lambda _: [metering_pb2.GetBudgetRequest(name=ACME_MONTH)], "NOT_FOUND"),
    "MeteringService/ListBudgets": Call(lambda _: [metering_pb2.ListBudgetsRequest()]),
    "MeteringService/DeleteBudget": Call(
        lambda _: [metering_pb2.DeleteBudgetRequest(name=ACME_MONTH)], "PERMISSION_DENIED"
    ),
    "ReportService/LoadRevenue": Call(
        lambda _: [
            reports_pb2.LoadRevenueRequest(
                rows=[reports_pb2.RevenueRow(tenant_id="acme", month="2026-11", amount_usd="1")]
            )
        ],
        "PERMISSION_DENIED",
    ),
    "ReportService/LoadOutcomes": Call(
        lambda _: [
            reports_pb2.LoadOutcomesRequest(
                rows=[
                    reports_pb2.OutcomeRow(tenant_id="acme", outcome_id="theirs", at=Timestamp(seconds=1_800_000_000))
                ]
            )
        ],
        "PERMISSION_DENIED",
    ),
    "ReportService/ExportFocus": Call(
        lambda _: [
            reports_pb2.ExportFocusRequest(
                start_date="2026-11-01", end_date="2026-12-01", format=reports_pb2.EXPORT_FORMAT_CSV
            )
        ],
        "PERMISSION_DENIED",
    ),
    "MeteringService/Forecast": Call(lambda _: [metering_pb2.ForecastRequest(tenant_id="acme")], "NOT_FOUND"),
    "MeteringService/Audit": Call(lambda _: [metering_pb2.AuditRequest(dry_run=True)], "PERMISSION_DENIED"),
    "MeteringService/WatchAlerts": Call(
        lambda _: [metering_pb2.WatchAlertsRequest(tenant_id="acme", from_start=True, until_now=True)], "NOT_FOUND"
    ),
    "WebhookService/SetWebhook": Call(
        lambda _: [webhooks_pb2.SetWebhookRequest(url="https://hooks.example.com/theirs")], "PERMISSION_DENIED"
    ),
    "WebhookService/ListWebhooks": Call(lambda _: [webhooks_pb2.ListWebhooksRequest()], "PERMISSION_DENIED"),
    "WebhookService/DeleteWebhook": Call(
        lambda _: [webhooks_pb2.DeleteWebhookRequest(webhook_id="abc")], "PERMISSION_DENIED"
    ),
    "WebhookService/TestWebhook": Call(
        lambda _: [webhooks_pb2.TestWebhookRequest(webhook_id="abc")], "PERMISSION_DENIED"
    ),
    "PriceService/PutPrices": Call(lambda _: [prices_pb2.PutPricesRequest(text="prices: []")], "PERMISSION_DENIED"),
    "PriceService/GetPrices": Call(lambda _: [prices_pb2.GetPricesRequest()], "PERMISSION_DENIED"),
    "PriceService/ListPriceVersions": Call(lambda _: [prices_pb2.ListPriceVersionsRequest()], "PERMISSION_DENIED"),
    "PriceService/GetPrice": Call(
        lambda _: [prices_pb2.GetPriceRequest(provider="local", model="all-minilm-l6-v2", tenant_id="acme")],
        "PERMISSION_DENIED",
    ),
    "PriceService/Rerate": Call(
        lambda _: [prices_pb2.RerateRequest(end_time=Timestamp(seconds=86400), tenant_id="acme", dry_run=True)],
        "PERMISSION_DENIED",
    ),
    "PriceService/CloseMonth": Call(lambda _: [prices_pb2.CloseMonthRequest(month="2026-01")], "PERMISSION_DENIED"),
    "PriceService/ListClosedMonths": Call(lambda _: [prices_pb2.ListClosedMonthsRequest()], "PERMISSION_DENIED"),
    "TenantService/UpdateTenant": Call(
        lambda _: [tenants_pb2.UpdateTenantRequest(tenant_id="acme", plan="enterprise")], "PERMISSION_DENIED"
    ),
    "TenantService/CreateTenant": Call(
        lambda _: [tenants_pb2.CreateTenantRequest(tenant_id="intruder")], "PERMISSION_DENIED"
    ),
    "TenantService/ListTenants": Call(lambda _: [tenants_pb2.ListTenantsRequest()], "PERMISSION_DENIED"),
    "TenantService/IssueKey": Call(lambda _: [tenants_pb2.IssueKeyRequest(tenant_id="acme")], "PERMISSION_DENIED"),
    "TenantService/RevokeKey": Call(lambda _: [tenants_pb2.RevokeKeyRequest(key_id="abc")], "PERMISSION_DENIED"),
    "TenantService/ListKeys": Call(lambda _: [tenants_pb2.ListKeysRequest(tenant_id="acme")], "PERMISSION_DENIED"),
}


def methods() -> Iterator[MethodDescriptor]:
    """Every method of every service we declare."""
    for module in MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def name_of(method: MethodDescriptor) -> str:
    """As in CALLS."""
    return f"{method.containing_service.name}/{method.name}"


ALL_METHODS = list(methods())


_OVERTAKEN = "Internal error from Core"
"""What grpc.aio's client makes of a refusal that comes while it is sending the next message of a stream."""
_ATTEMPTS = 5


async def invoke(
    channel: grpc.aio.Channel, method: MethodDescriptor, requests: list[Message], metadata: Metadata | None
) -> tuple[str, str]:
    """Calls `method` and returns the status code and everything that came back as text.

    Whatever is refused must tell programs why, in a constant.
    """
    path = f"/{method.containing_service.full_name}/{method.name}"
    response_class = message_factory.GetMessageClass(method.output_type)
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call: Any = getattr(channel, kind)(
        path, request_serializer=lambda m: m.SerializeToString(), response_deserializer=response_class.FromString
    )

    async def each() -> AsyncIterator[Message]:
        for request in requests:
            yield request

    received: list[Message] = []
    for _ in range(_ATTEMPTS):
        argument = each() if method.client_streaming else requests[0]
        try:
            if method.server_streaming:
                async for response in call(argument, metadata=metadata, timeout=30):
                    received += [response]
            else:
                received.append(await call(argument, metadata=metadata, timeout=30))
        except grpc.aio.AioRpcError as error:
            if method.client_streaming and error.details() == _OVERTAKEN:
                continue
            return error.code().name, f"{received} {reason_of(error)} {error.details()}"
        return "OK", str(received)
    raise AssertionError(f"{path} was refused {_ATTEMPTS} times before it was sent")


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The constant in the status's ErrorInfo, without which no refusal may be."""
    info = error_details_pb2.ErrorInfo()
    answer = rpc_status.from_call(error)
    assert answer is not None, f"a status without details: {error}"
    assert any(detail.Unpack(info) for detail in answer.details), f"a status without ErrorInfo: {error}"
    assert info.domain == "headwater"
    assert REASON.fullmatch(info.reason), info.reason
    return str(info.reason)


def test_every_method_is_covered() -> None:
    """A new RPC must say here how it is called, or nobody checks who may."""
    assert {name_of(method) for method in ALL_METHODS} == set(CALLS)


def test_every_service_of_ours_is_declared_here() -> None:
    """No generated service escapes the list above."""
    pool = descriptor_pool.Default()
    for method in ALL_METHODS:
        assert pool.FindServiceByName(method.containing_service.full_name)
        assert method.GetOptions().HasExtension(auth_pb2.access)


@pytest.mark.parametrize("method", ALL_METHODS, ids=name_of)
@pytest.mark.parametrize("key", [None, "", "Bearer hw_AAAAAAAAAAAA_" + "A" * 43], ids=["none", "empty", "wrong"])
async def test_nobody_calls_without_a_valid_key(
    channel: grpc.aio.Channel, method: MethodDescriptor, key: str | None
) -> None:
    """Whatever is asked, who asks comes first."""
    metadata = None if key is None else (("authorization", key),)
    code, _ = await invoke(channel, method, CALLS[name_of(method)].requests("any"), metadata)
    assert code == "UNAUTHENTICATED"


@pytest.mark.parametrize("method", ALL_METHODS, ids=name_of)
async def test_a_key_without_the_methods_scope_is_denied(
    platform: Platform, channel: grpc.aio.Channel, method: MethodDescriptor
) -> None:
    """Every scope but the right ones is not enough."""
    allowed = set(method.GetOptions().Extensions[auth_pb2.access].any_scope)
    others = [number for number in auth_pb2.Scope.values() if number not in {0, auth_pb2.SCOPE_ADMIN, *allowed}]
    metadata = platform.tenant("acme", *others)
    code, _ = await invoke(channel, method, CALLS[name_of(method)].requests("any"), metadata)
    assert code == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    "method",
    [method for method in ALL_METHODS if method.GetOptions().Extensions[auth_pb2.access].tenant_required],
    ids=name_of,
)
async def test_the_platforms_key_reads_no_tenants_data(
    platform: Platform, channel: grpc.aio.Channel, method: MethodDescriptor
) -> None:
    """A missing tenant is an error, never all tenants."""
    code, _ = await invoke(channel, method, CALLS[name_of(method)].requests("any"), platform.admin)
    assert code == "PERMISSION_DENIED"


@pytest.mark.parametrize("method", ALL_METHODS, ids=name_of)
async def test_another_tenants_key_with_acmes_ids_gets_nothing_of_acmes(
    platform: Platform, channel: grpc.aio.Channel, method: MethodDescriptor
) -> None:
    """Naming acme's ids with a stranger's key is like naming nothing, and leaves acme's document as it was."""
    acme, stranger = platform.tenant("acme"), platform.tenant(f"stranger-{method.name.lower()}")
    document = await put_and_wait(channel, acme, "vault.md", f"# Vault\n\n{SECRET}\n".encode())
    call = CALLS[name_of(method)]
    code, answer = await invoke(channel, method, call.requests(document.document_id), stranger)
    assert code == call.stranger
    assert "heliotrope" not in answer
    assert 'tenant: "acme"' not in answer
    found = await invoke(
        channel,
        _method("IngestService/GetDocument"),
        CALLS["IngestService/GetDocument"].requests(document.document_id),
        acme,
    )
    assert document.version in found[1]
    _, passages = await invoke(
        channel, _method("RetrievalService/Search"), [retrieval_pb2.SearchRequest(query=QUESTION)], acme
    )
    assert "heliotrope" in passages


async def test_a_revoked_key_is_refused(platform: Platform, channel: grpc.aio.Channel) -> None:
    """Revoking ends a key for every service."""
    key = platform.tenant_key("acme")
    key_id = key.split("_")[1]
    revoke = _method("TenantService/RevokeKey")
    code, _ = await invoke(channel, revoke, [tenants_pb2.RevokeKeyRequest(key_id=key_id)], platform.admin)
    assert code == "OK"
    code, _ = await invoke(
        channel, _method("IngestService/ListDocuments"), [ingest_pb2.ListDocumentsRequest()], bearer(key)
    )
    assert code == "UNAUTHENTICATED"


def _method(name: str) -> MethodDescriptor:
    return next(method for method in ALL_METHODS if name_of(method) == name)


@pytest.mark.parametrize("method", ALL_METHODS, ids=name_of)
async def test_malformed_requests_get_a_status_with_a_reason(
    platform: Platform, channel: grpc.aio.Channel, method: MethodDescriptor
) -> None:
    """Nothing set, everything over-long, everything negative or unknown, however deep it stands in the request: the
    caller's mistake, with a reason for programs, and never a crash.
    """
    scopes = set(method.GetOptions().Extensions[auth_pb2.access].any_scope) - {auth_pb2.SCOPE_ADMIN}
    metadata = platform.tenant("malformed", *scopes) if scopes else platform.admin
    request_class = message_factory.GetMessageClass(method.input_type)
    for value in (_nothing, _too_long, _negative):
        for branch in range(_most_branches(request_class())):
            request = request_class()
            strings = _fill(request, value, branch)
            if "until_now" in request.DESCRIPTOR.fields_by_name:
                setattr(request, "until_now", True)  # noqa: B010 - the field is only known by its name
            code, answer = await invoke(channel, method, [request], metadata)
            told = (value.__name__, branch, code, answer)
            assert code in {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED"}, told
            if value is _too_long and strings:
                assert code == "INVALID_ARGUMENT", told
                assert "xxxx" not in answer


def _nothing(field: FieldDescriptor) -> object:
    """No value for any field."""


def _too_long(field: FieldDescriptor) -> object:
    """More than any rule allows for a string or bytes."""
    if field.cpp_type != field.CPPTYPE_STRING:
        return None
    return "x" * 100_000 if field.type == field.TYPE_STRING else b"x" * 2_000_000


def _negative(field: FieldDescriptor) -> object:
    """Less than any rule allows for a number, and for an enum a number nobody declared."""
    if field.cpp_type in {field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE}:
        return -(2**31)
    return 999 if field.cpp_type == field.CPPTYPE_ENUM else None


def _fill(message: Any, value: Callable[[FieldDescriptor], object], branch: int, depth: int = 0) -> int:
    """Sets the fields for which there is a value, one of each list and the `branch`-th of each oneof; returns how many.

    Messages within are filled alike, `_DEEPEST` levels down; one of which nothing can be filled stays unset.
    """
    count = 0
    for field in _fields(message.DESCRIPTOR, branch):
        within = getattr(message, field.name)
        if field.cpp_type != field.CPPTYPE_MESSAGE:
            if (wrong := value(field)) is None:
                continue
            if field.is_repeated:
                within.append(wrong)
            else:
                setattr(message, field.name, wrong)
            count += 1
        elif field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name
            if (wrong := value(entry["value"])) is not None:
                within[value(entry["key"]) or "key"] = wrong
                count += 1
        elif depth < _DEEPEST:
            part = message_factory.GetMessageClass(field.message_type)()
            if filled := _fill(part, value, branch, depth + 1):
                within.MergeFrom([part] if field.is_repeated else part)
                count += filled
    return count


def _fields(descriptor: Any, branch: int) -> Iterator[Any]:
    """The fields, of each oneof the `branch`-th only: to set another would unset it."""
    for field in descriptor.fields:
        choices = field.containing_oneof.fields if field.containing_oneof else [field]
        if choices[branch % len(choices)] is field:
            yield field


def _most_branches(message: Message) -> int:
    """Of the request's own oneofs."""
    return max((len(oneof.fields) for oneof in message.DESCRIPTOR.oneofs), default=1)
