"""The methods. LUNs are named TARGET:LUN, in the HBA of `hba` (a socket or a number; the only one
by default), or by the id of their unit.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from vscsi_emu.caps import SECTOR
from vscsi_emu.config import PASSTHROUGH
from vscsi_emu.control.decode import opcodes
from vscsi_emu.control.method import Method, method
from vscsi_emu.control.results import (
    AddedLun,
    FaultState,
    HbaLimits,
    HbaState,
    HostileState,
    Limits,
    LunLimits,
    LunLosses,
    LunState,
    PassthroughState,
    PauseState,
    PowerFailure,
    State,
)
from vscsi_emu.control.statistics import ServiceStatistics, collect, sources
from vscsi_emu.control.trace import MAX_DATA, Tracing
from vscsi_emu.disk import OperationError
from vscsi_emu.faults import Fault, FaultError
from vscsi_emu.faults.scsi_debug import (
    FAIL_RESET,
    MEDIUM_ERROR_COUNT,
    MEDIUM_ERROR_START,
    from_delay,
    from_error,
    from_opts,
)
from vscsi_emu.faults.vocabulary import Distribution, Function, KindName
from vscsi_emu.hostile import Hostility
from vscsi_emu.journal import Kind, TmfRecord
from vscsi_emu.virtio.scsi import show_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vscsi_emu.control.context import Context
    from vscsi_emu.disk import Disk
    from vscsi_emu.faults.installed import Installed
    from vscsi_emu.hba import Hba
    from vscsi_emu.passthrough import PassthroughUnit

# ── The HBA ────────────────────────────────────────────────────────────────────────────────────


@method("hba.query")
async def hba_query(context: Context) -> State:
    """All HBAs and all units, as they are now."""
    service = context.service
    at: dict[str, dict[str, list[str]]] = {id: {} for id in service.disks}
    hbas = [_hba_state(context, hba, at) for hba in service.hbas]
    return State(
        version=version("vscsi-emu"),
        pid=os.getpid(),
        hbas=hbas,
        luns=[_lun_state(disk, at[disk.id]) for disk in service.disks.values()],
    )


def _hba_state(context: Context, hba: Hba, at: dict[str, dict[str, list[str]]]) -> HbaState:
    luns = {}
    for address, unit in hba.luns.items():
        id = context.service.disk_of(unit).id
        luns[show_address(address)] = id
        at[id].setdefault(hba.name, []).append(show_address(address))
    return HbaState(
        name=hba.name,
        number=hba.number,
        initiator=hba.initiator,
        queues=hba.config.num_queues,
        connected=hba.connected,
        features=[feature.name or f"{feature:#x}" for feature in hba.features],
        luns=luns,
    )


def _lun_state(disk: Disk, at: dict[str, list[str]]) -> LunState:
    spec, unit = disk.config.spec, disk.unit
    host = _host_unit(disk)
    block_size, blocks = host.capacity if host else (unit.block_size, unit.blocks)
    return LunState(
        id=disk.id,
        uri=f"{spec.scheme}:{spec.location}",
        size=block_size * blocks,
        block_size=block_size,
        read_only=unit.read_only,
        write_cache=unit.mode_pages.write_cache,
        thin=unit.thin,
        paused=unit.paused,
        iops=spec.iops,
        bps=spec.bps,
        naa=disk.backend.naa,
        serial=disk.backend.serial,
        at=at,
        passthrough=_passthrough_state(host) if host else None,
    )


def _host_unit(disk: Disk) -> PassthroughUnit | None:
    """The unit of a disk that is a device of the host."""
    if disk.config.spec.scheme != PASSTHROUGH:
        return None
    from vscsi_emu.passthrough import PassthroughUnit

    assert isinstance(disk.unit, PassthroughUnit)
    return disk.unit


def _passthrough_state(unit: PassthroughUnit) -> PassthroughState:
    return PassthroughState(
        level=unit.table.level.name.lower(),
        refused={f"{opcode:02x}": count for opcode, count in sorted(unit.table.refused.items())},
        split=unit.device.split,
        bounced=unit.device.bounced,
    )


@method("hba.export")
async def hba_export(context: Context) -> str:
    """The text of an hba.toml, for `serve --config`, with everything as it is now: same disks,
    same addresses, same identities."""
    from vscsi_emu.export import ExportError, to_toml

    try:
        return to_toml(context.service.config)
    except ExportError as error:
        raise OperationError(str(error)) from None


# ── LUNs ───────────────────────────────────────────────────────────────────────────────────────


@method("lun.add")
async def lun_add(
    context: Context, luns: list[str], hba: str | None = None, id: str | None = None
) -> list[AddedLun]:
    """Opens disks and plugs them in, all or none: each `[TARGET:LUN=]URI[,KEY=VALUE…]`, as for
    `serve --lun`. The guest gets an event (RESCAN) for each. `id` names a single one."""
    from vscsi_emu.backends.uri import SpecError, parse_lun

    port = context.hba(hba)
    parsed = []
    for text in luns:
        try:
            parsed.append(parse_lun(text))
        except SpecError as error:
            raise OperationError(f"{text}: {error}", "luns") from None
    added = await context.service.add_luns(port, parsed, id=id)
    return [
        AddedLun(id=disk.id, hba=port.name, lun=show_address(address))
        for address, disk in added.items()
    ]


@method("lun.map")
async def lun_map(context: Context, id: str, at: str, hba: str | None = None) -> AddedLun:
    """Plugs a unit that is served already in at one more address, of this or another HBA."""
    port, disk = context.hba(hba), context.disk(id, hba, "id")
    context.service.map_lun(port, disk, context.address(at, "at"))
    return AddedLun(id=disk.id, hba=port.name, lun=at)


@method("lun.remove")
async def lun_remove(
    context: Context,
    lun: list[str],
    hba: str | None = None,
    deadline: float = 10.0,
    force: bool = False,
) -> None:
    """Unplugs LUNs, named by address, or by id: then at all their addresses.

    The guest gets an event (RESET_REMOVED) and is served until it has sent nothing for half a
    second, so that it can write back. At `deadline`, in seconds, `force` ends what is left with
    FAILURE; without it the call fails and everything stays, in all HBAs. A `deadline` of 0 with
    `force` is a surprise removal. Disks that no HBA has any more are flushed and closed."""
    if not 0 <= deadline <= 3600:
        raise OperationError(f"deadline {deadline:g} is not within 0 to 3600 s", "deadline")
    if deadline == 0 and not force:
        raise OperationError("a deadline of 0 leaves no time to drain; add force", "deadline")
    places = _named(context, lun, hba)
    await context.service.remove_luns(places, deadline=deadline, force=force)


def _named(context: Context, luns: list[str], hba: str | None) -> dict[Hba, list[tuple[int, int]]]:
    """Where the LUNs are that are named by address or id."""
    service = context.service
    found: dict[Hba, dict[tuple[int, int], None]] = {}
    ports = service.hbas if hba is None else [context.hba(hba)]
    at: dict[str, list[tuple[Hba, tuple[int, int]]]] = {}
    for port in ports:
        for address, unit in port.luns.items():
            at.setdefault(service.disk_of(unit).id, []).append((port, address))
    for name in luns:
        disk = context.disk(name, hba)
        places = at.get(disk.id, []) if name == disk.id else []
        if name != disk.id:
            places = [(context.hba(hba), context.address(name, "lun"))]
        for port, address in places:
            found.setdefault(port, {})[address] = None
    return {port: list(addresses) for port, addresses in found.items()}


@method("lun.resize")
async def lun_resize(
    context: Context, lun: str, size: int | str, hba: str | None = None
) -> LunState:
    """A new capacity, in bytes or as 64M or 3T; guests get a unit attention (CAPACITY DATA HAS
    CHANGED) and an event. An image file is made that long; a block device must have been resized
    before. Shrinking loses what is beyond the end."""
    disk = context.disk(lun, hba)
    await disk.resize(_size(size, "size") or 0)
    return _state(context, disk)


@method("lun.set")
async def lun_set(
    context: Context,
    lun: str,
    hba: str | None = None,
    read_only: bool | None = None,
    cache: Literal["writeback", "writethrough"] | None = None,
    max_sectors: int | None = None,
    seg_max: int | None = None,
    cmd_per_lun: int | None = None,
    iops: int | None = None,
    bps: int | str | None = None,
    iops_burst: int | None = None,
    bps_burst: int | str | None = None,
) -> LunState:
    """Changes a unit. With `read_only` or `cache` guests get a unit attention (MODE PARAMETERS
    CHANGED) and an event; when it returns, what a write cache held that is off now, is on the
    medium. `max_sectors` (of 512 bytes), `seg_max`, `cmd_per_lun`: the most that guests are told,
    by Block Limits VPD page and configuration space, with unit attentions (INQUIRY DATA HAS
    CHANGED, PARAMETERS CHANGED) and an event; never more than the storage takes, 0 for just that.
    Longer transfers of guests that do not know yet are processed all the same. `iops`, `bps`: the
    most commands, and bytes (or 64M), a second, 0 for no limit; the bursts: what may come at once
    after a pause, a tenth of a second's by default."""
    disk = context.disk(lun, hba)
    caps = {"max_sectors": max_sectors, "seg_max": seg_max, "cmd_per_lun": cmd_per_lun}
    for name, cap in caps.items():
        if cap is not None and cap < 0:
            raise OperationError(f"{cap} is below 0", name)
    if any(cap is not None for cap in caps.values()):
        await context.service.lower(disk, **caps)
    rates = {
        "iops": iops,
        "bps": _size(bps, "bps"),
        "iops_burst": iops_burst,
        "bps_burst": _size(bps_burst, "bps_burst"),
    }
    if any(rate is not None for rate in rates.values()):
        await disk.limit(**rates)
    if read_only is not None or cache is not None:
        await disk.configure(
            read_only=read_only, write_cache=None if cache is None else cache == "writeback"
        )
    return _state(context, disk)


