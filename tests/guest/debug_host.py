"""A machine whose SCSI host is the kernel's scsi_debug: real drivers over disks of memory. Our
package runs there, from this checkout."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from vscsi_emu.testing import GuestUnavailable, UmlGuest
from vscsi_emu.testing.modules import load_order, module_directory
from vscsi_emu.testing.uml import MODULE_TREE, MODULES

from .report import SECTIONS, Section, parse

ROOT = Path(__file__).parents[2]
PYTHON = shlex.quote(sys.executable)
DRIVERS = ("st", "sr_mod", "ses", "scsi_debug")
"""Loaded in this order; the last one by the script, as often as it likes."""
_OF_MEMORY = ("/tmp", "/run", "/var/tmp", "/srv")

# scsi_debug KEY=VALUE…: unloads what was there, loads it with these parameters, waits for disks.
_PRELUDE = """
export PYTHONDONTWRITEBYTECODE=1 COLUMNS=200 PYTHONPATH={root}
vscsi_emu() {{ {python} -m vscsi_emu "$@"; }}
insert() {{ busybox insmod "$@" || exit 1; }}
settled() {{
    for d in /sys/bus/scsi/devices/*:*:*:*; do
        [ "$(cat "$d/type" 2>/dev/null)" != 0 ] || [ -e "$d"/block/*/size ] || return 1
    done
}}
settle() {{ n=0; until settled || [ $n -ge 100 ]; do sleep 0.05; n=$((n + 1)); done; }}
scsi_debug() {{
    busybox rmmod scsi_debug 2>/dev/null
    insert {module} "$@"
    settle
}}
"""


def run(body: str, timeout: float = 120.0) -> dict[str, Section]:
    """The sections that `body` prints on that machine; skips the test where there is none."""
    try:
        return parse(UmlGuest().run(script(body), timeout).check().output)
    except GuestUnavailable as error:
        pytest.skip(str(error))


def script(body: str) -> str:
    """`body`, with the functions above and the drivers of tapes, discs and enclosures loaded."""
    directory = module_directory(MODULE_TREE)
    there = load_order(directory, MODULES)
    *drivers, debug = (path for path in load_order(directory, DRIVERS) if path not in there)
    return "\n".join(
        (
            _PRELUDE.format(root=shlex.quote(str(ROOT)), python=PYTHON, module=debug),
            SECTIONS,
            CHECKOUT_SHOWN,
            *(f"insert {path}" for path in drivers),
            body,
        )
    )


def _shown(path: Path) -> str:
    """Brings a directory of the host to where the guest has memory of its own."""
    if not any(path.is_relative_to(hidden) for hidden in _OF_MEMORY):
        return ""
    quoted = shlex.quote(str(path))
    return f"mkdir -p {quoted} && busybox mount -t hostfs -o ro,{quoted} none {quoted}"


CHECKOUT_SHOWN = "\n".join(_shown(path) for path in (ROOT, Path(sys.prefix)))
"""Shell lines after which the guest sees this checkout, wherever it is."""
