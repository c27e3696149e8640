"""A class for every pixel: maps are checked, stored beside their image, and cropped as it is."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.cli import _group
from mae_pipe.data import decode
from mae_pipe.data.batch import Batch
from mae_pipe.data.glance import ORIENTATION
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.maps import admit_map
from mae_pipe.data.order import Share
from mae_pipe.data.refusal import Refusal
from mae_pipe.data.shelf import Shelf
from mae_pipe.data.stream import Stream, open_stream
from mae_pipe.errors import DataError, PluginError
from mae_pipe.sharding import build
from mae_pipe.verifying import verify
from tests.test_admit import saved

FORMATS = ["webdataset", "ffcv"]
COUNT = 9


def paletted(numbers: NDArray) -> Image.Image:
    picture = Image.fromarray(numbers.astype(np.uint8))
    picture.putpalette([(37 * value) % 256 for value in range(768)])
    return picture


def made(folder: Path, count: int = COUNT) -> Path:
    """Images whose red channel is their map times ten, so that any crop tells whether the map went with it."""
    draw = np.random.default_rng(0)
    for number in range(count):
        rows, cols = (int(side) for side in draw.integers(3, 6, 2))
        numbers = draw.integers(0, 20, (rows, cols), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        pixels = np.stack([numbers * 10, numbers, 255 - numbers], axis=2).astype(np.uint8)
        name = f"{'ab'[number % 2]}/{number}.png"
        for kind, picture in (("in", Image.fromarray(pixels)), ("maps", paletted(numbers))):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(folder / kind / name)
    return folder


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def make(folder: Path, out: str = "out", **options: object) -> Manifest:
    given = {"catalog": Catalog(), "workers": 1, "per_shard": 4, "maps": folder / "maps", **options}
    return build(folder / "in", folder / out, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=FORMATS)
def shards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "ffcv":
        pytest.importorskip("ffcv", reason="ffcv is not installed")
    folder = made(tmp_path_factory.mktemp(request.param))
    make(folder, format=request.param)
    return folder / "out"


def opened(shards: Path, share: Share = Share(micro_batch=COUNT), training: bool = True, **data: object) -> Stream:  # noqa: B008
    chosen = recipe.Data(**{"size": 16, "workers": 2, "interpolation": "nearest", **data})  # type: ignore[arg-type]
    return open_stream(shards, "train", chosen, seed=0, share=share, catalog=Catalog(), training=training, labels="map")


def first(stream: Stream) -> Batch:
    batches = stream.batches()
    batch = next(batches)
    batches.close()  # type: ignore[attr-defined]
    stream.close()
    return batch


def test_a_map_is_stored_beside_its_image(shards: Path) -> None:
    manifest = Manifest.load(shards)
    split = manifest.splits["train"]
    assert (split.images, split.maps, split.labelled, manifest.classes) == (COUNT, True, True, ["a", "b"])
    assert manifest.map_classes == [str(number) for number in range(20)]
    shelf = Shelf(shards, "train", Catalog())
    for row in range(COUNT):
        source = shards.parent / "maps" / f"{shelf.index.key(row)}.png"
        assert shelf.read_map(row) == source.read_bytes(), "kept byte for byte"
    assert verify(shards) == []


@pytest.mark.parametrize("crop", ["random", "fixed", "centre", "none"])
@pytest.mark.parametrize("size", [16, (24, 16)])
def test_a_map_is_cropped_and_mirrored_as_its_image(shards: Path, crop: str, size: int | tuple[int, int]) -> None:
    stream = opened(shards, crop=crop, size=size)
    batch = first(stream)
    assert (batch.labels.shape, batch.labels.dtype) == ((COUNT, *stream.data.sides), torch.int64)
    assert torch.equal(batch.pixels[:, 0].long(), batch.labels * 10)
    assert len(batch.labels.unique()) > 5


def test_evaluation_sees_the_centre_of_every_map_and_padding_is_of_no_class(shards: Path) -> None:
    stream = opened(shards, Share(micro_batch=COUNT + 2), training=False)
    batch = next(stream.once())
    assert (batch.labels[COUNT:] == 255).all()
    for row in range(COUNT):
        with Image.open(shards.parent / "maps" / f"{stream.index.key(row)}.png") as picture:
            numbers = Image.fromarray(np.asarray(picture))
        seen = decode.centred(numbers, 16, stream.data.centre_share, Image.Resampling.NEAREST)
        assert np.array_equal(batch.labels[row], seen[..., 0])


def test_colours_change_and_classes_do_not(shards: Path) -> None:
    plain, jittered = first(opened(shards)), first(opened(shards, jitter=(0.4, 0.4, 0.4, 0.1)))
    smooth = first(opened(shards, interpolation="bicubic"))
    assert torch.equal(plain.labels, jittered.labels)
    assert torch.equal(plain.labels, smooth.labels)
    assert not torch.equal(plain.pixels, jittered.pixels)


def test_ranks_share_the_maps_of_one(shards: Path) -> None:
    alone = first(opened(shards, Share(micro_batch=6)))
    parts = [first(opened(shards, Share(rank, 3, 2))) for rank in range(3)]
    assert torch.equal(alone.labels, torch.cat([part.labels for part in parts]))


def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    make(made(tmp_path))
    make(tmp_path, "two", workers=2)
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_classes_and_maps_go_together_and_names_are_those_of_the_maps(tmp_path: Path) -> None:
    (made(tmp_path) / "names.txt").write_text("\n".join(f"thing {number}" for number in range(21)) + "\n")
    table = tmp_path / "labels.csv"
    table.write_text("".join(f"{'ab'[number % 2]}/{number}.png,x;y\n" for number in range(COUNT)))
    manifest = make(tmp_path, labels=table, class_names=tmp_path / "names.txt")
    assert (manifest.classes, manifest.labelling) == (["x", "y"], "multi")
    assert manifest.map_classes[20] == "thing 20"
    assert manifest.classes_of("map") == manifest.map_classes


def test_an_ignored_class_becomes_255_and_higher_ones_move_down(tmp_path: Path) -> None:
    folder = str(made(tmp_path))
    whole = [f"{folder}/in", f"{folder}/out", "--maps", f"{folder}/maps", "--workers", "1"]
    result = CliRunner().invoke(_group, ["shard", *whole, "--ignore-class", "0", "--ignore-class", "7"])
    assert result.exit_code == 0, result.output
    assert Manifest.load(tmp_path / "out").map_classes == [str(number) for number in range(18)]
    shelf = Shelf(tmp_path / "out", "train", Catalog())
    for row in range(COUNT):
        with Image.open(tmp_path / "maps" / f"{shelf.index.key(row)}.png") as picture:
            before = np.asarray(picture).astype(int)
        after = np.where(before > 7, before - 2, before - 1)
        after[(before == 0) | (before == 7)] = 255
        assert np.array_equal(np.asarray(decode.map_of(shelf.read_map(row))), after)
    assert verify(tmp_path / "out") == []


def test_a_class_is_ignored_before_names_are_counted_and_255_stays() -> None:
    numbers = np.array([[0, 1, 2], [150, 255, 254]], np.uint8)
    map_ = admit_map(saved(Image.fromarray(numbers), "PNG"), (3, 2), (3, 2), 254, (0,))
    assert np.asarray(decode.map_of(map_.data)).tolist() == [[255, 0, 1], [149, 255, 253]]
    assert map_.top == 253


@pytest.mark.parametrize(
    ("options", "says"),
    [({"maps": None, "ignore_classes": (0,)}, "is of maps"), ({"ignore_classes": (255,)}, "is not of 0 to 254")],
)
def test_a_class_that_cannot_be_ignored_is_refused(tmp_path: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(DataError, match=says):
        make(made(tmp_path), **options)  # type: ignore[arg-type]


def test_images_without_a_fitting_map_are_named_and_stop_nothing(tmp_path: Path) -> None:
    maps = made(tmp_path) / "maps"
    names = sorted(path.relative_to(maps).as_posix() for path in maps.rglob("*.png"))
    (maps / names[0]).unlink()
    Image.new("L", (5, 7)).save(maps / names[1])
    (maps / names[2]).write_bytes(b"hello")
    Image.new("RGB", size_of(tmp_path / "in" / names[3])).save(maps / names[3])
    Image.new("I;16", size_of(tmp_path / "in" / names[4])).save(maps / names[4])
    (tmp_path / "names.txt").write_text("\n".join(map(str, range(30))))
    Image.new("L", size_of(tmp_path / "in" / names[5]), 30).save(maps / names[5])
    split = make(tmp_path, class_names=tmp_path / "names.txt").splits["train"]
    assert split.images == COUNT - 6
    reasons = {refused.path: refused.reason for refused in split.refused}
    assert sorted(reasons) == names[:6]
    assert reasons[names[0]] == f"no map: {names[0]} is not there"
    assert reasons[names[1]].startswith("wrong map: 5 x 7 pixels, where the image has ")
    assert reasons[names[2]].startswith("damaged map: ")
    assert "wrong map: a PNG of the kind 'RGB' with 8 bits" in reasons[names[3]]
    assert "with 16 bits" in reasons[names[4]]
    assert reasons[names[5]] == "wrong map: it has the class 30, but there are 30 class names"
    assert verify(tmp_path / "out") == []


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_palette_of_few_bits_holds_class_numbers(bits: int) -> None:
    numbers = np.random.default_rng(0).integers(0, 2**bits, (9, 13), dtype=np.uint8)
    data = saved(paletted(numbers), "PNG", bits=bits)
    assert data[24] == bits
    map_ = admit_map(data, (13, 9), (13, 9), None)
    assert (map_.data, map_.top) == (data, 2**bits - 1)
    assert np.array_equal(np.asarray(decode.map_of(map_.data)), numbers)


def test_black_and_white_is_class_0_and_1_and_255_is_of_no_class() -> None:
    numbers = np.random.default_rng(0).integers(0, 2, (9, 13), dtype=np.uint8)
    map_ = admit_map(saved(Image.fromarray(numbers * 255).convert("1"), "PNG"), (13, 9), (13, 9), 2)
    assert np.array_equal(np.asarray(decode.map_of(map_.data)), numbers)
    assert admit_map(saved(Image.new("L", (3, 3), 255), "PNG"), (3, 3), (3, 3), 0).top == -1


def test_a_map_is_shrunk_to_the_nearest_pixels_as_its_image_is_shrunk() -> None:
    numbers = np.random.default_rng(0).integers(0, 200, (40, 60), dtype=np.uint8)
    small = np.asarray(decode.map_of(admit_map(saved(paletted(numbers), "PNG"), (60, 40), (30, 20), None).data))
    assert np.array_equal(small, np.asarray(Image.fromarray(numbers).resize((30, 20), Image.Resampling.NEAREST)))
    assert set(small.flat) <= set(numbers.flat)


def test_a_damaged_map_is_refused_without_a_warning() -> None:
    data = bytearray(saved(paletted(np.random.default_rng(0).integers(0, 9, (30, 30))), "PNG"))
    data[-30] ^= 1
    with pytest.raises(Refusal, match="damaged map"):
        admit_map(bytes(data), (30, 30), (30, 30), None)


def test_the_map_of_a_photo_taken_sideways_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for kind in ("in", "maps"):
        (tmp_path / kind).mkdir()
    Image.new("RGB", (30, 20), "red").save(tmp_path / "in" / "x.jpg", exif=exif.tobytes())
    Image.new("L", (20, 30), 3).save(tmp_path / "maps" / "x.png")
    assert make(tmp_path).splits["train"].images == 1


def test_splits_have_maps_of_the_same_path_and_may_join(tmp_path: Path) -> None:
    made(tmp_path / "train")
    made(tmp_path / "val", 3)
    for split in ("train", "val"):
        build(
            tmp_path / split / "in",
            tmp_path / "out",
            maps=tmp_path / split / "maps",
            catalog=Catalog(),
            workers=1,
            splits=(split,),
        )
    assert Manifest.load(tmp_path / "out").map_classes == [str(number) for number in range(20)]
    assert verify(tmp_path / "out") == []
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match="whose maps have other class names"):
        build(
            tmp_path / "val" / "in",
            tmp_path / "out",
            maps=tmp_path / "val" / "maps",
            class_names=tmp_path / "names.txt",
            catalog=Catalog(),
            splits=("test",),
        )
    for kind in ("in", "maps"):
        (tmp_path / "both" / kind).mkdir(parents=True)
        for split in ("train", "val"):
            (tmp_path / "both" / kind / split).symlink_to(tmp_path / split / kind)
    assert {name: split.images for name, split in make(tmp_path / "both").splits.items()} == {"train": COUNT, "val": 3}


def test_where_maps_may_not_lie_is_said_in_a_sentence(tmp_path: Path) -> None:
    made(tmp_path)
    with pytest.raises(DataError, match="its maps would be taken for images"):
        make(tmp_path, maps=tmp_path / "in" / "a")
    with pytest.raises(DataError, match="is not a folder; give the folder that holds the maps"):
        make(tmp_path, maps=tmp_path / "nowhere")


def test_a_map_that_changed_since_a_build_was_stopped_is_stored_anew(tmp_path: Path) -> None:
    def stop(done: int, refused: int, total: int) -> None:
        if done > 5:
            raise KeyboardInterrupt

    maps = made(tmp_path) / "maps"
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, progress=stop)
    Image.new("L", size_of(maps / "a" / "0.png"), 7).save(maps / "a" / "0.png")
    make(tmp_path)
    shelf = Shelf(tmp_path / "out", "train", Catalog())
    assert (np.asarray(decode.map_of(shelf.read_map(0))) == 7).all()
    make(tmp_path, "fresh")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "fresh" / path.name).read_bytes()


@pytest.mark.parametrize("format", FORMATS)
def test_damage_in_a_map_is_found_by_verify_and_by_training(tmp_path: Path, format: str) -> None:
    if format == "ffcv":
        pytest.importorskip("ffcv", reason="ffcv is not installed")
    make(made(tmp_path), format=format)
    shelf = Shelf(tmp_path / "out", "train", Catalog())
    place = shelf.index.placed(2).map
    assert place is not None
    with (tmp_path / "out" / shelf.split.shards[0].name).open("r+b") as file:
        file.seek(place.offset + 60)
        file.write(b"\0\1\2\3")
    (damage,) = verify(tmp_path / "out")
    assert damage.endswith(f"1 of its 4 images is damaged: {shelf.index.key(2)}")
    with pytest.raises(DataError, match=f"the map '{shelf.index.key(2)}' is damaged; run: mae-pipe verify"):
        first(opened(tmp_path / "out"))


def test_a_format_that_stores_no_maps_is_named(tmp_path: Path) -> None:
    plugin = tmp_path / "forgetful.py"
    plugin.write_text(
        "from dataclasses import replace\n"
        "from mae_pipe.api import plugin\n"
        "from mae_pipe_shards.tar import Tar\n\n\n"
        '@plugin("forgetful")\nclass Forgetful(Tar):\n    """Forgets."""\n\n'
        "    def write(self, path, samples):\n"
        "        return [replace(p, map=None) for p in super().write(path, samples)]\n"
    )
    with pytest.raises(PluginError, match="'forgetful' stores no maps"):
        make(made(tmp_path), format="forgetful", catalog=Catalog((plugin,)))


def test_the_command_says_what_it_found(tmp_path: Path) -> None:
    made(tmp_path)
    arguments = ["shard", str(tmp_path / "in"), str(tmp_path / "out"), "--maps", str(tmp_path / "maps")]
    result = CliRunner().invoke(_group, [*arguments, "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert "train: 9 images of 2 classes with maps of 20 classes in 1 webdataset shard, " in result.stdout


def test_a_map_with_a_colour_profile_and_text_is_read_alike() -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("software", "an annotation tool")
    numbers = np.random.default_rng(0).integers(0, 9, (8, 8), dtype=np.uint8)
    out = io.BytesIO()
    paletted(numbers).save(out, "PNG", pnginfo=info, transparency=0)
    map_ = admit_map(out.getvalue(), (8, 8), (8, 8), None)
    assert np.array_equal(np.asarray(decode.map_of(map_.data)), numbers)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_is_done_to_a_map_it_is_refused_or_holds_classes(data: st.DataObject) -> None:
    file = bytearray(saved(paletted(np.arange(63).reshape(7, 9) % 20), "PNG"))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        map_ = admit_map(bytes(file[: data.draw(st.integers(1, len(file)))]), (9, 7), (9, 7), 20)
    except Refusal:
        return
    numbers = np.asarray(decode.map_of(map_.data))
    assert numbers.shape == (7, 9)
    assert ((numbers <= map_.top) | (numbers == 255)).all()
    assert map_.top < 20
