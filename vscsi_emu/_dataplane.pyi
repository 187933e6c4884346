"""The native data plane (Rust crate ``dataplane/``).

`Lu`, `Nexus`, `Port` and `Queue` are handles: handles of one object are equal and hash alike.

Rust moves data; Python decides. Nothing here holds the GIL while it blocks, and nothing here is
called from a worker thread: workers talk to Python through an `Inbox` only.

A default that PyO3 does not show to `stubtest` stands as ``...``: no descriptor (-1), no bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Self, final

class DataplaneError(Exception):
    """Base of what the data plane raises."""

class GuestMemoryError(DataplaneError):
    """An address or length lies outside guest memory, or a region cannot be mapped."""

class SourceChangedError(DataplaneError):
    """What a copy was to take is not any more what it was."""

class RingError(DataplaneError):
    """A ring is set up in a way that no driver may ask for."""

# ── Sense ──────────────────────────────────────────────────────────────────────────────────────

def build_sense(
    key: int,
    asc: int,
    ascq: int,
    *,
    descriptor: bool = False,
    deferred: bool = False,
    information: int | None = None,
    field: int | None = None,
    bit: int | None = None,
    in_cdb: bool = True,
    progress: int | None = None,
) -> bytes:
    """Sense data: fixed format (18 bytes, 70h/71h) or descriptor format (72h/73h), SPC-6.

    `field`/`bit` fill the sense-key-specific field pointer of ILLEGAL REQUEST (byte offset and bit
    number; `in_cdb` sets C/D). `information` above 32 bits in fixed format leaves VALID at 0.
    """

# ── Guest memory ───────────────────────────────────────────────────────────────────────────────

@final
class GuestMemory:
    """RAM of one guest. Addresses are guest-physical unless said otherwise; all bounds-checked."""

    def __new__(cls) -> Self: ...
    @staticmethod
    def anonymous(size: int, guest_address: int = 0) -> GuestMemory:
        """Memory of our own (a memfd), for the in-process guest and tests."""
    def replace(self, regions: Sequence[tuple[int, int, int, int, int]]) -> None:
        """The whole table: (guest_address, size, user_address, mmap_offset, fd) each.

        File descriptors are mapped, not kept: the caller closes its own. Raises
        `GuestMemoryError` (overlap, zero size, wrap-around, mmap failure) and then leaves the old
        table in force. I/O in flight keeps the old mapping alive until it ends.
        """
    def add(self, region: tuple[int, int, int, int, int]) -> None: ...
    def remove(self, guest_address: int, user_address: int, size: int) -> None:
        """Removes the region with exactly these; `GuestMemoryError` if there is none."""
    def user_to_guest(self, user_address: int, length: int) -> int:
        """Guest address of a front end's user address (vhost-user ring addresses)."""
    def iotlb_update(self, iova: int, size: int, user_address: int, access: int) -> None:
        """For queues with VIRTIO_F_ACCESS_PLATFORM: maps `size` bytes of I/O addresses to user
        addresses of the regions, instead of what was mapped there. `access`: 1 read, 2 write,
        3 both. Queues that wait for one of them go on. `GuestMemoryError`: outside the regions."""
    def iotlb_invalidate(self, iova: int, size: int) -> None:
        """Forgets a range of I/O addresses, at once for look-ups; await `Worker.quiesce_range` of
        all workers for what was looked up before. Size 0: all from `iova` on."""
    def read(self, address: int, length: int) -> bytes: ...
    def write(self, address: int, data: bytes) -> None: ...
    def load_u16_acquire(self, address: int) -> int: ...
    def store_u16_release(self, address: int, value: int) -> None: ...
    @staticmethod
    def fence() -> None:
        """Full memory barrier (store→load order: index published, then suppression read)."""
    def fileno(self) -> int:
        """The memfd of `anonymous` memory, to hand to another process; -1 otherwise."""
    @property
    def regions(self) -> list[tuple[int, int, int]]:
        """(guest_address, size, user_address), sorted by guest address."""
    @property
    def dead(self) -> bool:
        """True once a region was found truncated (SIGBUS): zero pages stand in for it."""

# ── Storage engines ────────────────────────────────────────────────────────────────────────────

