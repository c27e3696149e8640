"""In what the recipes of a family differ from the one that is written by hand: probes, partial finetuning, from scratch."""

from __future__ import annotations

from collections.abc import Iterator

from tools.recipe_families import BF16, FULL, SIZES, Derived

LINEAR = {
    "base": ("68.0", "67.8"),
    "large": ("75.8", "76.0"),
    "huge": ("76.6", "77.2"),
}  # paper, the repository's PyTorch
PARTIAL = {0: 73.5, 0.5: 79.1, 1: 81.0, 2: 83.1, 4: 84.2, 6: 84.4, 12: 84.6, 18: 84.7, 24: 84.9}  # paper, figure 9
SCRATCH = {"base": ("82.3", "82.1"), "large": ("82.6", "81.5"), "huge": ("83.1", "80.9")}  # with and without EMA


def probing() -> Iterator[Derived]:
    """Linear probes: the default of the command, by size, and with SGD."""
    by_default = ("probe", "base", "what `mae-pipe probe RUN` takes")
    for name, size, which in (by_default, *((f"probe_vit_{s}", s, "") for s in ("large", "huge"))):
        paper, ours = LINEAR[size]
        title = f"{SIZES[FULL[size]][0]} on ImageNet-1k{', ' + which if which else ''}"
        short = f"linear probe of ViT-{size[0].upper()} on ImageNet-1k with LARS, 90 epochs"
        head = f"""
Linear probing of a pretrained {title}: He et al. 2022 ("paper"), table 10, and the official
repository, facebookresearch/mae (its files by name). {"The same as probe_vit_base. " if which else ""}Image size and statistics are the pretrained run's.
Run: mae-pipe probe RUN --recipe {name} --shards IMAGENET   (RUN: mae_vit_{FULL[size]}_1600e)
Expected: {paper} % (paper, table 12; TensorFlow), {ours} % (the repository's PyTorch).
{BF16}"""
        lines = {"about": f'"{short}{": the same as probe_vit_base" if which else ""}; {paper} % after 1600 epochs"'}
        if size != "base":
            lines["schedule.epochs"] = "90.0  # paper, table 10; FINETUNE.md: 50 are enough"
        yield Derived("probing", "probe_vit_base", name, head, lines)
    yield Derived(
        "probing",
        "probe_vit_base",
        "probe_sgd",
        """
Linear probing on ImageNet-1k with SGD at a batch of 4,096: He et al. 2022 ("paper"), table 10, says only that this works
similarly to LARS at 16,384; official files by name. Image size and statistics are the pretrained run's.
Run: mae-pipe probe RUN --recipe probe_sgd --shards IMAGENET   (RUN: mae_vit_base_patch16_1600e)
Expected: about that of LARS: B 68.0, L 75.8, H 76.6 % (paper, table 12).
"""
        + BF16,
        {
            "about": '"linear probe on ImageNet-1k with SGD, batch 4,096; about as LARS: B 68.0, L 75.8, H 76.6 %"',
            "optimizer.name": '"sgd"  # paper, table 10: works similarly with a 4,096 batch',
            "optimizer.base_lr": "0.1  # of LARS; not published for SGD",
            "optimizer.momentum": "0.9  # of LARS; not published for SGD",
            "data.global_batch": "4096  # paper, table 10",
            "data.micro_batch": "512  # FINETUNE.md: of a GPU, for LARS; batch norm takes its statistics from it",
        },
    )


def partial() -> Iterator[Derived]:
    """The last k blocks of ViT-L."""
    for blocks, result in PARTIAL.items():
        name = f"partial_vit_large_k{str(blocks).replace('.', '')}"
        what = {0: "no block, only the head", 0.5: "the MLP of the last block", 1: "the last block"}.get(
            blocks, "all 24 blocks" if blocks == 24 else f"the last {blocks} blocks"
        )
        head = f"""
Partial finetuning of a pretrained ViT-L/16 on ImageNet-1k, {what}: He et al. 2022 ("paper"), section 4.3, figure 9 and A.1,
in the setting of its table 9; where it is silent, the official repository's value (its files by name; it has no code for this).
Image size and statistics are the pretrained run's.
Run: mae-pipe finetune RUN --recipe {name} --shards IMAGENET   (RUN: mae_vit_large_patch16_pixel)
Expected: {result} % (paper, figure 9).
Not theirs: bf16. The paper takes the best of 50, 100 and 200 epochs for each number of blocks, and does not say which it was."""
        about = f"finetuning of ViT-L on ImageNet-1k: {what}; {result} %"
        lines = {
            "about": f'"{about}"',
            "drop_path": f"0.1  # paper, table 9\ntune_blocks = {float(blocks)}  # paper, figure 9",
            "schedule.epochs": "50.0  # paper, table 9: ViT-L's; A.1: the best of 50, 100 and 200, which is not published",
        }
        yield Derived("partial", "finetune_vit_large_paper", name, head, lines)


