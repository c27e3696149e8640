"""A build: nothing is lost silently, the same input gives the same bytes, and a killed one goes on."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from filelock import FileLock
from PIL import Image

from mae_pipe.catalog import Catalog
from mae_pipe.cli import _group
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.scan import Source
from mae_pipe.data.scan import scan as scan_of
from mae_pipe.data.sources import open_source
from mae_pipe.errors import DataError, DiskError, MaePipeError
from mae_pipe.sharding import build
from mae_pipe.verifying import verify


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def paint(path: Path, colour: int = 0, size: tuple[int, int] = (16, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 2 * colour % 256, 255 - colour)).save(path)
    return path


def make(source: Path, out: Path, **options: object) -> Manifest:
    return build(source, out, **{"catalog": Catalog(), "workers": 1, "per_shard": 5, **options})  # type: ignore[arg-type]


def keys(out: Path, split: str = "train") -> list[str]:
    index = SampleIndex.load(out, Manifest.load(out).splits[split].index)
    return [index.key(row) for row in range(len(index))]


def labels(out: Path, split: str = "train") -> list[int]:
    return SampleIndex.load(out, Manifest.load(out).splits[split].index).label.tolist()


def scan(folder: Path, splits: Sequence[str] = ()) -> Source:
    return scan_of(open_source(folder, "folder", Catalog(), {}), splits)


@pytest.fixture(scope="module")
def whole(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted build of the 24 images, five a shard."""
    out = tmp_path_factory.mktemp("whole") / "shards"
    make(image_folder, out)
    return out