@final
class Engine:
    """What holds the bytes of a logical unit. Opens nothing: it is given open descriptors."""

    @staticmethod
    def file(
        fd: int, size: int, *, direct_fd: int = ..., discard: bool = True, read_only: bool = False
    ) -> Engine:
        """A regular file or block device. Dups `fd`; `direct_fd` is the same file with O_DIRECT,
        used where address, length and offset are aligned for it (else bounced or buffered)."""
    @staticmethod
    def memory(size: int) -> Engine:
        """Sparse anonymous memory (memfd)."""
    @staticmethod
    def null(size: int) -> Engine:
        """Reads zeros, forgets writes."""
    @staticmethod
    def python(inbox: Inbox, token: int, size: int, *, discard: bool = False) -> Engine:
        """Each call comes to `inbox` as a `Transfer` with this token. `discard`: ranges can be
        freed, and then read as zeros."""
    @staticmethod
    def passthrough(device: Passthrough) -> Engine:
        """No bytes but commands: all of them that are not routed to Python pass to `device`. Size
        and policy of such a unit say nothing; give it 512 bytes a block."""
    @property
    def size(self) -> int: ...
    def resize(self, size: int) -> None:
        """Another capacity in bytes; nothing may use the engine meanwhile. What is beyond the end
        is lost, what is new reads as zeros. A file has its new length already if it grows; one
        that shrinks is cut afterwards. OSError."""
    @property
    def can_discard(self) -> bool:
        """Whether deallocation really frees space here (probed, not guessed)."""
    @property
    def allocated(self) -> int | None:
        """Bytes of space taken; None where that cannot be told (devices)."""
    def flush(self) -> None:
        """What was written is on stable storage on return. Blocks (GIL released). OSError."""
    def thin(self, space: Space) -> Engine:
        """The same, but blocks take space from `space` as they are written, and give it back as
        they are freed. What is allocated now is taken whatever the limit. A write that needs more
        than there is fails with ENOSPC and changes nothing. `OSError`: it cannot be measured."""

@final
class Space:
    """`limit` bytes that engines share."""

    def __new__(cls, limit: int) -> Self: ...
    @property
    def limit(self) -> int: ...
    @property
    def used(self) -> int:
        """Bytes in use; above the limit if that much was in use from the beginning."""
    def watch(self, inbox: Inbox, token: int, level: int, *, rising: bool) -> None:
        """Says "done" once, with the bytes in use as value, when they are at least `level`
        (`rising`) or fewer; at once if they are."""
    def unwatch(self, token: int) -> None:
        """There will be no "done" if there was none yet."""

@final
class Hostility:
    """What the rings of queues do wrong (`vscsi_emu.hostile`). Of 100 used elements `chance` are
    chosen, and for each one of `misdeeds`, as `seed` says; all are honest until it is armed.
    ValueError for a name that no ring knows."""

    def __new__(
        cls, misdeeds: list[str], *, seed: int, chance: int = 100, armed: bool = True
    ) -> Self: ...
    def arm(self) -> None: ...
    @property
    def done(self) -> int:
        """Misdeeds so far."""

@final
class VolatileCache:
    """A write cache in front of `medium` that a power failure can empty; use `engine` in its place.

    It keeps what every call promises: durable writes, and all writes before a flush, survive.
    `capacity`: bytes of memory; above it the oldest writes go to the medium. `tear`: bytes that
    the medium writes whole, a power of two. ValueError."""

    def __new__(cls, medium: Engine, *, capacity: int, tear: int) -> Self: ...
    @property
    def engine(self) -> Engine: ...
    def fail(self, seed: int) -> tuple[int, int, int]:
        """The power goes: how many unflushed writes survived, whole and in part, and how many are
        lost. Which, follows from `seed` (64 bits). Calls of the engine fail until `power_on`
        (EAGAIN). Blocks (GIL released). OSError."""
    def power_on(self) -> None: ...

# ── Devices of the host ────────────────────────────────────────────────────────────────────────

RESET_DEVICE: Final = 0
RESET_TARGET: Final = 1
RESET_BUS: Final = 2
RESET_HOST: Final = 3

DEVICE_GONE: Final = 1
LIMIT_REFUSED: Final = 2

@final
class PassthroughLimits:
    """What the host takes in one command. Commands over it are split, and data that lies wrong in
    memory goes through a buffer."""

    def __new__(
        cls,
        *,
        max_bytes: int,
        max_segments: int,
        dma_alignment: int = 0,
        virt_boundary: int = 0,
        max_cdb: int = 32,
        max_write_same_blocks: int = 0,
        max_unmap_blocks: int = 0,
        max_unmap_descriptors: int = 0,
    ) -> Self:
        """`dma_alignment` and `virt_boundary` are masks, as the kernel has them. The last three
        are the device's own limits; 0 is none. ValueError: one of those of the host is 0."""
    @property
    def most(self) -> int:
        """Bytes that fit, however a buffer lies in the host's memory."""

