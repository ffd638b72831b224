"""The QR code of an invite: what is printed is, module by module, the code of that text."""

import contextlib
import os
import pty
import re
import subprocess
import sys
import termios

import pytest
import segno

from edge_fi.cli import qr
from edge_fi.errors import ConfigError

LINE = (
    "FI1:AEBQCAAAAADWSJEBAAAACAQDAQCQMBYIBEFAWDANBYHQAAICAMCAKBQHBAEQUCYMBUHA6EARCIJRIFIWC4"
    "MBSGQ3DQOR4H3EMVTGO2DJNJVWY3LON5YHC4TTEKZQYMJZGIXDCNRYFYYS4MJQARQWG3LFAVYGSLJQG4RQK77R"
)
PRINT = "import sys; from edge_fi.cli.qr import print_qr; print_qr(sys.argv[1])"


DARK, LIGHT = 16, 231


def seen(printed: str) -> list[list[bool]]:
    """Which modules are dark to somebody who looks at a terminal that understands its colours."""
    rows: list[list[bool]] = []
    for line in printed.splitlines():
        upper: list[bool] = []
        lower: list[bool] = []
        assert line.endswith("\x1b[0m")
        for block, ground, cells in re.findall(r"\x1b\[38;5;(\d+);48;5;(\d+)m([ ▄]+)", line):
            for cell in cells:
                upper.append(int(ground) == DARK)
                lower.append(int(block if cell == "▄" else ground) == DARK)
        assert {int(colour) for colour in re.findall(r"8;5;(\d+)", line)} <= {DARK, LIGHT}
        rows += [upper, lower]
    return rows


def test_every_module_stands_where_the_code_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    qr.print_qr(LINE)
    shown = seen(capsys.readouterr().out)
    code = segno.make_qr(LINE, error="l")
    assert shown[:-1] == [[bool(module) for module in row] for row in code.matrix_iter(border=4)]
    assert not any(shown[-1])


def test_four_light_modules_surround_the_code() -> None:
    rows = qr.modules(LINE)
    assert not any(any(row) for row in rows[:4] + rows[-4:])
    assert not any(any(row[:4]) or any(row[-4:]) for row in rows)
    assert all(rows[4][4:11]) and all(row[4] for row in rows[4:11])  # the corner's pattern, from its edge


def test_an_invite_takes_the_small_code_of_its_alphabet() -> None:
    assert segno.make_qr(LINE, error="l").mode == "alphanumeric"
    rows = qr.modules(LINE)
    assert (len(rows[0]), len(rows) / 2) == (49, 25)  # columns and lines of a terminal
    assert len(qr.modules(LINE.lower())[0]) > 49


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    with pytest.raises(ConfigError, match=r"pip install 'edge-fi\[gateway\]'$"):
        qr.print_qr(LINE)


@pytest.mark.parametrize(("columns", "is_shown"), [(49, True), (48, False)])
def test_a_terminal_that_would_break_its_lines_is_told_to_be_wider(columns: int, is_shown: bool) -> None:
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (50, columns))
    printing = subprocess.Popen(
        [sys.executable, "-c", PRINT, LINE], stdout=terminal, stderr=subprocess.PIPE, text=True
    )
    os.close(terminal)
    shown = b""
    with os.fdopen(controller, "rb", buffering=0) as screen, contextlib.suppress(OSError):  # EIO: its end
        while piece := screen.read(4096):
            shown += piece
    _, said = printing.communicate(timeout=60)
    assert printing.returncode == 0
    assert said == (
        "" if is_shown else "no QR code: it is 49 columns wide, and this terminal 48; make it wider\n"
    )
    assert len(seen(shown.decode())) == (50 if is_shown else 0)
