"""What an operator may change about metering."""

from datetime import timedelta
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
    batch_rows: int = Field(default=5000, ge=1, le=100_000, description="most usage events stored by one insert")
    batch_linger: timedelta = Field(
        default=timedelta(milliseconds=200), description="how long a batch waits to fill up before it is stored"
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
