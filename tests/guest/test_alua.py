"""Linux's ALUA device handler, which User-Mode Linux lacks, takes a disk over to its other port.

dm-multipath has one path in each of two groups; when the first fails, the handler makes the other's
standby port active with SET TARGET PORT GROUPS before any I/O goes there.
"""

from __future__ import annotations

import pytest

from vscsi_emu.scsi.port_groups import AccessState
from vscsi_emu.testing import GuestUnavailable, QemuGuest

from .report import SECTIONS, parse
from .served import Served

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

BOOT_SECONDS = 240.0
GROUPS = (1, 2)
CONFIG = """
[[lun]]
id = "shared"
uri = "mem:64M"
[[hba]]
socket = "a.sock"
luns = {"0:0" = "shared"}
port-group = 1
[[hba]]
socket = "b.sock"
luns = {"0:0" = "shared"}
port-group = 2
"""

# Host n is HBA n. A line "array …" asks for access states; they are waited for.
SCRIPT = (
    SECTIONS
    + r"""
handlers() { cat /sys/bus/scsi/devices/*:0:0:0/dh_state; }
states() { cat /sys/bus/scsi/devices/*:0:0:0/access_state; }
written() { cat /sys/bus/scsi/devices/$1:0:0:0/block/*/stat | awk '{ print $7 }'; }
number() { cat /sys/bus/scsi/devices/$1:0:0:0/block/*/dev; }
reported() { sg_rtpg --decode /dev/sg1 | sed -n 's/.* state : 0x0\(.\).*/\1/p'; }
array() {
    echo "array $1 $2"
    until [ "$(reported | xargs)" = "$*" ]; do sleep 0.1; done
}
copy() {
    set -e
    dd if=/dev/urandom of=source bs=1M count=4 2>/dev/null
    dd if=source of=/dev/dm-0 bs=64k oflag=direct 2>/dev/null
    dd if=/dev/dm-0 of=back bs=64k count=64 iflag=direct 2>/dev/null
    cmp source back
    written 0
    written 1
}
array 0 2
section map dmsetup create disk --noudevsync --table "0 131072 multipath 0 1 alua \
    2 1 service-time 0 1 1 $(number 0) 1 service-time 0 1 1 $(number 1) 1"
section handlers handlers
section states states
section first copy
array 3 2
section second copy
section after states
section paths dmsetup status
section report sg_rtpg --decode /dev/sg1
"""
)


def test_the_handler_takes_over_when_a_path_fails() -> None:
    with Served(CONFIG) as served:
        (unit,) = served.service.units.values()
        guest = QemuGuest(
            served.sockets,
            programs=("dmsetup", "sg_rtpg"),
            modules=("scsi_dh_alua", "dm_multipath", "dm_service_time"),
            all_drivers=True,
        )
        try:
            running = guest.start(SCRIPT, BOOT_SECONDS)
        except GuestUnavailable as error:
            pytest.skip(str(error))
        with running:
            for line in running.lines():
                if line.startswith("array "):
                    states = [AccessState(int(state)) for state in line.split()[1:]]
                    served.call(unit.port_groups.change(dict(zip(GROUPS, states, strict=True))))
            sections = parse(running.wait().check().output)
    sections["map"].check()
    assert sections["handlers"].check().split() == ["alua", "alua"]
    assert sections["states"].check().split() == ["active/optimized", "standby"]
    first = [int(sectors) for sectors in sections["first"].check().split()]
    assert first == [8192, 0], "sectors written through each path"
    second = [int(sectors) for sectors in sections["second"].check().split()]
    assert second[1] == 8192, "all of it went the other way"
    assert sections["after"].check().split()[1] == "active/optimized"
    assert " F " in sections["paths"].check(), "the first path has failed"
    assert "SET TARGET PORT GROUPS" in sections["report"].check()
