"""Commands of a vendor's own, declared once: parsing, the refusal of reserved bits, reservations
and REPORT SUPPORTED OPERATION CODES follow from that.

Disks of a server have those of an installed package's entry points:

    [project.entry-points."vscsi_emu.commands"]
    set-led = "my_package:set_led"
"""

from weakref import WeakSet

from vscsi_emu import Hba
from vscsi_emu.scsi.cdb import Allowed, Field, bit, command
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.table import add_command

lit: WeakSet[object] = WeakSet()


@command("SET LOCATE LED", 0xC0, 6, on=bit(1, 0))
def set_led(request: Request) -> bytes:
    (lit.add if request.cdb["on"] else lit.discard)(request.unit)
    return b""


@command("REPORT LOCATE LED", 0xC1, 6, allowed=Allowed.ALWAYS, allocation_length=Field(4))
def report_led(request: Request) -> bytes:
    return bytes([request.unit in lit, 0, 0, 0])


def main() -> None:
    for declared in (set_led, report_led):
        add_command(declared)
    with Hba("mem:1M", "mem:1M") as hba, hba.driver() as guest:
        guest.device.execute(1, 0, bytes([0xC0, 0x01, 0, 0, 0, 0]))
        for target in (0, 1):
            cdb = bytes([0xC1, 0, 0, 0, 4, 0])
            result = guest.device.execute(target, 0, cdb, data_in_length=4)
            print(f"{target}:0 is {'lit' if result.data[0] else 'dark'}")
        refused = guest.device.execute(0, 0, bytes([0xC0, 0x02, 0, 0, 0, 0]))
        print(f"a reserved bit: sense {refused.sense.hex(' ')}")


if __name__ == "__main__":
    main()