@final
class Passthrough:
    """A SCSI device of the host, by one of its nodes."""

    def __new__(
        cls,
        fd: int,
        interface: int,
        limits: PassthroughLimits,
        *,
        depth: int,
        rules: Mapping[int, tuple[int, bool, int, int]],
        asynchronous: bool = False,
    ) -> Self:
        """`fd` is dup'ed. `interface` 3: `sg_io_hdr`, of block nodes and ``/dev/sgN``; 4:
        `sg_io_v4`, of bsg nodes. `depth`: commands in flight, 1 to 256; each keeps a thread busy
        unless `asynchronous`, which ``/dev/sgN`` is. `rules`, by OPERATION
        CODE: timeout in seconds, whether its CDB is SBC's and may be split, first byte and size of
        its field for the length of data (size 0: not in bytes; first byte 0: as usual)."""
    def close(self) -> None:
        """The device is gone: commands end with BAD_TARGET, those that run as the host ends them;
        with the last one the node is closed."""
    def watch(self, inbox: Inbox, token: int) -> None:
        """Ends `token` once when a command shows that the device is gone (DEVICE_GONE), or the host
        refuses what keeps to the limits (LIMIT_REFUSED); at once, if it has since the last call.
        Its value are these bits; 0 when it is closed."""
    def set_limits(self, limits: PassthroughLimits) -> None:
        """For commands that begin from now on."""
    def set_capacity(self, block_size: int, blocks: int) -> None:
        """Needed to split. 0: not known, or there are no blocks."""
    def execute(
        self, cdb: bytes, *, data_out: bytes = ..., data_in_length: int = 0
    ) -> tuple[int, int, bytes, bytes]:
        """Virtio response, SAM status, sense data, data-in; at most a MiB of data. Blocks (GIL
        released): call it off the event loop."""
    def reset(self, scope: int) -> None:
        """RESET_*, and no wider scope when that fails (SG_SCSI_RESET). Blocks (GIL released).
        `OSError`: it was not done."""
    @property
    def split(self) -> int:
        """Commands that went in several pieces."""
    @property
    def bounced(self) -> int:
        """Commands with data that went through a buffer."""

# ── What Rust must know of a logical unit ──────────────────────────────────────────────────────

ROUTE_PYTHON: Final = 0
ROUTE_READ: Final = 1
ROUTE_WRITE: Final = 2
ROUTE_MEDIA: Final = 3  # other media commands: SYNCHRONIZE CACHE, VERIFY …

CLASS_READ: Final = 1
CLASS_WRITE: Final = 2
CLASS_MEDIA: Final = 4
CLASS_ALL: Final = 7

@final
class LunPolicy:
    """Everything mode- or limit-dependent that the fast way needs; immutable."""

    def __new__(
        cls,
        *,
        block_size: int,
        blocks: int,
        write_protected: bool = False,
        write_cache: bool = True,
        descriptor_sense: bool = False,
        max_transfer_blocks: int = 0,
        max_write_same_blocks: int = 0,
        max_unmap_blocks: int = 0,
        max_unmap_descriptors: int = 0,
        unmap: bool = False,
        max_compare_and_write_blocks: int = 0,
        max_atomic_blocks: int = 0,
        atomic_granularity_blocks: int = 0,
        qerr: int = 0,
        restricted_reordering: bool = False,
    ) -> Self:
        """Limits of 0 mean: no limit. `unmap`: UNMAP and WRITE SAME with UNMAP deallocate;
        deallocated blocks read as zeros. The last three are exceptions: COMPARE AND
        WRITE takes that many blocks, WRITE ATOMIC too, 0 none; `atomic_granularity_blocks` is of
        its length and of its LBA. `qerr`: QERR, 0, 1 or 3; `restricted_reordering`: QUEUE ALGORITHM
        MODIFIER 0h, SIMPLE commands keep their order (SPC-6, Control mode page)."""
    block_size: int
    blocks: int
    write_protected: bool
    write_cache: bool
    descriptor_sense: bool
    max_transfer_blocks: int
    max_write_same_blocks: int
    max_unmap_blocks: int
    max_unmap_descriptors: int
    unmap: bool
    max_compare_and_write_blocks: int
    max_atomic_blocks: int
    atomic_granularity_blocks: int
    qerr: int
    restricted_reordering: bool
    def replace(self, **changes: int) -> LunPolicy:
        """A copy with these fields changed."""

