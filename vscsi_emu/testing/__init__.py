"""Real guests and a server for tests: User-Mode Linux and QEMU, each running a script."""

from .errors import GuestError, GuestTimeout, GuestUnavailable, ServerError
from .guest import GuestResult, GuestRun, LinuxGuest
from .hba import HbaProcess
from .qemu import QemuGuest
from .uml import UmlGuest

__all__ = [
    "GuestError",
    "GuestResult",
    "GuestRun",
    "GuestTimeout",
    "GuestUnavailable",
    "HbaProcess",
    "LinuxGuest",
    "QemuGuest",
    "ServerError",
    "UmlGuest",
]
