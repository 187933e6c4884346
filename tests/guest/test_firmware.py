"""SeaBIOS has a virtio-scsi driver of its own, which polls: it boots from our disk."""

import os
import subprocess
from pathlib import Path

import pytest

from vscsi_emu.testing import GuestUnavailable, HbaProcess
from vscsi_emu.testing.qemu import emulator

GREETING = b"booted from vscsi-emu\n"
DEADLINE = 60.0


def boot_sector() -> bytes:
    """Writes `GREETING` to the first serial port, then has QEMU exit through isa-debug-exit."""
    code = b""
    for character in GREETING:
        code += bytes([0xB0, character, 0xBA, 0xF8, 0x03, 0xEE])  # al; mov dx, 3f8h; out dx, al
    code += bytes([0xBA, 0x01, 0x05, 0xEE, 0xF4])  # mov dx, 501h; out dx, al; hlt
    return code.ljust(510, b"\0") + b"\x55\xaa"


@pytest.mark.guest
@pytest.mark.parametrize("lun", ["0:0={image}", "9:0={image},ro,cache=writethrough"])
def test_seabios_boots(tmp_path: Path, lun: str) -> None:
    try:
        program, environment, arguments = emulator()
    except GuestUnavailable as error:
        pytest.skip(str(error))
    image = tmp_path / "boot.img"
    image.write_bytes(boot_sector().ljust(1 << 20, b"\0"))
    with HbaProcess([lun.format(image=image)]) as hba:
        run = subprocess.run(
            [
                str(program),
                *arguments,
                *("-nodefaults", "-display", "none", "-no-reboot", "-accel", "tcg", "-m", "256M"),
                *("-object", "memory-backend-memfd,id=ram,size=256M,share=on"),
                *("-machine", "q35,memory-backend=ram", "-serial", "stdio"),
                *("-device", "isa-debug-exit,iobase=0x501,iosize=1"),
                *("-chardev", f"socket,id=hba,path={hba.socket}"),
                *("-device", "vhost-user-scsi-pci,chardev=hba,bootindex=1"),
            ],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
    assert GREETING in run.stdout, run.stderr.decode()
