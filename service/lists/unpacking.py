"""Owns the way from a file's bytes to its text: gzip or not, UTF-8 or UTF-16, any kind of line end.

Whatever a small packed file would grow to, it comes out in pieces. Refuses what is no text.
"""

import codecs
import io
import zlib
from collections.abc import Iterator
from typing import Final

from service.errors import Unprocessable

PIECE: Final = 256 * 1024
"""Bytes of a file that are made into text at once."""

_GZIP: Final = b"\x1f\x8b"
_ZIP: Final = b"PK\x03\x04"
_UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

UNDECODABLE: Final = "\ufffd"
"""What stands in the text for bytes that are none."""


class Text:
    """The text of a file, piece by piece. Line ends are all `\\n`; bytes that are no text are `UNDECODABLE`."""

    def __init__(self) -> None:
        self._start = b""
        self._gunzip: _Gunzip | None = None
        self._decode: io.IncrementalNewlineDecoder | None = None

    def feed(self, part: bytes) -> Iterator[str]:
        """The text of the next part. Unprocessable if it is not what it began as."""
        if self._decode is None and self._gunzip is None:
            part = self._start = self._start + part
            if len(part) < 4:
                return
            if part.startswith(_GZIP):
                self._gunzip = _Gunzip()
            self._start = b""
        for plain in _pieces(part) if self._gunzip is None else self._gunzip.feed(part):
            yield from self._decoded(plain)

    def end(self) -> Iterator[str]:
        """What was left over. Unprocessable if the file is cut off."""
        if self._gunzip is not None:
            self._gunzip.end()
        if self._decode is None:
            self._decode = _decoder_for(self._start)
        yield self._decode.decode(self._start, final=True)

    def _decoded(self, plain: bytes) -> Iterator[str]:
        if self._decode is None:
            plain = self._start + plain
            if len(plain) < 4:
                self._start = plain
                return
            self._decode, self._start = _decoder_for(plain), b""
        yield self._decode.decode(plain)


def _pieces(part: bytes) -> Iterator[bytes]:
    return (part[start : start + PIECE] for start in range(0, len(part), PIECE))


def _decoder_for(start: bytes) -> io.IncrementalNewlineDecoder:
    if start.startswith(_ZIP):
        sentence = "This is a spreadsheet or a ZIP archive; save it as CSV (UTF-8), or unpack it, and send that."
        raise Unprocessable(sentence, "not-text")
    if b"\0" in start[:4] and not start.startswith(_UTF_16):
        raise Unprocessable("This is no text, or UTF-16 without its mark; save it as UTF-8.", "not-text")
    name = "utf-16" if start.startswith(_UTF_16) else "utf-8-sig"
    return io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(name)(errors="replace"), translate=True)


class _Gunzip:
    """What is behind gzip, any number of members one after another, never more than a piece at once."""

    def __init__(self) -> None:
        self._unzip = zlib.decompressobj(wbits=31)
        self._began = False

    def feed(self, part: bytes) -> Iterator[bytes]:
        """What these bytes hold."""
        while part:
            if not self._began and not (part := part.lstrip(b"\0")):
                return  # what pads the last member is nothing
            self._began = True
            plain = b""
            try:
                plain = self._unzip.decompress(part, PIECE)
            except zlib.error:
                raise Unprocessable("The gzip file is damaged; pack it again.", "broken-list") from None
            part = self._unzip.unconsumed_tail
            yield plain
            while not part and len(plain) == PIECE:
                plain = self._unzip.decompress(b"", PIECE)
                yield plain
            if self._unzip.eof:
                part, self._unzip, self._began = self._unzip.unused_data, zlib.decompressobj(wbits=31), False

    def end(self) -> None:
        """Unprocessable if a member has no end."""
        if self._began:
            raise Unprocessable("The gzip file is cut off; send it whole.", "broken-list")
