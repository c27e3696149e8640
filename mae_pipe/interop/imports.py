"""``mae-pipe import``: weights from elsewhere become a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_pipe.disk import new_folder
from mae_pipe.errors import DataError
from mae_pipe.interop.beit import statistics_of
from mae_pipe.interop.families import FAMILIES, recognise
from mae_pipe.interop.model import Model, check, listed
from mae_pipe.interop.official import own_name
from mae_pipe.interop.shapes import Hints, hints_beside, model_of
from mae_pipe.interop.source import Source, read
from mae_pipe.recipe import Chosen, DecoderShape, Downstream, MaskChoice, Pretrain, TargetChoice
from mae_pipe.runs import Run
from mae_pipe.weights import entry_of

EPS = 1e-6  # of every norm, as in the official code
HF_EPS = 1e-12  # of transformers' configs, which its converters leave beside weights that were trained with 1e-6
_HEAD = ("head.", "fc_norm.", "pre_logits.")


@dataclass(frozen=True)
class Arrival:
    """What was imported.

    Attributes:
        said: sentences that a person should read: what was left out, what was assumed.
    """

    model: Model
    family: str
    said: tuple[str, ...]


def bring_in(
    path: Path,
    out: Path,
    *,
    family: str | None = None,
    heads: int | None = None,
    decoder_heads: int | None = None,
    target: str | None = None,
    classes: Sequence[str] | None = None,
    encoder_only: bool = False,
) -> Arrival:
    """Read the file or folder ``path`` and write the run folder ``out``.

    Args:
        family: one of ``FAMILIES``; None: it is recognised by its names.
        heads, decoder_heads: of attention; None: from the config beside the file, or known by the width.
        target: which pixels a decoder predicts; None: as the file says, or else "normalized_pixel".
        classes: names of a classifier's classes; None: those beside the file, or else their numbers.
        encoder_only: leave a classifier or a decoder out.

    Raises:
        DataError: the file cannot be read, is of no known family, or does not fit together.
        DiskError: ``out`` holds something, or cannot be written.
    """
    source = read(path)
    names = None if classes is None else tuple(classes)
    given = Hints(heads=heads, decoder_heads=decoder_heads, classes=names)
    arrival = understood(source, family, given, target, encoder_only)
    _write(arrival, source, out)
    return arrival


def understood(source: Source, family: str | None, given: Hints, target: str | None, encoder_only: bool) -> Arrival:
    """What the file holds, checked."""
    what, said = str(source.path), []
    family = family or recognise(source.weights, source.under, what)
    weights, left_out = FAMILIES[family].translate(source.weights)
    if encoder_only:
        aside = [n for n in weights if n.startswith((*_HEAD, "decoder_")) or n == "mask_token"]
        weights, left_out = {n: w for n, w in weights.items() if n not in aside}, [*left_out, *aside]
    if any(name.startswith("pre_logits.") for name in weights):
        raise DataError(f"{what} has a layer pre_logits before its classifier, which ours has not; give --encoder-only")
    bare = "head.weight" not in weights
    if bare and ("fc_norm.weight" in weights or (encoder_only and "norm.weight" not in weights)):
        raise DataError(
            f"{what} has no final norm of its encoder: it was finetuned with a norm of the mean instead; import it "
            "with its classifier, or give the pretrained weights"
        )
    if source.left_out:
        said.append(f"left out what else the file holds: {', '.join(source.left_out)}")
    if left_out:
        said.append(f"left out {listed(left_out)}")
    said += _eps(source, what)
    hints = _hints(source, given, target)
    if family == "beit" and hints.mean is None:
        hints = replace(hints, **statistics_of(source.weights))
    model = model_of(weights, hints, family, what)
    if model.head and model.head.norm == "encoder" and "global_pool" not in source.config and family != "huggingface":
        said.append("the file does not say what its classifier looks at; taken as the class token")
    if target is None and model.decoder and not {"norm_pix_loss"} & {*source.config, *source.arguments}:
        said.append(f"the file does not say which pixels its decoder predicts; taken as {model.target} (--target)")
    if not {"image_mean"} & {*source.processor} and "mean" not in source.config.get("pretrained_cfg", {}):
        said.append(f"the file does not say mean and std of its pixels; taken as {list(model.data.mean)}")
    narrow = sorted({str(w.dtype) for w in model.weights.values() if w.dtype != torch.float32})
    if narrow:
        said.append(f"weights of {', '.join(narrow)} are float32 now")
    model = replace(model, weights={name: w.float().contiguous() for name, w in model.weights.items()})
    check(model, what)
    return Arrival(model, family, tuple(said))


def _hints(source: Source, given: Hints, target: str | None) -> Hints:
    try:
        hints = hints_beside(source.config, source.processor, source.arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the config beside {source.path} is damaged ({error}); get it again, or move it") from error
    if target is None and source.path.name.startswith("mae_visualize_"):  # official, of raw pixels, for pictures
        target = "pixel"
    return replace(
        hints,
        heads=given.heads or hints.heads,
        decoder_heads=given.decoder_heads or hints.decoder_heads,
        classes=given.classes or hints.classes,
        target=target or hints.target,
    )


def _eps(source: Source, what: str) -> list[str]:
    """What is said of the norms' epsilon, which is the same everywhere here."""
    eps, act = source.config.get("layer_norm_eps", EPS), source.config.get("hidden_act", "gelu")
    if act != "gelu":
        raise DataError(
            f"{what} has hidden_act {act!r} in its config, ours is 'gelu'; another model cannot be imported"
        )
    if eps == HF_EPS:
        return [
            f"the config says layer_norm_eps {HF_EPS:g}, which is transformers' default and not what MAE and ViT were "
            f"trained with; norms are computed with {EPS:g}"
        ]
    if eps != EPS:
        raise DataError(
            f"{what} has layer_norm_eps {eps} in its config, ours is {EPS:g}; it would compute other numbers"
        )
    return []


