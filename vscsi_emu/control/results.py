"""What methods return."""

from __future__ import annotations

from dataclasses import dataclass

from vscsi_emu.faults import Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class PassthroughState:
    """Of a unit that is a device of the host."""

    level: str
    """safe, readonly or all."""
    refused: dict[str, int]
    """How often an operation code was refused, by its two hexadecimal digits."""
    split: int
    """Commands that went in several pieces."""
    bounced: int
    """Commands with data that went through a buffer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LunState:
    """A logical unit."""

    id: str
    uri: str
    size: int
    """Bytes."""
    block_size: int
    """0 for a device of the host without blocks."""
    read_only: bool
    """By configuration; a guest may write-protect it too (SWP)."""
    write_cache: bool
    """WCE now."""
    thin: bool
    paused: bool
    iops: int | None
    """Its limit."""
    bps: int | None
    """The same of bytes a second."""
    naa: str
    serial: str
    at: dict[str, list[str]]
    """Its addresses in each HBA."""
    passthrough: PassthroughState | None
    """None where its commands do not pass to a device of the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HbaState:
    """An HBA."""

    name: str
    number: int
    initiator: str
    """NAA name of its port."""
    queues: int
    connected: bool
    """Whether a front end, or a driver in this process, is there."""
    features: list[str]
    """Negotiated ones."""
    luns: dict[str, str]
    """Address to id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that is served."""

    version: str
    pid: int
    hbas: list[HbaState]
    luns: list[LunState]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedLun:
    """A unit that is there now."""

    id: str
    hba: str
    lun: str
    """TARGET:LUN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseState:
    """A paused unit."""

    drained: bool
    """Nothing that came before the pause is running any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LunLosses:
    """What became of the writes that a unit's volatile cache held when the power failed."""

    id: str
    survived: int
    torn: int
    """Survived in part."""
    lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerFailure:
    """A power failure; the same seed does the same to the same writes."""

    seed: int
    luns: list[LunLosses]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostileState:
    """An HBA that misbehaves."""

    names: list[str]
    seed: int
    armed: bool
    done: int
    """Misdeeds so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LunLimits:
    """Of one unit: what it has its HBAs say, then as its Block Limits VPD page says (SBC-5), in
    blocks unless the name says otherwise; 0 is no limit, for the last three: not supported."""

    id: str
    max_sectors: int
    """In 512 bytes."""
    seg_max: int
    cmd_per_lun: int
    max_transfer_blocks: int
    optimal_transfer_blocks: int
    optimal_granularity_blocks: int
    max_write_same_blocks: int
    max_unmap_blocks: int
    max_unmap_descriptors: int
    unmap_granularity_blocks: int
    unmap_alignment: int
    max_compare_and_write_blocks: int
    max_atomic_blocks: int
    atomic_granularity_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HbaLimits:
    """Of one HBA, as its configuration space says (virtio 1.4, 5.6.4)."""

    name: str
    num_queues: int
    seg_max: int
    max_sectors: int
    """In 512 bytes."""
    cmd_per_lun: int
    max_target: int
    max_lun: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What guests are told not to exceed."""

    hbas: list[HbaLimits]
    luns: list[LunLimits]


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultState:
    """A fault that is in effect."""

    id: int
    lun: str
    """Id of the unit."""
    fault: Fault
    met: int
    """Commands, or task management functions, that it is for, whether or not their number was."""
    hits: int
    """Those that it took."""