@final
class Lu:
    """A logical unit's data plane: engine, policy, routes. Shared by all nexuses."""

    def __new__(
        cls,
        engine: Engine,
        policy: LunPolicy,
        routes: bytes,
        usage_maps: Mapping[int, bytes] | None = None,
        variable_length: Sequence[tuple[int, int, bytes]] = ...,
        *,
        queue_depth: int = 0,
    ) -> Self:
        """`routes`: 256 ROUTE_* values indexed by OPERATION CODE, made from the CDB table.
        `usage_maps`: CDB usage maps of the media commands (opcode → bytes). A command with a bit
        set that its map does not define comes to Python, which refuses it with the field
        pointer: the fast way never skips that check. `variable_length`: service action, ROUTE_* and
        usage map of each command with a variable-length CDB; others of operation code 7Fh take its
        route. From byte 16 on a usage map must have all bits set. `queue_depth`: most commands in
        the task set, then TASK SET FULL, or BUSY for a nexus that has none there; 0: no limit."""
    def mark_bad(self, offset: int, length: int) -> None:
        """These bytes, a block, read as an error until they are written; as WRITE LONG does."""
    policy: LunPolicy
    """Read, or assigned to swap atomically; commands already started keep the old one."""
    @property
    def engine(self) -> Engine: ...
    def flush_begins(self) -> tuple[int, int]:
        """A flush of the engine that is not a command's begins now: for `flush_ended`."""
    def flush_ended(self, flush: tuple[int, int], good: bool, *, by: Nexus | None = None) -> None:
        """How it ended. If not well, nexuses that wrote since the last good one have `lost`, but
        `by`, which is told otherwise."""
    def hold(self) -> Held:
        """As long as this is in effect, no dormant command of the unit is enabled, and those that
        come are dormant, but for HEAD OF QUEUE and ACA."""
    @property
    def aca(self) -> bool:
        """Whether an ACA condition is in effect (SAM-6), of whichever nexus."""
    def set_faults(self, rules: Sequence[FaultRule]) -> None:
        """All rules, for commands that come from now on. Of those that take the same command,
        delays add up, and of everything else the first one's stands. What a rule that is gone
        makes hang, still does: `Worker.release`."""
    def set_limits(self, commands: tuple[int, int], bytes: tuple[int, int]) -> None:
        """Of media commands and the data they move: how many a second (0: no limit), and how many
        at once after a pause. What waits already keeps its time until `Worker.release`."""
    @property
    def errors(self) -> tuple[int, int, int, int]:
        """Commands that the data plane ended with an uncorrected error of a write, of a read or of
        a verification, and with an error of our own, since the unit was made."""

@final
class FaultRule:
    """Which commands of a unit go wrong, and how.

    It is for commands with one of `opcodes`, or a variable-length CDB and one of these service
    `actions` (neither: any), that touch `blocks` (first and last LBA),
    of `port`, with `tag`, from `start` seconds from now, for `duration` seconds. Of these it spares
    the first `skip`, then takes the first of `every` so many, of those the part `probability`,
    drawn by `seed`, at most `times` (0: any number).

    `answer`: a virtio response and a SAM status, with `sense` (key, ASC and ASCQ as one number), in
    place of processing, or after it if `executed`. `bad`: `blocks` fail with this sense key, ASC
    and ASCQ, and what a command does before the first of them is done; where it both reads and
    changes blocks, the first element says whether reads fail. `wear`: blocks in an erase unit, how
    often one can be written, and spare ones; ValueError: `blocks` are more than MAX_WEAR_UNITS of
    them. It is for writes. `delay`: in seconds, ``("fixed", t, 0)``,
    ``("uniform", least, most)``, ``("normal", mean, deviation)``, or ``("lognormal", median,
    deviation of the logarithm)``. `hang`: until `Worker.release`. `short`: the part of the data
    that is transferred. `corruption`: ``"flip"``, ``"torn"``, ``"lost"``, ``"misdirected"``.
    `lose`: it is executed, and never completes, unless it is aborted.
    """

    def __new__(
        cls,
        *,
        opcodes: Sequence[int] = ...,
        actions: Sequence[int] = ...,
        blocks: tuple[int, int] | None = None,
        port: Port | None = None,
        tag: int | None = None,
        start: float = 0.0,
        duration: float | None = None,
        skip: int = 0,
        every: int = 1,
        times: int = 0,
        probability: float | None = None,
        seed: int = 0,
        answer: tuple[int, int] | None = None,
        sense: tuple[int, int] | None = None,
        executed: bool = False,
        bad: tuple[bool, int, int] | None = None,
        wear: tuple[int, int, int] | None = None,
        delay: tuple[str, float, float] | None = None,
        hang: bool = False,
        short: float | None = None,
        corruption: str | None = None,
        lose: bool = False,
    ) -> Self: ...
    @property
    def met(self) -> int:
        """Commands that fit, whether or not their number did."""
    @property
    def hits(self) -> int:
        """Commands that it took."""