def _size(value: int | str | None, parameter: str) -> int | None:
    from vscsi_emu.backends.uri import SpecError, parse_size

    try:
        return parse_size(value) if isinstance(value, str) else value
    except SpecError as error:
        raise OperationError(str(error), parameter) from None


def _state(context: Context, disk: Disk) -> LunState:
    at: dict[str, list[str]] = {}
    for hba in context.service.hbas:
        for address, unit in hba.luns.items():
            if unit is disk.unit:
                at.setdefault(hba.name, []).append(show_address(address))
    return _lun_state(disk, at)


@method("lun.pause")
async def lun_pause(
    context: Context, lun: str, hba: str | None = None, deadline: float = 30.0
) -> PauseState:
    """From now on commands wait. Returns once those that ran are over, at the latest after
    `deadline` seconds. With lun.flush, the image can be copied then. A guest gives commands up
    after some time (Linux: 30 s); a queue that it stops, as for a reset, does not wait: commands
    end with BUSY."""
    if not 0 < deadline <= 3600:
        raise OperationError(f"deadline {deadline:g} is not above 0 and up to 3600 s", "deadline")
    return PauseState(drained=await context.disk(lun, hba).pause(deadline=deadline))


@method("lun.resume")
async def lun_resume(context: Context, lun: str, hba: str | None = None) -> None:
    """Processes the commands that waited, in the order they came, and all that follow."""
    await context.disk(lun, hba).resume()


