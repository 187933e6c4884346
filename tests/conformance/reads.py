"""Reads that are started and used without a notification being waited for."""

import time
from collections.abc import Callable

from tests.conformance import cdb
from tests.conformance.attach import Guest
from vscsi_emu.driver.request import Request, Result
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, InFlight
from vscsi_emu.virtio.scsi import encode_lun

DEADLINE = 5.0


def within(condition: Callable[[], bool], seconds: float = DEADLINE) -> bool:
    """Whether `condition` comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.001)
    return condition()


def add_read(guest: Guest) -> InFlight[Result]:
    """A READ of 0:0 in the ring, not yet published."""
    tag = guest.device.next_tag()
    request = Request(encode_lun(0, 0), cdb.read_10(0, 1), tag, data_in_length=512)
    return guest.device.submit_request(request, publish=False)


def used_idx(guest: Guest) -> int:
    """What the device says it has used on the first request queue."""
    ring = guest.device.queues[REQUEST_QUEUE].ring
    return guest.memory.load_u16_acquire(ring.layout.used_idx)


def run_unheard(guest: Guest, count: int) -> None:
    """Lets the device use `count` more reads, without waiting for its notifications."""
    start = used_idx(guest)
    for _ in range(count):
        add_read(guest)
    guest.device.publish(REQUEST_QUEUE)
    assert within(lambda: used_idx(guest) == (start + count) & 0xFFFF), "not all were used"
