"""The conformance suite's server, and its checks after each test."""

from tests.conformance.conftest import running_server, server

__all__ = ["running_server", "server"]
