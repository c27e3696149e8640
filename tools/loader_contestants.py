"""The loaders that bench_loader.py compares: each gives the same task as a function that makes so many images.

The task: photos, RandomResizedCrop(224, scale 0.2 to 1) bicubic where the loader can, a flip, [64, 3, 224, 224] uint8
batches, every worker with one thread. Each runs in a process of its own, told what to do by lines on its input.
"""

from __future__ import annotations

import io
import itertools
import json
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

SIZE, BATCH, SCALE = 224, 64, (0.2, 1.0)
AHEAD = 8 * BATCH  # more than any of them makes ahead
Run = Callable[[int], int]  # at least so many images -> how many they were
Make = Callable[[Path, int], Run]


def endless(once: Callable[[], Iterator[int]]) -> Run:
    """Of a loader that gives one epoch at a time: sizes of batches."""

    def forever() -> Iterator[int]:
        while True:
            yield from once()

    batches = forever()

    def run(images: int) -> int:
        done = 0
        while done < images:
            done += next(batches)
        return done

    return run


def ours(shards: str, kind: Literal["thread", "process"] = "thread") -> Make:
    def make(work: Path, workers: int) -> Run:
        from mae_pipe import recipe
        from mae_pipe.catalog import Catalog
        from mae_pipe.data.order import Share
        from mae_pipe.data.stream import open_stream

        data = recipe.Data(size=SIZE, workers=workers, worker_kind=kind, crop_scale=SCALE)
        stream = open_stream(work / shards, "train", data, seed=0, share=Share(micro_batch=BATCH), catalog=Catalog())
        batches = stream.batches()

        def run(images: int) -> int:
            return sum(len(batch.pixels) for batch in itertools.islice(batches, -(-images // BATCH)))

        return run

    return make


def ffcv(file: str, **cache: Any) -> Make:
    def make(work: Path, workers: int) -> Run:
        from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage

        image = [RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=SCALE), RandomHorizontalFlip()]
        loader = Loader(
            str(work / file),
            batch_size=BATCH,
            num_workers=workers,
            order=OrderOption.RANDOM,
            seed=0,
            **cache,
            pipelines={"image": [*image, ToTensor(), ToTorchImage()], "label": [IntDecoder(), ToTensor()]},
        )
        return endless(lambda: (len(batch[0]) for batch in loader))

    return make


def transform(kind: str) -> Callable[[Any], Any]:
    """torchvision's; "float" is the official MAE's, normalised on the CPU."""
    from torchvision import transforms as T

    steps: list[Any] = [
        T.RandomResizedCrop(SIZE, SCALE, interpolation=T.InterpolationMode.BICUBIC),
        T.RandomHorizontalFlip(),
    ]
    if kind == "float":
        steps += [T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    else:
        steps += [T.PILToTensor()]
    made: Callable[[Any], Any] = T.Compose(steps)
    return made


def loaded(dataset: Any, workers: int, *, shuffle: bool) -> Run:
    """Through torch's DataLoader."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        dataset, BATCH, shuffle=shuffle, num_workers=workers, persistent_workers=True, worker_init_fn=one_thread
    )
    return endless(lambda: (len(batch[0]) for batch in loader))


def one_thread(_: int) -> None:
    import torch

    torch.set_num_threads(1)


def imagefolder(kind: str) -> Make:
    def make(work: Path, workers: int) -> Run:
        from torchvision.datasets import ImageFolder

        return loaded(ImageFolder(str(work / "originals"), transform(kind)), workers, shuffle=True)

    return make


class _Tar:
    """webdataset's samples, decoded by one of two ways."""

    def __init__(self, fast: bool) -> None:
        self.fast = fast
        self.change: Callable[[Any], Any] | None = None

    def __call__(self, sample: tuple[bytes, bytes]) -> tuple[Any, int]:
        data, label = sample
        if self.fast:
            return self._fast(data), int(label)
        from PIL import Image

        if self.change is None:
            self.change = transform("uint8")
        return self.change(Image.open(io.BytesIO(data)).convert("RGB")), int(label)

    def _fast(self, data: bytes) -> Any:
        import simplejpeg
        import torch
        from torchvision.transforms import RandomResizedCrop
        from torchvision.transforms.v2 import functional as F

        pixels = torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1)
        box = RandomResizedCrop.get_params(pixels, SCALE, (3 / 4, 4 / 3))
        bicubic = F.InterpolationMode.BICUBIC
        view = F.resized_crop(pixels, *box, [SIZE, SIZE], bicubic, antialias=True)
        return F.horizontal_flip(view) if random.random() < 0.5 else view  # noqa: S311


def webdataset(fast: bool) -> Make:
    def make(work: Path, workers: int) -> Run:
        import webdataset as wds

        tars = [str(path) for path in sorted((work / "tars").glob("*.tar"))]
        dataset = wds.WebDataset(tars, shardshuffle=100, seed=0, nodesplitter=wds.shardlists.single_node_only)
        return loaded(dataset.shuffle(200).to_tuple("jpg", "cls").map(_Tar(fast)), workers, shuffle=False)

    return make


def dali(work: Path, workers: int) -> Run:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    @pipeline_def(batch_size=BATCH, num_threads=workers, device_id=None, seed=0)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        files, labels = fn.readers.file(file_root=str(work / "originals"), random_shuffle=True, name="reader")
        images = fn.decoders.image_random_crop(files, random_area=SCALE, random_aspect_ratio=(3 / 4, 4 / 3))
        images = fn.resize(images, size=[SIZE, SIZE], interp_type=types.INTERP_CUBIC, antialias=True)
        images = fn.flip(images, horizontal=fn.random.coin_flip())
        return fn.transpose(images, perm=[2, 0, 1]), labels

    made = pipeline()
    made.build()
    iterator = DALIGenericIterator([made], ["image", "label"], reader_name="reader", auto_reset=True)
    return endless(lambda: (len(batch[0]["image"]) for batch in iterator))


def litdata(work: Path, workers: int) -> Run:
    import litdata

    folder = work / "litdata"
    if not folder.exists():
        files = sorted((work / "originals").rglob("*.JPEG"))
        litdata.optimize(_litdata_sample, files, str(folder), chunk_bytes="16MB", num_workers=1)
    dataset = litdata.StreamingDataset(str(folder), shuffle=True, transform=_Changed())
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, persistent_workers=True)
    return endless(lambda: (len(batch[0]) for batch in loader))


class _Changed:
    """A stored file -> what the task asks for."""

    def __init__(self) -> None:
        self.change: Callable[[Any], Any] | None = None

    def __call__(self, sample: dict[str, bytes]) -> tuple[Any, int]:
        from PIL import Image

        if self.change is None:
            self.change = transform("uint8")
        return self.change(Image.open(io.BytesIO(sample["image"])).convert("RGB")), 0


def _litdata_sample(path: Path) -> dict[str, bytes]:
    return {"image": path.read_bytes()}


def mosaic(work: Path, workers: int) -> Run:
    from streaming import MDSWriter, StreamingDataset

    folder = work / "mosaic"
    if not folder.exists():
        with MDSWriter(out=str(folder), columns={"image": "bytes"}, size_limit=1 << 24) as out:
            for path in sorted((work / "originals").rglob("*.JPEG")):
                out.write({"image": path.read_bytes()})
    change = _Changed()

    class Changed(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            return change(super().__getitem__(index))

    return loaded(Changed(local=str(folder), batch_size=BATCH, shuffle=True), workers, shuffle=False)


FORK = "erow/ffcv, jpg quality 90"  # decodes only the rows of a crop; has an environment of its own

# name -> how it is made, what it reads, and which of ours reads the same
CONTESTANTS: dict[str, tuple[Make, str, str]] = {
    "mae-pipe, original files": (ours("shards-originals"), "originals", ""),
    "mae-pipe, original files, processes": (
        ours("shards-originals", "process"),
        "originals",
        "mae-pipe, original files",
    ),
    "mae-pipe, quality 90": (ours("shards-q90"), "q90", ""),
    "mae-pipe, planes": (ours("shards-planes"), "planes", ""),
    "ffcv 1.0.2, jpg quality 90": (ffcv("q90.beton", os_cache=True), "q90", "mae-pipe, quality 90"),
    "ffcv 1.0.2, raw": (ffcv("raw.beton", os_cache=True), "raw", "mae-pipe, planes"),
    "ffcv 1.0.2, raw up to 512": (ffcv("raw512.beton", os_cache=True), "raw512", "mae-pipe, planes"),
    FORK: (ffcv("q90.beton", cache_type=0), "q90", "mae-pipe, quality 90"),
    "DALI on the CPU, fused decoder": (dali, "originals", "mae-pipe, original files"),
    "torchvision ImageFolder + Pillow": (imagefolder("uint8"), "originals", "mae-pipe, original files"),
    "the same, float (official MAE)": (imagefolder("float"), "originals", "mae-pipe, original files"),
    "webdataset + Pillow": (webdataset(False), "originals", "mae-pipe, original files"),
    "webdataset + simplejpeg + torch": (webdataset(True), "originals", "mae-pipe, original files"),
    "LitData + Pillow": (litdata, "originals", "mae-pipe, original files"),
    "MosaicML Streaming + Pillow": (mosaic, "originals", "mae-pipe, original files"),
}


def main() -> None:
    """``loader_contestants.py NAME WORK WORKERS``: a line with a number of images -> a line with images a second."""
    name, work, workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    said = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is not an answer
    warnings.simplefilter("ignore")
    try:
        import torch

        torch.set_num_threads(1)
        run = CONTESTANTS[name][0](work, workers)
        run(4 * BATCH)  # compiled, started, cached
    except Exception as error:
        print(
            json.dumps({"left out": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}),
            file=said,
        )
        said.flush()
        return
    print(json.dumps({"ready": True}), file=said, flush=True)
    for line in sys.stdin:
        run(AHEAD)  # what was made ahead while it waited
        began = time.perf_counter()
        done = run(int(line))
        print(json.dumps({"rate": done / (time.perf_counter() - began)}), file=said, flush=True)


if __name__ == "__main__":
    main()
