"""``mae-pipe import`` and ``mae-pipe export``."""

from __future__ import annotations

from pathlib import Path

import click

FAMILIES = ("official", "timm", "huggingface", "dino", "dinov2", "moco", "beit")


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder; must not exist.")
@click.option("--from", "family", type=click.Choice(FAMILIES), help="Whose names they are.  [default: recognised]")
@click.option("--heads", type=click.IntRange(min=1), help="Attention heads.  [default: known by the width]")
@click.option("--decoder-heads", type=click.IntRange(min=1), help="The same of the decoder.")
@click.option("--target", type=click.Choice(["pixel", "normalized_pixel"]), help="What the decoder predicts.")
@click.option(
    "--classes", type=click.Path(path_type=Path), help="A classifier's classes: a text file, one name a line."
)
@click.option("--encoder-only", is_flag=True, help="Leave a decoder or a classifier out.")
def import_(
    file: Path,
    out: Path,
    family: str | None,
    heads: int | None,
    decoder_heads: int | None,
    target: str | None,
    classes: Path | None,
    encoder_only: bool,
) -> None:
    """Make a run folder of the weights in FILE.

    FILE is a .pth or .safetensors file, or a folder as Hugging Face keeps one. Nothing in it is run. An encoder
    becomes what `mae-pipe pretrain` leaves, a classifier what `mae-pipe finetune` leaves.
    """
    from mae_pipe.errors import DataError
    from mae_pipe.interop.imports import bring_in

    try:
        names = classes.read_text(encoding="utf-8").splitlines() if classes else None
    except (OSError, ValueError) as error:
        raise DataError(f"{classes} cannot be read: {error}; give a text file with one class a line") from error
    arrival = bring_in(
        file,
        out,
        family=family,
        heads=heads,
        decoder_heads=decoder_heads,
        target=target,
        classes=names,
        encoder_only=encoder_only,
    )
    model = arrival.model
    for sentence in arrival.said:
        click.echo(f"mae-pipe: {sentence}", err=True)
    shape, what = model.encoder, "an encoder"
    if model.decoder is not None:
        what = f"an encoder and a decoder of {model.target!r}"
    elif model.head is not None:
        what = f"a classifier of {len(model.head.classes)} classes"
    click.echo(
        f"{out}: {what}, names of {arrival.family}, width {shape.width}, depth {shape.depth}, heads {shape.heads}, "
        f"patch {shape.patch}, size {model.data.size}"
    )
    if model.head is None:
        click.echo(f"next: mae-pipe probe {out} --shards SHARDS", err=True)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--to", "form", required=True, type=click.Choice(["timm", "huggingface", "official", "onnx"]), help="Whose form."
)
@click.option("--out", type=click.Path(path_type=Path), help="What to write.  [default: in RUN/export]")
@click.option(
    "--features",
    default="tokens",
    show_default=True,
    type=click.Choice(["tokens", "token", "mean"]),
    help="ONNX, of an encoder: all tokens, the class token, or the mean of the patches.",
)
@click.option("--normalise", is_flag=True, help="ONNX: the graph takes images in [0, 1] and normalises them.")
def export(run: Path, form: str, out: Path | None, features: str, normalise: bool) -> None:
    """Write the newest weights of RUN in the form of other code.

    RUN is a folder of `mae-pipe pretrain`, `probe`, `finetune` or `import`. What a form cannot say is refused.
    """
    from mae_pipe.interop.exports import send_out

    path, said = send_out(run, form, out, features=features, normalise=normalise)
    for sentence in said:
        click.echo(f"mae-pipe: {sentence}", err=True)
    click.echo(path)
