"""Policies on a real nats-server: versions that never change, activations that every process follows."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from services.contracts.failures import Conflict, Missing, Rejected
from services.contracts.streams import ASSIGNMENTS_BUCKET, POLICIES_BUCKET
from services.contracts.tenants import TenantId
from services.inference.policies.records import MOST_REMEMBERED, Activation, Assignment
from services.inference.policies.schema import Policy, StagePolicy
from services.inference.policies.store import PolicyStore
from services.runtime.bus import Bus, connected
from services.runtime.settings import BusSettings

ACME, GLOBEX = TenantId("acme"), TenantId("globex")
BUILT_IN = Policy(name="built-in", stages=(StagePolicy(name="s", model="fast"),))
MODELS = frozenset({"fast", "large"})


def text(name: str = "support", model: str = "fast", note: str = "") -> str:
    """A policy."""
    return f"# {note}\nname: {name}\nstages:\n  - name: s\n    model: {model}\n"


async def opened(bus: Bus, models: frozenset[str] = MODELS) -> PolicyStore:
    """A store as a process opens it."""
    versions, assignments = await bus.bucket(POLICIES_BUCKET), await bus.bucket(ASSIGNMENTS_BUCKET)
    return PolicyStore(versions, assignments, built_in=BUILT_IN, known_models=models, priced=lambda: models)


@pytest.fixture
async def store(bus: Bus) -> AsyncIterator[PolicyStore]:
    """A store that watches."""
    store = await opened(bus)
    async with store.watching():
        yield store


@pytest.fixture
async def elsewhere(bus: Bus, nats_url: str) -> AsyncIterator[PolicyStore]:
    """A store over a connection of its own, as another process has it."""
    async with AsyncExitStack() as stack:
        store = await opened(await stack.enter_async_context(connected(nats_url, BusSettings(), "elsewhere")))
        await stack.enter_async_context(store.watching())
        yield store


async def eventually(true: Callable[[], bool]) -> None:
    """Waits until it is true."""
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.01)


def running(store: PolicyStore, tenant: TenantId = ACME, feature: str = "chat") -> tuple[str, int]:
    """What applies, by name and version."""
    version = store.policy_for(tenant, feature)
    return version.name, version.version


async def test_without_an_assignment_the_built_in_policy_applies(store: PolicyStore) -> None:
    """A new installation answers."""
    assert store.policy_for(ACME, "").policy is BUILT_IN


async def test_versions_are_numbered_by_name_and_never_change(store: PolicyStore) -> None:
    """Each text is a version of its own and stays as its author wrote it."""
    first = await store.put(text(note="one"), "key1")
    second = await store.put(text(note="two"), "key2")
    other = await store.put(text("other"), "key1")
    assert [(r.name, r.version) for r in (first, second, other)] == [("support", 1), ("support", 2), ("other", 1)]
    assert (await store.get("support", 1)) == first
    assert (await store.get("support")) == second
    assert await store.list() == [other, first, second]


async def test_putting_the_newest_text_again_is_no_new_version(store: PolicyStore) -> None:
    """A retry after a lost answer changes nothing."""
    first = await store.put(text(), "key1")
    assert await store.put(text(), "key2") == first


async def test_versions_put_at_the_same_time_each_get_a_number(store: PolicyStore, elsewhere: PolicyStore) -> None:
    """Nobody overwrites anybody, and no number is left out."""
    puts = [(store, elsewhere)[n % 2].put(text(note=str(n)), "key") for n in range(8)]
    assert sorted(record.version for record in await asyncio.gather(*puts)) == list(range(1, 9))


async def test_ten_versions_come_after_nine(store: PolicyStore) -> None:
    """Numbers are ordered as numbers, not as text."""
    for number in range(11):
        await store.put(text(note=str(number)), "key")
    assert (await store.get("support")).version == 11
    assert [record.version for record in await store.list("support")] == list(range(1, 12))


async def test_a_wrong_policy_is_not_kept(store: PolicyStore) -> None:
    """What is stored can be run."""
    with pytest.raises(Rejected, match="line 5: nobody knows a model 'huge'"):
        await store.put(text(model="huge"), "key")
    assert await store.list() == []


async def test_an_activation_reaches_another_process(store: PolicyStore, elsewhere: PolicyStore) -> None:
    """Activated here, served there; with who did it and what was before."""
    await store.put(text(note="1"), "key")
    await store.put(text(note="2"), "key")
    await store.activate("acme", "chat", "support", 1, "alice")
    assert running(store) == ("support", 1)
    await eventually(lambda: running(elsewhere) == ("support", 1))
    await store.activate("acme", "chat", "support", 2, "bob")
    await eventually(lambda: running(elsewhere) == ("support", 2))
    assignment = elsewhere.active(ACME, "chat").assignment
    assert assignment is not None
    assert [(a.version, a.author) for a in assignment.activations] == [(2, "bob"), (1, "alice")]


async def test_the_most_specific_assignment_applies(store: PolicyStore) -> None:
    """Tenant and feature before tenant, before feature, before everyone."""
    for name, tenant, feature in (("a", "*", "*"), ("b", "*", "x.y"), ("c", "acme", "*"), ("d", "acme", "x.y")):
        await store.put(text(name), "key")
        await store.activate(tenant, feature, name, 1, "key")
    found = [running(store, tenant, feature)[0] for tenant in (ACME, GLOBEX) for feature in ("x.y", "z", "")]
    assert found == ["d", "c", "c", "b", "a", "a"]


async def test_one_tenants_assignment_is_no_others(store: PolicyStore) -> None:
    """Not even a tenant's whose name begins alike."""
    await store.put(text(), "key")
    await store.activate("acme", "chat", "support", 1, "key")
    assert running(store, TenantId("acme-2"))[0] == "built-in"