def test_the_number_of_workers_changes_no_byte(image_folder: Path, whole: Path, tmp_path: Path) -> None:
    make(image_folder, tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == contents(whole)


def test_the_place_of_the_source_changes_no_byte(image_folder: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    make(tmp_path / "elsewhere", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)


def test_classes_are_numbered_as_image_folder_does(image_folder: Path, whole: Path) -> None:
    from torchvision.datasets import ImageFolder

    theirs = ImageFolder(str(image_folder))
    assert Manifest.load(whole).classes == theirs.classes
    ours = dict(zip(keys(whole), labels(whole), strict=True))
    assert ours == {str(Path(p).relative_to(image_folder).with_suffix("")): label for p, label in theirs.samples}


def test_the_manifest_tells_counts_hashes_and_statistics(image_folder: Path, whole: Path) -> None:
    split = Manifest.load(whole).splits["train"]
    assert (split.images, [shard.images for shard in split.shards]) == (24, [5, 5, 5, 5, 4])
    for shard in [*split.shards, split.index]:
        data = (whole / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
    seen = [np.asarray(Image.open(path).convert("RGB")) / 255 for path in sorted(image_folder.rglob("*.*"))]
    flat = np.concatenate([image.reshape(-1, 3) for image in seen])
    assert np.allclose(split.statistics.mean, flat.mean(0), atol=1e-12)
    assert np.allclose(split.statistics.std, flat.std(0), atol=1e-9)
    assert split.statistics.mean_width == pytest.approx(np.mean([image.shape[1] for image in seen]))
    assert split.statistics.mean_height == pytest.approx(np.mean([image.shape[0] for image in seen]))


def test_every_file_is_stored_or_named_and_none_stops_the_build(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    paint(source / "a" / "good.jpg")
    paint(source / "b" / "good.png")
    bad = {
        "a/empty.jpg": b"",
        "a/broken.jpg": b"\xff\xd8\xff\xe0 nothing follows",
        "a/text.png": b"hello",
        "a/notes.txt": b"hello",
        "a/.DS_Store": b"x",
        "a/new.avif": b"x",
        "loose.jpg": (source / "a" / "good.jpg").read_bytes(),
        "z/only.jpg": b"",
    }
    for name, data in bad.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(data)
    (source / "a" / "gone.jpg").symlink_to("nowhere.jpg")
    (source / "a" / "loop").symlink_to(source)
    os.mkfifo(source / "a" / "pipe.jpg")
    Image.new("CMYK", (8, 8), "red").save(source / "b" / "print.jpg")
    split = make(source, out).splits["train"]
    assert keys(out) == ["a/good", "b/good", "b/print"]
    assert split.converted == {"cmyk": 1}
    reasons = {entry.path: entry.reason for entry in split.refused}
    assert set(reasons) == {*bad, "a/gone.jpg", "a/loop", "a/pipe.jpg"}
    assert reasons["a/empty.jpg"] == "zero bytes"
    assert reasons["a/notes.txt"] == "not an image file"
    assert reasons["loose.jpg"] == "beside the class folders, so of no class"
    assert reasons["a/gone.jpg"] == "a broken link"
    assert reasons["a/loop"] == "a link to a folder above itself"
    assert reasons["a/pipe.jpg"] == "not a regular file"
    assert reasons["a/new.avif"] == "a .avif image, which is not read"
    assert verify(out) == []


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    paint(tmp_path / "store" / "x.png")
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "1.png").symlink_to(tmp_path / "store" / "x.png")
    (tmp_path / "in" / "b").symlink_to(tmp_path / "store")
    make(tmp_path / "in", tmp_path / "out")
    assert keys(tmp_path / "out") == ["a/1", "b/x"]


def test_a_link_to_itself_is_named_and_stops_nothing(tmp_path: Path) -> None:
    paint(tmp_path / "in" / "a" / "1.png")
    (tmp_path / "in" / "ring").symlink_to("ring")
    (tmp_path / "in" / "a" / "ring.jpg").symlink_to("ring.jpg")
    split = make(tmp_path / "in", tmp_path / "out").splits["train"]
    assert split.images == 1
    assert [(entry.path, entry.reason) for entry in split.refused] == [
        ("a/ring.jpg", "a broken link"),
        ("ring", "a broken link"),
    ]


@pytest.mark.parametrize("closed", ["", "train"])
def test_a_source_that_may_not_be_listed_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    paint(tmp_path / "train" / "a" / "1.png")
    real = os.scandir

    def deny(path: Path) -> object:  # by hand, as root may list anything
        if Path(path) == tmp_path / closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(DataError, match=rf"{tmp_path / closed} cannot be listed: Permission denied"):
        scan(tmp_path)


def test_odd_names_become_keys_that_are_unique_and_plain(tmp_path: Path) -> None:
    names = ["a b.png", "a_b.png", "a.b.png", "a_b-2.png", "a_b.jpg", "ünïcode.png", "noext", "x.tar.gz.png", "-.png"]
    for number, name in enumerate(names):
        if "." in name:
            paint(tmp_path / "in" / name, number)
    undecodable = os.fsdecode(b"\xff\xfe.png")
    paint(tmp_path / "in" / undecodable)
    shutil.copy(tmp_path / "in" / "a b.png", tmp_path / "in" / "noext")
    split = make(tmp_path / "in", tmp_path / "out").splits["train"]
    found = keys(tmp_path / "out")
    assert len(found) == len(set(found)) == len(names)
    assert all(
        key.replace("_", "").replace("-", "").replace("/", "").isalnum() or set(key) <= set("_-") for key in found
    )
    assert {"a_b", "a_b-2", "a_b-3", "a_b-4", "_n_code", "x_tar_gz", "-"} <= set(found)
    assert [entry.path for entry in split.refused] == ["noext"]
    assert verify(tmp_path / "out") == []


def test_a_folder_without_classes_has_no_labels(tmp_path: Path) -> None:
    for number in range(3):
        paint(tmp_path / "in" / f"{number}.png", number)
    manifest = make(tmp_path / "in", tmp_path / "out")
    assert (manifest.classes, manifest.splits["train"].labelled) == ([], False)
    assert labels(tmp_path / "out") == [-1, -1, -1]


def test_split_folders_become_splits_that_share_their_classes(tmp_path: Path) -> None:
    for name in ("train/cat/1", "train/dog/2", "train/eel/3", "val/dog/1", "val/eel/9"):
        paint(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "list.csv").write_text("x")
    manifest = make(tmp_path / "in", tmp_path / "out")
    assert manifest.classes == ["cat", "dog", "eel"]
    assert (keys(tmp_path / "out", "val"), labels(tmp_path / "out", "val")) == (["dog/1", "eel/9"], [1, 2])
    assert [entry.path for entry in manifest.splits["train"].refused] == ["list.csv"]


def test_a_held_out_share_is_disjoint_whole_and_does_not_move(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for number in range(60):
        paint(source / f"{number}.png", number)
    make(source, tmp_path / "one", splits=("val=0.2", "test=0.1"))
    parts = {split: set(keys(tmp_path / "one", split)) for split in ("train", "val", "test")}
    assert set.union(*parts.values()) == {str(number) for number in range(60)}
    assert sum(map(len, parts.values())) == 60
    assert 4 <= len(parts["val"]) <= 22
    paint(source / "new.png")
    make(source, tmp_path / "two", splits=("val=0.2", "test=0.1"))
    for split, before in parts.items():
        assert set(keys(tmp_path / "two", split)) - {"new"} == before


def test_a_split_can_join_finished_shards(tmp_path: Path) -> None:
    for name in ("train/a/1", "train/b/2", "val/a/3", "val/b/4", "more/c/1"):
        paint(tmp_path / f"{name}.png")
    out = tmp_path / "out"
    make(tmp_path / "train", out, splits=("train",))
    make(tmp_path / "val", out, splits=("val",))
    assert set(Manifest.load(out).splits) == {"train", "val"}
    assert keys(out, "val") == ["a/3", "b/4"]
    assert verify(out) == []
    with pytest.raises(DataError, match="already holds finished webdataset shards of train, val"):
        make(tmp_path / "val", out, splits=("val",))
    with pytest.raises(DataError, match="classes differ"):
        make(tmp_path / "more", out, splits=("extra",))
    assert verify(out) == []


@pytest.mark.parametrize(
    ("names", "splits", "message"),
    [
        (["a/1.png", "train/1.png"], (), "not clear whether they are splits or classes"),
        (["train/1.png", "val/1.png"], ("test=0.1",), "already has the splits train, val"),
        (["1.png"], ("val=2",), "expected a share between 0 and 1"),
        (["1.png"], ("val=0.6", "test=0.6"), "nothing would be left"),
        (["1.png"], ("../x",), "not understood"),
        (["1.png"], ("a", "b"), "must be the only --split"),
        (["1.png"], ("val=0.001",), "give --split a larger share"),
        (["notes.txt"], (), "holds no image files"),
    ],
)
def test_what_cannot_be_scanned_is_said_in_a_sentence(tmp_path: Path, names: list, splits: tuple, message: str) -> None:
    for name in names:
        paint(tmp_path / name) if name.endswith(".png") else (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=message):
        scan(tmp_path, splits)


def test_where_shards_may_not_go_is_said_in_a_sentence(image_folder: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lies inside"):
        make(image_folder, image_folder / "shards")
    with pytest.raises(DataError, match="is not there"):
        make(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"is not empty \(it holds 'thesis.tex'\)"):
            make(image_folder, tmp_path / "mine", overwrite=overwrite)
    before = contents(whole)
    with pytest.raises(DataError, match="--overwrite"):
        make(image_folder, whole)
    assert contents(whole) == before


def test_only_bad_images_are_an_error_that_names_the_first(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the images can be used; the first is x.jpg: zero bytes"):
        make(tmp_path / "in", tmp_path / "out")


def test_overwrite_replaces_shards_and_leaves_other_files(image_folder: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(image_folder, out, per_shard=2)
    (out / "notes.txt").write_text("mine")
    make(image_folder, out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    assert contents(out) == contents(whole)


def test_overwrite_mends_a_damaged_manifest_and_leaves_other_files(
    image_folder: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    make(image_folder, out, per_shard=2)
    (out / "photo-000001.png").write_text("mine")
    (out / "manifest.json").write_text("{")
    make(image_folder, out, overwrite=True)
    assert (out / "photo-000001.png").read_text() == "mine"
    (out / "photo-000001.png").unlink()
    assert contents(out) == contents(whole)


def test_two_builds_do_not_write_to_one_folder(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / ".parts").mkdir(parents=True)
    with FileLock(tmp_path / "out" / ".parts" / "lock"), pytest.raises(DataError, match="another build is writing"):
        make(image_folder, tmp_path / "out")


DEADLY = '''
"""A format that ends its process, or the disk, in the middle of the third shard."""
import errno, os, signal
from mae_pipe.api import plugin
from mae_pipe_shards.tar import Tar

@plugin("webdataset")
class Deadly(Tar):
    """Dies."""

    def write(self, path, samples):
        def some():
            for number, sample in enumerate(samples):
                if number == 2 and "-000002" in path.name:
                    {what}
                yield sample
        return super().write(path, some())
'''
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
FULL = 'raise OSError(errno.ENOSPC, "No space left on device")'


def deadly(folder: Path, what: str) -> Path:
    path = folder / "deadly.py"
    path.write_text(DEADLY.format(what=what))
    return path


def inodes(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in out.glob("*.tar")}


def test_a_killed_build_goes_on_and_gives_the_same_bytes(image_folder: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mae_pipe", "shard", str(image_folder), str(out), "--workers", "1"]
    plugin = deadly(tmp_path, KILL)
    ended = subprocess.run([*command, "--per-shard", "5", "--plugin", str(plugin)], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    before = inodes(out)
    assert sorted(before) == ["train-000000.tar", "train-000001.tar"]
    assert (out / "train-000002.tar.tmp").exists()
    (out / "train-000009.tar.tmp").write_text("of an earlier try")
    make(image_folder, out)
    assert contents(out) == contents(whole)
    assert {name: inode for name, inode in inodes(out).items() if name in before} == before, "made again"


def test_a_worker_that_is_killed_is_a_sentence_and_the_next_build_goes_on(
    image_folder: Path, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(MaePipeError, match="worker processes was killed"):
        make(image_folder, tmp_path / "out", workers=2, catalog=Catalog((deadly(tmp_path, KILL),)))
    make(image_folder, tmp_path / "out", workers=2)
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_a_sentence_and_the_next_build_goes_on(
    image_folder: Path, whole: Path, tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "out"
    with pytest.raises(DiskError, match=r"the disk of .*out is full: .* are left and about .* needed"):
        make(image_folder, out, workers=workers, catalog=Catalog((deadly(tmp_path, FULL),)))
    assert not list(out.glob("*.tmp"))
    make(image_folder, out)
    assert contents(out) == contents(whole)


def test_a_disk_without_room_for_the_folder_itself_is_a_sentence(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "out"
    real = Path.mkdir

    def full(path: Path, *arguments: object, **options: object) -> None:
        if path == out:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(DiskError, match=r"the disk of .*out is full: .* are left and about .* needed"):
        make(image_folder, out)


def test_a_stopped_build_ends_its_workers_and_goes_on(image_folder: Path, whole: Path, tmp_path: Path) -> None:
    def stop(done: int, refused: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        make(image_folder, tmp_path / "out", workers=2, progress=stop)
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert not [thread.name for thread in set(threading.enumerate()) - before if "Executor" in thread.name]
    make(image_folder, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)


def test_an_unfinished_build_is_not_mixed_with_other_options(image_folder: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DiskError):
        make(image_folder, out, max_side=20, catalog=Catalog((deadly(tmp_path, FULL),)))
    with pytest.raises(DataError, match=r"unfinished build with other options \(max_side was 20\)"):
        make(image_folder, out)
    make(image_folder, out, overwrite=True)
    assert contents(out) == contents(whole)


def test_what_changed_since_the_build_was_stopped_is_made_again(image_folder: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(image_folder, source)
    with pytest.raises(DiskError):
        make(source, out, catalog=Catalog((deadly(tmp_path, FULL),)))
    paint(source / "across" / "01.jpg", 77, size=(40, 40))
    with (out / "train-000001.tar").open("r+b") as file:
        file.write(b"damage")
    make(source, out)
    make(source, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_verify_finds_a_flipped_byte_and_names_the_image(whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    assert verify(out) == []
    index = SampleIndex.load(out, Manifest.load(out).splits["train"].index)
    row = 7
    placed = index.placed(row)
    with (out / "train-000001.tar").open("r+b") as file:
        file.seek(placed.offset + placed.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    (damage,) = verify(out)
    assert damage == (
        f"train-000001.tar has other bytes than it was built with; 1 of its 5 images is damaged: {index.key(row)}"
    )
    result = CliRunner().invoke(_group, ["verify", str(out)])
    assert (result.exit_code, index.key(row) in result.stdout) == (4, True)


def test_verify_names_missing_cut_and_contradicting_files(whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "train-000000.tar").unlink()
    with (out / "train-000001.tar").open("r+b") as file:
        file.truncate(4000)
    with (out / "train-000002.tar").open("r+b") as file:
        file.write(b"z")
    missing, cut, header = verify(out)
    assert missing == "train-000000.tar is missing: 5 images"
    assert "train-000001.tar has 4,000 bytes instead of" in cut
    assert "of its 5 images are damaged" in cut
    assert header == "train-000002.tar has other bytes than it was built with, outside its images"
    with (out / "train.index.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\0")
    assert any("sample index" in damage and "is damaged" in damage for damage in verify(out))
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["splits"]["train"]["images"] = 23
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert any("contradict each other" in damage for damage in verify(out))


def test_verify_sees_an_index_that_was_renewed_with_wrong_rows(whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    manifest = Manifest.load(out)
    index = SampleIndex.load(out, manifest.splits["train"].index)
    index = SampleIndex(**{name: column.copy() for name, column in index.columns().items()})
    index.label[3] = 9
    index.crc32[4] ^= 1
    index.save(out / "train.index.safetensors")
    data = json.loads((out / "manifest.json").read_text())
    data["splits"]["train"]["index"]["sha256"] = hashlib.sha256(
        (out / "train.index.safetensors").read_bytes()
    ).hexdigest()
    (out / "manifest.json").write_text(json.dumps(data))
    damage = "\n".join(verify(out))
    assert "has the label 9, but there are 2 classes" in damage
    assert f"its index is not right; 1 of its 5 images is damaged: {index.key(4)}" in damage


def test_the_command_says_what_it_did_and_what_comes_next(image_folder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(image_folder, tmp_path / "in")
    (source / "down" / "empty.jpg").write_bytes(b"")
    out = tmp_path / "out"
    arguments = ["shard", str(source), str(out), "--workers", "1", "--max-side", "40", "--split", "val=0.2"]
    result = CliRunner().invoke(_group, arguments)
    assert result.exit_code == 0, result.output
    for text in ("train: ", "val: ", "of 2 classes in 1 webdataset shard, ", "converted:", "resized", "refused: 1"):
        assert text in result.stdout
    assert "1 zero bytes, first down/empty.jpg" in result.stdout
    assert f"mae-pipe pretrain RECIPE --shards {out}" in result.stdout
    assert CliRunner().invoke(_group, ["verify", str(out)]).exit_code == 0
