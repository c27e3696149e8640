"""``mae-pipe bench``: what this machine does with your images."""

from __future__ import annotations

from pathlib import Path

import click

from mae_pipe.cli.places import PLACE
from mae_pipe.cli.progress import bar
from mae_pipe.cli.verdict import as_json, show
from mae_pipe.errors import DiskError
from mae_pipe.wording import counted

FILE = click.Path(path_type=Path)


@click.group()
def bench() -> None:
    """Measure what this machine does with your images."""


@bench.command()
@click.argument("shards", metavar="SHARDS", type=PLACE)
@click.option("--split", default="train", show_default=True, help="Of the shards.")
@click.option(
    "--recipe",
    "recipe_name",
    default="mae_vit_base_patch16",
    show_default=True,
    metavar="NAME",
    help="A built-in recipe or a TOML file: how images are cropped, and how many are a batch.",
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a recipe key: data.size=96.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    multiple=True,
    help="Decoding threads; may be repeated.  [default: 1, and one a core]",
)
@click.option(
    "--images", type=click.IntRange(min=1), default=256, show_default=True, help="Taken to make the other formats of."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Of a round of one format.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Through all formats in turn.")
@click.option(
    "--wanted",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Images a second that your training needs: say which format to choose.",
)
@click.option("--json", "json_file", type=FILE, metavar="FILE", help="Write every figure there.")
@click.option("--plugin", "plugins", multiple=True, type=FILE, metavar="FILE", help="A Python file with plugins.")
def data(
    shards: Path | str,
    split: str,
    recipe_name: str,
    changes: tuple[str, ...],
    workers: tuple[int, ...],
    images: int,
    seconds: float,
    rounds: int,
    wanted: float | None,
    json_file: Path | None,
    plugins: tuple[Path, ...],
) -> None:
    """Measure how fast this machine reads your images in every storage format, and say which to choose.

    SHARDS is a folder that `mae-pipe shard` or `index` wrote, or images (docs/sources.md). Some of its images are
    built in each format in a temporary folder (TMPDIR says where), read as a training reads them, and removed.
    Nothing in SHARDS is changed.
    """
    from mae_pipe import recipe as recipes
    from mae_pipe.benching.data import bench as measure
    from mae_pipe.catalog import Catalog
    from mae_pipe.direct import origin_of, shards_of
    from mae_pipe.disk import write_whole

    if json_file and not json_file.absolute().parent.is_dir():
        raise DiskError(f"{json_file.parent} is not a folder; give --json a file in one that is there")
    chosen, catalog = recipes.load(recipe_name, changes), Catalog(plugins)
    folder = shards_of(shards, catalog)
    with bar("measuring", "steps") as told:
        found = measure(
            folder,
            split,
            chosen.data,
            catalog=catalog,
            workers=workers,
            images=images,
            rounds=rounds,
            seconds=seconds,
            progress=told,
        )
    size, crop = chosen.data.sides, chosen.data.crop
    if json_file:
        asked: dict[str, object] = {"shards": origin_of(shards), "split": split, "recipe": recipe_name, "set": changes}
        asked |= {"size": size, "crop": crop, "seconds": seconds, "rounds": rounds, "wanted": wanted}
        write_whole(json_file, as_json(found, asked, wanted).encode())
    taken = f"{counted(found.taken, 'image')} of the {found.images:,} of {split!r}"
    about = f"{taken}, in views of {size[1]} x {size[0]} pixels with {crop} crops, as {recipe_name} sees them"
    show(found, about, wanted)
