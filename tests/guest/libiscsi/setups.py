"""What the suite runs on: a disk, the paths to it, and the kernel that has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vscsi_emu.testing import HbaProcess, LinuxGuest, UmlGuest

from . import suite

SIZE = "512M"  # READ(6) must reach the end; the suite leaves its limits out above 1 GiB
BOOT_SECONDS = 120.0


@dataclass(frozen=True)
class Setup:
    """One fresh disk. `keys` are those of its ``--lun``; `paths` are HBAs of one process.

    `groups`: the tests that it is there for, which others skip; all of them when empty.
    """

    name: str
    what: str
    keys: dict[str, str] = field(default_factory=dict)
    paths: int = 1
    groups: tuple[str, ...] = ()

    @property
    def config(self) -> str:
        """Its hba.toml."""
        lines = ["[[lun]]", 'id = "disk"', f'uri = "mem:{SIZE}"']
        lines += [f'{key} = "{value}"' for key, value in self.keys.items()]
        for path in range(self.paths):
            lines += ["[[hba]]", f'socket = "{path}.sock"', 'luns = {"0:0" = "disk"}']
        return "\n".join(lines) + "\n"

    @property
    def sanitize(self) -> bool:
        return suite.SANITIZE in self.groups

    def tests(self, *, everything: bool = False) -> list[str]:
        """Those of `groups`, or all that the set-up can run. MultipathIO comes first: it takes
        LBA 256 for blank, where other tests leave data."""
        names = suite.listed(sanitize=self.sanitize)
        if self.groups and not everything:
            names = [name for name in names if name.split(".")[0] in self.groups]
        return sorted(names, key=lambda name: not name.startswith("MultipathIO."))

    def run(self, names: list[str], *, verbose: bool = False) -> Iterator[str]:
        """The lines of `suite.script`, as they come. Raises as `LinuxGuest.start` does."""
        script = suite.script("sg 0:0", names, sanitize=self.sanitize, verbose=verbose)
        with HbaProcess(config=self.config) as hba:
            yield from run_in(UmlGuest(hba.sockets), script, len(names))


def run_in(guest: LinuxGuest, script: str, tests: int) -> Iterator[str]:
    """The script's lines; its deadline is what so many tests may take."""
    with guest.start(script, BOOT_SECONDS + tests * suite.TEST_SECONDS) as running:
        yield from running.lines()
        running.wait().check()


SETUPS = {
    setup.name: setup
    for setup in (
        Setup("A", "a fixed, thin disk"),
        Setup("B", "A with a second path", paths=2, groups=("MultipathIO",)),
        Setup(
            "C",
            "B with a removable medium",
            {"removable": "on"},
            paths=2,
            groups=("NoMedia", "PreventAllow", "StartStopUnit"),
        ),
        Setup(
            "D",
            "C with 8 logical blocks a physical one",
            {"removable": "on", "physical-block-size": "4096"},
            paths=2,
        ),
        Setup("E", "A, write-protected", {"ro": "on"}, groups=("ReadOnly",)),
        Setup(
            "Z",
            "A with LBPRZ, so that unmapped blocks are read",
            {"lbprz": "on"},
            groups=("Unmap", "WriteSame10", "WriteSame16"),
        ),
        Setup(
            "V",
            "A with 32-byte commands",
            {"cdb-32": "on"},
            groups=("ReportSupportedOpcodes",),
        ),
        Setup("S", "A, sanitized", groups=(suite.SANITIZE,)),
    )
}
