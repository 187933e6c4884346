"""Task sets (SAM-6 clauses 5 and 8): order, ACA, QERR, limits, and what TMFs do to all of that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance import cdb
from tests.conformance.attach import Guest
from tests.conformance.cdb import GOOD, expect_good, expect_sense, test_unit_ready
from tests.conformance.task_set import (
    ACA,
    ACA_ACTIVE,
    BUSY,
    HEAD,
    NACA,
    ORDERED,
    SIMPLE,
    TASK_ABORTED,
    TASK_SET_FULL,
    Node,
    Rig,
    read,
    rig,
)
from vscsi_emu.driver.request import Result
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, InFlight
from vscsi_emu.virtio.scsi import FUNCTION_COMPLETE, Response, TmfType, encode_lun

OK = (Response.OK, GOOD)
ABORTED = (Response.ABORTED, 0)
CLEARED = 0x2F00
MODE_CHANGED = 0x2A01
RESET_CODES = {TmfType.LOGICAL_UNIT_RESET: 0x2903, TmfType.I_T_NEXUS_RESET: 0x2907}


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


# ── Order (SAM-6) ──────────────────────────────────────────────────────────────────────────────


def test_ordered_waits_for_older_commands_and_holds_younger_ones(shared: Rig) -> None:
    """Of every nexus, on every queue, on the fast way and with Python."""
    a, b = shared.a, shared.b
    older = b.hold()
    assert b.waits(older)
    ordered = a.send(read(), ORDERED, data_in_length=512)
    assert a.waits(ordered)
    younger = [
        (a, a.send(read(), data_in_length=512, queue=1)),
        (a, a.send(test_unit_ready(), queue=1)),
        (b, b.send(read(), data_in_length=512, queue=1)),
        (b, b.send(cdb.inquiry(36), data_in_length=36)),
    ]
    for node, item in younger:
        assert node.waits(item)
    assert a.waits(ordered)
    shared.release()
    for node, item in [(b, older), (a, ordered), *younger]:
        assert node.end(item) == OK


def test_simple_commands_pass_each_other(shared: Rig) -> None:
    held = shared.a.hold()
    expect_good(shared.a.run(read(), data_in_length=512))
    assert shared.a.waits(held)


@pytest.mark.normative("scsi.ctl.d11")
def test_head_of_queue_goes_first(shared: Rig) -> None:
    a = shared.a
    held = a.hold()
    ordered = a.send(test_unit_ready(), ORDERED)
    assert a.waits(ordered)
    expect_good(a.run(read(), HEAD, data_in_length=512))
    head = a.hold(HEAD)
    simple = a.send(test_unit_ready(), queue=1)
    assert a.waits(ordered)
    assert a.waits(simple)
    assert a.waits(head)
    shared.release()
    assert [a.end(item) for item in (held, head, ordered, simple)] == [OK] * 4


def test_restricted_reordering_keeps_simple_commands_in_order(shared: Rig) -> None:
    a, b = shared.a, shared.b
    a.set_control(restricted=True)
    assert b.attentions() == [MODE_CHANGED]
    held = a.hold()
    later = a.send(read(), data_in_length=512)
    assert a.waits(held)
    assert a.waits(later)
    shared.release()
    assert [a.end(held), a.end(later)] == [OK, OK]
    b.set_control()
    assert a.attentions() == [MODE_CHANGED]
    expect_good(a.run(read(), data_in_length=512))


@pytest.mark.parametrize("attribute", [ACA, 4, 0x10, 0xFF])
def test_attributes_that_mean_nothing(guest: Guest, attribute: int) -> None:
    """ACA without an ACA condition, and those that are reserved: INVALID MESSAGE ERROR."""
    node = Node(guest.device)
    cdb.Disk(guest.device, 0, 0).ready()
    for raw, length in ((read(), 512), (test_unit_ready(), 0)):
        result = node.run(raw, attribute, data_in_length=length)
        expect_sense(result, cdb.ILLEGAL_REQUEST, 0x4900)


# ── Auto contingent allegiance (SAM-6) ─────────────────────────────────────────────────────────


def test_aca(shared: Rig) -> None:
    a, b = shared.a, shared.b
    a.fail(naca=False)
    assert b.attentions() == [], "no NACA, no ACA"
    a.fail()
    for attribute in (SIMPLE, ORDERED, HEAD):
        assert a.run(test_unit_ready(), attribute).status == ACA_ACTIVE
        assert a.run(read(naca=True), attribute, data_in_length=512).status == ACA_ACTIVE
        assert b.run(test_unit_ready(), attribute).status == BUSY
        assert b.run(read(naca=True), attribute, data_in_length=512).status == ACA_ACTIVE
    assert b.run(test_unit_ready(), ACA).status == ACA_ACTIVE
    expect_good(a.run(read(), ACA, data_in_length=512))
    expect_good(a.run(cdb.inquiry(36), ACA, data_in_length=36))
    assert b.tmf(TmfType.CLEAR_ACA) == Response.FUNCTION_REJECTED
    assert b.run(test_unit_ready()).status == BUSY
    assert a.tmf(TmfType.CLEAR_ACA) == Response.OK
    assert a.attentions() == b.attentions() == []


@pytest.mark.normative("scsi.ctl.d8")
def test_commands_wait_for_the_end_of_an_aca(shared: Rig) -> None:
    a, b = shared.a, shared.b
    held = b.hold()
    assert b.waits(held)
    dormant = b.send(read(), ORDERED, data_in_length=512)
    assert b.waits(dormant)
    a.fail(HEAD)
    shared.release()
    assert b.end(held) == OK
    assert b.waits(dormant), "ACA is in effect"
    assert a.tmf(TmfType.CLEAR_ACA) == Response.OK
    assert b.end(dormant) == OK


def test_one_aca_command_at_a_time(shared: Rig) -> None:
    a = shared.a
    a.fail()
    first = a.hold(ACA)
    assert a.waits(first)
    assert a.run(test_unit_ready(), ACA).status == ACA_ACTIVE
    shared.release()
    assert a.end(first) == OK
    expect_good(a.run(test_unit_ready(), ACA))
    assert a.tmf(TmfType.CLEAR_ACA) == Response.OK


def test_an_aca_command_that_fails_clears_the_condition_or_sets_it_anew(shared: Rig) -> None:
    a, b = shared.a, shared.b
    a.fail()
    a.fail(ACA)
    assert b.run(test_unit_ready()).status == BUSY
    a.fail(ACA, naca=False)
    assert a.attentions() == b.attentions() == []


@pytest.mark.parametrize("function", [TmfType.LOGICAL_UNIT_RESET, TmfType.I_T_NEXUS_RESET])
def test_a_reset_clears_an_aca(shared: Rig, function: TmfType) -> None:
    a, b = shared.a, shared.b
    a.fail()
    assert a.tmf(function) == Response.OK
    expect_sense(a.run(test_unit_ready()), cdb.UNIT_ATTENTION, RESET_CODES[function])
    expected = [0x2903] if function is TmfType.LOGICAL_UNIT_RESET else []
    assert b.attentions() == expected


def test_a_reset_by_another_nexus_clears_an_aca(shared: Rig) -> None:
    a, b = shared.a, shared.b
    a.fail()
    assert b.tmf(TmfType.I_T_NEXUS_RESET) == Response.OK
    assert b.run(test_unit_ready()).status == BUSY, "it is not b's"
    assert b.tmf(TmfType.LOGICAL_UNIT_RESET) == Response.OK
    assert a.attentions() == [0x2903]


def test_a_driver_that_goes_away_leaves_no_aca(shared: Rig) -> None:
    a, b = shared.a, shared.b
    a.fail()
    assert b.run(test_unit_ready()).status == BUSY
    shared.server.run(shared.server.hba.reset())
    assert b.attentions() == []


def test_preempt_and_abort_by_another_nexus_clears_an_aca(shared: Rig) -> None:
    a, b = shared.a, shared.b
    shared.release()
    for node, key in ((a, 0xA), (b, 0xB)):
        expect_good(node.device.wait(pr_out(node, 0x00, action_key=key)))
    a.fail()
    # Of nobody, and of itself: what does not preempt the faulted nexus is not processed.
    assert b.end(pr_out(b, 0x05, 0xB, 0xB)) == (Response.OK, ACA_ACTIVE)
    assert a.end(pr_out(a, 0x05, 0xA, 0xB)) == (Response.OK, ACA_ACTIVE)
    assert b.end(pr_out(b, 0x05, 0xB, 0xA)) == OK
    assert a.attentions() == [0x2A05]
    assert b.attentions() == []


def pr_out(node: Node, action: int, key: int = 0, action_key: int = 0) -> InFlight[Result]:
    raw = bytes([0x5F, action, 0x01, 0, 0, 0, 0, 0, 24, 0])
    data = key.to_bytes(8) + action_key.to_bytes(8) + bytes(8)
    return node.send(raw, data_out=data)


def test_naca_is_declared(guest: Guest) -> None:
    node = Node(guest.device)
    cdb.Disk(guest.device, 0, 0).ready()
    assert node.run(cdb.inquiry(36), data_in_length=36).data[3] & 0x20, "NORMACA"
    page = node.run(cdb.inquiry(64, 0x86), data_in_length=64).data
    assert page[5] & 0x07 == 0x07, "HEADSUP, ORDSUP, SIMPSUP"
    functions = node.run(bytes([0xA3, 0x0D, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0]), data_in_length=4).data
    assert functions[0] & 0x20, "CACAS"
    usage = node.run(bytes([0xA3, 0x0C, 1, 0x28, 0, 0, 0, 0, 0, 64, 0, 0]), data_in_length=64).data
    assert usage[13] == NACA


# ── QERR and TAS (SPC-6, Control mode page) ────────────────────────────────────────────────────


@pytest.mark.parametrize("tas", [False, True])
@pytest.mark.parametrize("qerr", [0, 1, 3])
def test_qerr(shared: Rig, qerr: int, tas: bool) -> None:
    a, b = shared.a, shared.b
    a.set_control(qerr=qerr, tas=tas)
    assert b.attentions() == ([MODE_CHANGED] if qerr or tas else [])
    mine, others = a.hold(queue=1), b.hold(queue=1)
    assert a.waits(mine)
    assert b.waits(others)
    dormant = b.send(test_unit_ready(), ORDERED)
    assert b.waits(dormant)
    a.fail(HEAD, naca=False)
    if qerr:
        assert a.end(mine) == ABORTED
    else:
        assert a.waits(mine)
    if qerr == 1:
        expected = (Response.OK, TASK_ABORTED) if tas else ABORTED
        assert [b.end(others), b.end(dormant)] == [expected] * 2
        assert b.attentions() == ([] if tas else [CLEARED])
    else:
        assert b.waits(others)
        assert b.waits(dormant)
        shared.release()
        assert [b.end(others), b.end(dormant)] == [OK] * 2
        assert b.attentions() == []
    shared.release()
    assert a.attentions() == []


def test_qerr_spares_commands_that_come_later(shared: Rig) -> None:
    a, b = shared.a, shared.b
    a.set_control(qerr=1)
    b.attentions()
    for _ in range(50):
        a.fail(naca=False)
        items = [a.send(read(), data_in_length=512, queue=n % 2) for n in range(8)]
        items.append(a.send(test_unit_ready(), ORDERED))
        assert {a.end(item) for item in items} == {OK}
        assert b.attentions() == []


def test_no_command_overtakes_the_report_that_others_were_cleared(shared: Rig) -> None:
    """The initiator has its aborted command back before the device knows that it was one."""
    a, b = shared.a, shared.b
    mine = b.hold(queue=1)
    report = shared.delay_aborts()
    clearing = a.device.submit_task_management(TmfType.CLEAR_TASK_SET, encode_lun(0, 0))
    assert b.end(mine) == ABORTED
    early = [b.send(test_unit_ready()), b.send(read(), data_in_length=512)]
    assert b.run(cdb.inquiry(36), data_in_length=36).status == 0
    assert [b.waits(item) for item in early] == [True] * 2
    report()
    assert a.device.wait(clearing) == FUNCTION_COMPLETE
    first, second = (b.device.wait(item) for item in early)
    assert sorted(result.status for result in (first, second)) == [0, cdb.CHECK_CONDITION]
    assert b.attentions() == []


def test_no_command_comes_between_a_reset_and_its_report(shared: Rig) -> None:
    a, b = shared.a, shared.b
    mine = b.hold(queue=1)
    reset = shared.delay_reset()
    resetting = a.device.submit_task_management(TmfType.LOGICAL_UNIT_RESET, encode_lun(0, 0))
    assert b.end(mine) == (Response.RESET, 0)
    early = b.send(test_unit_ready())
    assert b.run(cdb.inquiry(36), data_in_length=36).status == 0
    assert b.waits(early)
    reset()
    assert a.device.wait(resetting) == FUNCTION_COMPLETE
    expect_sense(b.device.wait(early), cdb.UNIT_ATTENTION, RESET_CODES[TmfType.LOGICAL_UNIT_RESET])


def test_reserved_qerr_is_refused(guest: Guest) -> None:
    node = Node(guest.device)
    cdb.Disk(guest.device, 0, 0).ready()
    data = bytes(4) + bytes([0x0A, 0x0A, 0x02, 0x14]) + bytes(8)
    item = node.send(bytes([0x15, 0x10, 0, 0, len(data), 0]), data_out=data)
    expect_sense(guest.device.wait(item), cdb.ILLEGAL_REQUEST, 0x2600)


# ── Limits ─────────────────────────────────────────────────────────────────────────────────────


def test_task_set_full(tmp_path: Path) -> None:
    """SAM-6: BUSY for a nexus without commands in the set."""
    with rig(tmp_path, queue_depth=2) as shared:
        a, b = shared.a, shared.b
        held = [a.hold(), a.hold()]
        assert a.waits(held[0])
        assert a.waits(held[1])
        for attribute in (SIMPLE, ORDERED, HEAD):
            assert a.run(test_unit_ready(), attribute).status == TASK_SET_FULL
            assert a.run(read(), attribute, data_in_length=512).status == TASK_SET_FULL
            assert b.run(read(), attribute, data_in_length=512).status == BUSY
        assert a.tmf(TmfType.ABORT_TASK, held[1].tag) == Response.OK
        expect_good(b.run(read(), data_in_length=512))
        expect_good(a.run(read(), data_in_length=512))
        shared.release()
        assert a.end(held[0]) == OK


# ── Task management of commands that wait ──────────────────────────────────────────────────────


@pytest.mark.normative("scsi.ctl.d3", "scsi.ctl.d5", "scsi.ctl.d11", "scsi.req.d8")
def test_abort_task_of_a_dormant_command(shared: Rig) -> None:
    a = shared.a
    held = a.hold()
    ordered = a.send(test_unit_ready(), ORDERED, queue=1)
    younger = a.send(test_unit_ready(), queue=1)
    assert a.waits(ordered)
    assert a.waits(younger)
    assert a.tmf(TmfType.ABORT_TASK, ordered.tag) == Response.OK
    assert ordered.done, "answered before its command was"
    assert a.end(ordered) == ABORTED
    assert a.end(younger) == OK, "nothing is ordered before it any more"
    assert a.waits(held)


@pytest.mark.normative("scsi.ctl.d4", "scsi.ctl.d5", "scsi.req.d8")
def test_abort_task_set_spares_other_nexuses(shared: Rig) -> None:
    a, b = shared.a, shared.b
    mine, dormant = a.hold(), a.send(test_unit_ready(), ORDERED, queue=1)
    second = a.hold(lun=5)
    others = b.hold()
    assert a.waits(dormant)
    assert a.waits(second, lun=5)
    assert b.waits(others)
    assert a.tmf(TmfType.QUERY_TASK_SET) == Response.FUNCTION_SUCCEEDED
    assert a.tmf(TmfType.ABORT_TASK_SET) == Response.OK
    assert mine.done
    assert dormant.done
    assert a.end(mine) == a.end(dormant) == ABORTED
    assert a.waits(second, lun=5), "another nexus, though of the same HBA to the same unit"
    assert b.waits(others)
    assert a.tmf(TmfType.QUERY_TASK_SET) == Response.OK
    assert a.tmf(TmfType.QUERY_TASK_SET, lun=5) == Response.FUNCTION_SUCCEEDED
    assert a.attentions() == b.attentions() == []


@pytest.mark.normative("scsi.ctl.d4", "scsi.ctl.d5")
@pytest.mark.parametrize("tas", [False, True])
def test_clear_task_set_tells_the_others(shared: Rig, tas: bool) -> None:
    a, b = shared.a, shared.b
    a.set_control(tas=tas)
    b.attentions()
    mine, others = a.hold(), b.hold()
    dormant = b.send(read(), ORDERED, data_in_length=512, queue=1)
    assert a.waits(mine)
    assert b.waits(others)
    assert b.waits(dormant)
    assert a.tmf(TmfType.CLEAR_TASK_SET) == Response.OK
    assert mine.done
    for queue in (0, 1):
        b.device.reap(REQUEST_QUEUE + queue)
    assert others.done
    assert dormant.done
    assert a.end(mine) == ABORTED
    expected = (Response.OK, TASK_ABORTED) if tas else ABORTED
    assert [b.end(others), b.end(dormant)] == [expected] * 2
    assert b.attentions() == ([] if tas else [CLEARED])
    assert a.attentions() == []
    assert a.tmf(TmfType.CLEAR_TASK_SET) == Response.OK
    assert b.attentions() == [], "it has lost nothing"


@pytest.mark.normative("scsi.ctl.d1", "scsi.ctl.d2", "scsi.ctl.d5", "scsi.req.d10")
@pytest.mark.parametrize("function", [TmfType.LOGICAL_UNIT_RESET, TmfType.I_T_NEXUS_RESET])
def test_resets_end_what_waits(shared: Rig, function: TmfType) -> None:
    a, b = shared.a, shared.b
    mine, dormant = a.hold(), a.send(test_unit_ready(), ORDERED, queue=1)
    others = b.hold()
    second = a.hold(lun=5)
    assert a.waits(dormant)
    assert b.waits(others)
    assert a.waits(second, lun=5)
    assert a.tmf(function) == Response.OK
    assert mine.done
    assert dormant.done
    assert second.done
    for item in (mine, dormant, second):
        assert a.end(item) == (Response.RESET, 0)
    if function is TmfType.LOGICAL_UNIT_RESET:
        assert b.end(others) == (Response.RESET, 0)
        assert b.attentions() == [0x2903]
    else:
        assert b.waits(others)


def test_a_reset_of_a_unit_in_aca_ends_what_it_blocks(shared: Rig) -> None:
    a, b = shared.a, shared.b
    held = b.hold()
    dormant = b.send(test_unit_ready(), ORDERED, queue=1)
    assert b.waits(dormant)
    a.fail(HEAD)
    assert b.tmf(TmfType.ABORT_TASK_SET) == Response.OK
    assert held.done
    assert dormant.done
    assert b.end(dormant) == ABORTED
    assert b.run(test_unit_ready()).status == BUSY, "abort leaves the condition"
    assert b.tmf(TmfType.LOGICAL_UNIT_RESET) == Response.OK
    assert b.attentions() == [0x2903]