@method("lun.flush")
async def lun_flush(context: Context, lun: str, hba: str | None = None) -> None:
    """What was written is on the medium when it returns."""
    await context.disk(lun, hba).flush()


# ── Faults ─────────────────────────────────────────────────────────────────────────────────────


@method("fault.add")
async def fault_add(
    context: Context,
    lun: str,
    kind: KindName,
    hba: str | None = None,
    opcodes: list[int | str] | None = None,
    lba: int | None = None,
    blocks: int = 1,
    nexus: str | None = None,
    tag: int | None = None,
    nth: int = 1,
    every: int = 1,
    times: int | None = None,
    probability: float = 1.0,
    seed: int = 0,
    start: float = 0.0,
    duration: float | None = None,
    response: int | None = None,
    status: int | None = None,
    key: int | None = None,
    code: int | None = None,
    executed: bool | None = None,
    seconds: float | None = None,
    distribution: Distribution | None = None,
    spread: float | None = None,
    part: float | None = None,
    writes: int | None = None,
    spares: int | None = None,
    unit: int | None = None,
    dev_loss: float | None = None,
    function: Function | None = None,
) -> FaultState:
    """From now on commands of a unit go wrong; docs/faults.md has the kinds and what they take."""
    wanted = {name: value for name, value in locals().items() if name in _FAULT_FIELDS}
    return _add_fault(context, context.disk(lun, hba), wanted)


_FAULT_FIELDS: Final = frozenset(field.name for field in fields(Fault))


def _add_fault(context: Context, disk: Disk, wanted: dict[str, Any]) -> FaultState:
    try:
        port = None if wanted["nexus"] is None else context.hba(wanted["nexus"])
    except OperationError as error:
        raise OperationError(str(error), "nexus") from None
    with _sensible():
        return _fault_state(context.service.faults.add(disk, Fault(**wanted), port))


@contextmanager
def _sensible() -> Iterator[None]:
    """A fault that makes no sense is the caller's error."""
    try:
        yield
    except FaultError as error:
        raise OperationError(str(error), error.parameter) from None


def _fault_state(installed: Installed) -> FaultState:
    return FaultState(
        id=installed.id,
        lun=installed.disk.id,
        fault=installed.fault,
        met=installed.met,
        hits=installed.hits,
    )


