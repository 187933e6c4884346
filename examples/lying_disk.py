"""A file system on a disk that lies: it flips a bit in what it reads, and says that all is well.

ext4 has checksums for what it keeps itself, and notices; a file's data it hands out as they come.
Needs Debian's user-mode-linux; no root.
"""

from vscsi_emu import Storage
from vscsi_emu.testing import Lab

FILL = """
set -eu
mkfs.ext4 -q -O metadata_csum $(disk 0:0)
mount -t ext4 $(disk 0:0) mnt
mkdir mnt/album
yes 'a picture of a cat' | head -c 8192 >mnt/album/cat.jpg
umount mnt
"""
READ = """
mount -t ext4 -o ro $(disk 0:0) mnt
yes 'a picture of a cat' | head -c 8192 >wanted
cat mnt/album/cat.jpg >got && echo "read without an error" || echo "not read"
cmp -s wanted got && echo "and it is as it was" || echo "and it is not what was written"
dmesg | grep 'EXT4-fs error'
"""


class Liar(Storage):
    size = 32 << 20
    honest = True
    lies_about = b""
    kept = bytearray(size)

    def read(self, offset: int, length: int) -> bytes:
        data = bytes(self.kept[offset : offset + length])
        if self.honest or self.lies_about not in data:
            return data
        at = data.index(self.lies_about)
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    def write(self, offset: int, data: bytes) -> None:
        self.kept[offset : offset + len(data)] = data


def main() -> None:
    with Lab(f"python:{__name__}:Liar") as lab:
        guest = lab.linux_guest("uml")
        guest.run(FILL, timeout=60).check()
        print(f"an honest disk: {report(guest.run(READ, timeout=60).output)}")
        Liar.honest = False
        for what in (b"a picture of a cat", b"cat.jpg"):
            Liar.lies_about = what
            print(f"lies about {what.decode()!r}: {report(guest.run(READ, timeout=60).output)}")


def report(output: str) -> str:
    return "; ".join(output.splitlines())


if __name__ == "__main__":
    main()
