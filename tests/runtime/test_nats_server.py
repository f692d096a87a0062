"""The embedded nats-server: it starts wherever its folder is, or says why it does not."""

import os
from pathlib import Path

import nats
import pytest

from services.contracts.failures import Busy
from services.runtime.nats_server import embedded_nats_server
from services.runtime.settings import BusSettings


@pytest.mark.parametrize(
    "name", ["jörg", "日本 語", 'a "quoted" \\ name', "# not a comment", os.fsdecode(b"latin-1 \xf6")]
)
async def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    """Streams are kept in it."""
    folder = tmp_path / name / "bus"
    async with embedded_nats_server(folder, BusSettings()) as url:
        client = await nats.connect(url)
        await client.jetstream().add_stream(name="S", subjects=["s"])
        await client.close()
    assert (folder / "jetstream").is_dir()


async def test_a_server_that_cannot_read_its_configuration_is_quoted(tmp_path: Path) -> None:
    """It has no log yet: the failure says what it says, not where a log would be."""
    settings = BusSettings.model_construct(sync_interval="now and then")
    with pytest.raises(Busy, match="did not start: nats-server: Parse error on line") as raised:
        async with embedded_nats_server(tmp_path, settings):
            pass
    assert raised.value.reason == "NATS_SERVER_FAILED"
    assert not (tmp_path / "nats.log").exists()