@final
class Held:
    """A task set stands still until this is left, as a context manager, or gone."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_error: object) -> None: ...

@final
class Scan:
    """Reads the whole medium of a unit, beside all else that uses it."""

    def __new__(cls, lu: Lu) -> Self: ...
    def run(self) -> tuple[int, int, int] | None:
        """Blocks (GIL released): call it once, off the event loop. The first block that cannot be
        read: LBA, sense key, ASC and ASCQ as one number. `InterruptedError` after `cancel`."""
    @property
    def progress(self) -> int:
        """Parts of 65536 that are done, at most 65535."""
    def cancel(self) -> None: ...

@final
class Overwrite:
    """Fills the whole medium of a unit, as it is now. Nothing else may use it meanwhile: close the
    gates and await `Worker.quiesce` first.

    `pattern` None: blocks read as zeros and take no space where the engine can free it. Else 1 to
    block_size bytes that are repeated and cut to fill each block, in all of `passes`; with
    `invert` each pass writes the opposite bits of the next one, the last one the pattern."""

    def __new__(
        cls, lu: Lu, pattern: bytes | None = None, *, passes: int = 1, invert: bool = False
    ) -> Self: ...
    def run(self) -> None:
        """Blocks (GIL released) until all is on stable storage. `OSError`; `InterruptedError` after
        `cancel`. Call it once."""
    @property
    def progress(self) -> int:
        """Parts of 65536 that are done, at most 65535."""
    def cancel(self) -> None: ...

@final
class Watch:
    """Whether blocks of a unit were changed. `ranges`: (offset, length) in bytes each. What writes
    when it is made may go unnoticed: await `Worker.quiesce`."""

    def __new__(cls, lu: Lu, ranges: Sequence[tuple[int, int]]) -> Self: ...
    @property
    def changed(self) -> bool: ...

@final
class Copy:
    """Moves `runs`, in this order: (source offset, offset, length) in bytes each, every one as if
    all of it were read before the first byte is written. `source` None: zeros. `durable`: on
    stable storage on return. Takes turns with exclusive commands of both units."""

    def __new__(
        cls,
        target: Lu,
        source: Lu | None,
        runs: Sequence[tuple[int, int, int]],
        *,
        durable: bool,
        unless: Watch | None = None,
    ) -> Self: ...
    def run(self) -> None:
        """Blocks (GIL released): call it once, off the event loop. `OSError`: a range is outside,
        or the I/O failed; EAGAIN: space is being freed; `InterruptedError` after `cancel`.
        `SourceChangedError`: what `unless` watches has changed, and nothing newer was taken."""
    @property
    def runs(self) -> list[tuple[int, int, int]]: ...
    @property
    def copied(self) -> int:
        """Bytes copied without a gap from the beginning."""
    def cancel(self) -> None: ...

@final
class Nexus:
    """I_T_L nexus: one port's way to one logical unit, with its gate."""

    def __new__(cls, lu: Lu) -> Self: ...
    @property
    def lu(self) -> Lu: ...
    def close(self, classes: int) -> None:
        """Commands of these classes (CLASS_*) now come to Python. Commands that began before may
        still run: await `Worker.quiesce` where that matters."""
    def open(self, classes: int) -> None:
        """The fast way for these classes again, as soon as no command of this nexus is waiting
        for Python's decision, so that nothing overtakes; and while `lost`, none is opened."""
    @property
    def lost(self) -> bool:
        """Whether it wrote to a cache that could not be flushed, and was not told: all its commands
        come to Python, or the next flush that it asks for fails."""
    def take_lost(self) -> bool:
        """The same, for whoever tells it."""
    def wrote(self) -> None:
        """Something was written for it that is no command of its own; before that, and after."""
    @property
    def closed(self) -> int:
        """Classes closed right now."""
    @property
    def pending(self) -> int:
        """Commands of this nexus in the inbox or with Python, not yet decided."""
    @property
    def statistics(self) -> dict[int, Statistics]:
        """What its commands cost until now, by index of the queue that they came from."""
    @property
    def faulted(self) -> bool:
        """Whether the ACA condition in effect is this nexus's."""
    def clear_aca(self) -> bool:
        """Clears it: waiting commands go on. Whether there was one of this nexus."""

@final
class Statistics:
    """Counted since the nexus or port was made. Where there are three they are of reads, of writes
    and of all other commands, by their routes. A command that its driver sees ended is counted."""

    @property
    def in_flight(self) -> int:
        """Without those that their worker ends before it takes the next one."""
    @property
    def bytes(self) -> tuple[int, int, int]:
        """Data moved, either way."""
    @property
    def latencies(
        self,
    ) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[tuple[int, int]]]:
        """(longest latency, commands) of each bucket with any, in nanoseconds, from where a worker
        begins to take a queue's commands, at most 64 at once, to where it shows the driver what of
        them has ended. A bucket is 64 ns wide, or at most 1/16 of what it counts; the last one ends
        at 68 s and counts what is longer, too."""
    @property
    def statuses(self) -> list[tuple[int, int]]:
        """(SAM status other than GOOD, commands)."""
    @property
    def responses(self) -> list[tuple[int, int]]:
        """(VIRTIO_SCSI_S_* other than OK, commands)."""

