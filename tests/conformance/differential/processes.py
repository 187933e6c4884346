"""The two devices: QEMU's beside a CPU that does nothing, and ours."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.conformance.differential import machine
from tests.conformance.differential.machine import BASE, IRQ, RAM_MIB, Machine
from vscsi_emu.driver.qtest import QtestClient
from vscsi_emu.testing.hba import program
from vscsi_emu.testing.qemu import emulator
from vscsi_emu.virtio.mmio_registers import LEGACY

_STOP_SECONDS: Final = 60.0

# 16-bit code at the reset vector: cli; hlt; jump back to the hlt.
_ROM: Final = bytes(0xFFF0) + b"\xfa\xf4\xeb\xfd" + bytes(12)


@contextmanager
def ours(directory: Path, version: int) -> Iterator[Machine]:
    """`directory` is for this process alone."""
    socket, image = directory / "qtest.sock", _image(directory)
    command = [
        *(str(program()), "qtest", "--quiet", "--connect", "--socket", str(socket)),
        *("--base", hex(BASE), "--irq", str(IRQ), "--memory", f"{RAM_MIB}M"),
        *("--queues", str(machine.QUEUES), "--lun", machine.lun(image)),
    ]
    with _process([*command, *(["--legacy"] if version == LEGACY else [])], socket) as client:
        yield Machine(client, version)


@contextmanager
def qemu(directory: Path, version: int, *, blocks: int = machine.BLOCKS) -> Iterator[Machine]:
    """With the same properties wherever QEMU has a property."""
    binary, environment, firmware = emulator()
    socket, rom, image = directory / "qtest.sock", directory / "halt.bin", _image(directory, blocks)
    rom.write_bytes(_ROM)
    hba = f"num_queues={machine.QUEUES},max_sectors={machine.MAX_SECTORS}"
    disk = f"vendor=QEMU,product=QEMU HARDDISK,ver=0001,serial={machine.SERIAL}"
    command = [
        *(str(binary), *firmware, "-accel", "tcg", "-m", f"{RAM_MIB}M"),
        # Only the first I/O APIC has a name to intercept it by.
        *("-M", "microvm,ioapic2=off", "-bios", str(rom)),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-qtest", f"unix:{socket}", "-qtest-log", "none"),
        *("-global", f"virtio-mmio.force-legacy={'on' if version == LEGACY else 'off'}"),
        *("-device", f"virtio-scsi-device,{hba},virtqueue_size={machine.SEG_MAX + 2}"),
        *("-blockdev", f"driver=file,filename={image},node-name=disk,discard=unmap"),
        *("-device", f"scsi-hd,drive=disk,scsi-id=0,lun=0,wwn=0x{machine.NAA},{disk}"),
    ]
    with _process(command, socket, environment) as client:
        yield Machine(client, version)


def _image(directory: Path, blocks: int = machine.BLOCKS) -> Path:
    image = directory / "disk.img"
    with image.open("wb") as handle:
        handle.truncate(blocks * 512)
    return image


@contextmanager
def _process(
    command: Sequence[str], path: Path, environment: Mapping[str, str] | None = None
) -> Iterator[QtestClient]:
    log = path.with_suffix(".log")
    with machine.listening(path) as listener, log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
        )
        try:
            with machine.accept(listener) as client:
                client.irq_intercept_in("ioapic")
                yield client
        except BaseException as error:
            error.add_note(f"{command[0]} said\n{log.read_text(errors='replace')[-4000:]}")
            raise
        finally:
            process.kill()
            process.wait(_STOP_SECONDS)