def _write(arrival: Arrival, source: Source, out: Path) -> None:
    model = arrival.model
    about: dict[str, Any] = {
        "imported": {
            "file": str(source.path.resolve()),
            "sha256": dict(source.sha256),
            "family": arrival.family,
            "said": list(arrival.said),
        }
    }
    where = f"imported from {source.path.name} ({FAMILIES[arrival.family].about})"
    with new_folder(out) as folder:
        if model.head is not None:
            _write_classifier(model, Run(folder), about, where)
            return
        recipe = Pretrain(
            about=where,
            data=model.data,
            encoder=model.encoder,
            decoder=model.decoder or DecoderShape(),
            mask=MaskChoice(ratio=model.ratio),
            target=TargetChoice(name=model.target),
        )
        run = Run(folder)
        run.begin(recipe, about, resume="none")
        told = {"step": 0, "recipe": recipe.model_dump(mode="json")}
        own = {str(own_name(name)): tensor for name, tensor in model.weights.items()}
        encoder = {n.removeprefix("encoder."): w for n, w in own.items() if n.startswith("encoder.")}
        _save(run, "encoder.safetensors", encoder, told)
        if model.decoder is not None:
            _save(run, "model.safetensors", own, told)


def _write_classifier(model: Model, run: Run, about: dict[str, Any], where: str) -> None:
    """A run of finetuning that is at its end."""
    head = model.head
    assert head is not None
    options = {"pool": head.pool, "layer_norm": head.norm == "own"}
    recipe = Downstream(task="finetune", about=where, data=model.data, head=Chosen(name="linear", options=options))
    run.begin(recipe, about | {"main": "top1"}, resume="none")
    names = {"head.": "head.classify.", "fc_norm.": "head.norm."}
    own = {
        next((new + n.removeprefix(old) for old, new in names.items() if n.startswith(old)), f"encoder.{n}"): w
        for n, w in model.weights.items()
    }
    told = {"recipe": recipe, "encoder": model.encoder}
    metadata = {"step": 0, "classes": head.classes} | {n: v.model_dump(mode="json") for n, v in told.items()}
    _save(run, "model.safetensors", own, metadata)


def _save(run: Run, name: str, weights: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    run.save_weights(name, map(entry_of, weights, weights.values()), metadata)