@final
class TraceRecord:
    """A command as it ended."""

    @property
    def time(self) -> int:
        """When its response was written: CLOCK_MONOTONIC in nanoseconds."""
    @property
    def nanoseconds(self) -> int:
        """From where it was taken from its queue until then."""
    @property
    def port(self) -> Port: ...
    @property
    def queue(self) -> int:
        """Index of its queue."""
    @property
    def lun(self) -> bytes:
        """The request's 8-byte lun field."""
    @property
    def tag(self) -> int: ...
    @property
    def task_attribute(self) -> int: ...
    @property
    def cdb(self) -> bytes:
        """`cdb_size` bytes, at least 16."""
    @property
    def data_out_length(self) -> int:
        """Bytes of the buffer."""
    @property
    def data_in_length(self) -> int: ...
    @property
    def data_out_moved(self) -> int:
        """Bytes that the command moved."""
    @property
    def data_in_moved(self) -> int: ...
    @property
    def status(self) -> int: ...
    @property
    def response(self) -> int: ...
    @property
    def sense(self) -> bytes: ...
    @property
    def data(self) -> bytes:
        """The first bytes of what was moved."""

@final
class Trace:
    """Records of the commands that end, for `Worker.trace`; at most `capacity` a worker."""

    def __new__(
        cls,
        capacity: int,
        *,
        units: Sequence[Lu] = ...,
        opcodes: Sequence[int] = ...,
        actions: Sequence[int] = ...,
        errors: bool = False,
        min_nanoseconds: int = 0,
        data_bytes: int = 0,
        keep_newest: bool = False,
    ) -> Self:
        """Records are of these units and operation codes, with `errors` of commands that did not
        end with response OK and status GOOD, and took at least so long; all by default. Each has
        the first `data_bytes` of its data. When there is no room new records are lost, or
        (`keep_newest`) old ones. `capacity` and `data_bytes` are at most 1048576."""
    def take(self) -> list[TraceRecord]:
        """Removes what there is, in order of time."""
    def peek(self) -> list[TraceRecord]:
        """The same, without removing it."""
    def take_lost(self) -> int:
        """Records that were lost since the last call."""
    def end(self) -> None:
        """No more records."""

@final
class Port:
    """An HBA's initiator port as workers see it: request layout and LUN map."""

    def __new__(cls) -> Self: ...
    cdb_size: int
    sense_size: int
    inout: bool
    """VIRTIO_SCSI_F_INOUT negotiated."""
    def set_luns(self, luns: Mapping[tuple[int, int], Nexus], targets: Sequence[int] = ...) -> None:
        """(target, LUN) → nexus, swapped atomically. A request to a target without any entry, and
        not in `targets`, is answered BAD_TARGET; to an absent LUN of a known target, or to a
        well-known LU, it comes to Python with `nexus` None."""
    @property
    def statistics(self) -> dict[int, Statistics]:
        """What its commands for no logical unit cost until now, by index of the queue that they
        came from: to addresses without one, to a well-known one, malformed."""

# ── Workers and the inbox ──────────────────────────────────────────────────────────────────────

@final
class Command:
    """A SCSI command that Python decides: call exactly one of `finish`, `execute`, `fail`, once.
    A later call, or one after an abort, does nothing. A dropped handle is answered FAILURE."""

    @property
    def port(self) -> Port: ...
    @property
    def queue(self) -> Queue: ...
    @property
    def nexus(self) -> Nexus | None: ...
    @property
    def lun(self) -> bytes:
        """The request's 8-byte lun field."""
    @property
    def tag(self) -> int: ...
    @property
    def task_attribute(self) -> int: ...
    @property
    def priority(self) -> int: ...
    @property
    def crn(self) -> int: ...
    @property
    def cdb(self) -> bytes:
        """`cdb_size` bytes."""
    @property
    def data_out(self) -> bytes:
        """The data-out buffer, at most its first MiB, copied when the command was taken.
        Empty for commands whose route is media (Rust has them in place)."""
    @property
    def data_out_length(self) -> int: ...
    @property
    def data_in_length(self) -> int: ...
    def finish(self, status: int, *, data_in: bytes = ..., sense: bytes = ...) -> None:
        """Response OK with this SAM status. residual = buffer length minus bytes moved (data-out
        counts as consumed when status is GOOD). `data_in` longer than the buffer: OVERRUN."""
    def execute(self) -> None:
        """Hands a media command to the same Rust code as the fast way."""
    def fail(self, response: int) -> None:
        """A virtio-scsi response other than OK (BAD_TARGET, FAILURE …)."""

@final
class Control:
    """A request on the control queue, as raw bytes both ways. Finish once."""

    @property
    def port(self) -> Port: ...
    @property
    def queue(self) -> Queue: ...
    @property
    def request(self) -> bytes: ...
    @property
    def reply_capacity(self) -> int: ...
    def finish(self, reply: bytes) -> None: ...

