"""The text of a file, line by line, whatever its encoding and its line ends; what is no text is refused by name.

A byte order mark says UTF-8, UTF-16 or UTF-32; without one the text is UTF-8. A line ends with LF, CR LF or CR, and
with nothing else. Nothing but the current block is held, so memory grows neither with the file nor with a line of it.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from unleak.errors import BadInput

LONGEST = 100_000  #: characters of one line; csv itself stops at 131,072 of a field
BLOCK = 2**16  #: bytes that are read at once
END = re.compile("\r\n|\n|\r")
#: byte order marks, the longer before those that they begin with
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
#: how files begin that hold no text, and what they are
KINDS = (
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"BZh", "a bzip2 archive: unpack it first"),
    (b"\xfd7zXZ\0", "an xz archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!\x1a\x07", "a rar archive: unpack it first"),
    (b"PK\x03\x04", "a zip archive or an office document: unpack it, or save it as CSV"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old office document: save it as CSV"),
    (b"PAR1", "a parquet file: name it .parquet"),
    (b"ARROW1", "an arrow file: save it as JSONL, CSV or parquet"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a WebP picture or a sound"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a numpy file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x7fELF", "a program"),
)


def plain_text(start: bytes, name: str) -> tuple[str, int]:
    """The encoding of text that begins with these bytes, and how many of them are its mark.

    Raises BadInput: `name` holds no text; an archive or another kind of file is called by its name.
    """
    for magic, kind in KINDS:
        if start.startswith(magic):
            raise BadInput(f"{name} is no text but {kind}")
    if start[257:262] == b"ustar":
        raise BadInput(f"{name} is no text but a tar archive: unpack it first")
    for mark, encoding in MARKS:
        if start.startswith(mark):
            return encoding, len(mark)
    if start.count(0) * 10 > len(start):
        raise BadInput(f"{name} holds NUL bytes: save it as UTF-8, or as UTF-16 with a byte order mark")
    return "utf-8", 0


def blocks(stream: BinaryIO, name: str) -> Iterator[str]:
    """The text in blocks. Bytes that are no UTF-8 stay as surrogates, to be refused with their line.

    Raises BadInput: it holds no text, see `plain_text`; or bytes that are not of the encoding that its mark says.
    """
    raw = stream.read(BLOCK)
    encoding, skip = plain_text(raw, name)
    decoder = codecs.getincrementaldecoder(encoding)("surrogateescape" if encoding == "utf-8" else "strict")
    at = 0
    while True:
        try:
            yield decoder.decode(raw[skip:], not raw)
        except UnicodeDecodeError as e:
            says = f"is no {encoding.upper()} after {at} bytes, though its byte order mark says so"
            raise BadInput(f"{name} {says} ({e.reason})") from e
        if not raw:
            return
        at, skip, raw = at + len(raw), 0, stream.read(BLOCK)


def lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """Every line without its end; of one of more than `LONGEST` characters one character more. Raises as `blocks`."""
    held, length, ended = list[str](), 0, False  # of the line that is being read; did the last block end in CR?
    for block in blocks(stream, name):
        text = block[1:] if ended and block.startswith("\n") else block
        ended = block.endswith("\r") if block else ended
        *whole, rest = END.split(text)
        for part in whole:
            yield "".join((*held, part))[: LONGEST + 1]
            held, length = [], 0
        if length <= LONGEST and rest:
            held.append(rest[: LONGEST + 1 - length])
            length += len(held[-1])
    if held:
        yield "".join(held)


def open_file(file: str | Path) -> BinaryIO:
    """Raises BadInput: it cannot be read."""
    try:
        return Path(file).open("rb")
    except (OSError, ValueError) as e:
        raise BadInput(f"cannot read {str(file)!r}: {getattr(e, 'strerror', None) or e}") from e


def count_lines(file: str | Path) -> int:
    """How many lines a file of text has. Raises BadInput: it cannot be read, or holds no text."""
    with open_file(file) as stream:
        return sum(1 for _ in lines(stream, repr(str(file))))
