"""``mae-pipe tokenizer``: train, import and show discrete tokenizers."""

from __future__ import annotations

from pathlib import Path

import click

from mae_pipe.cli.launching import launching, start
from mae_pipe.cli.places import PLACE
from mae_pipe.spawning import Job


@click.group()
def tokenizer() -> None:
    """Train or import the tokenizer that the target `dvae` takes its tokens from."""


@tokenizer.command()
@click.argument("recipe", default="tokenizer_imagenet")
@click.option("--shards", required=True, type=PLACE, help="Shards, or images.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The tokenizer's folder, made or gone on with."
)
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a recipe key: tokenizer.codebook=512."
)
@click.option("--split", default="train", show_default=True, help="Split of the shards to learn from.")
@click.option("--resume", default="auto", show_default=True, help="auto, none, or the path of a checkpoint.")
@launching
@click.option("--plugin", "plugins", multiple=True, type=click.Path(path_type=Path), help="A Python file with plugins.")
def train(
    recipe: str,
    shards: Path | str,
    out: Path,
    changes: tuple[str, ...],
    split: str,
    resume: str,
    job: Job,
    plugins: tuple[Path, ...],
) -> None:
    """Train a discrete autoencoder on shards.

    RECIPE is a built-in recipe (`mae-pipe recipes`) or a TOML file; default: tokenizer_imagenet. A run that was
    stopped goes on where it was when the same command is given again.
    """
    from mae_pipe import launch
    from mae_pipe import recipe as recipes
    from mae_pipe.catalog import Catalog

    chosen = recipes.load(recipe, changes, task="tokenizer")
    assert isinstance(chosen, recipes.Tokenizer)
    start(job)

    from mae_pipe.tokenizer.training import train_tokenizer

    result = train_tokenizer(chosen, shards, out, catalog=Catalog(plugins), split=split, resume=resume)
    if launch.place().rank == 0:
        click.echo(
            f"{out}: PSNR {result.psnr:.2f} dB and a codebook perplexity of {result.perplexity:.1f} "
            f"({100 * result.used:.0f} % of {chosen.tokenizer.codebook:,} codes used) on {result.images:,} images of "
            f"{result.split}; pictures: {out}/reconstructions.png"
        )
        click.echo(
            f"next: mae-pipe pretrain RECIPE --set target.name=dvae --set target.options.tokenizer={out}", err=True
        )


@tokenizer.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The tokenizer's folder; must not exist.")
@click.option("--decoder", type=click.Path(path_type=Path), help="OpenAI's decoder, to draw tokens with.")
def import_(file: Path, out: Path, decoder: Path | None) -> None:
    """Take a tokenizer from a local FILE.

    OpenAI's dVAE encoder, the discrete VAE of BEiT or of DALLE-pytorch, or BEiT v2's VQ-KD; a .pkl, .pth or
    .safetensors file. Nothing in it is run: only its tensors are read.
    """
    from mae_pipe.tokenizer.imports import import_tokenizer

    about, digest = import_tokenizer(file, out, decoder=decoder)
    click.echo(
        f"{out}: {about.codebook:,} tokens, {about.downsampling} pixels each, "
        f"{'with' if about.decodes else 'without'} a decoder, layout {about.layout}, hash {digest[:16]}"
    )


@tokenizer.command()
@click.argument("folder", type=click.Path(path_type=Path))
def show(folder: Path) -> None:
    """Say what the tokenizer in FOLDER is."""
    from mae_pipe.tokenizer.folder import load_tokenizer

    found = load_tokenizer(folder)
    about = found.about
    click.echo(f"layout        {about.layout}")
    click.echo(f"codebook      {about.codebook:,} tokens")
    click.echo(f"downsampling  {about.downsampling} pixels in a row and in a column are one token")
    click.echo(f"channels      {about.channels}")
    click.echo(f"parameters    {sum(p.numel() for p in found.parameters()):,}")
    click.echo(f"decoder       {'yes' if about.decodes else 'no'}")
    click.echo(f"source        {about.source}")
    click.echo(f"hash          {found.hash}")
