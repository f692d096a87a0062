"""What an operator may change about retrieval."""

from pydantic import Field

from services.runtime.settings import Section


class RetrievalSettings(Section):
    """Questions in."""

    default_limit: int = Field(default=10, ge=1, le=100, description="passages returned when the caller names no limit")
