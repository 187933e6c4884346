"""The fixtures with real kernels."""

from __future__ import annotations

from typing import cast

import pytest

from vscsi_emu.testing import Lab
from vscsi_emu.testing.lab import Kind

pytestmark = pytest.mark.guest

SCRIPT = """
set -eu
dev=$(disk 3:1)
echo $(blockdev --getss $dev) $(blockdev --getsize64 $dev)
cat /sys/class/scsi_host/host0/cmd_per_lun
echo written | dd of=$dev bs=4096 conv=sync oflag=direct 2>/dev/null
"""


def test_a_kernel_uses_a_labs_disks_and_our_driver_does_after_it(kind: str) -> None:
    with Lab("mem:1M", queues=2) as lab:
        disk = lab.scsi_disk("8M", at="3:1", block_size=4096)
        guest = lab.linux_guest(cast(Kind, kind))
        result = guest.run(SCRIPT, timeout=90).check()
        assert result.output.split() == ["4096", str(8 << 20), "128"]
        assert "session.disconnected" in lab.report()
        found = lab.builtin_guest().disks[disk.address]
        assert found.read(0, 1).startswith(b"written\n")
