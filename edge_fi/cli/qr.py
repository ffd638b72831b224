"""A QR code in the terminal: two rows of modules a line, dark on light whatever the terminal's colours."""

import itertools
import os
import sys

import click

from edge_fi.errors import ConfigError

QUIET_ZONE = 4  # modules of light around the code (ISO/IEC 18004 section 9.1)
_DARK, _LIGHT = 16, 231  # of the 256 colours: black and white, which no theme changes
_PLAIN = "\x1b[0m"


def print_qr(text: str) -> None:
    """Print it to stdout. Raises ConfigError where the package is missing that makes it."""
    rows = modules(text)
    columns = len(rows[0])
    if sys.stdout.isatty() and (there := os.get_terminal_size(sys.stdout.fileno()).columns) < columns:
        click.echo(
            f"no QR code: it is {columns} columns wide, and this terminal {there}; make it wider", err=True
        )
        return
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        click.echo(_line(upper, lower), color=True)


def modules(text: str) -> list[list[bool]]:
    """Which modules of the code are dark, row by row, in an even number of rows, with the quiet zone.

    Raises ConfigError where the package is missing that makes it.
    """
    try:
        import segno
    except ModuleNotFoundError:
        raise ConfigError("a QR code needs an extra package: pip install 'edge-fi[gateway]'") from None
    code = segno.make_qr(text, error="l")
    rows = [[bool(module) for module in row] for row in code.matrix_iter(border=QUIET_ZONE)]
    return [*rows, [False] * len(rows[0])]  # a code has an odd number of rows


def _line(upper: list[bool], lower: list[bool]) -> str:
    """Two rows. Plain at its end: some terminals paint the rest of a line in the last colour.

    The ground has the colour of the upper module, and the only block there is that of the lower one. Fonts
    leave gaps around their blocks and do not split a cell in the middle: with upper blocks as well, the code
    would be cut into strips in which readers find no pattern.
    """
    line = ""
    for (is_upper, is_lower), cells in itertools.groupby(zip(upper, lower, strict=True)):
        ground, block = (_DARK if is_dark else _LIGHT for is_dark in (is_upper, is_lower))
        cell = " " if ground == block else "▄"
        line += f"\x1b[38;5;{block};48;5;{ground}m" + cell * len(list(cells))
    return line + _PLAIN