def scratch() -> Iterator[Derived]:
    """Supervised training without pretraining: the paper's, and the original ViT's."""
    for size, (ema, plain) in SCRATCH.items():
        letter = size[0].upper()
        head = f"""
Supervised training of {SIZES[FULL[size]][0]} on ImageNet-1k from scratch: He et al. 2022 ("paper"), A.2 and table 11, "our impl."; where it
is silent, the official repository's value for finetuning (its files by name). Image size and statistics are the named recipe's.
Run: mae-pipe finetune mae_vit_{FULL[size]} --from-scratch --recipe scratch_vit_{size} --shards IMAGENET --out RUN
Expected: {ema} % of the averaged weights (EMA), {plain} % without: ema=0 (paper, A.2).
Not theirs: bf16; PyTorch instead of TensorFlow on TPUs."""
        table = {
            "about": f'"ViT-{letter} on ImageNet-1k from scratch, the paper\'s table 11: {ema} %; without EMA {plain} %"',
            "drop_path": f"{0.1 if size == 'base' else 0.2}  # paper, table 11",
            "dropout": "0.0  # paper, A.2: regularizations that are not listed are off",
            "label_smoothing": "0.1  # paper, table 11",
            "ema": "0.9999  # paper, table 11",
            "eval_every_epochs": "10.0  # ours",
            "data.randaugment": '"rand-m9-mstd0.5-inc1"  # paper, table 11: RandAug (9, 0.5), by main_finetune.py\'s name',
            "data.erase": "0.0  # paper, A.2: regularizations that are not listed are off",
            "data.global_batch": "4096  # paper, table 11",
            "mixing.mixup": "0.8  # paper, table 11",
            "mixing.cutmix": "1.0  # paper, table 11",
            "head.options": '{ pool = "token", std = 0.01 }  # ours; the paper is silent',
            "optimizer.name": '"adamw"  # paper, table 11',
            "optimizer.base_lr": "1e-4  # paper, table 11",
            "optimizer.betas": "[0.9, 0.95]  # paper, table 11",
            "optimizer.weight_decay": "0.3  # paper, table 11",
            "optimizer.layer_decay": "1.0  # paper, table 11: none",
            "schedule": "paper, table 11: cosine decay after a warmup",
            "schedule.epochs": f"{300.0 if size == 'base' else 200.0}  # paper, table 11",
            "schedule.warmup_epochs": "20.0  # paper, table 11",
            "schedule.min_lr": "0.0  # ours; the paper is silent",
            "engine.zero": f"{2 if size == 'huge' else 1}  # ours; changes memory only",
            "saving.every_epochs": "10.0  # ours",
        }
        yield Derived("scratch", "finetune_vit_base", f"scratch_vit_{size}", head, table)
    for size, result in (("base", ""), ("large", '76.5 % (He et al. 2022, section 4: "scratch, original")')):
        letter = size[0].upper()
        head = f"""
Supervised training of {SIZES[FULL[size]][0]} on ImageNet-1k from scratch as the original ViT: Dosovitskiy et al. 2021 ("ViT"), table 3 and B.1.
Image size and statistics are the named recipe's.
Run: mae-pipe finetune mae_vit_{FULL[size]} --from-scratch --recipe scratch_vit_{size}_original --shards IMAGENET --out RUN
Expected: {result or "none known to us at 224 pixels"}.
Not theirs: AdamW (its decay is decoupled) where the paper says Adam; the first weights are MAE's; bf16."""
        about = f"ViT-{letter} on ImageNet-1k from scratch, as the original ViT"
        lines = {
            "about": f'"{about}{"; 76.5 % (He et al. 2022)" if result else ""}"',
            "drop_path": "0.0  # ViT, table 3: dropout only",
            "dropout": "0.1  # ViT, table 3",
            "ema": "0.0  # ViT, table 3: none",
            "label_smoothing": "0.0  # ViT, table 3: none",
            "eval_every_epochs": "10.0  # ours",
            "train_split": '"train"  # ViT, section 4.1',
            "eval_split": '"val"  # ViT, section 4.1',
            "data.crop": '"random"  # ours; not in the paper',
            "data.crop_scale": "[0.08, 1.0]  # ours; not in the paper",
            "data.crop_ratio": "[0.75, 1.3333333333333333]  # ours; not in the paper",
            "data.flip": "0.5  # ours; not in the paper",
            "data.jitter": "[0.0, 0.0, 0.0, 0.0]  # ViT, table 3: none",
            "data.randaugment": '""  # ViT, table 3: none',
            "data.erase": "0.0  # ViT, table 3: none",
            "data.interpolation": '"bicubic"  # ours; not in the paper',
            "data.repeats": "1  # ViT, table 3",
            "data.global_batch": "4096  # ViT, B.1",
            "data.micro_batch": "64  # ours; changes memory only",
            "mixing.mixup": "0.0  # ViT, table 3: none",
            "mixing.cutmix": "0.0  # ViT, table 3: none",
            "mixing.probability": "1.0  # of no effect",
            "mixing.switch": "0.5  # of no effect",
            "head.name": '"linear"  # ViT, section 3.1',
            "head.options": '{ pool = "token", std = 0.01 }  # ViT, section 3.1; std is ours',
            "optimizer.name": '"adamw"  # ViT, table 3: Adam',
            "optimizer.base_lr": "1.875e-4  # ViT, table 3: 3e-3 at 4,096",
            "optimizer.betas": "[0.9, 0.999]  # ViT, section 4.1",
            "optimizer.eps": "1e-8  # ours; not in the paper",
            "optimizer.weight_decay": "0.3  # ViT, table 3",
            "optimizer.layer_decay": "1.0  # ViT: none",
            "optimizer.clip": "1.0  # ViT, B.1: global norm 1",
            "schedule": "ViT, table 3: cosine decay after a warmup",
            "schedule.epochs": "300.0  # ViT, table 3",
            "schedule.warmup_epochs": "31.97  # ViT, B.1: 10,000 steps x 4,096 / 1,281,167",
            "schedule.min_lr": "0.0  # ViT, table 3: cosine",
            "engine.precision": '"bf16"  # ours',
            "saving.every_epochs": "10.0  # ours",
        }
        yield Derived("scratch", "finetune_vit_base", f"scratch_vit_{size}_original", head, lines)
