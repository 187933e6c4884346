"""Who is told what about a device's DMA, what is so, and what becomes of it.

Each row is a run of the guest driver against a real HBA behind virtio-mmio registers, over a model
of memory that CPU and device may see differently. docs/dma-coherency.md tells the story. The exit
code is 0 if every row comes out as the rules of coherency say.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from rich.console import Console
from rich.table import Table

from vscsi_emu.config import from_arguments
from vscsi_emu.driver.coherency import CoherencyBus, Fault, FaultKind, Iommu, Kernel, Reality
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.dma_policy import DmaPolicy, Platform
from vscsi_emu.driver.mmio import NeedsReset, VirtioMmioBus
from vscsi_emu.driver.request import AnswerError
from vscsi_emu.driver.virtio_scsi import KNOWN, Options, VirtioScsi
from vscsi_emu.driver.vring import RingBroken
from vscsi_emu.inprocess import InProcess
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.mmio_registers import LEGACY, MODERN

RAM_START, RAM_BYTES = 0x10_0000, 16 << 20
IMPATIENCE, PATIENCE = 0.4, 10.0
"""Seconds that an answer may take: where a fault explains that there is none, and where not."""
BLOCKS, BLOCK = 32, 512
HEADINGS = ("described coherent", "really coherent", "device", "policy", "outcome", "first fault")


@dataclass(frozen=True, slots=True)
class Case:
    described_coherent: bool
    really_coherent: bool
    device: str
    policy: DmaPolicy | None
    """None: all versions agree."""

    @property
    def modern(self) -> bool:
        return self.device != "legacy"

    @property
    def access_platform(self) -> bool:
        return "ACCESS_PLATFORM" in self.device

    @property
    def keeps_promise(self) -> bool:
        return "ignored" not in self.device

    @property
    def expected(self) -> FaultKind | None:
        """Through the DMA API the guest does as described, past it as if all were coherent; that
        must be what the device does."""
        through_api = self.access_platform or (
            not self.modern
            and self.policy in (DmaPolicy.ARM_LEGACY, DmaPolicy.ARM_COHERENT_LEGACY)
            and (self.described_coherent or self.policy is DmaPolicy.ARM_LEGACY)
        )
        assumed = self.described_coherent or not through_api
        bound = self.access_platform and self.keeps_promise and not self.described_coherent
        if assumed == (self.really_coherent and not bound):
            return None
        return FaultKind.STALE_DEVICE_READ if assumed else FaultKind.MISMATCHED_ALIAS


@dataclass(frozen=True, slots=True)
class Outcome:
    text: str
    fault: Fault | None


def cases() -> Iterator[Case]:
    for really, described in product((True, False), (True, False)):
        for policy in DmaPolicy:
            yield Case(described, really, "legacy", policy)
        for device in ("modern", "ACCESS_PLATFORM", "ACCESS_PLATFORM, ignored"):
            yield Case(described, really, device, None)


def run(case: Case) -> Outcome:
    outcome = _run(case, IMPATIENCE)
    if outcome.text == "hang" and outcome.fault is None:  # or is this machine just busy?
        outcome = _run(case, PATIENCE)
    return outcome


def _run(case: Case, timeout: float) -> Outcome:
    version = MODERN if case.modern else LEGACY
    kernel = Kernel(
        case.policy or DmaPolicy.MAINLINE, Platform(described_coherent=case.described_coherent)
    )
    reality = Reality(case.really_coherent, case.access_platform, case.keeps_promise)
    with InProcess(from_arguments(["mem:1M"]), version=version, workers=1) as machine:
        (slot,) = machine.slots
        unused = DmaAllocator(RAM_START, RAM_BYTES)
        with VirtioMmioBus(slot, slot.base, unused, version) as registers:
            bus = CoherencyBus(registers, RAM_START, RAM_BYTES, kernel, reality, iommu=Iommu())
            return Outcome(_drive(bus, timeout), bus.log.first)


def _drive(bus: CoherencyBus, timeout: float) -> str:
    try:
        guest = VirtioScsi(bus, Options(features=KNOWN | Feature.ACCESS_PLATFORM), timeout=timeout)
        guest.execute(0, 0, bytes(6))  # takes the unit attention
        for block in range(BLOCKS):
            data = bytes([block + 1]) * BLOCK
            where = block.to_bytes(4, "big") + b"\0\0\x01\0"
            guest.execute(0, 0, b"\x2a\0" + where, data_out=data)
            if guest.execute(0, 0, b"\x28\0" + where, data_in_length=BLOCK).data != data:
                return "corruption"
    except TimeoutError:
        return "hang"
    except (RingBroken, AnswerError, NeedsReset):
        return "corruption"
    return "works"


def cells(case: Case, outcome: Outcome) -> tuple[str, ...]:
    return (
        "yes" if case.described_coherent else "no",
        "yes" if case.really_coherent else "no",
        case.device,
        case.policy.value if case.policy else "any",
        outcome.text,
        outcome.fault.kind.value if outcome.fault else "",
    )


def as_expected(case: Case, outcome: Outcome) -> bool:
    kind = outcome.fault.kind if outcome.fault else None
    return kind is case.expected and (outcome.text == "works") == (kind is None)


def main() -> int:
    table = Table(*HEADINGS)
    wrong = 0
    for case in cases():
        outcome = run(case)
        right = as_expected(case, outcome)
        wrong += not right
        style = "bold red" if not right else "green" if outcome.text == "works" else "yellow"
        table.add_row(*cells(case, outcome), style=style)
    console = Console()
    console.print(table)
    if wrong:
        console.print(f"{wrong} rows are not as the rules say")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
