"""Traces in files that Wireshark dissects as SCSI: pcapng, with each command as iSCSI PDUs.

Command, data and response are the PDUs of RFC 7143 in TCP over IPv4: Wireshark needs neither
plugins nor settings to follow a command from its CDB to its sense data.
"""

from __future__ import annotations

from vscsi_emu.capture.reader import CaptureError, read
from vscsi_emu.capture.writer import CaptureWriter

__all__ = ["CaptureError", "CaptureWriter", "read"]
