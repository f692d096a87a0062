"""What an operator may change about metering."""

from datetime import timedelta
from decimal import Decimal
from typing import Annotated

from pydantic import Field, SecretStr

from services.runtime.settings import Section, secret_like

MIB = 1024**2


class MeteringSettings(Section):
    """Where costs are kept and how they get there."""

    clickhouse_dsn: (
        Annotated[
            SecretStr,
            secret_like(r"(clickhouse|clickhouses|http|https|chdb)://\S+", "clickhouse://host:8123 or https://host"),
        ]
        | None
    ) = Field(
        default=None,
        description="clickhouse://user:password@host:8123 or https://…; chdb:///folder or unset (a folder under the "
        "data folder) runs the engine in this process",
    )
    embedded_memory_bytes: int = Field(
        default=1024 * MIB,
        ge=256 * MIB,
        description="what the embedded engine may allocate; a server has its own limit",
    )
    connect_timeout: timedelta = Field(
        default=timedelta(seconds=10), description="longest wait for a ClickHouse server"
    )
    statement_timeout: timedelta = Field(
        default=timedelta(seconds=60), description="longest run of one of our own statements: inserts, rollups, reports"
    )
    batch_rows: int = Field(default=20_000, ge=1, le=100_000, description="most usage events stored by one insert")
    batch_linger: timedelta = Field(
        default=timedelta(milliseconds=500), description="how long a batch waits to fill up before it is stored"
    )
    ack_wait: timedelta = Field(
        default=timedelta(seconds=20),
        description="after this long without a word a usage event is delivered again, as after a crash; "
        "storing it twice is harmless",
    )
    rollup_interval: timedelta = Field(
        default=timedelta(seconds=2), description="shortest time between two rollups; bounds how late costs show"
    )
    rollup_overlap: timedelta = Field(
        default=timedelta(seconds=60),
        description="how far behind the newest usage a rollup looks again: more than clocks of sinks may differ",
    )
    audit_interval: timedelta = Field(
        default=timedelta(minutes=5),
        ge=timedelta(milliseconds=10),
        description="how often the usage that came since is audited: that all of it is in the cost tables",
    )
    audit_full_interval: timedelta = Field(
        default=timedelta(days=1), description="how often all usage that the stream still has is audited again"
    )
    audit_time_limit: timedelta = Field(
        default=timedelta(minutes=1),
        ge=timedelta(seconds=1),
        description="after this long an audit takes a breath, and the next one goes on where it was",
    )
    audit_late_after: timedelta = Field(
        default=timedelta(minutes=5), description="usage that waits longer to be stored raises an alert"
    )
    alert_interval: timedelta = Field(
        default=timedelta(minutes=1), ge=timedelta(milliseconds=10), description="time between two looks for alerts"
    )
    spike_floor_usd: Decimal = Field(
        default=Decimal(1), gt=0, description="a cost spike is at least so many dollars above what was expected"
    )
    drift_percent: Decimal = Field(
        default=Decimal(15), gt=0, description="a week that costs more than so much more or less than the one before"
    )
    drift_floor_usd: Decimal = Field(
        default=Decimal(10), gt=0, description="a cost drift is at least so many dollars a week"
    )
    webhook_timeout: timedelta = Field(
        default=timedelta(seconds=10),
        gt=timedelta(0),
        le=timedelta(seconds=20),
        description="longest wait for a webhook's answer, its name's resolution included",
    )
    webhook_private_networks: bool = Field(
        default=False,
        description="webhooks may be on private, link-local and loopback addresses, and on this machine without TLS",
    )
    sql_timeout: timedelta = Field(
        default=timedelta(seconds=30), ge=timedelta(seconds=1), description="longest run of an analyst's statement"
    )
    sql_memory_bytes: int = Field(
        default=512 * MIB, ge=16 * MIB, description="what one analyst's statement may allocate"
    )
    sql_result_bytes: int = Field(
        default=3 * MIB, ge=1024, description="largest result of an analyst's statement; below gRPC's 4 MiB a message"
    )
    sql_concurrency: int = Field(default=2, ge=1, le=64, description="analysts' statements that run at the same time")
    export_bytes: int = Field(
        default=256 * MIB, ge=MIB, description="what one export may hold in memory; one runs at a time in a process"
    )
