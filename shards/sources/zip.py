"""A zip file of class folders, read where it lies."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

from mae_pipe.api import Asked, DataError, ImageSource, Item, Origin, Refusal, plugin

from .layout import listed

BYTES = 512 << 20  # a larger image is not read


@plugin("zip")
class Zip(ImageSource):
    """A .zip file laid out as a folder would be: CLASS/x.jpg, x.jpg, train/CLASS/x.jpg; nothing is unpacked.

    One folder that holds everything is looked through: photos/CLASS/x.jpg is CLASS/x.jpg.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file: zipfile.ZipFile | None = None

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.suffix.lower() == ".zip" and path.is_file()

    def items(self, asked: Asked) -> Iterator[Item]:
        names = [entry.filename for entry in self._opened().infolist() if not entry.filename.endswith("/")]
        yield from listed(names, asked, self.path)

    def read(self, place: str) -> bytes:
        entry = self._opened().getinfo(place)
        if entry.file_size > BYTES:
            raise Refusal(f"{entry.file_size:,} bytes, more than {BYTES:,}")
        if entry.flag_bits & 1:
            raise Refusal("encrypted")
        try:
            with self._opened().open(entry) as file:
                data = file.read(entry.file_size + 1)  # no more than it said, whatever it unpacks to
        except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError) as error:
            raise Refusal(f"damaged in the zip: {error}") from None
        except Exception as error:  # the decompressors have errors of their own
            raise Refusal(f"damaged in the zip: {error}") from None
        if len(data) != entry.file_size:
            raise Refusal(f"damaged in the zip: {len(data):,} bytes instead of {entry.file_size:,}")
        return data

    def stamp(self, place: str) -> str:
        entry = self._opened().getinfo(place)
        return f"{entry.file_size} {entry.CRC} {entry.header_offset}"

    def origin(self, place: str) -> Origin | None:
        entry = self._opened().getinfo(place)
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.header_offset < 0:
            return None
        with self.path.open("rb") as file:
            file.seek(entry.header_offset)
            header = file.read(30)  # its lengths of name and extra may differ from those of the directory
        name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        return Origin(self.path, entry.header_offset + 30 + name + extra, entry.file_size)

    def close(self) -> None:
        if self._file:
            self._file.close()
        self._file = None

    def _opened(self) -> zipfile.ZipFile:
        if self._file is None:
            try:
                self._file = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, LookupError, struct.error) as error:
                raise DataError(f"{self.path} cannot be read as a zip ({error}); copy or pack it again") from error
        return self._file
