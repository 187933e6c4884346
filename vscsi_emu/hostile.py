"""A device that misbehaves towards its driver, as a malicious host would: for those who harden
guest drivers (confidential computing). Off unless somebody chooses it.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vscsi_emu import _dataplane
from vscsi_emu.backends.uri import did_you_mean

if TYPE_CHECKING:
    from vscsi_emu._dataplane import Queue

_STORM_SECONDS: Final = 0.0005


class Place(StrEnum):
    """Where a driver meets it."""

    RING = "used ring"
    INTERRUPT = "interrupt"
    FEATURES = "feature bits"
    CONFIG = "configuration space"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One way to misbehave."""

    name: str
    place: Place
    what: str
    """What the device does."""
    driver: str
    """What becomes of our own driver: the error that it raises, or that it goes on."""
    linux: str = ""
    """What a Linux 6.1 guest does, where a test has seen it: what its kernel says in quotes. Empty:
    it cannot meet it here."""


_ALL: Final = (
    Behaviour(
        "used-id-out-of-range",
        Place.RING,
        "The id of a used element is no descriptor of the queue.",
        "RingBroken: which is not in flight",
        '"out of range": the queue is broken',
    ),
    Behaviour(
        "used-id-not-in-flight",
        Place.RING,
        "The id is a descriptor, but no chain in flight begins there.",
        "RingBroken: which is not in flight",
        '"is not a head!": the queue is broken',
    ),
    Behaviour(
        "used-length-too-long",
        Place.RING,
        "The length is more than the chain has room for.",
        "RingBroken: bytes used of a buffer",
        "goes on",
    ),
    Behaviour(
        "used-length-too-short",
        Place.RING,
        "The length is less than a response has bytes.",
        "AnswerError: are no response header",
        "goes on",
    ),
    Behaviour(
        "used-twice",
        Place.RING,
        "A chain is used twice.",
        "RingBroken: in flight",
        '"is not a head!": the queue is broken',
    ),
    Behaviour(
        "used-index-jump",
        Place.RING,
        "The used index moves on by more than is in flight.",
        "RingBroken: in flight",
        '"is not a head!": the queue is broken',
    ),
    Behaviour(
        "used-index-back",
        Place.RING,
        "The used index moves back.",
        "RingBroken: in flight",
        '"is not a head!": the queue is broken',
    ),
    Behaviour(
        "used-never",
        Place.RING,
        "A chain is never used, though its command was processed.",
        "TimeoutError: in time",
        "waits for ever, and never aborts the command",
    ),
    Behaviour(
        "interrupt-storm",
        Place.INTERRUPT,
        "Queues notify all the time, with nothing used.",
        "goes on",
        "goes on",
    ),
    Behaviour(
        "features-flip",
        Place.FEATURES,
        "An offered feature is missing, another one each time they are read.",
        "ProbeError: other features than before, or MmioError: must offer",
        "goes on without it",
    ),
    Behaviour(
        "config-changes",
        Place.CONFIG,
        "Every read finds other numbers, in the same generation.",
        "MmioError: changes within a generation",
        '"scsi 0:0:256:0: Direct-Access": it believes `max_target`, for which its requests have 8 '
        "bits, and finds a disk again at every 256th target",
    ),
    Behaviour(
        "reset-slow",
        Place.RESET,
        "Status becomes 0 only after many reads.",
        "goes on",
    ),
    Behaviour(
        "reset-never",
        Place.RESET,
        "Status never becomes 0.",
        "TimeoutError: device reset takes more than",
    ),
    Behaviour(
        "reset-half-done",
        Place.RESET,
        "Status becomes 0 at once, but the queues run on.",
        "MmioError: is running already",
    ),
)

BEHAVIOURS: Final = MappingProxyType({behaviour.name: behaviour for behaviour in _ALL})
"""By name."""


class Hostility:
    """What one device does wrong. With the same seed it does the same to the same driver.

    Of 100 used elements `chance` are chosen; all else is done each time. Until it is armed, the
    device is honest. `ValueError` for an unknown name. May be used from any thread.
    """

    def __init__(
        self, names: Iterable[str], *, seed: int = 0, chance: int = 100, armed: bool = True
    ) -> None:
        self.names: Final = tuple(dict.fromkeys(names))
        for name in self.names:
            if name not in BEHAVIOURS:
                raise ValueError(
                    f"no behaviour {name!r}{did_you_mean(name, list(BEHAVIOURS))}; "
                    f"known: {', '.join(BEHAVIOURS)}"
                )
        if not 0 <= chance <= 100:
            raise ValueError(f"chance {chance} is not within 0 to 100")
        self.seed: Final = seed
        self.armed = armed
        self._chance = chance
        self._random = random.Random(seed)
        self._counts: Counter[str] = Counter()
        self._rings: list[_dataplane.Hostility] = []
        self._missing: dict[int, int] = {}

    def arm(self) -> None:
        """From now on."""
        self.armed = True
        for ring in self._rings:
            ring.arm()

    def does(self, name: str) -> bool:
        """Whether it does this now; counted as done."""
        if not self.armed or name not in self.names:
            return False
        self._counts[name] += 1
        return True

    @property
    def done(self) -> int:
        """Misdeeds so far."""
        return sum(self._counts.values()) + sum(ring.done for ring in self._rings)

    def ring(self, queue: int) -> _dataplane.Hostility | None:
        """For virtqueue `queue`, as it starts; None: an honest one."""
        misdeeds = [name for name in self.names if BEHAVIOURS[name].place is Place.RING]
        if not misdeeds:
            return None
        seed = random.Random(f"{self.seed} {queue}").getrandbits(64)
        ring = _dataplane.Hostility(misdeeds, seed=seed, chance=self._chance, armed=self.armed)
        self._rings.append(ring)
        return ring

    def features(self, offered: int, word: int = 0) -> int:
        """What a read of offered features finds; `word` tells apart what is read in parts."""
        bits = [bit for bit in range(64) if offered >> bit & 1]
        candidates = [bit for bit in bits if bit != self._missing.get(word)]
        if not candidates or not self.does("features-flip"):
            return offered
        self._missing[word] = self._random.choice(candidates)
        return offered & ~(1 << self._missing[word])

    def config(self, data: bytes) -> bytes:
        """What a read of the configuration space finds."""
        return self._random.randbytes(len(data)) if self.does("config-changes") else data

    async def storm(self, queue: Queue, running: Callable[[], bool]) -> None:
        """Notifies while the queue runs."""
        while "interrupt-storm" in self.names and running():
            if self.does("interrupt-storm"):
                queue.notify()
            await asyncio.sleep(_STORM_SECONDS)
