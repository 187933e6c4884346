"""Every program of sg3_utils ends as on a good disk; so do XFS's own."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from vscsi_emu.testing import GuestUnavailable, HbaProcess, UmlGuest

from .report import SECTIONS, Section, parse

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

MIB = 1 << 20
KEPT_MIB, GONE_MIB = 32, 160

# Exit codes of sg3_utils: SG_LIB_CAT_MEDIUM_HARD, _ILLEGAL_REQ, _INVALID_OP, _MISCOMPARE.
MEDIUM_ERROR, ILLEGAL_REQUEST, INVALID_OPCODE, MISCOMPARE = 3, 5, 9, 14

# A command line that must exit 0, and something that only a right answer makes it say. $sg and
# $dev are the disk's nodes. They run in this order, on one disk, so what writes much comes last.
GOOD: tuple[tuple[str, str], ...] = (
    # What the disk is.
    ("sg_inq $sg", "Virtual disk"),
    ("sg_vpd --all $sg", "Block limits VPD page (SBC)"),
    ("sg_luns $sg", "Lun list length = 8"),
    ("sg_map -i", "Virtual disk"),
    ("sg_map26 $sg", "/dev/sd"),
    ("sg_scan -i $sg", "Virtual disk"),
    ("sginfo -a $sg", "Virtual disk"),
    ("sg_readcap --long $sg", "Logical block length=512 bytes"),
    ("scsi_readcap $sg", "Logical block length=512 bytes"),
    ("sg_opcodes --rctd $sg", "Report supported operation codes"),
    ("sg_opcodes --tmf $sg", "Logical unit reset"),
    ("sg_raw --request=36 $sg 12 00 00 00 24 00", "SCSI Status: Good"),
    # What it is told, and tells.
    ("sg_modes --all $sg", "Caching"),
    ("sg_wr_mode --page=8 --contents=00,12,04 --mask=00,00,04 $sg", ""),
    ("sg_logs --all $sg", "Total uncorrected errors = 0"),
    ("sg_logs --reset $sg", ""),
    ("scsi_temperature $sg", "Current temperature ="),
    ("sg_rtpg --decode $sg", "active/optimized"),
    ("sg_stpg --verbose --tp=1 --state=1 $sg && sg_rtpg --decode $sg", "active/non optimized"),
    ("sg_stpg --verbose --optimized $sg && sg_rtpg --decode $sg", "SET TARGET PORT GROUPS"),
    ("echo a name | sg_ident --set $sg && sg_ident --ascii $sg", "a name"),
    ('sg_ident --clear $sg && [ -z "$(sg_ident --ascii $sg)" ]', ""),
    ("sg_timestamp --seconds=1000000 $sg && sg_timestamp --srep $sg", "100000"),
    ("sg_persist --in --report-capabilities $sg", "Exclusive Access, all registrants: 1"),
    ("sg_bg_ctl --ctl=1 $sg && sg_bg_ctl --ctl=2 $sg", ""),
    ("sg_copy_results --params $sg", "Copy from block device to block device"),
    ("scsi_mandat $sg", "total number of bad errors: 0"),
    # Whether it is well.
    ("sg_requests $sg", ""),
    ("sg_turs --num=10 $sg", ""),
    ("scsi_ready $sg", "ready"),
    ("sg_senddiag --test $sg", ""),
    ("sg_senddiag --list $sg", "Supported diagnostic pages"),
    ("sg_senddiag --selftest=5 $sg", "returned GOOD status"),
    ("sg_logs --page=0x10 $sg", "completed without error"),
    ("sg_ses $sg", "disk device (not an enclosure)"),
    ("sg_reassign --grown $sg", "Elements in grown defect list: 0"),
    ("sg_start --stop $sg && sg_start --start $sg", ""),
    ("scsi_stop $sg && scsi_start $sg", ""),
    ("sg_start --pc=2 $sg && sg_start --pc=1 $sg", ""),
    ("sg_prevent $sg && sg_prevent --allow $sg", ""),
    ("sg_reset --device $sg && { sg_turs $sg; [ $? = 6 ]; } && sg_turs $sg", "Unit attention"),
    # Its buffers.
    ("sg_test_rwbuf --size=4096 $sg", "Success"),
    ("sg_rbuf --size=1m $sg", "Read 1 MiB"),
    (
        "sg_write_buffer --mode=echo --in=page $sg && sg_rbuf --echo --size=64k $sg",
        "Read 0 MiB (actual: 65536 bytes)",
    ),
    (
        "sg_write_buffer --mode=data --in=block $sg "
        "&& sg_raw --request=512 --outfile=back $sg 3c 02 00 00 00 00 00 02 00 00 "
        "&& cmp block back",
        "",
    ),
    ("sg_read_buffer --mode=desc $sg", ""),  # 1.46 asks for no bytes, whatever --length says
    # Reading and writing.
    ("sg_sync --16 $sg", ""),
    ("sg_seek --pre-fetch --num-blocks=64 $sg", ""),
    ("sg_read if=$sg bs=512 count=64 dio=1", "64"),
    ("sg_dd if=$sg of=copy bs=512 count=64", "64+0 records out"),
    ("sg_dd if=copy of=$sg bs=512 count=64 oflag=fua,dpo", "64+0 records out"),
    ("sgm_dd if=$sg of=copy bs=512 count=64", "64+0 records out"),
    ("sgp_dd if=$sg of=copy bs=512 count=64", "64+0 records out"),
    ("sg_verify --count=64 $sg", ""),
    ("sg_verify --16 --ndo=512 --count=1 --lba=99 --in=zeros $sg", ""),
    ("sg_write_verify --lba=0 --num=1 --in=block $sg", ""),
    ("sg_compare_and_write --lba=0 --in=block --inw=zeros $sg", ""),
    ("sg_write_x --normal --lba=0 --num=1 --in=block $sg", ""),
    ("sg_write_x --or --lba=0 --num=1 --in=block $sg", ""),
    ("sg_write_x --atomic=0 --lba=0 --num=8 --in=page $sg", ""),
    (
        "sg_xcopy if=$sg of=$sg bs=512 count=64 seek=128 "
        "&& sg_dd if=$sg of=back bs=512 skip=128 count=8 && cmp page back",
        "64 blocks",
    ),
    ("sg_write_x --same=1 --lba=0 --num=8 $sg", ""),
    ("sg_write_same --10 --lba=0 --num=64 $sg", ""),
    ("sg_write_same --16 --unmap --ndob --num=64 $sg", ""),
    (
        "sg_write_x --32 --normal --lba=256 --num=8 --in=page $sg "
        "&& sg_dd if=$sg of=back bs=512 skip=256 count=8 && cmp page back",
        "",
    ),
    ("sg_write_same --32 --ndob --lba=256 --num=8 $sg", ""),
    ("sg_unmap --lba=0 --num=64 --force $sg", ""),
    ("sg_get_lba_status --lba=0 $sg", "deallocated"),
    ("sg_write_long --lba=100 --wr_uncor $sg", ""),
    ("sg_write_same --lba=100 --num=1 --in=block $sg && sg_verify --lba=100 --count=1 $sg", ""),
    # All of the medium.
    (
        "sg_write_x --normal --lba=0 --num=1 --in=block $sg "
        "&& sg_sanitize --quick --overwrite --zero --wait $sg "
        "&& sg_verify --16 --ndo=512 --count=1 --lba=0 --in=zeros $sg",
        "",
    ),
    ("sg_sanitize --quick --crypto --wait $sg", ""),
    ("sg_sanitize --quick --block --wait $sg", ""),
    ("sg_sanitize --quick --fail --early $sg", ""),
    ("sg_format --format --quick --wait $sg", ""),
    # No command at all.
    ("sg_decode_sense 70 00 06 00 00 00 00 0a 00 00 00 00 29 00", "Unit Attention"),
    ("scsi_logging_level -g", "SCSI_LOG_HLQUEUE=0"),
)

NOT_RUN: Mapping[str, str] = MappingProxyType(
    {"rescan-scsi-bus.sh": "a script for hosts, of 8 s; Linux's own scan found the disks"}
)

_NOT_ZONED = "not a zoned block device"
_NOT_ATA = "no ATA device behind a translation"
_NO_ENCLOSURE = "not an enclosure"

# A command line that must not exit 0, how, and why a good disk declines that.
DECLINED: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "sg_compare_and_write --lba=1 --in=block --inw=zeros $sg": (MISCOMPARE, "other data"),
        "sg_write_long --lba=99 --wr_uncor $sg && sg_read if=$sg bs=512 skip=99 count=1": (
            MEDIUM_ERROR,
            "the block was marked",
        ),
        "sg_write_long --xfer_len=520 $sg": (ILLEGAL_REQUEST, "no block is longer than its data"),
        "sg_read_long $sg": (INVALID_OPCODE, "as above; READ LONG is obsolete"),
        "sg_reassign --address=1 $sg": (INVALID_OPCODE, "no spare blocks: storage has its own"),
        "sg_seek $sg": (INVALID_OPCODE, "SEEK is obsolete; --pre-fetch is above"),
        "sg_write_x --scattered=1 --lba=0,1 --num=1,1 --in=page $sg": (
            ILLEGAL_REQUEST,
            "WRITE SCATTERED is optional",
        ),
        "sg_write_x --stream=1 --lba=0 --num=1 --in=block $sg": (INVALID_OPCODE, "no streams"),
        "sg_stream_ctl --get $sg": (ILLEGAL_REQUEST, "no streams"),
        "sg_referrals $sg": (ILLEGAL_REQUEST, "no referrals"),
        "sg_rep_pip $sg": (ILLEGAL_REQUEST, "what unmapped blocks read as cannot be chosen"),
        "sg_get_elem_status $sg": (ILLEGAL_REQUEST, "no physical elements to depopulate"),
        "sg_read_attr $sg": (INVALID_OPCODE, "no medium auxiliary memory"),
        "sg_rmsn $sg": (INVALID_OPCODE, "a medium without a serial number"),
        "sg_read_block_limits $sg": (INVALID_OPCODE, "not a tape"),
        "sg_get_config $sg": (INVALID_OPCODE, "not an MMC drive"),
        "sg_rep_zones $sg": (INVALID_OPCODE, _NOT_ZONED),
        "sg_zone --all --open $sg": (INVALID_OPCODE, _NOT_ZONED),
        "sg_reset_wp --all $sg": (INVALID_OPCODE, _NOT_ZONED),
        "sg_safte $sg": (ILLEGAL_REQUEST, _NO_ENCLOSURE),
        "sg_ses_microcode $sg": (ILLEGAL_REQUEST, _NO_ENCLOSURE),
        "sg_emc_trespass -d $sg": (ILLEGAL_REQUEST, "not an EMC CLARiiON"),
        "sg_rdac $sg": (ILLEGAL_REQUEST, "not an RDAC array"),
        "sg_sat_identify $sg": (INVALID_OPCODE, _NOT_ATA),
        "sg_sat_phy_event $sg": (INVALID_OPCODE, _NOT_ATA),
        "sg_sat_read_gplog $sg": (INVALID_OPCODE, _NOT_ATA),
        "sg_sat_set_features --feature=2 $sg": (INVALID_OPCODE, _NOT_ATA),
        "scsi_satl $sg": (2, _NOT_ATA),
    }
)

FILE_SYSTEM = f"""
set -e
dmesg --clear
mkfs.xfs -q -f $xfs
mount $xfs mnt
dd if=/dev/urandom of=mnt/kept bs=1M count={KEPT_MIB} 2>/dev/null
sum=$(sha256sum <mnt/kept)
dd if=/dev/urandom of=mnt/gone bs=1M count={GONE_MIB} conv=fsync 2>/dev/null
rm mnt/gone
sync
fstrim -v mnt
umount mnt
xfs_repair -n $xfs
mount $xfs mnt
[ "$sum" = "$(sha256sum <mnt/kept)" ]
umount mnt
dmesg
"""


@dataclass(frozen=True)
class Ran:
    """What each command line did, and what the image of the file system takes on the host."""

    sections: Mapping[str, Section]
    allocated: int


LINES = [line for line, _ in GOOD] + list(DECLINED)
NAMES = {line: f"{number}.{line.split()[0]}" for number, line in enumerate(LINES)}
SCRIPT = (
    SECTIONS
    + "export sg=$(sg 0:0) dev=$(disk 0:0) xfs=$(disk 1:0)\n"
    + "head -c 512 /dev/urandom >block; head -c 512 /dev/zero >zeros\n"
    + "head -c 4096 /dev/urandom >page\n"
    + "\n".join(f"section {name} eval {shlex.quote(line)}" for line, name in NAMES.items())
    + f"\nsection xfs eval {shlex.quote(FILE_SYSTEM)}\n"
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    image = tmp_path_factory.mktemp("xfs") / "disk.img"
    with image.open("wb") as file:
        file.truncate(512 * MIB)
    with HbaProcess(["0:0=mem:64M,cdb-32=on", f"1:0={image}"]) as hba:
        try:
            result = UmlGuest([hba.socket]).run(SCRIPT, 240)
        except GuestUnavailable as error:
            pytest.skip(str(error))
    return Ran(parse(result.check().output), image.stat().st_blocks * 512)


@pytest.mark.parametrize(("line", "says"), GOOD)
def test_a_good_disk_does_it(ran: Ran, line: str, says: str) -> None:
    assert says in ran.sections[NAMES[line]].check()


@pytest.mark.parametrize("line", DECLINED)
def test_a_good_disk_declines_it(ran: Ran, line: str) -> None:
    done, (code, reason) = ran.sections[NAMES[line]], DECLINED[line]
    assert done.exit_code == code, f"{reason}, but:\n{done.output}"


def test_every_program_of_the_package_is_run() -> None:
    try:
        files = subprocess.run(
            ["dpkg-query", "--listfiles", "sg3-utils"], capture_output=True, text=True, check=True
        ).stdout.split()
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("sg3-utils is no Debian package here")
    programs = {Path(file).name for file in files if "/bin/" in file}
    assert programs - set(re.findall(r"[\w.-]+", " ".join(LINES))) == set(NOT_RUN)


def test_xfs(ran: Ran) -> None:
    output = ran.sections["xfs"].check()
    assert "bytes) trimmed" in output
    assert output.count("Ending clean mount") == 2, "no log was replayed"
    assert "orruption" not in output
    assert ran.allocated < (KEPT_MIB + GONE_MIB // 2) * MIB, "fstrim frees space in the image"