@final
class Notice:
    """Something that is not a command. `kind` is one of:

    - ``"done"``: an asynchronous call with this `token` ended; `value` is its result
    - ``"call"``: queue `value` of in-band `Notifier` `token` wants its driver notified
    - ``"event"``: the event queue that `Queue.want_event_buffers` watched has buffers again
    - ``"miss"``: `queue` waits until I/O address `value` is mapped for access `token` (1 read,
      2 write); once for each wait. `Queue.fail` ends it if there is no such mapping
    - ``"denied"``: I/O address `value` is mapped, but not for access `token`; "broken" is next
    - ``"broken"``: the ring of `queue` broke an invariant; it is stopped; `text` says how
    - ``"warning"``: `text` is worth one log line
    - ``"fault"``: a command of `nexus`, sent through `port`, ended with CHECK CONDITION, and QERR
      says that commands are to be aborted for that. Until this object is gone the task set is
      held (`Lu.hold`): start the aborts before. `value`: commands with this stamp or a lower
      one came before
    """

    @property
    def kind(self) -> str: ...
    @property
    def token(self) -> int: ...
    @property
    def value(self) -> int: ...
    @property
    def queue(self) -> Queue | None: ...
    @property
    def port(self) -> Port | None: ...
    @property
    def nexus(self) -> Nexus | None: ...
    @property
    def text(self) -> str: ...

@final
class Transfer:
    """A call of an `Engine.python`: call one of `finish`, `fail`, `refuse`, once, from any thread.
    A later call does nothing. A dropped handle is an EIO."""

    @property
    def token(self) -> int: ...
    @property
    def kind(self) -> str:
        """``"read"``, ``"write"``, ``"flush"`` or ``"discard"``."""
    @property
    def offset(self) -> int:
        """In bytes."""
    @property
    def length(self) -> int:
        """In bytes, at most 1 MiB for a read or a write."""
    @property
    def data(self) -> bytes:
        """Of a write."""
    def finish(self, data: bytes = ...) -> None:
        """It is done. `data`: `length` bytes for a read, none for others; else it is an error."""
    def fail(self, errno: int) -> None:
        """What the error means to an initiator is as for a file."""
    def refuse(self, key: int, asc: int, ascq: int) -> None:
        """CHECK CONDITION with this sense."""

@final
class Inbox:
    """Worker → Python. One a process; the control thread watches `fileno`."""

    def __new__(cls) -> Self: ...
    def fileno(self) -> int: ...
    def take(self, limit: int = 256) -> list[Command | Control | Notice | Transfer]:
        """What has arrived, oldest first; clears the eventfd. Call again while it is full."""

@final
class Worker:
    """A thread that serves queues. It never holds the GIL. `token`s come back as "done"."""

    def __new__(cls, inbox: Inbox, name: str, *, io_uring: bool = True) -> Self: ...
    @property
    def io_backend(self) -> str:
        """``"io_uring"`` or ``"threads"`` (refused by seccomp or kernel, or not wanted)."""
    def abort(
        self,
        token: int,
        response: int,
        *,
        status: int = 0,
        port: Port | None = None,
        lu: Lu | None = None,
        nexus: Nexus | None = None,
        tag: int | None = None,
        until: int | None = None,
    ) -> None:
        """Ends matching commands with `response` and, where that is OK, SAM `status` (None matches
        all; `until`: stamps up to this one, see `Notice`). First takes what the queues of `port`
        already offer, so that a command queued before the TMF is hit by it. "done" when the last
        one is complete; `value` = commands hit. With `lu` or `nexus` and without `tag`, the unit's
        task set is held (`Lu.hold`) until this worker has looked at all of its own commands."""
    def query(
        self,
        token: int,
        *,
        port: Port | None = None,
        lu: Lu | None = None,
        nexus: Nexus | None = None,
        tag: int | None = None,
        opcodes: Sequence[int] = ...,
    ) -> None:
        """Counts matching commands in the task set now (after taking as above): "done", `value`.
        `opcodes`: only with one of these OPERATION CODEs, or any."""
    def release(self, lu: Lu, rule: FaultRule | None = None) -> None:
        """Commands of `lu` that `rule` makes hang go on. None: those that wait for its limits take
        their turn anew, after `Lu.set_limits`."""
    def quiesce(self, token: int, *, lu: Lu | None = None) -> None:
        """Says "done" when commands of `lu` that ran at this call are over: not those with
        Python, nor dormant ones, which have yet to come to the gate."""
    def quiesce_range(self, token: int, memory: GuestMemory, iova: int, size: int) -> None:
        """After `GuestMemory.iotlb_invalidate`: says "done" when no ring and no command, here or
        with Python, uses a translation of these I/O addresses found before; `value`: commands
        that did."""
    def trace(self, trace: Trace) -> None:
        """Soon `trace` gets records of the commands that end here, until it is ended."""
    def stop(self) -> None:
        """Ends the thread: drains engines, drops queues. Blocks (GIL released)."""

@final
class Call:
    """A descriptor that a front end wants signalled: an eventfd, or the writing end of a pipe or
    stream socket. dup'ed; ValueError: it is none of these."""

    def __new__(cls, fd: int) -> Self: ...
    def signal(self) -> None:
        """Never blocks, however full it is."""

