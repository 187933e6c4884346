"""Every tool of sg3_utils that applies to a disk ends as on a good one; so do XFS's own."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest

from vscsi_emu.testing import GuestUnavailable, HbaProcess, UmlGuest

from .report import SECTIONS, Section, parse

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

# What must exit 0, each with something that only a right answer makes it say. $sg and $dev are the
# disk's nodes; what writes comes last.
TOOLS = {
    "inq": ("sg_inq $sg", "Virtual disk"),
    "vpd_all": ("sg_vpd --all $sg", "Block limits VPD page (SBC)"),
    "luns": ("sg_luns $sg", "Lun list length = 8"),
    "map": ("sg_map -i", "Virtual disk"),
    "map26": ("sg_map26 $sg", "/dev/sd"),
    "scan": ("sg_scan -i $sg", "Virtual disk"),
    "modes": ("sg_modes --all $sg", "Caching"),
    "wr_mode": ("sg_wr_mode --page=8 --contents=00,12,04 --mask=00,00,04 $sg", ""),
    "opcodes": ("sg_opcodes --rctd $sg", "Report supported operation codes"),
    "opcodes_tmf": ("sg_opcodes --tmf $sg", "Logical unit reset"),
    "logs_all": ("sg_logs --all $sg", ""),
    "readcap": ("sg_readcap --long $sg", "Logical block length=512 bytes"),
    "requests": ("sg_requests $sg", ""),
    "turs": ("sg_turs --num=10 $sg", ""),
    "senddiag": ("sg_senddiag --test $sg", ""),
    "start_stop": ("sh -c 'sg_start --stop $sg && sg_start --start $sg'", ""),
    "start_idle": ("sh -c 'sg_start --pc=2 $sg && sg_start --pc=1 $sg'", ""),
    "prevent": ("sh -c 'sg_prevent $sg && sg_prevent --allow $sg'", ""),
    "sync": ("sg_sync --16 $sg", ""),
    "read": ("sg_read if=$sg bs=512 count=64 dio=1", "64"),
    "dd": ("sg_dd if=$sg of=/tmp/copy bs=512 count=64", "64+0 records out"),
    "verify": ("sg_verify --count=64 $sg", ""),
    "verify_16": ("sg_verify --16 --count=64 $sg", ""),
    "raw": ("sg_raw --request=36 $sg 12 00 00 00 24 00", "SCSI Status: Good"),
    "unmap": ("sg_unmap --lba=0 --num=64 --force $sg", ""),
    "write_same": ("sg_write_same --10 --lba=0 --num=64 $sg", ""),
    "write_same_ndob": ("sg_write_same --16 --unmap --ndob --num=64 $sg", ""),
    "write_verify": ("sg_write_verify --lba=0 --num=1 --in=/tmp/block $sg", ""),
    "reset_device": ("sg_reset --device $sg", ""),
}

# How a good disk declines what it has no use for: the exit code is the tool's word for it
# (SG_LIB_CAT_ILLEGAL_REQ 5, SG_LIB_CAT_INVALID_OP 9).
DECLINED = {
    "rep_zones": ("sg_rep_zones $sg", (5, 9)),
    "referrals": ("sg_referrals $sg", (5, 9)),
    "stream_ctl": ("sg_stream_ctl --get $sg", (5, 9)),
    "read_attr": ("sg_read_attr $sg", (5, 9)),
}

FILE_SYSTEM = """
set -e
mkfs.xfs -q -f $dev
mount $dev /tmp/mnt
dd if=/dev/urandom of=/tmp/mnt/file bs=1M count=64 2>/dev/null
sum=$(sha256sum </tmp/mnt/file)
rm -f /tmp/mnt/gone; cp /tmp/mnt/file /tmp/mnt/gone; rm /tmp/mnt/gone; sync
fstrim -v /tmp/mnt
umount /tmp/mnt
xfs_repair -n $dev
mount $dev /tmp/mnt
[ "$sum" = "$(sha256sum </tmp/mnt/file)" ]
umount /tmp/mnt
"""

COMMANDS = {name: line for name, (line, _) in (TOOLS | DECLINED).items()}
SCRIPT = (
    SECTIONS
    + "sg=$(sg 0:0) dev=$(disk 0:0); export sg dev\n"
    + "head -c 512 /dev/urandom >/tmp/block\n"
    + "\n".join(f"section {name} sh -c {shlex.quote(line)}" for name, line in COMMANDS.items())
    + f"\nsection xfs sh -c {shlex.quote(FILE_SYSTEM)}\n"
)


@pytest.fixture(scope="module")
def ran() -> Iterator[dict[str, Section]]:
    with HbaProcess(["mem:512M"]) as hba:
        try:
            result = UmlGuest([hba.socket]).run(SCRIPT, 240)
        except GuestUnavailable as error:
            pytest.skip(str(error))
        yield parse(result.check().output)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_that_applies(ran: dict[str, Section], tool: str) -> None:
    assert TOOLS[tool][1] in ran[tool].check()


@pytest.mark.parametrize("tool", DECLINED)
def test_a_tool_that_does_not(ran: dict[str, Section], tool: str) -> None:
    assert ran[tool].exit_code in DECLINED[tool][1], ran[tool].output


def test_xfs(ran: dict[str, Section]) -> None:
    assert "bytes) trimmed" in ran["xfs"].check()
