"""All settings of a process, read from the environment: HEADWATER_<SECTION>__<NAME>."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from services.cli.data_folder import default_data_folder
from services.contracts.failures import Rejected
from services.contracts.prices import Price
from services.inference.settings import InferenceSettings
from services.ingest.settings import IngestSettings
from services.knowledge.settings import KnowledgeSettings
from services.metering.settings import MeteringSettings
from services.retrieval.settings import RetrievalSettings
from services.runtime.durations import FORMS, as_typed
from services.runtime.settings import (
    BusSettings,
    ClientSettings,
    OutboxSettings,
    ProcessSettings,
    RpcSettings,
    secret_like,
)


class Settings(BaseSettings):
    """What an operator may change."""

    model_config = SettingsConfigDict(env_prefix="HEADWATER_", env_nested_delimiter="__", extra="forbid", frozen=True)

    data_dir: Path = Field(
        default_factory=lambda: default_data_folder(os.environ), description="folder of everything that is embedded"
    )
    admin_key: (
        Annotated[
            SecretStr, secret_like(r"hw_[A-Za-z0-9]{12}_[A-Za-z0-9_-]{43}", "what `headwater key generate` prints")
        ]
        | None
    ) = Field(
        default=None,
        description="the admin key to accept, hw_…; unset makes one in the data folder when the bus is embedded",
    )
    prices: dict[str, Price] = Field(
        default_factory=dict,
        description='own prices in USD per million tokens, as JSON: {"openai/mine": {"input": "1.5", "output": "6"}}',
    )
    process: ProcessSettings = Field(default_factory=ProcessSettings)
    bus: BusSettings = Field(default_factory=BusSettings)
    outbox: OutboxSettings = Field(default_factory=OutboxSettings)
    rpc: RpcSettings = Field(default_factory=RpcSettings)
    clients: ClientSettings = Field(default_factory=ClientSettings)
    knowledge: KnowledgeSettings = Field(default_factory=KnowledgeSettings)
    ingest: IngestSettings = Field(default_factory=IngestSettings)
    retrieval: RetrievalSettings = Field(default_factory=RetrievalSettings)
    inference: InferenceSettings = Field(default_factory=InferenceSettings)
    metering: MeteringSettings = Field(default_factory=MeteringSettings)

    @field_validator("data_dir", mode="before")
    @classmethod
    def _named(cls, folder: object) -> object:
        if folder == "":
            # pathlib would read the folder that the process happens to run in.
            raise ValueError("is empty: name a folder, or unset it for the usual one")
        return folder


@dataclass(frozen=True)
class Shown:
    """One setting as it is printed."""

    variable: str
    value: str
    description: str
    changed: bool
    """Differs from the default."""


_USER_INFO = re.compile(r"//[^/@]+@")
_QUERY = re.compile(r"(://[^?\s]*)\?\S+")
"""A URL may carry a password or a token, here or there."""
_OF_TESTS = frozenset({"HEADWATER_TEST_QDRANT_URL"})


def load_settings() -> Settings:
    """The settings in the environment.

    Raises:
        Rejected: one is wrong, or names something that does not exist; the sentence says which.
    """
    # Imported here: it imports what runs a server only for a command that needs it.
    from services.cli.main import variables

    known = {_variable((name,)) for name in Settings.model_fields} | variables() | _OF_TESTS
    for variable in os.environ:
        if variable.startswith("HEADWATER_") and variable.split("__")[0] not in known:
            raise Rejected("SETTING_UNKNOWN", f"there is no setting {variable}; `headwater check` lists them")
    try:
        return Settings()
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        told = "; ".join(f"{_variable(problem['loc'])}: {_told(problem)}" for problem in problems)
        raise Rejected("SETTINGS_INVALID", told) from error
    except SettingsError as error:
        raise Rejected("SETTINGS_INVALID", _not_json()) from error


def _told(problem: Mapping[str, Any]) -> str:
    """What is wrong, in words: nobody reads a pattern, but its field's description says what is meant."""
    if problem["type"].startswith("time_delta"):
        return f"is not a duration: write {FORMS}"
    if problem["type"] != "string_pattern_mismatch":
        return str(problem["msg"]).removeprefix("Value error, ")
    section: type[BaseModel] = Settings
    description: str | None = None
    for name in problem["loc"]:
        # Names that are no fields are keys of a mapping or places in a list.
        if field := section.model_fields.get(str(name)):
            section, description = _section_in(field.annotation) or section, field.description
    return f"does not fit what it is: {description}"


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The settings that a field holds, itself or in a mapping or a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _section_in(inner))), None)


def _not_json() -> str:
    """The variables that were meant as JSON and are none, with the place of the mistake; never their text."""
    told = []
    whole = {f"HEADWATER_{name.upper()}" for name in Settings.model_fields if name not in {"data_dir", "admin_key"}}
    for variable, value in os.environ.items():
        if variable.upper() in whole or (variable.startswith("HEADWATER_") and value.lstrip()[:1] in {"{", "["}):
            try:
                json.loads(value)
            except json.JSONDecodeError as error:
                told.append(f"{variable}: no JSON: {error.msg} at character {error.pos + 1}")
    return "; ".join(told)


def flattened(settings: Settings) -> list[Shown]:
    """All settings by variable, secrets hidden."""
    return list(_flattened(settings, ()))


def _flattened(section: BaseModel, path: tuple[str, ...]) -> Iterator[Shown]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        where = (*path, name)
        if isinstance(value, BaseModel):
            yield from _flattened(value, where)
        else:
            changed = value != field.get_default(call_default_factory=True)
            shown = _QUERY.sub(r"\1?***", _USER_INFO.sub("//***@", _as_set(value)))
            yield Shown(_variable(where), shown, field.description or "", changed)


def _as_set(value: object) -> str:
    """As it would be written in the environment, with stars for secrets."""
    if value is None:
        return ""
    if isinstance(value, dict):
        plain = {key: v.model_dump(mode="json", exclude_unset=True) for key, v in value.items()}
        return json.dumps(plain)
    return as_typed(value) if isinstance(value, timedelta) else str(value)


def _variable(path: tuple[str | int, ...]) -> str:
    return "HEADWATER_" + "__".join(str(part).upper() for part in path)