@method("fault.scsi_debug")
async def fault_scsi_debug(
    context: Context,
    lun: str,
    hba: str | None = None,
    error: str | None = None,
    opts: int = 0,
    every_nth: int = 1,
    medium_error_start: int = MEDIUM_ERROR_START,
    medium_error_count: int = MEDIUM_ERROR_COUNT,
    ndelay: int = 0,
    random: bool = False,
    fail_reset: bool = False,
) -> list[FaultState]:
    """Faults as Linux's scsi_debug takes them: a line for the `error` file of a device, which may
    remove or replace an earlier one; its parameters; the `fail_reset` file of a target."""
    disk, faults = context.disk(lun, hba), context.service.faults
    with _sensible():
        wanted = from_opts(opts, every_nth, (medium_error_start, medium_error_count))
        wanted += from_delay(ndelay, random=random)
        if fail_reset:
            wanted.append(FAIL_RESET)
        line = None if error is None else from_error(error)
        for fault in [*wanted, *([line.fault] if line and line.fault else [])]:
            faults.check(disk, fault)
        added = [] if line is None else faults.follow(disk, line)
    added += [faults.add(disk, fault) for fault in wanted]
    return [_fault_state(installed) for installed in added]


@method("fault.list")
async def fault_list(
    context: Context, lun: str | None = None, hba: str | None = None
) -> list[FaultState]:
    """The faults in effect, of one unit or of all, in the order they were added."""
    disk = None if lun is None else context.disk(lun, hba)
    return [_fault_state(fault) for fault in context.service.faults if disk in (None, fault.disk)]


def _fault(context: Context, id: int) -> Installed:
    found = context.service.faults.get(id)
    if found is None:
        raise OperationError(f"there is no fault {id}; see fault.list", "id")
    return found


@method("fault.release")
async def fault_release(context: Context, id: int) -> None:
    """Commands that a fault makes hang go on; those that come still hang."""
    context.service.faults.release(_fault(context, id))


@method("fault.remove")
async def fault_remove(context: Context, id: int) -> FaultState:
    """Ends a fault, and releases what it makes hang; its last numbers."""
    found = _fault(context, id)
    context.service.faults.remove(found)
    return _fault_state(found)


# ── Power ─────────────────────────────────────────────────────────────────────────────────────


@method("power.fail")
async def power_fail(
    context: Context,
    lun: list[str] | None = None,
    hba: str | None = None,
    seed: int | None = None,
) -> PowerFailure:
    """The power of these LUNs, or of all but devices of the host, fails and is back. Of what a
    volatile cache (`volatile-cache=on`) holds, writes survive, are torn, or are lost, in any order,
    by `seed`; a new one is drawn by default. Commands that run end with TRANSPORT FAILURE; the next
    ones report POWER ON OCCURRED."""
    if seed is None:
        seed = secrets.randbits(32)
    if not 0 <= seed < 1 << 64:
        raise OperationError(f"seed {seed} is not within 64 bits", "seed")
    disks = [disk for disk in context.service.disks.values() if disk.backend.can_lose_power]
    if lun is not None:
        disks = list(dict.fromkeys(context.disk(name, hba) for name in lun))
    losses = await asyncio.gather(*(disk.power_fail(seed) for disk in disks))
    return PowerFailure(
        seed=seed,
        luns=[
            LunLosses(id=disk.id, **loss._asdict())
            for disk, loss in zip(disks, losses, strict=True)
        ],
    )


# ── Hostile devices ───────────────────────────────────────────────────────────────────────────


@method("hostile.set")
async def hostile_set(
    context: Context,
    names: list[str],
    hba: str | None = None,
    seed: int = 0,
    chance: int = 100,
    armed: bool = True,
) -> None:
    """An HBA misbehaves towards the driver that comes next, in the ways that docs/hostile-device.md
    names; without names it is honest again. Of 100 used elements `chance` are chosen, by `seed`.
    With `armed` off it waits for `hostile.arm`."""
    port = context.hba(hba)
    try:
        chosen = Hostility(names, seed=seed, chance=chance, armed=armed)
    except ValueError as error:
        raise OperationError(str(error)) from None
    port.hostility = chosen if chosen.names else None


@method("hostile.arm")
async def hostile_arm(context: Context, hba: str | None = None) -> None:
    """From now on an HBA does what `hostile.set` chose."""
    _hostility(context, hba).arm()


@method("hostile.query")
async def hostile_query(context: Context, hba: str | None = None) -> HostileState:
    """What an HBA does wrong, and how often it did."""
    hostility = _hostility(context, hba)
    return HostileState(
        names=list(hostility.names),
        seed=hostility.seed,
        armed=hostility.armed,
        done=hostility.done,
    )


