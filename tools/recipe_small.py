"""In what the recipes for small data differ from those for 64 pixels and for CIFAR, which are written by hand."""

from __future__ import annotations

from collections.abc import Iterator

from tools.recipe_families import Derived

OURS = "The values are ours. No result is known yet."
STABLE = "stable-pretraining (benchmarks/imagenet10)"
FP32 = '"fp32"  # ours; for a CPU'


class Preset:
    """A pretraining recipe with its probe and its finetuning.

    Args:
        name: of all three, after "mae_", "probe_", "finetune_"; ``own`` is the whole name of the first.
        title: what it is for, of the about line and the head.
        source: where its values are from.
        lines: of the pretraining, and of the heads.
    """

    def __init__(
        self, name: str, title: str, source: str, lines: dict[str, str], probe: dict[str, str], finetune: dict[str, str],
        own: str = "",
    ) -> None:  # fmt: skip
        self.name, self.title, self.source = name, title, source
        self.lines = {"pretrain": lines, "probe": probe, "finetune": finetune}
        self.own = own or f"mae_{name}"

    def recipes(self) -> Iterator[Derived]:
        """All three."""
        heads = f"probe_{self.name}, finetune_{self.name}"
        for task, name, original, about, run in (
            ("pretrain", self.own, "mae_64px", self.title, f"--shards SHARDS --out RUN; then the recipes {heads}"),
            ("probe", f"probe_{self.name}", "probe_64px", f"linear probe of {self.own}", ""),
            (
                "finetune",
                f"finetune_{self.name}",
                "finetune_64px",
                f"finetuning of {self.own}",
                "   (and --from-scratch)",
            ),
        ):
            what = f"{name} {run}" if task == "pretrain" else f"RUN --recipe {name}{run}"
            head = f"{about[0].upper()}{about[1:]}.\n{self.source}\nRun: mae-pipe {task} {what}"
            yield Derived("small", original, name, head, {"about": f'"{about}"'} | self.lines[task])


