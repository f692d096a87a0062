"""Settings: mistakes are found before anything starts, and secrets are never shown."""

import json
import re
import subprocess
import sys

import pytest

from services.cli.errors import Exit
from tests.cli.conftest import Headwater

SECRET = "hunter2hunter2"


def check(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs `headwater check` with these settings and no others."""
    return subprocess.run(
        (sys.executable, "-m", "services.cli.entry", "check", *arguments),
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HEADWATER_BSU__URL", "nats://h:4222"),
        ("HEADWATER_BUS__URLL", "nats://h:4222"),
        ("HEADWATER_BUS__URL", "garbage"),
        ("HEADWATER_BUS__CREDENTIALS_FILE", "/nonexistent"),
        ("HEADWATER_RPC__ADDRESS", "7443"),
        ("HEADWATER_RPC__ADDRESS", "127.0.0.1:65536"),
        ("HEADWATER_INFERENCE__MODELS", '{"a":'),
        ("HEADWATER_INFERENCE", "no JSON at all"),
        ("HEADWATER_RPC__TLS_CERTIFICATE", __file__),
        ("HEADWATER_ADMIN_KEY", "bad"),
        ("HEADWATER_KNOWLEDGE__STORE__QDRANT_URL", "garbage"),
        ("HEADWATER_METERING__CLICKHOUSE_DSN", "garbage"),
        ("HEADWATER_INGEST__OBJECT_STORE_URL", "zzz://bucket"),
        ("HEADWATER_PRICES", '{"openai/x": {"input": "-1"}}'),
        ("HEADWATER_INFERENCE__EXTRACT_1__THRESHOLD", "1.5"),
        ("HEADWATER_PUT_CONCURRENCY", "8"),
        ("HEADWATER_DATA_DIR", ""),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(variable: str, value: str) -> None:
    """The exit code says the input is wrong and the line names the setting."""
    done = check({variable: value})
    assert done.returncode == 6
    assert len(done.stderr.strip().splitlines()) == 1
    assert variable.rsplit("__", 1)[0] in done.stderr


def test_variables_of_commands_are_no_settings_and_no_mistakes() -> None:
    """What the help of a command advertises may stay in the environment of a server."""
    command = (sys.executable, "-m", "services.cli.entry", "put", "--help")
    helped = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    advertised = set(re.findall(r"HEADWATER_\w+", helped.stdout))
    assert {"HEADWATER_CONCURRENCY", "HEADWATER_TIMEOUT", "HEADWATER_KEY"} <= advertised
    assert check(dict.fromkeys(advertised, "1")).returncode == 0


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("HEADWATER_RPC__ADDRESS", "7443", "host:port to listen on"),
        ("HEADWATER_BUS__URL", "garbage", "nats://host:4222"),
        ("HEADWATER_INGEST__STRAGGLER_AGE", "soon", "write 500ms, 30s, 5m, 2h or 7d"),
        (
            "HEADWATER_INFERENCE__MODELS",
            '{"large": {"deployments": [{"name": "A", "endpoint": {"base_url": "x", "model": "m"}}]}}',
            "lower-case letters, digits, . _ and -",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_words(variable: str, value: str, words: str) -> None:
    """A pattern is for programs."""
    done = check({variable: value})
    assert words in done.stderr
    assert "^" not in done.stderr


def test_durations_are_typed_as_on_the_command_line_and_printed_likewise() -> None:
    """Also in JSON, and in ISO 8601 as well."""
    endpoint = {"base_url": "http://h/v1", "model": "m", "total_timeout": "90s"}
    models = {"large": {"deployments": [{"name": "only", "endpoint": endpoint}]}}
    typed = {"INGEST__STRAGGLER_AGE": "6s", "RPC__MAX_DEADLINE": "PT5M", "INFERENCE__MODELS": json.dumps(models)}
    shown = json.loads(check({f"HEADWATER_{name}": value for name, value in typed.items()}, "--json").stdout)
    assert (shown["HEADWATER_INGEST__STRAGGLER_AGE"], shown["HEADWATER_RPC__MAX_DEADLINE"]) == ("6s", "5m")
    assert json.loads(shown["HEADWATER_INFERENCE__MODELS"]) == models


ENDPOINT = {
    "base_url": f"http://u:{SECRET}@h/v1",
    "model": "m",
    "api_key": SECRET,
    "headers": {"x-key": SECRET},
    "query": {"key": SECRET},
}
MODELS = json.dumps({"large": {"deployments": [{"name": "only", "endpoint": ENDPOINT}]}})


def test_no_secret_is_shown() -> None:
    """Neither secrets nor what a URL may carry of them."""
    done = check(
        {
            "HEADWATER_BUS__URL": f"nats://{SECRET}@h:4222",
            "HEADWATER_BUS__TOKEN": SECRET,
            "HEADWATER_KNOWLEDGE__STORE__QDRANT_URL": f"http://h:6333?key={SECRET}",
            "HEADWATER_KNOWLEDGE__STORE__QDRANT_API_KEY": SECRET,
            "HEADWATER_METERING__CLICKHOUSE_DSN": f"clickhouse://u:{SECRET}@h:8123",
            "HEADWATER_INFERENCE__MODELS": MODELS,
        },
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert "nats://***@h:4222" in done.stdout
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(("roles", "expected"), [("retrieval", "HEADWATER_BUS__URL"), ("nonsense", "there is no role")])
def test_roles_that_cannot_run_like_this_are_told_why(roles: str, expected: str) -> None:
    """What would fail at start fails offline."""
    done = check({}, roles)
    assert done.returncode != 0
    assert expected in done.stderr


def test_one_stage_of_the_cascade_can_be_changed_alone() -> None:
    """Setting one field keeps the defaults of the others."""
    done = check({"HEADWATER_INFERENCE__EXTRACT_1__THRESHOLD": "0.9"}, "--json")
    assert '"HEADWATER_INFERENCE__EXTRACT_1__THRESHOLD": "0.9"' in done.stdout
    assert '"HEADWATER_INFERENCE__EXTRACT_1__PASSAGES": "5"' in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "inference", "retrieval", "--only", "worker"), "only ingest and metering have a worker"),
        (("streams", "apply"), "set HEADWATER_BUS__URL"),
    ],
)
async def test_a_command_that_its_settings_leave_nothing_to_do_is_refused(
    headwater: Headwater, arguments: tuple[str, ...], words: str
) -> None:
    """It is no server that is away: one line says what to set."""
    ended = await headwater(*arguments)
    assert (ended.code, ended.err.count("\n")) == (Exit.REJECTED, 1)
    assert words in ended.err
