"""Faults to order: what goes wrong, with which commands, and when.

`vocabulary` declares the kinds, `installed` has them happen, `scsi_debug` reads what that driver
of Linux takes.
"""

from __future__ import annotations

from vscsi_emu.faults.vocabulary import KINDS, Fault, FaultError

__all__ = ["KINDS", "Fault", "FaultError"]
