"""Whose code a line is: the application's, a library's, or this server's."""

from __future__ import annotations

import os
import sysconfig
from typing import TYPE_CHECKING, NamedTuple

from laraman.sandbox.operation import relative

if TYPE_CHECKING:
    from types import CodeType, FrameType

_SERVER = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "")
_STANDARD = ("<frozen ", *{os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib")})
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


class Place(NamedTuple):
    """A line of code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{relative(self.file)}:{self.line} in {self.function}"


def is_server(file: str) -> bool:
    return file.startswith(_SERVER)


def is_installed(file: str) -> bool:
    return any(part in file for part in _INSTALLED)


def is_standard(file: str) -> bool:
    return file.startswith(_STANDARD) and not is_installed(file)


def offender(frame: FrameType | None) -> Place | None:
    """The line of the application that is behind ``frame``; None when it is this server's own doing.

    That is the innermost frame outside of the standard library and of installed packages; where there is none, the innermost outside of the
    standard library, and if even that is missing, the outermost.
    """
    library: FrameType | None = None
    last = frame
    while frame is not None:
        file = frame.f_code.co_filename
        if is_server(file):
            if library is None:
                return None
            break
        if is_installed(file):
            library = library or frame
        elif not is_standard(file):
            return _line(frame)
        last, frame = frame, frame.f_back
    found = library or last
    return None if found is None else _line(found)


def is_librarys(frame: FrameType | None) -> bool:
    """Whether an installed package does what ``frame`` does, and not the application itself, as far as the standard library is left out."""
    while frame is not None and is_standard(frame.f_code.co_filename):
        frame = frame.f_back
    return frame is not None and is_installed(frame.f_code.co_filename)


def _line(frame: FrameType) -> Place:
    return Place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)


def start_of(code: CodeType) -> Place:
    return Place(code.co_filename, code.co_firstlineno, code.co_qualname)
