"""A disk of a RAID dies under its file system, and Linux gets another one: nothing is lost.

Needs Debian's user-mode-linux and mdadm; no root.
"""

from vscsi_emu.testing import Lab

SCRIPT = """
set -eu
legs() { grep -o '\\[[U_]*\\]' /proc/mdstat; }  # U: up
mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --metadata=1.2 --assume-clean \
    $(disk 0:0) $(disk 1:0) 2>&1
mkfs.ext4 -q /dev/md0
mount -t ext4 /dev/md0 mnt
dd if=/dev/urandom of=source bs=1M count=8 2>&1
cp source mnt/before
sync
echo "@ready: $(legs)"
# It dies while it is written to.
while [ "$(legs)" = "[UU]" ]; do cp source mnt/during; sync; done
cp source mnt/after
sync
echo "@leg lost: $(legs)"
until new=$(disk 2:0) && [ -b "$new" ]; do sleep 0.1; done
mdadm /dev/md0 --add $new 2>&1
until [ "$(legs)" = "[UU]" ]; do sleep 0.1; done
echo "@rebuilt: $(legs)"
umount mnt
mdadm --stop /dev/md0 2>&1
# The new disk alone has it all.
mdadm --assemble --run /dev/md0 $new 2>&1
mount -t ext4 -o ro /dev/md0 mnt
for name in before during after; do cmp source mnt/$name; done
echo "@the new disk alone: $(legs)"
"""


def main() -> None:
    with Lab() as lab:
        lab.scsi_disk("64M", at="0:0")
        leg = lab.scsi_disk("64M", at="1:0")
        with lab.linux_guest("uml", modules=["raid1"]).start(SCRIPT, timeout=300) as guest:
            for line in guest.lines():
                if line.startswith("@"):
                    print(line[1:])
                if line.startswith("@ready"):
                    leg.inject("hardware-error", nth=20)
                if line.startswith("@leg lost"):
                    lab.scsi_disk("64M", at="2:0")
            guest.wait().check()


if __name__ == "__main__":
    main()