@final
class Interrupt:
    """The interrupt of one virtio-mmio device: InterruptStatus, ConfigGeneration and the line
    (virtio 1.4 4.2.2). Workers set its bits, register models read and acknowledge them; safe from
    any thread."""

    def __new__(cls) -> Self: ...
    @property
    def status(self) -> int:
        """InterruptStatus: bit 0 used buffer, bit 1 configuration change."""
    @property
    def level(self) -> bool:
        """Whether the line is asserted: as long as any bit is set."""
    @property
    def generation(self) -> int:
        """ConfigGeneration (32 bits, wraps)."""
    def acknowledge(self, mask: int) -> None:
        """A write to InterruptACK: clears these bits."""
    def config_changed(self) -> None:
        """A new generation, and bit 1. Call it after the config space shows the change."""
    def notify_config(self) -> None:
        """Bit 1 without a new generation: DEVICE_NEEDS_RESET (virtio 1.4, 2.1.2)."""
    def change_generation(self) -> None:
        """A new generation without an interrupt (before DRIVER_OK)."""
    def reset(self) -> None:
        """Device reset: no bit is set; the generation goes on."""
    def fileno(self) -> int:
        """An eventfd, signalled whenever the line rises."""
    def clear(self) -> None:
        """Reads the eventfd empty."""

@final
class Notifier:
    """How a queue tells its driver of used buffers."""

    @staticmethod
    def none() -> Notifier:
        """The driver polls."""
    @staticmethod
    def fd(fd: int) -> Notifier:
        """An eventfd, or the write end of a pipe (User-Mode Linux); dup'ed, never blocks us."""
    @staticmethod
    def interrupt(interrupt: Interrupt) -> Notifier:
        """Sets bit 0 of `interrupt` (virtio-mmio)."""
    @staticmethod
    def inband(token: int) -> Notifier:
        """Posts a "call" `Notice` with `token`; the transport sends BACKEND_VRING_CALL."""

KIND_CONTROL: Final = 0
KIND_EVENT: Final = 1
KIND_REQUEST: Final = 2
MAX_WEAR_UNITS: Final = 1048576
"""Erase units of one `FaultRule`."""

@final
class Queue:
    """A started virtqueue on a worker. Made with its whole configuration; runs until `stop`."""

    def __new__(
        cls,
        worker: Worker,
        port: Port,
        memory: GuestMemory,
        *,
        index: int,
        kind: int,
        size: int,
        desc: int,
        driver: int,
        device: int,
        features: int,
        next_avail: int = 0,
        next_used: int | None = None,
        enabled: bool = True,
        notifier: Notifier | None = None,
        kick_fd: int = ...,
        poll: bool = False,
        big_endian: bool = False,
        hostility: Hostility | None = None,
    ) -> Self:
        """`desc`, `driver`, `device`: guest addresses of the three ring parts. `features`: the
        negotiated bits (EVENT_IDX, INDIRECT_DESC, VERSION_1, ANY_LAYOUT …). `next_used` None: read
        from the used ring. Looks at the ring at once, without a kick. `RingError`: bad size,
        misaligned or unmapped ring. `poll`: look at the ring without kicks (SET_VRING_KICK without
        a descriptor). `notifier` is taken over: each belongs to one queue. With ACCESS_PLATFORM
        all addresses are I/O addresses, and a ring that is not mapped yet is a "miss"."""
    @property
    def index(self) -> int: ...
    @property
    def kind(self) -> int: ...
    def set_enabled(self, enabled: bool) -> None: ...
    def set_notifier(self, notifier: Notifier) -> None: ...
    def set_kick_fd(self, fd: int, *, poll: bool = False) -> None:
        """A new kick descriptor (eventfd or pipe; dup'ed), -1: none. Raises ValueError for a
        descriptor that cannot be waited on."""
    def kick(self) -> None:
        """An in-band or register kick."""
    def fail(self, text: str) -> None:
        """Declares the ring broken: it is stopped, and a "broken" Notice says `text`."""
    def notify(self) -> None:
        """Notifies the driver, whether or not there is a reason."""
    def push_event(self, token: int, event: bytes) -> None:
        """Event queue: writes `event` into the next buffer. "done" with 1, or 0 for no buffer."""
    def want_event_buffers(self) -> None:
        """Event queue: posts one "event" Notice when the driver offers a buffer."""
    def stop(self, token: int, *, abort: int | None = None) -> None:
        """Takes no more chains, waits for those in flight, then "done" with `value` = next avail
        index. With `abort`: commands not yet running (with Python) end with this response. A queue
        whose used ring has no translation by then ends all the same, with a warning.
        A stopped queue never touches guest memory again. May be called once."""
    def discard(self, token: int) -> None:
        """As `stop`, but the driver is gone: nothing more is written to its rings."""
