"""Words as they come, wrapped at the terminal's edge between words, not within them."""

import re
from typing import TextIO

from rich.cells import cell_len

from services.cli.rendering import clean

_PIECES = re.compile(r"\n|[^\S\n]+|\S+")


class WrappedStream:
    """Writes text piece by piece; the last word of a piece waits for the next, which may go on with it."""

    def __init__(self, to: TextIO, width: int | None) -> None:
        """`width` is in columns; None does not wrap."""
        self._to = to
        self._width = width
        self._column = 0
        self._space = ""
        self._word = ""
        self._ended = True

    def write(self, text: str) -> None:
        """Writes `text`, clean of what would steer the terminal."""
        self._ended = False
        for piece in _PIECES.findall(clean(text)):
            if piece == "\n":
                self._put_word()
                self._space = ""
                self._to.write("\n")
                self._column = 0
            elif piece.isspace():
                self._put_word()
                self._space += piece
            else:
                self._word += piece
        if self._width is None:
            self._put_word()
        self._to.flush()

    def end(self) -> None:
        """Writes what waits and ends the line, if anything was written."""
        self._put_word()
        if not self._ended and self._column:
            self._to.write("\n")
        self._column = 0
        self._space = ""
        self._ended = True
        self._to.flush()

    def _put_word(self) -> None:
        if not self._word:
            return
        columns = cell_len(self._word)
        gap = cell_len(self._space)
        if self._width is not None and self._column and self._column + gap + columns > self._width:
            self._to.write("\n")
            self._column = 0
        else:
            self._to.write(self._space)
            self._column += gap
        self._to.write(self._word)
        self._column += columns
        self._space = self._word = ""
