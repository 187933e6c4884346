"""A file system on a disk that lies: a bit of some block is wrong whenever it is read, and the disk
says that all is well.

ext4 has checksums for what it keeps itself, and notices; a file's data it hands out as they come.
Needs Debian's user-mode-linux; no root.
"""

from vscsi_emu.testing import Lab

SECTORS = 4096 // 512
"""In a block of the file system."""
FILL = """
set -eu
mkfs.ext4 -q -b 4096 -O metadata_csum $(disk 0:0)
mount -t ext4 $(disk 0:0) mnt
mkdir mnt/album
yes 'a picture of a cat' | head -c 4096 >mnt/album/cat.jpg
umount mnt
for what in album/cat.jpg album; do debugfs -R "blocks /$what" $(disk 0:0) 2>/dev/null; done
"""
READ = """
mount -t ext4 -o ro $(disk 0:0) mnt
yes 'a picture of a cat' | head -c 4096 >wanted
cat mnt/album/cat.jpg >got && echo "read without an error" || echo "not read"
cmp -s wanted got && echo "and it is as it was" || echo "and it is not what was written"
dmesg | grep 'EXT4-fs error'
"""


def main() -> None:
    with Lab() as lab:
        disk = lab.scsi_disk("32M")
        guest = lab.linux_guest("uml")
        file, directory = map(int, guest.run(FILL, timeout=300).check().output.split())
        print(f"an honest disk: {report(guest.run(READ, timeout=300).output)}")
        for what, block in (("data", file), ("directory", directory)):
            with disk.injected("bit-flip", opcodes=["READ"], lba=block * SECTORS, blocks=SECTORS):
                print(f"lies about the {what}: {report(guest.run(READ, timeout=300).output)}")


def report(output: str) -> str:
    return "; ".join(output.splitlines())


if __name__ == "__main__":
    main()