async def test_a_new_process_starts_with_what_is_active(store: PolicyStore, bus: Bus) -> None:
    """A restart changes nothing."""
    await store.put(text(), "key")
    await store.activate("*", "*", "support", 1, "key")
    restarted = await opened(bus)
    async with restarted.watching():
        assert running(restarted) == ("support", 1)


async def test_version_0_goes_back_to_the_built_in_policy(store: PolicyStore) -> None:
    """An assignment can be undone without knowing what was before."""
    await store.put(text(), "key")
    await store.activate("acme", "*", "support", 1, "key")
    await store.activate("acme", "*", "built-in", 0, "key")
    assert running(store) == ("built-in", 0)


async def test_what_does_not_exist_is_not_activated(store: PolicyStore) -> None:
    """The running policy stays."""
    for name, version in (("support", 1), ("support", 0)):
        with pytest.raises(Missing):
            await store.activate("acme", "chat", name, version, "key")
    assert running(store) == ("built-in", 0)


async def test_an_activation_may_ask_that_nobody_came_before_it(store: PolicyStore, elsewhere: PolicyStore) -> None:
    """Compare-and-set on the assignment's revision."""
    await store.put(text(note="1"), "key")
    await store.put(text(note="2"), "key")
    seen = await store.activate("acme", "chat", "support", 1, "key", expected_revision=0)
    await elsewhere.activate("acme", "chat", "support", 2, "key", expected_revision=seen.revision)
    with pytest.raises(Conflict):
        await store.activate("acme", "chat", "built-in", 0, "key", expected_revision=seen.revision)
    await eventually(lambda: running(store) == ("support", 2))


async def test_activating_what_is_active_is_no_activation(store: PolicyStore) -> None:
    """A retry leaves the record as it is."""
    await store.put(text(), "key")
    once = await store.activate("acme", "chat", "support", 1, "alice")
    again = await store.activate("acme", "chat", "support", 1, "bob")
    assert (again.revision, again.assignment) == (once.revision, once.assignment)


