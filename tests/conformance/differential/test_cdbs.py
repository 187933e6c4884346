"""Generated CDBs, asked of our disk, QEMU's and scsi_debug's: every difference is explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conformance.differential import differences
from tests.conformance.differential.cdbs import comparing, disks
from tests.conformance.differential.cdbs.asking import Answer, Question
from tests.conformance.differential.cdbs.questions import FEATURES, questions
from tests.conformance.differential.test_qemu import require_qemu
from vscsi_emu.scsi.table import command_table
from vscsi_emu.testing import GuestUnavailable

DOCUMENT = differences.DOCUMENTS / "scsi-differences.md"
SEED = 1
"""Rows of the document may be about combinations that another seed does not choose."""

Ask = Callable[[Sequence[Question], Path], list[Answer]]


def ask_qemu(asked: Sequence[Question], directory: Path) -> list[Answer]:
    require_qemu()
    return disks.qemu(asked, directory)


def ask_scsi_debug(asked: Sequence[Question], _: Path) -> list[Answer]:
    try:
        disks.require_scsi_debug()
    except GuestUnavailable as error:
        pytest.skip(str(error))
    return disks.scsi_debug(asked)


PLACES: dict[str, Ask] = {"qemu": ask_qemu, "scsi_debug": ask_scsi_debug}


@pytest.fixture(scope="module")
def rows() -> list[differences.Difference]:
    return list(differences.explained(DOCUMENT.read_text(), PLACES))


@pytest.fixture(scope="module")
def ours() -> dict[Question, Answer]:
    asked = list(questions(SEED))
    return dict(zip(asked, disks.ours(asked), strict=True))


@pytest.mark.guest
@pytest.mark.timeout(180)
@pytest.mark.parametrize("place", PLACES)
def test_differences_are_those_that_are_explained(
    place: str,
    tmp_path: Path,
    rows: list[differences.Difference],
    ours: dict[Question, Answer],
) -> None:
    asked = [question for question in ours if disks.can_be_asked(place, question)]
    theirs = PLACES[place](asked, tmp_path)
    found = [
        difference
        for question, answer in zip(asked, theirs, strict=True)
        for difference in comparing.differences(question.name, ours[question], answer)
    ]
    assert not (left := differences.unexplained(rows, found, place)), "\n".join(left)
    assert differences.stale(rows, found, place) == []


def test_every_command_and_field_is_asked_about() -> None:
    asked = list(questions(SEED))
    assert len({question.name for question in asked}) == len(asked)
    for command in command_table(FEATURES):
        mine = {question.name for question in asked if question.cdb[0] == command.opcode}
        assert command.name in mine
        for field in command.fields:
            assert any(name.startswith(f"{command.name}, {field} ") for name in mine), field


def test_no_command_of_ours_fails_within(ours: dict[Question, Answer]) -> None:
    """Whatever a CDB says, INTERNAL TARGET FAILURE is no answer."""
    assert [q.name for q, a in ours.items() if comparing.outcome(a.reply).startswith("4/")] == []


def test_the_same_seed_asks_the_same() -> None:
    assert list(questions(SEED)) == list(questions(SEED))
    assert list(questions(SEED)) != list(questions(SEED + 1))
