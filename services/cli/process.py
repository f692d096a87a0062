"""One process: opens what its roles need, in order, and closes it in reverse. The composition root."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from services.cli.data_folder import ADMIN_KEY_FILE
from services.cli.settings import Settings
from services.contracts.failures import Rejected
from services.contracts.prices import PriceBook
from services.contracts.streams import BUCKETS, KEYS_BUCKET, PRICES_BUCKET, STREAMS
from services.inference import service as inference
from services.ingest import service as ingest
from services.ingest.blobs import open_blobs
from services.knowledge.embedder import Embedder
from services.knowledge.opening import vector_store
from services.knowledge.sentence_transformer import SentenceTransformerEmbedder
from services.knowledge.store import VectorStore
from services.metering import clickhouse
from services.metering import service as metering
from services.metering.budgets import PlanCaps
from services.metering.prices.store import PriceStore
from services.retrieval import service as retrieval
from services.runtime.bus import Bus, apply_streams, connected
from services.runtime.clients import connected_clients
from services.runtime.identity import KeyStore, is_key, new_key
from services.runtime.nats_server import embedded_nats_server
from services.runtime.outbox import Outbox, outbox
from services.runtime.process import announced, collect_garbage_less, exclusive, write_private
from services.runtime.rpc import RpcServer
from services.runtime.seen_through import until_all_seen_through
from services.runtime.stopping import Stopping
from services.runtime.telemetry import log

_LAST_WORDS = timedelta(seconds=2)
"""Longest time for what the end of the drain leaves to be told."""
ADMIN_SCOPES = frozenset({"SCOPE_ADMIN"})


class Role(StrEnum):
    """What a process can be."""

    INGEST = "ingest"
    RETRIEVAL = "retrieval"
    INFERENCE = "inference"
    METERING = "metering"


class Half(StrEnum):
    """Which half of a role that has both."""

    WORKER = "worker"
    API = "api"


ALL_ROLES = frozenset(Role)


@asynccontextmanager
async def running(settings: Settings, roles: frozenset[Role], only: Half | None) -> AsyncIterator[str]:
    """Runs `roles`; yields the address they are served on.

    Raises:
        Rejected: the settings do not fit the roles.
        Busy: something that is needed is away, in use or taken.
    """
    check_roles(settings, roles, only)
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with AsyncExitStack() as stack:
        bus = await _open_bus(settings, stack)
        if settings.bus.url is None:
            await apply_streams(bus, STREAMS, BUCKETS)
        keys = KeyStore(await bus.bucket(KEYS_BUCKET))
        await stack.enter_async_context(keys.watching())
        await _adopt_admin_key(settings, keys)
        server = RpcServer(settings.rpc, keys)
        address = server.listen()
        await _open_roles(settings, roles, only, bus, keys, server, stack)
        stack.push_async_callback(_see_through, server.stopping, settings.process.drain_timeout)
        await stack.enter_async_context(server.serving(settings.process.drain_timeout))
        if roles == ALL_ROLES:
            stack.enter_context(announced(settings.data_dir, address))
        collect_garbage_less()
        yield address
        log.info("stopping")


async def _see_through(stopping: Stopping, drain_timeout: timedelta) -> None:
    """Also what calls that were cut short at the end of the drain have used is told."""
    await until_all_seen_through(stopping.left_of(drain_timeout) + _LAST_WORDS)


def check_roles(settings: Settings, roles: frozenset[Role], only: Half | None = None) -> None:
    """Checks that `roles` have something to do, and that what they share is reachable for all of them.

    Raises:
        Rejected: only workers are to run and there are none, or an embedded part would have to be in two processes.
    """
    if only is Half.WORKER and roles.isdisjoint({Role.INGEST, Role.METERING}):
        raise Rejected("NO_WORKER", "only ingest and metering have a worker: run them, or leave out --only")
    if settings.bus.url is None and roles != ALL_ROLES:
        raise Rejected(
            "BUS_NOT_SHARED", "roles in several processes share a NATS server: set HEADWATER_BUS__URL, or run all"
        )
    sharing = {Role.INGEST, Role.RETRIEVAL}
    if settings.knowledge.store.qdrant_url is None and len(sharing & roles) == 1:
        raise Rejected(
            "VECTORS_NOT_SHARED",
            "the embedded vector store belongs to one process: set HEADWATER_KNOWLEDGE__STORE__QDRANT_URL, "
            "or run ingest and retrieval together",
        )
    if Role.INFERENCE in roles and Role.RETRIEVAL not in roles and settings.clients.retrieval_address is None:
        raise Rejected(
            "RETRIEVAL_UNKNOWN",
            "inference calls retrieval: set HEADWATER_CLIENTS__RETRIEVAL_ADDRESS, or run both together",
        )


async def _open_bus(settings: Settings, stack: AsyncExitStack) -> Bus:
    url = settings.bus.url
    if url is None:
        folder = settings.data_dir / "bus"
        stack.enter_context(exclusive(folder))
        url = await stack.enter_async_context(embedded_nats_server(folder, settings.bus))
    return await stack.enter_async_context(connected(url, settings.bus, "headwater"))


async def _adopt_admin_key(settings: Settings, keys: KeyStore) -> None:
    if settings.admin_key is not None:
        key = settings.admin_key.get_secret_value()
    elif settings.bus.url is None:
        key = _local_admin_key(settings.data_dir / ADMIN_KEY_FILE)
    else:
        return
    await keys.adopt(key, ADMIN_SCOPES, "the platform's own key")


def _local_admin_key(path: Path) -> str:
    """The key in `path`, which is made at the first start.

    Raises:
        Rejected: the file holds something else.
    """
    with contextlib.suppress(FileNotFoundError):
        key = path.read_text(errors="replace").strip()
        if not is_key(key):
            raise Rejected("ADMIN_KEY_FILE_INVALID", f"{path} holds no key: put it back, or delete it for a new one")
        return key
    key = new_key()
    write_private(path, key + "\n")
    return key


async def _open_roles(
    settings: Settings,
    roles: frozenset[Role],
    only: Half | None,
    bus: Bus,
    keys: KeyStore,
    server: RpcServer,
    stack: AsyncExitStack,
) -> None:
    """Opens what the roles stand on, then the roles. Metering opens before the others and so ends after them: they
    still tell it what they spent while they drain.
    """
    # Opened before all that tells usage, and so closed after it.
    usage = await stack.enter_async_context(outbox(bus, settings.data_dir / "outbox", settings.outbox))
    prices = PriceBook(settings.prices)
    # Metering prices again what the endpoints' own prices priced here: it must know them too.
    versions = PriceStore(
        await bus.bucket(PRICES_BUCKET), prices.with_own(inference.own_prices(settings.inference.models))
    )
    await stack.enter_async_context(versions.watching())
    worker, api = only is not Half.API, only is not Half.WORKER
    drafts = Role.INFERENCE in roles and settings.inference.local_stages
    embeds = (worker and Role.INGEST in roles) or (api and (Role.RETRIEVAL in roles or drafts))
    stores = (worker and Role.INGEST in roles) or (api and Role.RETRIEVAL in roles)
    # The model takes the longest to load, and it loads in a thread: metering is opened meanwhile.
    loading = asyncio.create_task(SentenceTransformerEmbedder.load(settings.knowledge.embedding)) if embeds else None
    try:
        if Role.METERING in roles:
            await _open_metering(settings, bus, keys, server, versions, stack, worker=worker, api=api)
        embedder = await loading if loading else None
    except BaseException:
        if loading:
            loading.cancel()
        raise
    if embedder:
        stack.push_async_callback(embedder.close)
    store = await _open_store(settings, embedder, stack) if stores and embedder else None
    if Role.INGEST in roles:
        blobs = open_blobs(_secret(settings.ingest.object_store_url), settings.data_dir / "documents")
        if worker and store and embedder:
            drain = settings.process.drain_timeout
            await stack.enter_async_context(
                ingest.working(
                    settings.ingest,
                    drain,
                    stopping=server.stopping,
                    bus=bus,
                    usage=usage,
                    blobs=blobs,
                    store=store,
                    embedder=embedder,
                    prices=prices,
                )
            )
        if api:
            await stack.enter_async_context(ingest.serving(settings.ingest, bus=bus, blobs=blobs, server=server))
    if api and Role.RETRIEVAL in roles and store and embedder:
        retrieval.serve(settings.retrieval, usage=usage, store=store, embedder=embedder, prices=prices, server=server)
    if api and Role.INFERENCE in roles:
        await _open_inference(settings, bus, usage, server, embedder if drafts else None, prices, stack)


async def _open_metering(
    settings: Settings,
    bus: Bus,
    keys: KeyStore,
    server: RpcServer,
    prices: PriceStore,
    stack: AsyncExitStack,
    *,
    worker: bool,
    api: bool,
) -> None:
    folder = settings.data_dir / "costs"
    if settings.metering.clickhouse_dsn is None:
        stack.enter_context(exclusive(folder))
    database = await stack.enter_async_context(clickhouse.connected(settings.metering, folder / "clickhouse"))
    await stack.enter_async_context(
        metering.running(
            settings.metering,
            clickhouse=database,
            bus=bus,
            keys=keys,
            server=server,
            plans=_plan_caps(settings),
            prices=prices,
            worker=worker,
            api=api,
        )
    )


def _plan_caps(settings: Settings) -> PlanCaps:
    admission = settings.inference.admission
    return PlanCaps(
        {name: plan.monthly_cap_usd for name, plan in admission.plans.items()},
        admission.default_plan,
        {name: plan.monthly_price_usd for name, plan in admission.plans.items()},
    )


async def _open_store(settings: Settings, embedder: Embedder, stack: AsyncExitStack) -> VectorStore:
    folder = settings.data_dir / "vectors"
    if settings.knowledge.store.qdrant_url is None:
        stack.enter_context(exclusive(folder))
    return await stack.enter_async_context(vector_store(settings.knowledge.store, folder / "collections", embedder))


async def _open_inference(
    settings: Settings,
    bus: Bus,
    usage: Outbox,
    server: RpcServer,
    embedder: Embedder | None,
    prices: PriceBook,
    stack: AsyncExitStack,
) -> None:
    address = settings.clients.retrieval_address
    certificate = settings.clients.ca_certificate if address else None
    clients = await stack.enter_async_context(connected_clients(address or server.listen_locally(), certificate))
    tell = partial(usage.tell, Role.INFERENCE.value)
    reach = inference.Reach(inference.retriever(clients), tell, bus, usage.check_room)
    await stack.enter_async_context(
        inference.running(settings.inference, reach, embedder=embedder, prices=prices, server=server)
    )


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()
