"""Rings that no driver may make, and what is left of the device afterwards."""

import struct
import time
from collections.abc import Callable

from tests.conformance import cdb
from tests.conformance.differential.machine import RAM_MIB, Machine
from tests.conformance.differential.registers import Observations
from vscsi_emu.driver.request import RESPONSE_FIXED, Request
from vscsi_emu.driver.virtio_scsi import KNOWN, REQUEST_QUEUE, Options, VirtioScsi
from vscsi_emu.driver.vring import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESCRIPTOR,
    SplitRing,
)
from vscsi_emu.virtio.features import Feature, Status
from vscsi_emu.virtio.mmio_registers import InterruptBit, Register
from vscsi_emu.virtio.scsi import encode_lun

_PATIENCE = 0.3
"""Seconds given to a device that may never answer."""
_REQUEST_AT = 0x8_0000
"""Below the heap, where nothing else is."""
_RESPONSE_AT = _REQUEST_AT + 0x400
_OUTSIDE = RAM_MIB << 20

Descriptor = tuple[int, int, int, int]


def malformed(machine: Machine) -> Observations:
    """Chains written by hand into the first request queue."""
    for name, write in _CHAINS.items():
        driver = machine.driver(Options(indirect_from=None))
        ring, memory = driver.queues[REQUEST_QUEUE].ring, driver.bus.memory
        used = ring.layout.used_idx
        write(driver, ring)
        driver.bus.notify(REQUEST_QUEUE)
        deadline = time.monotonic() + _PATIENCE
        while not memory.load_u16_acquire(used) and time.monotonic() < deadline:
            if machine.read(Register.STATUS) & Status.NEEDS_RESET:
                break
        yield name, _condition(machine, driver)


def unanswerable_events(machine: Machine) -> Observations:
    """Event buffers too small for an event do no harm before there is one."""
    driver = machine.driver(Options(event_buffers=0))
    driver.queues[1].add([], [4])
    driver.publish(1)
    result = driver.execute(0, 0, cdb.inquiry(36), data_in_length=36)
    yield "request_after", f"response {result.response}, status {result.status:02x}h"


def queue_reset(machine: Machine) -> Observations:
    """VIRTIO_F_RING_RESET, where it is offered (2.6.1)."""
    if not machine.modern:
        return
    driver = machine.driver(Options(features=KNOWN | Feature.RING_RESET))
    yield "negotiated", str(Feature.RING_RESET in driver.features)
    machine.write(Register.QUEUE_SEL, REQUEST_QUEUE)
    machine.write(Register.QUEUE_RESET, 1)
    deadline = time.monotonic() + _PATIENCE
    while machine.read(Register.QUEUE_RESET) and time.monotonic() < deadline:
        pass
    yield "queue_reset", str(machine.read(Register.QUEUE_RESET))
    yield "queue_ready", str(machine.read(Register.QUEUE_READY))


def _condition(machine: Machine, driver: VirtioScsi) -> str:
    ring = driver.queues[REQUEST_QUEUE].ring
    status = machine.read(Register.STATUS)
    used = driver.bus.memory.load_u16_acquire(ring.layout.used_idx)
    interrupts = InterruptBit(machine.read(Register.INTERRUPT_STATUS))
    words = [f"{used} used"]
    if status & Status.NEEDS_RESET:
        words.append("needs reset")
    if InterruptBit.CONFIG_CHANGE in interrupts:
        words.append("configuration interrupt")
    if used:
        words.append(_response(driver))
    return ", ".join(words)


def _response(driver: VirtioScsi) -> str:
    """The response at the place that every chain here has for it."""
    raw = driver.bus.memory.read(_RESPONSE_AT, RESPONSE_FIXED)
    return f"response {raw[11]}" if raw[11] != 0xEE else "no response"


# ── Chains. Request header and response header have their place in memory. ─────────────────────


def _offer(
    driver: VirtioScsi,
    ring: SplitRing,
    *descriptors: Descriptor,
    head: int = 0,
    available: int = 1,
) -> None:
    """Writes a request and a descriptor table, and offers `head`."""
    memory = driver.bus.memory
    request = Request(encode_lun(0, 0), cdb.test_unit_ready(), 1)
    memory.write(_REQUEST_AT, request.pack_header(driver.config.cdb_size))
    memory.write(_RESPONSE_AT, b"\xee" * 512)
    for index, descriptor in enumerate(descriptors):
        memory.write(ring.layout.descriptor(index), DESCRIPTOR.pack(*descriptor))
    memory.write(ring.layout.avail_entry(0), struct.pack("<H", head))
    memory.store_u16_release(ring.layout.avail_idx, available)


def _header(driver: VirtioScsi, following: int = 1) -> Descriptor:
    return (_REQUEST_AT, 19 + driver.config.cdb_size, DESC_F_NEXT, following)


def _answer(driver: VirtioScsi, length: int | None = None) -> Descriptor:
    size = RESPONSE_FIXED + driver.config.sense_size if length is None else length
    return (_RESPONSE_AT, size, DESC_F_WRITE, 0)


_CHAINS: dict[str, Callable[[VirtioScsi, SplitRing], None]] = {
    "well_formed": lambda d, r: _offer(d, r, _header(d), _answer(d)),
    "loop": lambda d, r: _offer(d, r, _header(d, 0)),
    "next_out_of_range": lambda d, r: _offer(d, r, _header(d, r.layout.size)),
    "head_out_of_range": lambda d, r: _offer(d, r, _header(d), _answer(d), head=r.layout.size),
    "writable_before_readable": lambda d, r: _offer(
        d, r, (*_answer(d)[:2], DESC_F_WRITE | DESC_F_NEXT, 1), (*_header(d)[:2], 0, 0)
    ),
    "header_outside_ram": lambda d, r: _offer(d, r, (_OUTSIDE + 4096, *_header(d)[1:]), _answer(d)),
    "response_outside_ram": lambda d, r: _offer(
        d, r, _header(d), (_OUTSIDE + 4096, *_answer(d)[1:])
    ),
    "header_of_10_bytes": lambda d, r: _offer(d, r, (_REQUEST_AT, 10, DESC_F_NEXT, 1), _answer(d)),
    "response_of_11_bytes": lambda d, r: _offer(d, r, _header(d), _answer(d, 11)),
    "no_response": lambda d, r: _offer(d, r, (*_header(d)[:2], 0, 0)),
    "empty_descriptor": lambda d, r: _offer(
        d, r, _header(d, 2), _answer(d), (_REQUEST_AT, 0, DESC_F_NEXT, 1)
    ),
    "indirect_of_15_bytes": lambda d, r: _offer(d, r, (_REQUEST_AT, 15, DESC_F_INDIRECT, 0)),
    "indirect_and_next": lambda d, r: _offer(
        d, r, (_REQUEST_AT, 32, DESC_F_INDIRECT | DESC_F_NEXT, 1), _answer(d)
    ),
    "indirect_outside_ram": lambda d, r: _offer(d, r, (_OUTSIDE + 4096, 32, DESC_F_INDIRECT, 0)),
    "more_available_than_entries": lambda d, r: _offer(
        d, r, _header(d), _answer(d), available=r.layout.size + 1
    ),
}

SCRIPTS = (malformed, unanswerable_events, queue_reset)