async def test_the_record_of_activations_is_bounded(store: PolicyStore) -> None:
    """Whoever flips policies all day does not fill the bucket."""
    await store.put(text(), "key")
    for _ in range(MOST_REMEMBERED // 2 + 3):
        await store.activate("acme", "chat", "support", 1, "key")
        last = await store.activate("acme", "chat", "built-in", 0, "key")
    assert last.assignment is not None
    assert len(last.assignment.activations) == MOST_REMEMBERED


@pytest.mark.parametrize(
    "value", [b"", b"{", b"[]", b'{"tenant": "acme", "feature": "chat", "activations": []}', b"\xff" * 100]
)
async def test_an_assignment_that_cannot_be_read_leaves_the_running_policy(
    store: PolicyStore, elsewhere: PolicyStore, bus: Bus, value: bytes
) -> None:
    """The one before it goes on, and later ones are followed again."""
    await store.put(text(note="1"), "key")
    await store.put(text(note="2"), "key")
    await store.activate("acme", "chat", "support", 1, "key")
    await eventually(lambda: running(elsewhere) == ("support", 1))
    await (await bus.bucket(ASSIGNMENTS_BUCKET)).put("acme.chat", value)
    # Told on the same subscription, so when it has arrived the bad one has, too.
    await store.activate("acme", "other", "support", 2, "key")
    await eventually(lambda: running(elsewhere, feature="other") == ("support", 2))
    assert running(elsewhere) == ("support", 1)
    await store.activate("acme", "chat", "support", 2, "key")
    await eventually(lambda: running(elsewhere) == ("support", 2))


async def test_a_version_that_cannot_be_read_leaves_the_running_policy(
    store: PolicyStore, elsewhere: PolicyStore, bus: Bus
) -> None:
    """A damaged text is not half a policy."""
    await store.put(text(note="1"), "key")
    await store.activate("acme", "chat", "support", 1, "key")
    await store.put(text(note="2"), "key")
    await store.put(text("other"), "key")
    await eventually(lambda: running(elsewhere) == ("support", 1))
    await store.activate("acme", "chat", "support", 2, "key")
    await eventually(lambda: running(elsewhere) == ("support", 2))
    await (await bus.bucket(POLICIES_BUCKET)).put("policy.support.2", b"damaged")
    with pytest.raises(Rejected) as refused:
        await store.activate("acme", "third", "support", 2, "key")
    assert refused.value.reason == "POLICY_UNREADABLE"
    assert running(elsewhere) == ("support", 2)
    assert (await store.put(text(note="3"), "key")).version == 3
    assert [(r.name, r.version) for r in await store.list()] == [("other", 1), ("support", 1), ("support", 3)]


async def test_an_assignment_of_a_damaged_version_leaves_the_running_policy(store: PolicyStore, bus: Bus) -> None:
    """Whoever else activated it, it cannot run here."""
    await store.put(text(), "key")
    active = await store.activate("acme", "chat", "support", 1, "key")
    assert active.assignment is not None
    await (await bus.bucket(POLICIES_BUCKET)).put("policy.support.2", b"damaged")
    damaged = Activation(name="support", version=2, author="key", at=datetime.now(UTC))
    await (await bus.bucket(ASSIGNMENTS_BUCKET)).put(
        "acme.chat", active.assignment.then(damaged).model_dump_json().encode()
    )
    other = Assignment(tenant="acme", feature="other", activations=active.assignment.activations)
    await (await bus.bucket(ASSIGNMENTS_BUCKET)).put("acme.other", other.model_dump_json().encode())
    await eventually(lambda: running(store, feature="other") == ("support", 1))
    assert running(store) == ("support", 1)


async def test_a_process_that_lacks_a_model_keeps_its_policy(store: PolicyStore, bus: Bus) -> None:
    """During a rollout older processes go on as they were."""
    older = await opened(bus, frozenset({"fast"}))
    async with older.watching():
        await store.put(text(), "key")
        await store.put(text("newer", "large"), "key")
        await store.activate("acme", "chat", "support", 1, "key")
        await eventually(lambda: running(older) == ("support", 1))
        await store.activate("acme", "chat", "newer", 1, "key")
        await store.activate("acme", "other", "support", 1, "key")
        await eventually(lambda: running(older, feature="other") == ("support", 1))
        assert running(older) == ("support", 1)


async def test_a_process_started_later_runs_what_those_before_it_run(store: PolicyStore, bus: Bus) -> None:
    """Where the assigned version cannot run, the one before it does, however long the process has been up."""
    without_large = await opened(bus, frozenset({"fast"}))
    async with without_large.watching():
        await store.put(text(), "key")
        await store.put(text(model="large"), "key")
        await store.activate("acme", "chat", "support", 1, "key")
        await eventually(lambda: running(without_large) == ("support", 1))
        await store.activate("acme", "chat", "support", 2, "key")
        await eventually(lambda: without_large.active(ACME, "chat").failure is not None)
        restarted = await opened(bus, frozenset({"fast"}))
        async with restarted.watching():
            assert running(restarted) == running(without_large) == ("support", 1)


@pytest.mark.parametrize(
    ("activated", "runs"),
    [
        ([("small", 1), ("small", 2), ("big", 1), ("big", 2)], ("small", 2)),
        ([("small", 1), ("built-in", 0), ("big", 1)], ("built-in", 0)),
        ([("small", 2), ("gone", 1), ("small", 1), ("big", 1), ("gone", 1)], ("small", 1)),
        ([("big", 1)], ("everyones", 1)),
    ],
    ids=["the newest that can", "back to the built-in one", "not the damaged", "none: what applies without it"],
)
async def test_what_cannot_run_gives_way_to_what_was_active_there_before(
    store: PolicyStore, bus: Bus, activated: list[tuple[str, int]], runs: tuple[str, int]
) -> None:
    """The newest of that assignment's that can run, and no other's; what is assigned is told all the same."""
    for name, model in (("small", "fast"), ("big", "large"), ("gone", "fast"), ("everyones", "fast")):
        for note in ("1", "2"):
            await store.put(text(name, model, note), "key")
    await store.activate("*", "*", "everyones", 1, "key")
    await store.activate("acme", "other", "small", 2, "key")
    for name, version in activated:
        await store.activate("acme", "chat", name, version, "key")
    await (await bus.bucket(POLICIES_BUCKET)).put("policy.gone.1", b"damaged")
    started = await opened(bus, frozenset({"fast"}))
    async with started.watching():
        active = started.active(ACME, "chat")
        assert (active.version.name, active.version.version) == runs
        assert active.assignment == store.active(ACME, "chat").assignment
        assert active.revision == store.active(ACME, "chat").revision
        assert active.failure is not None


async def test_what_runs_goes_on_though_it_could_not_be_loaded_again(store: PolicyStore, bus: Bus) -> None:
    """A version in memory is whole, whatever became of its text, and newer than those before it."""
    without_large = await opened(bus, frozenset({"fast"}))
    async with without_large.watching():
        for note in ("1", "2"):
            await store.put(text(note=note), "key")
            await store.activate("acme", "chat", "support", int(note), "key")
        await eventually(lambda: running(without_large) == ("support", 2))
        await (await bus.bucket(POLICIES_BUCKET)).put("policy.support.2", b"damaged")
        await store.put(text("big", "large"), "key")
        await store.activate("acme", "chat", "big", 1, "key")
        await eventually(lambda: without_large.active(ACME, "chat").failure is not None)
        assert running(without_large) == ("support", 2)


async def test_a_version_that_could_not_run_runs_once_it_can(store: PolicyStore, bus: Bus) -> None:
    """Its model has got a price: activating it again is no activation, and yet it is what runs then."""
    await store.put(text(), "key")
    await store.put(text(model="large"), "key")
    await store.activate("acme", "chat", "support", 1, "key")
    await store.activate("acme", "chat", "support", 2, "key")
    priced = {"fast"}
    versions, assignments = await bus.bucket(POLICIES_BUCKET), await bus.bucket(ASSIGNMENTS_BUCKET)
    started = PolicyStore(versions, assignments, built_in=BUILT_IN, known_models=MODELS, priced=lambda: priced)
    async with started.watching():
        assert running(started) == ("support", 1)
        priced.add("large")
        await started.activate("acme", "chat", "support", 2, "key")
        assert running(started) == ("support", 2)
        assert started.active(ACME, "chat") == store.active(ACME, "chat")


async def test_the_log_tells_what_cannot_run_and_what_does(store: PolicyStore, bus: Bus) -> None:
    """Whoever reads it need not ask which one answers meanwhile."""
    await store.put(text(), "key")
    await store.put(text("newer", "large"), "key")
    await store.activate("acme", "chat", "support", 1, "key")
    await store.activate("acme", "chat", "newer", 1, "key")
    await store.activate("globex", "chat", "newer", 1, "key")
    with capture_logs() as logs:
        started = await opened(bus, frozenset({"fast"}))
        async with started.watching():
            pass
    told = [(log["key"], log["policy"], log["reason"], log["running"]) for log in logs if log["log_level"] == "error"]
    assert told == [
        ("acme.chat", "newer", "POLICY_INVALID", "support version 1"),
        ("globex.chat", "newer", "POLICY_INVALID", "what applies without this assignment"),
    ]