PRESETS = (
    Preset(
        "128px",
        "ViT-S/16 on some 10,000 images of 96 to 128 pixels (Imagenette's), one GPU",
        f"Length and batch as lightly's benchmark of Imagenette; {OURS[0].lower()}{OURS[1:]}",
        {
            "data.size": "128  # ours; 96 is a multiple of the patch too",
            "data.global_batch": "256  # lightly, benchmarks of Imagenette",
            "data.micro_batch": "256",
            "encoder.patch": "16  # ours; 64 patches, 16 of them visible",
            "optimizer.base_lr": "5e-4  # ours; paper: 1.5e-4, of batches of 4,096",
            "schedule.epochs": "800.0  # lightly, benchmarks of Imagenette",
            "schedule.warmup_epochs": "40.0",
            "monitor.every_epochs": "20.0",
        },
        {"data.global_batch": "256", "data.micro_batch": "256", "optimizer.base_lr": "1e-2"},
        {"data.global_batch": "256", "data.micro_batch": "128"},
    ),
    Preset(
        "few_images",
        "ViT-Ti/16 on a few thousand images at 224 pixels, one GPU",
        f"A small network, seen through a long schedule: an epoch is few steps. {OURS}",
        {
            "data.size": "224",
            "data.centre_share": "0.875",
            "data.global_batch": "256",
            "data.micro_batch": "256",
            "encoder": "ViT-Ti: Touvron et al. 2021, table 1",
            "encoder.width": "192",
            "encoder.heads": "3",
            "encoder.patch": "16  # ours; 196 patches, 49 of them visible",
            "decoder": "ours; narrow, as paper's table 1b has it for little loss",
            "decoder.width": "128",
            "decoder.heads": "4",
            "optimizer.base_lr": "5e-4  # ours; paper: 1.5e-4, of batches of 4,096",
            "schedule.epochs": "1600.0",
            "schedule.warmup_epochs": "80.0",
            "saving.every_epochs": "100.0",
            "logging.pictures_every_epochs": "100.0",
            "monitor.every_epochs": "50.0",
        },
        {"data.global_batch": "256", "data.micro_batch": "256", "optimizer.base_lr": "1e-2", "schedule.epochs": "100.0"},
        {"data.global_batch": "128", "data.micro_batch": "128", "schedule.epochs": "200.0  # ours", "schedule.warmup_epochs": "10.0  # ours"},
    ),
    Preset(
        "one_gpu",
        "ViT-B/16 on ImageNet-like images at 224 pixels, one GPU of 24 GB",
        f"The paper's network and rates, a quarter of its batch and of its epochs. {OURS}",
        {
            "data.size": "224  # paper's code, main_pretrain.py",
            "data.centre_share": "0.875",
            "data.micro_batch": "256  # ours; 13.5 GB as `mae-pipe plan` reckons; the rest is accumulated",
            "encoder": "ViT-B: Dosovitskiy et al. 2021, table 1",
            "encoder.width": "768",
            "encoder.heads": "12",
            "encoder.patch": "16  # paper: ViT-B/16",
            "decoder": "paper, section 4.1",
            "decoder.width": "512",
            "decoder.depth": "8",
            "decoder.heads": "16",
            "schedule.epochs": "200.0  # ours",
            "schedule.warmup_epochs": "10.0  # ours",
        },
        {"data.micro_batch": "256"},
        {"data.global_batch": "1024  # paper, table 9", "data.micro_batch": "64", "optimizer.clip": "0.0  # paper, table 9"},
    ),
    Preset(
        "laptop",
        "small ViT on some 10,000 images of 96 pixels, a laptop without a GPU",
        OURS,
        {
            "data.size": "96",
            "data.global_batch": "128",
            "data.micro_batch": "64",
            "data.workers": "2",
            "encoder": "ours; ViT-Ti's width, half its depth",
            "encoder.width": "192",
            "encoder.depth": "6",
            "encoder.heads": "3",
            "encoder.patch": "12  # ours; 64 patches, 16 of them visible",
            "decoder": "ours",
            "decoder.width": "128",
            "decoder.depth": "2",
            "decoder.heads": "4",
            "optimizer.base_lr": "1e-3  # ours; paper: 1.5e-4, of batches of 4,096",
            "schedule.epochs": "100.0",
            "schedule.warmup_epochs": "5.0",
            "engine.precision": FP32,
            "saving.every_epochs": "5.0",
            "logging.pictures_every_epochs": "10.0",
        },
        {
            "data.global_batch": "128",
            "data.micro_batch": "128",
            "data.workers": "2",
            "optimizer.base_lr": "3e-2",
            "schedule.epochs": "20.0",
            "engine.precision": FP32,
        },
        {
            "data.global_batch": "128",
            "data.micro_batch": "64",
            "data.workers": "2",
            "optimizer.base_lr": "2e-3  # ours",
            "schedule.epochs": "30.0  # ours",
            "schedule.warmup_epochs": "2.0  # ours",
            "engine.precision": FP32,
        },
    ),
    Preset(
        "imagenette_vit_small",
        "ViT-S/16 on Imagenette at 224 pixels, 200 epochs, as stable-pretraining",
        f"""As {STABLE} has it: its online linear probe reached 84.1 %, 20 nearest neighbours 72.1 %.
Not theirs: bf16 instead of fp16; their rate ends at a tenth, and their probe is trained beside the encoder.""",
        {
            "data": STABLE,
            "data.size": "224",
            "data.centre_share": "0.875",
            "data.global_batch": "128",
            "data.micro_batch": "128",
            "data.workers": "8  # ours; changes speed only",
            "encoder.patch": f"16  # {STABLE}",
            "decoder": f"{STABLE}; heads are ours",
            "decoder.width": "384",
            "decoder.heads": "6",
            "mask": STABLE,
            "target": STABLE,
            "optimizer": STABLE,
            "optimizer.base_lr": "1e-3  # stable-pretraining: 5e-4 at 128",
            "schedule.epochs": f"200.0  # {STABLE}",
            "schedule.warmup_epochs": "13.0  # ours; theirs of ViT-B is 40 of 600",
        },
        {
            "about": '"linear probe of imagenette_vit_small; stable-pretraining\'s, online: 84.1 %"',
            "data.global_batch": f"128  # {STABLE}",
            "data.micro_batch": "128",
            "head.options": "{ pool = \"mean\", std = 0.01 }  # as theirs: no norm",
            "optimizer.base_lr": "5e-2  # stable-pretraining: AdamW, 0.025 at 128",
        },
        {"data.global_batch": "256", "data.micro_batch": "128"},
        own="imagenette_vit_small",
    ),
)  # fmt: skip


def small() -> Iterator[Derived]:
    """All of them, and the probe of CIFAR."""
    for preset in PRESETS:
        yield from preset.recipes()
    yield Derived(
        "small",
        "probe_64px",
        "probe_cifar",
        f"Linear probing of the recipe cifar_vit_tiny on CIFAR-10. {OURS}\nRun: mae-pipe probe RUN --recipe probe_cifar",
        {
            "about": '"linear probe of cifar_vit_tiny"',
            "data.crop_scale": "[0.6, 1.0]",
            "data.global_batch": "512",
            "data.micro_batch": "512",
            "optimizer.base_lr": "5e-3",
        },
    )
