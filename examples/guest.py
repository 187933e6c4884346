"""A server and a real Linux kernel attached to it: no root, no KVM."""

from vscsi_emu.testing import HbaProcess, UmlGuest

with HbaProcess(["mem:64M,block-size=4096"]) as hba:
    result = UmlGuest([hba.socket]).run("sg_vpd --page=bl $(disk 0:0)", timeout=60)
print(result.check().output)
