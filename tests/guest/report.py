"""Scripts in named sections, each with an output and an exit code of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass

# section NAME COMMAND…: a subshell, so that `set -e` of one section ends that section only.
SECTIONS = """
section() {
    section_name=$1; shift
    echo "<<< $section_name"
    ("$@") 2>&1
    echo ">>> $section_name $?"
}
"""
_SECTION = re.compile(r"^<<< (\S+)\n(.*?)^>>> \1 (\d+)$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Section:
    """What one section did."""

    output: str
    exit_code: int

    def check(self) -> str:
        """Its output; fails the test if the section failed."""
        assert self.exit_code == 0, f"exit code {self.exit_code}:\n{self.output}"
        return self.output


def parse(output: str) -> dict[str, Section]:
    """The sections in what a script printed."""
    return {name: Section(text, int(code)) for name, text, code in _SECTION.findall(output)}
