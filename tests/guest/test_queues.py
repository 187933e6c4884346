"""Many request queues."""

from __future__ import annotations

import pytest

from vscsi_emu.testing import GuestUnavailable, HbaProcess, QemuGuest, UmlGuest

pytestmark = pytest.mark.guest

QUEUES = 128
COPY = """
set -e
dev=$(disk 0:0)
ls -d /sys/block/${dev##*/}/mq/* | wc -l
dd if=/dev/urandom of=source bs=1M count=8 2>/dev/null
dd if=source of=$dev bs=64k oflag=direct 2>/dev/null
dd if=$dev of=back bs=64k count=128 iflag=direct 2>/dev/null
cmp source back
"""


def test_qemu_sets_up_128_request_queues() -> None:
    # Linux makes as many queues as there may ever be processors.
    guest_arguments = ["-smp", f"2,maxcpus={QUEUES}"]
    with HbaProcess(["mem:64M"], queues=QUEUES) as hba:
        guest = QemuGuest(
            [hba.socket], properties=f"num_queues={QUEUES}", arguments=guest_arguments
        )
        try:
            guest.require()
        except GuestUnavailable as error:
            pytest.skip(str(error))
        assert guest.run(COPY, 120).check().output.split() == [str(QUEUES)]


def test_uml_takes_what_it_wants_of_128_queues() -> None:
    with HbaProcess(["mem:64M"], queues=QUEUES) as hba:
        guest = UmlGuest([hba.socket])
        try:
            guest.require()
        except GuestUnavailable as error:
            pytest.skip(str(error))
        assert guest.run(COPY, 60).check().output.split() == ["1"]
