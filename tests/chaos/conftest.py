"""The chaos tests that harm nothing use the same platform as the system tests."""

from tests.system.conftest import platform

__all__ = ["platform"]