def _hostility(context: Context, hba: str | None) -> Hostility:
    port = context.hba(hba)
    if port.hostility is None:
        raise OperationError(f"{port.name} is honest; choose by hostile.set", "hba")
    return port.hostility


# ── Watching ───────────────────────────────────────────────────────────────────────────────────


@method("limits.query")
async def limits_query(context: Context) -> Limits:
    """What guests are told not to exceed: configuration space and Block Limits VPD pages."""
    units = context.service.disks.values()
    return Limits(
        hbas=[
            HbaLimits(
                name=hba.name,
                num_queues=hba.config.num_queues,
                seg_max=hba.config.seg_max,
                max_sectors=hba.config.max_sectors,
                cmd_per_lun=hba.config.cmd_per_lun,
                max_target=hba.config.max_target,
                max_lun=hba.config.max_lun,
            )
            for hba in context.service.hbas
        ],
        luns=[
            LunLimits(
                id=disk.id,
                max_sectors=disk.unit.queue_limits.max_bytes // SECTOR,
                seg_max=disk.unit.queue_limits.max_segments,
                cmd_per_lun=disk.unit.queue_limits.commands,
                **asdict(disk.unit.block_limits),
            )
            for disk in units
        ],
    )


@method("stats.query")
async def stats_query(context: Context, histograms: bool = False) -> ServiceStatistics:
    """What commands cost until now, by LUN and by queue: operations, bytes, percentiles of latency,
    commands in flight, errors, and which gates are closed; and those for no LUN. `histograms`: with
    all buckets."""
    counted = sources(context.service)
    return await asyncio.to_thread(collect, counted, histograms=histograms)


@method("trace.start")
async def trace_start(
    context: Context,
    lun: list[str] | None = None,
    hba: str | None = None,
    opcode: list[str | int] | None = None,
    errors: bool = False,
    min_latency: float = 0.0,
    data_bytes: int = 0,
) -> None:
    """From now on this connection gets notifications `trace`: the commands that end, in the order
    in which they do, and how many were lost since it reads too slowly. Instead of the trace before.

    Only those of these LUNs and operation codes (read, "WRITE SAME(16)", 0x28), all by default;
    with `errors` only those that did not end with GOOD; only those that took at least `min_latency`
    seconds. Each has the first `data_bytes` of its data, at most 65536."""
    if not 0 <= data_bytes <= MAX_DATA:
        raise OperationError(f"data_bytes {data_bytes} is not within 0 to {MAX_DATA}", "data_bytes")
    if not 0 <= min_latency <= 3600:
        raise OperationError(f"{min_latency:g} s are not within 0 to 3600", "min_latency")
    codes: set[int] = set()
    for name in opcode or ():
        found = opcodes(str(name))
        if not found:
            raise OperationError(f"{name!r} is no command; as in READ(10), read, 0x28", "opcode")
        codes |= found
    context.trace(
        Tracing(
            context.service,
            units=[context.disk(name, hba).unit for name in lun or ()],
            opcodes=codes,
            errors=errors,
            min_latency=min_latency,
            data_bytes=data_bytes,
        )
    )


@method("trace.stop")
async def trace_stop(context: Context) -> None:
    """Ends this connection's trace."""
    context.trace(None)


@method("tmf.log")
async def tmf_log(context: Context, count: int = 256) -> list[TmfRecord]:
    """The last task management functions, oldest first; 256 are remembered."""
    if count < 1:
        raise OperationError(f"count {count} is below 1", "count")
    return list(context.service.journal.tmfs)[-count:]


EventKind = Literal[
    "lun.added",
    "lun.removed",
    "lun.resized",
    "lun.changed",
    "lun.paused",
    "lun.resumed",
    "lun.power-failed",
    "session.connected",
    "session.disconnected",
    "tmf",
    "attention",
    "error",
]


@method("events.subscribe")
async def events_subscribe(context: Context, kinds: list[EventKind] | None = None) -> None:
    """From now on this connection gets a notification `event` for each thing that happens, of
    these kinds or of all. A connection that reads too slowly loses some; the next notification
    says how many in `missed`."""
    wanted = frozenset(Kind) if kinds is None else frozenset(kinds)
    context.subscribe(lambda record: record.kind in wanted)


@method("quit")
async def quit(context: Context) -> None:
    """Ends the server as SIGTERM does: what was acknowledged is on the medium."""
    context.quit()


METHODS: Final = MappingProxyType(
    {
        declared.name: declared
        for declared in list[Method[Any, Any]](
            value for value in globals().values() if isinstance(value, Method)
        )
    }
)
"""By name."""
