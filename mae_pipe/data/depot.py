"""Where the shard files of a split are: in a folder of this machine, or elsewhere and fetched as they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from mae_pipe.data.manifest import Manifest, Shard
from mae_pipe.errors import DataError


class Depot(Protocol):
    """Shard files, by their number in the split.

    Attributes:
        far: whether they have to be fetched.
        place: where they lie, for people.
        room: bytes of shards that one reader may hold at a time, where they have to be fetched.
    """

    far: bool
    place: str
    room: int

    def path(self, number: int) -> Path:
        """Where a shard's file is, once it is here; it stays until ``release``."""

    def release(self, number: int) -> None:
        """It is not needed for now."""

    def renew(self, number: int) -> bool:
        """Forget a damaged file, so that it is fetched again; False where there is no other."""

    def abandon(self) -> None:
        """End what is waited for, with ``Abandoned``, and what is fetched."""

    def close(self) -> object:
        """Let go of all."""


def depot_of(folder: Path, split: str, manifest: Manifest) -> Depot:
    """Of one split of the shards in ``folder``."""
    shards = manifest.split(split).shards
    if manifest.elsewhere is None:
        return Near(shards, manifest.home(folder), folder, split)
    from mae_pipe.data.far import Far

    return Far(shards, manifest.elsewhere)


class Near:
    """Files in a folder."""

    far = False
    room = 0

    def __init__(self, shards: list[Shard], home: Path, folder: Path, split: str) -> None:
        self._shards, self._home, self._folder, self.place = shards, home, folder, str(home)
        missing = [shard.name for shard in shards if not (home / shard.name).is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(shards)} shards of {split!r} are missing in {home}, first "
                f"{missing[0]}; copy them again, or build them with: mae-pipe shard"
            )

    def path(self, number: int) -> Path:
        path = self._home / self._shards[number].name
        if not path.is_file() or path.stat().st_size != self._shards[number].bytes:
            raise DataError(f"{path} is missing or cut short; copy it again, or run: mae-pipe verify {self._folder}")
        return path

    def release(self, number: int) -> None:
        pass

    def renew(self, number: int) -> bool:
        return False

    def abandon(self) -> None:
        pass

    def close(self) -> None:
        pass
