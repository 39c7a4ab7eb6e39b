"""Byte sources for captures: plain, gzip or zstd files, read forward in bounded memory.

What kind of file it is, is told by its first bytes and never by its name. A compressed file that
ends early gives what could be unpacked and sets `truncated`; one that is damaged is a
`DecodeError`.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import IO, Any, Protocol

from chronicle.errors import ChronicleError, DecodeError

_PIECE_BYTES = 1 << 18
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class _Unpacker(Protocol):
    """Gives unpacked bytes: at most so many, none at the end."""

    truncated: bool

    def read(self, size: int) -> bytes: ...


class _Plain:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.truncated = False

    def read(self, size: int) -> bytes:
        return self._file.read(size)


class _Gzip:
    """Like `gzip.GzipFile`, with larger pieces, and an early end is no exception."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(wbits=31)
        self._input = b""
        self.truncated = False

    def read(self, size: int) -> bytes:
        while True:
            if self._inflate.eof:
                # A gzip file may have several members; zeros after the last one are padding.
                rest = self._inflate.unused_data.lstrip(b"\0") or self._next_member()
                if not rest:
                    return b""
                self._inflate = zlib.decompressobj(wbits=31)
                self._input = rest
            if not self._input:
                self._input = self._file.read(_PIECE_BYTES)
            ended = not self._input
            try:
                out = self._inflate.decompress(self._input, size)
                self._input = self._inflate.unconsumed_tail
            except zlib.error as error:
                raise DecodeError(f"gzip file is damaged: {error}; fetch it again") from None
            if out:
                return out
            if ended and not self._inflate.eof:
                self.truncated = True
                return b""

    def _next_member(self) -> bytes:
        while piece := self._file.read(_PIECE_BYTES):
            if stripped := piece.lstrip(b"\0"):
                return stripped
        return b""


class _Zstd:
    def __init__(self, file: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError:
            raise ChronicleError(
                f"'{file.name}' is compressed with zstd, and zstandard is not installed; install "
                "the extra: pip install 'chronicle-python[archive]', or unpack the file"
            ) from None
        self._error: type[Exception] = zstandard.ZstdError
        self._reader: Any = zstandard.ZstdDecompressor().stream_reader(
            file, read_across_frames=True
        )
        self.truncated = False

    def read(self, size: int) -> bytes:
        try:
            out: bytes = self._reader.read(size)
        except self._error as error:
            raise DecodeError(f"zstd file is damaged: {error}; fetch it again") from None
        return out


class ByteSource:
    """A capture's unpacked bytes, read forward.

    Parameters
    ----------
    path
        The file. Opened for reading, never written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = self.path.open("rb")
        try:
            self.size_bytes = os.fstat(self._file.fileno()).st_size
            magic = self._file.read(4)
            self._file.seek(0)
            self._unpacker: _Unpacker = self._choose(magic)
        except BaseException:
            self._file.close()
            raise
        self._ahead = b""

    def _choose(self, magic: bytes) -> _Unpacker:
        if magic.startswith(_GZIP_MAGIC):
            return _Gzip(self._file)
        if magic == _ZSTD_MAGIC:
            return _Zstd(self._file)
        return _Plain(self._file)

    @property
    def position_bytes(self) -> int:
        """Bytes of the file, as stored, that have been read; for a progress bar."""
        return self.size_bytes if self._file.closed else self._file.tell()

    @property
    def truncated(self) -> bool:
        """Whether the compressed stream ended before its end mark."""
        return self._unpacker.truncated

    def peek(self, size: int) -> bytes:
        """Return up to `size` bytes without moving on. Fewer only at the end of the file."""
        while len(self._ahead) < size:
            piece = self._unpacker.read(size - len(self._ahead))
            if not piece:
                break
            self._ahead += piece
        return self._ahead[:size]

    def read(self, size: int) -> bytes:
        """Return exactly `size` bytes, or fewer at the end of the file."""
        parts = [self._ahead[:size]]
        have = len(parts[0])
        self._ahead = self._ahead[size:]
        while have < size:
            piece = self._unpacker.read(size - have)
            if not piece:
                break
            parts.append(piece)
            have += len(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._file.close()

    def __enter__(self) -> ByteSource:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
