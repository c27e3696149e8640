"""The members of a tar file, from its headers alone: nothing is unpacked, and nothing damaged is passed over.

Python's own reader takes a damaged header, and an end without its mark, for the end of the archive: the rest
is missing without a word. Here each is an error that says at which byte.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mae_pipe.api import DataError

from .file import ShardFile

BLOCK = tarfile.BLOCKSIZE
ZEROS = bytes(BLOCK)
NAMES = 64 << 10  # bytes of the longest name, and of the records of one PAX header
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
NO_BYTES = (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar; its bytes are at ``offset`` of the file that holds the tar."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Tar:
    """A tar: a file, or the part [``start``, ``stop``) of one; ``name`` is for people."""

    file: ShardFile
    name: str
    start: int
    stop: int

    @classmethod
    def of(cls, path: Path) -> Tar:
        """A whole file."""
        return cls(ShardFile(path), str(path), 0, path.stat().st_size)

    def inner(self, member: Member) -> Tar:
        """A member that is a tar itself."""
        return Tar(self.file, f"{self.name}: {member.name}", member.offset, member.offset + member.size)

    def members(self) -> Iterator[Member]:
        """All ordinary files, in their order. Raises ``DataError`` at the first thing that is not right."""
        at, name, size = self.start, "", None
        while True:
            if at + BLOCK > self.stop:
                raise self._wrong(f"it ends at byte {self.stop - self.start:,} without the mark of its end: it is cut")
            block = self.file.read(at, BLOCK)
            if block == ZEROS:
                self._check_rest(at)
                return
            header = self._header(block, at)
            data, length = at + BLOCK, header.size if size is None else size
            if header.type in (*REGULAR, *NO_BYTES):
                length = length if header.type in REGULAR else 0
                name = name or header.name
                if header.type in REGULAR and not (header.type == tarfile.AREGTYPE and name.endswith("/")):
                    self._check_length(data, length, name)
                    yield Member(name, data, length)
                name, size = "", None
            elif header.type == tarfile.GNUTYPE_LONGNAME:
                name = self._text(data, header.size, at).rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif header.type == tarfile.XHDTYPE:
                records = self._records(self._text(data, header.size, at), at)
                name, size = records.get("path", name), self._size(records, at)
            elif header.type == tarfile.XGLTYPE:
                if {"path", "size"} & set(self._records(self._text(data, header.size, at), at)):
                    raise self._wrong(f"the header at byte {at - self.start:,} names or sizes all members at once")
            elif header.type != tarfile.GNUTYPE_LONGLINK:
                kind = "sparse" if header.type == tarfile.GNUTYPE_SPARSE else f"of the unknown type {header.type!r}"
                raise self._wrong(f"the member {header.name!r} at byte {at - self.start:,} is {kind}")
            self._check_length(data, length, header.name)
            at = data + -(-length // BLOCK) * BLOCK

    def _header(self, block: bytes, at: int) -> tarfile.TarInfo:
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            what = f"the header at byte {at - self.start:,} is damaged ({error})"
            if at == self.start:
                what = "it is compressed" if block[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5") else "it is no tar"
            raise self._wrong(what) from None
        if header.size < 0:
            raise self._wrong(f"the header at byte {at - self.start:,} has the size {header.size}")
        return header

    def _check_length(self, data: int, length: int, name: str) -> None:
        if data + length > self.stop:
            raise self._wrong(
                f"it is cut: {name!r} should end at byte {data + length - self.start:,}, the file has "
                f"{self.stop - self.start:,}"
            )

    def _check_rest(self, at: int) -> None:
        """After the mark of the end there are zeros only; joined tars have more members there."""
        while at < self.stop:
            piece = self.file.read(at, min(1 << 20, self.stop - at))
            if piece.count(0) != len(piece):
                raise self._wrong(
                    f"it goes on after the mark of its end at byte {at - self.start:,}; split joined tars"
                )
            at += len(piece)

    def _text(self, data: int, size: int, at: int) -> bytes:
        if size > NAMES:
            raise self._wrong(f"the header at byte {at - self.start:,} claims a name of {size:,} bytes")
        self._check_length(data, size, "a name")
        return self.file.read(data, size)

    def _records(self, text: bytes, at: int) -> dict[str, str]:
        """Those of a PAX header: "LENGTH KEY=VALUE\\n", one after the other."""
        found, text = {}, text.rstrip(b"\0")
        while text:
            digits, _, _ = text.partition(b" ")
            length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
            key, equals, value = text[len(digits) + 1 : length].partition(b"=")
            if not equals or length > len(text) or not value.endswith(b"\n"):
                raise self._wrong(f"the PAX header at byte {at - self.start:,} is damaged")
            found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
            text = text[length:]
        if any(key.startswith("GNU.sparse") for key in found):
            raise self._wrong(f"the member at byte {at - self.start:,} is sparse")
        return found

    def _size(self, records: dict[str, str], at: int) -> int | None:
        if "size" not in records:
            return None
        if not records["size"].isdecimal() or len(records["size"]) > 18:
            raise self._wrong(f"the PAX header at byte {at - self.start:,} has the size {records['size']!r}")
        return int(records["size"])

    def _wrong(self, what: str) -> DataError:
        return DataError(f"{self.name} cannot be read as a tar: {what}; copy or pack it again")
