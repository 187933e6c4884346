"""Real guests and a server for tests: User-Mode Linux and QEMU, each running a script."""

from .errors import GuestError, GuestTimeout, GuestUnavailable, ServerError
from .guest import GuestResult, GuestRun, LinuxGuest
from .qemu import QemuGuest
from .uml import UmlGuest

__all__ = [
    "GuestError",
    "GuestResult",
    "GuestRun",
    "GuestTimeout",
    "GuestUnavailable",
    "LinuxGuest",
    "QemuGuest",
    "ServerError",
    "UmlGuest",
]
