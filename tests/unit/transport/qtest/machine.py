"""RAM, and registers that remember their accesses."""

from dataclasses import dataclass, field

from vscsi_emu._dataplane import GuestMemory
from vscsi_emu.transport.mmio import MmioBus
from vscsi_emu.transport.qtest import AddressSpace, Commands

RAM = 1 << 20
BASE = 0xFEB0_0000


@dataclass
class Registers:
    log: list[tuple[str, int, int, int]] = field(default_factory=list)

    def read(self, offset: int, size: int) -> int:
        self.log.append(("read", offset, size, 0))
        return int.from_bytes(bytes(range(offset & 0xFF, (offset & 0xFF) + size)), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("write", offset, size, value))


@dataclass
class Machine:
    registers: Registers = field(default_factory=Registers)
    memory: GuestMemory = field(default_factory=lambda: GuestMemory.anonymous(RAM))

    def __post_init__(self) -> None:
        bus = MmioBus()
        bus.map(BASE, self.registers)
        self.commands = Commands(AddressSpace(self.memory, bus))

    def __call__(self, line: str) -> str:
        return self.commands.answer(line)
