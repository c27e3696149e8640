"""In what the recipes of a family differ from the one that is written by hand: those of the paper."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Derived(NamedTuple):
    """A recipe that is another's file with some lines of its own.

    Attributes:
        family: its folder.
        original: the other recipe, of any folder.
        head: the comment at the top.
        lines: dotted key -> value and comment, and more lines after it; table -> the comment beside its header.
    """

    family: str
    original: str
    name: str
    head: str
    lines: dict[str, str]


SIZES = {  # name -> of models_mae.py: title, width, depth, heads, patch
    "base_patch16": ("ViT-B/16", 768, 12, 12, 16),
    "large_patch16": ("ViT-L/16", 1024, 24, 16, 16),
    "huge_patch14": ("ViT-H/14", 1280, 32, 16, 14),
}
FULL = {"base": "base_patch16", "large": "large_patch16", "huge": "huge_patch14"}
EXPECTED = {  # name of the recipe after "mae_vit_" -> (what it gives, where that stands)
    "base_patch16_pixel": ("", "no published result of these 800 epochs is known to us"),
    "base_patch16_1600e": ("finetuned 83.6 %, linear 68.0 %", "paper, tables 3 and 12"),
    "base_patch16_pixel_1600e": ("finetuned 83.3 %", "paper, table 7"),
    "large_patch16": ("finetuned 85.4 %, linear 73.9 %", "paper, table 1d"),
    "large_patch16_pixel": ("finetuned 84.9 %, linear 73.5 %", "paper, table 1, its baseline"),
    "large_patch16_1600e": ("finetuned 85.9 %, linear 75.8 %", "paper, tables 3 and 12"),
    "large_patch16_pixel_1600e": ("finetuned 85.1 %, linear 75.1 %", "paper, figure 7 and table 7"),
    "huge_patch14": ("", "no published result of these 800 epochs is known to us"),
    "huge_patch14_pixel": ("finetuned 85.8 %", "paper, table 2"),
    "huge_patch14_1600e": ("finetuned 86.9 %, linear 76.6 %", "paper, tables 3 and 12"),
    "huge_patch14_pixel_1600e": ("finetuned 86.2 %", "paper, table 7"),
}
BF16 = "Not theirs: bf16 instead of fp16 with loss scaling; the last images of an epoch are not dropped."


def pretraining() -> Iterator[Derived]:
    """Sizes, targets and lengths of the paper's pretraining."""
    for name, (result, where) in EXPECTED.items():
        size = next(size for size in SIZES if name.startswith(size))
        title, width, depth, heads, patch = SIZES[size]
        epochs, pixel = (1600 if "1600e" in name else 800), "pixel" in name
        what = f"{epochs} epochs, {'raw' if pixel else 'normalized'} pixels"
        head = f"""
MAE pretraining of {title} on ImageNet-1k: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners" ("paper"),
and the official repository, facebookresearch/mae (its files by name). {what}.
Run: mae-pipe pretrain mae_vit_{name} --shards IMAGENET --out RUN --nproc 8
Expected: {f"{result} ({where})" if result else where}.
{BF16}"""
        lines = {"about": f'"MAE {title} on ImageNet-1k, {what}{"; " + result if result else ""}"'}
        if size != "base_patch16":
            lines |= {
                "encoder": f"models_mae.py: {title}",
                "encoder.width": str(width),
                "encoder.depth": str(depth),
                "encoder.heads": str(heads),
                "encoder.patch": str(patch),
            }
        if size == "huge_patch14":
            lines["engine.zero"] = "2  # ours; changes memory only"
        if pixel:
            lines["target.name"] = '"pixel"  # paper, section 3 and table 1: the baseline of its ablations'
        if pixel or size != "base_patch16":
            lines["monitor.band"] = "[]  # ours: no curve of it is known to us"
        if epochs == 1600:
            lines["schedule.epochs"] = "1600.0  # paper, table 3 and figure 7; of the released models"
        yield Derived("pretraining", "mae_vit_base_patch16", f"mae_vit_{name}", head, lines)


