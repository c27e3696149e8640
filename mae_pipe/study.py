"""What a demo trains: built-in recipes by name, and the changes that fit them to the data and the time."""

from __future__ import annotations

from dataclasses import dataclass

from mae_pipe import recipe as recipes
from mae_pipe.data.manifest import Manifest

MINUTES = 3.0  # of pretraining on two CPU cores, roughly, is what the epochs here are chosen for
PHOTOS = 30_000  # images that the recipe for photos sees in that time
SIZES = (32, 64, 96, 128)  # pixels to which photos are brought; an eighth of it is the patch
FEW = 10  # labels a class for finetuning


@dataclass(frozen=True)
class Study:
    """A pretraining recipe with its changes, and those of the probe and of finetuning."""

    pretrain: str
    probe: str
    finetune: str
    pretrain_changes: tuple[str, ...] = ()
    probe_changes: tuple[str, ...] = ()
    finetune_changes: tuple[str, ...] = ()


def of_digits(minutes: float) -> Study:
    """The recipes for digits as they are, pretraining for a share of their epochs."""
    schedule = recipes.load("digits", task="pretrain").schedule
    share = minutes / MINUTES
    changes = lasting(schedule.epochs * share, schedule.warmup_epochs * min(1.0, share))
    return Study("digits", "probe_digits", "finetune_digits", changes)


def of_photos(manifest: Manifest, minutes: float, fewest: int) -> Study:
    """Recipes for the user's images: their size, statistics and number decide.

    Args:
        fewest: images of the smallest class in the training split; 0 where there are no classes.
    """
    train = manifest.splits.get("train") or next(iter(manifest.splits.values()))
    side = min(train.statistics.mean_width, train.statistics.mean_height)
    size = max((size for size in SIZES if size <= side), default=SIZES[0])
    epochs = max(1.0, round(PHOTOS * minutes / MINUTES / train.images, 1))
    pretrain = (
        f"data.size={size}",
        f"encoder.patch={size // 8}",
        f"data.mean={[round(value, 4) for value in train.statistics.mean]}",
        f"data.std={[max(0.01, round(value, 4)) for value in train.statistics.std]}",
        *_batch(train.images),
        *lasting(epochs, epochs / 10),
    )
    few = min(FEW, fewest)
    seen = PHOTOS * minutes / MINUTES  # by the probe, which only goes forward; finetuning costs three times as much
    return Study(
        "imagenette_vit_tiny",
        "probe_imagenette",
        "finetune_imagenette",
        pretrain,
        _downstream(train.images, min(10.0, seen / train.images)),
        (
            f"labels_per_class={few}",
            *_downstream(few * len(manifest.classes), min(60.0, seen / 3 / few / len(manifest.classes))),
        )
        if few
        else (),
    )


def _downstream(images: int, epochs: float) -> tuple[str, ...]:
    """Changes that make a downstream run so long, measured at its end."""
    return (*_batch(images), *lasting(epochs, epochs / 10), f"eval_every_epochs={epochs:.6f}")


def lasting(epochs: float, warmup: float) -> tuple[str, ...]:
    """Changes that make a run so long, with a dozen pictures and three checkpoints."""
    return (
        f"schedule.epochs={epochs:.6f}",
        f"schedule.warmup_epochs={warmup:.6f}",
        f"saving.every_epochs={epochs / 3:.6f}",
        f"logging.pictures_every_epochs={epochs / 12:.6f}",
    )


def _batch(images: int) -> tuple[str, ...]:
    """The largest power of two up to 128 that still gives eight steps an epoch."""
    batch = 1 << min(7, max(1, images // 8).bit_length() - 1)
    return f"data.global_batch={batch}", f"data.micro_batch={min(64, batch)}"
