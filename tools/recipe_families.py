"""In what the recipes of a family differ from the one that is written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Derived(NamedTuple):
    """A recipe that is another's file with some lines of its own.

    Attributes:
        family: folder of both.
        head: the comment at the top.
        lines: dotted key -> value and comment; table -> the comment beside its header.
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
Not theirs: bf16 instead of fp16 with loss scaling; the last steps of an epoch are not dropped."""
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
        if epochs == 1600:
            lines["schedule.epochs"] = "1600.0  # paper, table 3 and figure 7; of the released models"
        yield Derived("pretraining", "mae_vit_base_patch16", f"mae_vit_{name}", head, lines)


def everything() -> Iterator[Derived]:
    """Every derived recipe."""
    yield from pretraining()
