"""What can be wrong with a device of the host."""

from __future__ import annotations


class HostError(Exception):
    """A device that is not there, or not to be had; one line that names it and the fix."""