def finetuning() -> Iterator[Derived]:
    """The official repository's values and those of the paper's table 9; the default of the command; 448 pixels."""
    by_default = "finetuning of ViT-B on ImageNet-1k: the same as finetune_vit_base; 83.6 % after 1600 epochs"
    yield Derived(
        "finetuning",
        "finetune_vit_base",
        "finetune",
        """
Finetuning of a pretrained ViT-B/16 on ImageNet-1k, what `mae-pipe finetune RUN` takes: the same values as finetune_vit_base,
those of the official repository, facebookresearch/mae (its files by name). For ViT-L and H: finetune_vit_large, finetune_vit_huge.
Image size and statistics are the pretrained run's.
Run: mae-pipe finetune RUN --shards IMAGENET   (RUN: mae_vit_base_patch16_1600e)
Expected: 83.66 % (FINETUNE.md, seeds 83.46 to 83.66; paper, He et al. 2022, table 3: 83.6 %).
"""
        + BF16,
        {"about": f'"{by_default}"'},
    )
    bigger = {
        "optimizer.base_lr": "1e-3  # FINETUNE.md",
        "optimizer.layer_decay": "0.75  # FINETUNE.md",
        "schedule.epochs": "50.0  # FINETUNE.md",
    }
    large = bigger | {"drop_path": "0.2  # FINETUNE.md"}
    batch = {
        "data.global_batch": "1024  # FINETUNE.md: 16 x 8 GPUs x 8 nodes",
        "data.micro_batch": "16  # FINETUNE.md: of a GPU; mixup and CutMix mix within it",
        "engine.zero": "2  # ours; changes memory only",
    }
    huge = bigger | batch | {"drop_path": "0.3  # FINETUNE.md"}
    for size, lines, result in (
        ("large", large, "85.95 % (FINETUNE.md, seeds 85.76 to 85.95; paper, table 3: 85.9 %)"),
        ("huge", huge, "86.93 % (FINETUNE.md; paper, table 3: 86.9 %)"),
    ):
        title, short = SIZES[FULL[size]][0], result[-7:-3]
        head = f"""
Finetuning of a pretrained {title} on ImageNet-1k: the values of the official repository, facebookresearch/mae (its files by
name), which are those of its released models; "paper" is He et al. 2022. The paper's table 9: finetune_vit_{size}_paper.
Image size and statistics are the pretrained run's.
Run: mae-pipe finetune RUN --recipe finetune_vit_{size} --shards IMAGENET   (RUN: mae_vit_{FULL[size]}_1600e)
Expected: {result}.
{BF16}"""
        about = f"finetuning of ViT-{size[0].upper()} on ImageNet-1k, official repository's values; {short} % after 1600 epochs"
        yield Derived("finetuning", "finetune_vit_base", f"finetune_vit_{size}", head, {"about": f'"{about}"'} | lines)
    for size, full in FULL.items():
        title = SIZES[full][0]
        expected = {
            "base": "none known to us of 800 epochs",
            "large": "84.9 % (paper, table 1)",
            "huge": "85.8 % (paper, table 2)",
        }
        short = expected[size].partition(" (")[0] if size != "base" else "its ablations"
        head = f"""
Finetuning of a pretrained {title} on ImageNet-1k: table 9 of He et al. 2022 ("paper"), of its baseline of raw pixels; where it is
silent, the official repository's value, facebookresearch/mae (its files by name). That one's own: finetune_vit_{size}.
Image size and statistics are the pretrained run's.
Run: mae-pipe finetune RUN --recipe finetune_vit_{size}_paper --shards IMAGENET   (RUN: mae_vit_{full}_pixel)
Expected: {expected[size]}.
Not theirs: bf16; PyTorch instead of TensorFlow on TPUs."""
        about = f"finetuning of ViT-{size[0].upper()} on ImageNet-1k, the paper's table 9: {short} after 800 epochs of raw pixels"
        if size == "base":
            about = "finetuning of ViT-B on ImageNet-1k, the paper's table 9, for pretraining with raw pixels"
        table = {
            "about": f'"{about}"',
            "drop_path": f"{0.2 if size == 'huge' else 0.1}  # paper, table 9",
            "label_smoothing": "0.1  # paper, table 9",
            "data.randaugment": '"rand-m9-mstd0.5-inc1"  # paper, table 9: RandAug (9, 0.5), by main_finetune.py\'s name',
            "data.erase": "0.0  # paper, table 9: none",
            "mixing.mixup": "0.8  # paper, table 9",
            "mixing.cutmix": "1.0  # paper, table 9",
            "head.options": '{ pool = "token", std = 2e-5 }  # paper, A.1: the class token; std: main_finetune.py',
            "optimizer.name": '"adamw"  # paper, table 9',
            "optimizer.base_lr": "1e-3  # paper, table 9",
            "optimizer.betas": "[0.9, 0.999]  # paper, table 9",
            "optimizer.weight_decay": "0.05  # paper, table 9",
            "optimizer.layer_decay": "0.75  # paper, table 9",
            "schedule": "paper, table 9: cosine decay after a warmup",
            "schedule.epochs": f"{100.0 if size == 'base' else 50.0}  # paper, table 9",
            "schedule.warmup_epochs": "5.0  # paper, table 9",
            "data.global_batch": "1024  # paper, table 9",
        }
        if size == "huge":
            table |= {key: batch[key] for key in ("data.micro_batch", "engine.zero")}
        yield Derived("finetuning", "finetune_vit_base", f"finetune_vit_{size}_paper", head, table)
    yield Derived(
        "finetuning",
        "finetune_vit_base",
        "finetune_vit_huge_448",
        """
Finetuning of a pretrained ViT-H/14 at 448 pixels on ImageNet-1k: He et al. 2022 ("paper"), table 3. They publish the size and the
result; all other values are the official repository's for 224 pixels (facebookresearch/mae, its files by name), as in
mmpretrain's vit-huge-p14_32xb8-coslr-50e_in1k-448px.py, which reached 87.3 %. Statistics are the pretrained run's.
Run: mae-pipe finetune RUN --recipe finetune_vit_huge_448 --shards IMAGENET   (RUN: mae_vit_huge_patch14_1600e)
Expected: 87.8 % (paper, table 3); 87.3 % (mmpretrain).
"""
        + BF16,
        huge
        | {
            "about": '"finetuning of ViT-H at 448 pixels on ImageNet-1k; 87.8 % after 1600 epochs (mmpretrain: 87.3 %)"',
            "drop_path": "0.3  # not published for 448: FINETUNE.md's of 224; mmpretrain has the same",
            "data.crop": '"random"  # util/datasets.py: timm\'s RandomResizedCrop\n'
            "size = 448  # paper, table 3\n"
            "centre_share = 1.0  # util/datasets.py: all of the image above 224 pixels (mmpretrain: 0.875)",
            "data.global_batch": "1024  # not published for 448: FINETUNE.md's of 224",
            "data.micro_batch": "8  # ours; mixup and CutMix mix within it",
            "optimizer.base_lr": "1e-3  # not published for 448: FINETUNE.md's of 224; mmpretrain has the same",
            "optimizer.layer_decay": "0.75  # not published for 448: FINETUNE.md's of 224; mmpretrain has the same",
            "schedule.epochs": "50.0  # not published for 448: FINETUNE.md's of 224; mmpretrain has the same",
        },
    )
