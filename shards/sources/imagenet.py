"""ImageNet (ILSVRC2012) as it is handed out: tars, read where they lie."""

from __future__ import annotations

import io
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mae_pipe.api import Asked, DataError, ImageSource, Item, Origin, plugin, stamp_of

from ..file import ShardFile
from ..members import Tar

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
LISTS = ("imagenet_2012_validation_synset_labels.txt", "ILSVRC2012_validation_synset_labels.txt")
META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
SMALL = 16 << 20  # bytes of the longest file that is read of the devkit, and of the devkit unpacked


@plugin("imagenet")
class ImageNet(ImageSource):
    """A folder with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar or both; nothing is unpacked.

    Labels of the validation images are those of ILSVRC2012_devkit_t12.tar.gz (which needs scipy), or of
    imagenet_2012_validation_synset_labels.txt, a synset a line, beside them. Classes are the sorted synsets,
    as torchvision's ImageFolder numbers them on the unpacked folders. One of the two tars may be given alone.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._folder = path if path.is_dir() else path.parent
        self._tars: dict[str, ShardFile] = {}
        self._stamps: dict[str, str] = {}

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if path.is_dir():
            return (path / TRAIN).is_file() or (path / VAL).is_file()
        return path.name in (TRAIN, VAL) and path.is_file()

    def items(self, asked: Asked) -> Iterator[Item]:
        given = [self._folder / TRAIN, self._folder / VAL] if self.path.is_dir() else [self.path]
        found = [path for path in given if path.is_file()]
        if not found:
            raise DataError(f"{self.path} holds neither {TRAIN} nor {VAL}; give the folder that holds them")
        for path in found:
            rows = self._train(path) if path.name == TRAIN else self._val(path, asked.labels)
            split = "train" if path.name == TRAIN else "val"
            for synset, name, offset, size in rows:
                folder = f"{synset}/" if synset else ""
                place = f"{split}:{offset}:{size}"
                yield Item(folder + name, split, synset or None if asked.labels else None, place, f"{split}/")

    def read(self, place: str) -> bytes:
        split, offset, size = place.split(":")
        tar = self._tars.get(split)
        if tar is None:
            tar = self._tars[split] = ShardFile(self._file(split))
        return tar.read(int(offset), int(size))

    def stamp(self, place: str) -> str:
        split = place.partition(":")[0]
        if split not in self._stamps:
            self._stamps[split] = stamp_of(self._file(split))
        return f"{place} {self._stamps[split]}"

    def origin(self, place: str) -> Origin:
        split, offset, size = place.split(":")
        return Origin(self._file(split), int(offset), int(size))

    def close(self) -> None:
        for tar in self._tars.values():
            tar.close()
        self._tars.clear()

    def _file(self, split: str) -> Path:
        return self._folder / (TRAIN if split == "train" else VAL)

    def _train(self, path: Path) -> Iterator[tuple[str, str, int, int]]:
        """(synset, name, offset, size): a tar of a tar for each class."""
        outer = Tar.of(path)
        inner = {}
        for member in outer.members():
            name = member.name.rpartition("/")[2]
            if not name.endswith(".tar") or name in inner:
                raise DataError(f"{path} holds {member.name!r}, which is no tar of one class; download it again")
            inner[name] = member
        for name in sorted(inner):
            files = sorted(outer.inner(inner[name]).members(), key=lambda file: file.name)
            yield from _each(path, name.removesuffix(".tar"), files)
        outer.file.close()

    def _val(self, path: Path, labels: bool) -> Iterator[tuple[str, str, int, int]]:
        tar = Tar.of(path)
        files = sorted(tar.members(), key=lambda file: file.name)
        tar.file.close()
        if not labels:
            yield from _each(path, "", files)
            return
        synsets = self._truth(path)
        if len(synsets) != len(files):
            raise DataError(
                f"{path} holds {len(files):,} images, but there are {len(synsets):,} labels; download it again"
            )
        rows = zip(synsets, _each(path, "", files), strict=True)
        yield from sorted((synset, *row[1:]) for synset, row in rows)

    def _truth(self, path: Path) -> list[str]:
        """The synset of each validation image, in the order of their names."""
        for name in LISTS:
            if (self._folder / name).is_file():
                return [line.strip() for line in (self._folder / name).read_text("ascii").splitlines() if line.strip()]
        devkit = self._folder / DEVKIT
        if not devkit.is_file():
            raise DataError(f"{path} has no labels of its own; put {DEVKIT} or {LISTS[0]} beside it")
        meta, truth = _of_devkit(devkit)
        synsets = _synsets(meta, devkit)
        numbers = truth.split()
        odd = next((number for number in numbers if not number.isdigit() or int(number) not in synsets), None)
        if odd is not None:
            raise DataError(
                f"{devkit}: the ground truth has the class {odd.decode('ascii', 'replace')[:20]!r}, which "
                f"{META} does not know; download it again"
            )
        return [synsets[int(number)] for number in numbers]


def _each(path: Path, synset: str, files: list[Any]) -> Iterator[tuple[str, str, int, int]]:
    before = ""
    for file in files:
        name = file.name.rpartition("/")[2]
        if name == before:
            raise DataError(f"{path} holds {name!r} twice; download it again")
        before = name
        yield synset, name, file.offset, file.size


def _of_devkit(path: Path) -> tuple[bytes, bytes]:
    """meta.mat and the ground truth; no more of the devkit is unpacked than is due."""
    try:
        unpacker = zlib.decompressobj(wbits=31)
        data = unpacker.decompress(path.read_bytes() if path.stat().st_size <= SMALL else b"", SMALL)
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            names = {name.partition("/")[2]: name for name in tar.getnames()}
            return tuple(_file_of(tar, names[name]) for name in (META, TRUTH))  # type: ignore[return-value]
    except (OSError, EOFError, KeyError, zlib.error, tarfile.TarError) as error:
        why = f"it holds no {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{path} cannot be read ({why}); download it again") from error


def _file_of(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read(SMALL)


def _synsets(meta: bytes, path: Path) -> dict[int, str]:
    """ILSVRC2012 number -> synset, of the classes without children; reading numbers and texts runs nothing."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(f"{path} needs scipy: pip install 'mae-pipe[imagenet]', or put {LISTS[0]} beside it") from error
    try:
        with warnings.catch_warnings(action="ignore"):
            rows = loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
        leaves = [row for row in rows.ravel() if int(row["num_children"]) == 0]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
    except Exception as error:  # a damaged .mat raises whatever it likes
        raise DataError(f"{path}: {META} cannot be read ({error}); download it again") from error
