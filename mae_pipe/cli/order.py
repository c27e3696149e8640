"""``mae-pipe order``: which image comes when."""

from __future__ import annotations

from pathlib import Path

import click

from mae_pipe.cli.places import PLACE


@click.command()
@click.argument("shards", metavar="SHARDS", type=PLACE)
@click.option("--split", default="train", show_default=True, help="Of the shards.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the run.")
@click.option("--epoch", type=click.IntRange(min=0), default=0, show_default=True, help="The first one is 0.")
@click.option("--start", type=click.IntRange(min=0), default=0, show_default=True, help="Place in the epoch.")
@click.option("--head", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="So many places.")
@click.option("--ranks", type=click.IntRange(min=1), default=1, show_default=True, help="Processes of the job.")
@click.option("--micro-batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images of one of them.")
@click.option("--repeats", type=click.IntRange(min=1), default=1, show_default=True, help="Crops of an image in a row.")
@click.option(
    "--order",
    "kind",
    type=click.Choice(["auto", "full", "window"]),
    default="auto",
    show_default=True,
    help="As data.order: auto is full, or window where shards are fetched.",
)
@click.option("--window", type=click.IntRange(min=1), help="As data.window: images shuffled together.")
@click.option("--lanes", type=click.IntRange(min=1), help="As data.lanes: parts of a global batch.")
@click.option("--global-batch", type=click.IntRange(min=1), help="As data.global_batch; only lanes depend on it.")
@click.option("--tsv", is_flag=True, help="Tab-separated, for programs.")
@click.option("--plugin", "plugins", multiple=True, type=click.Path(path_type=Path), help="A Python file with plugins.")
def order(
    shards: Path | str,
    split: str,
    seed: int,
    epoch: int,
    start: int,
    head: int,
    ranks: int,
    micro_batch: int,
    repeats: int,
    kind: str,
    window: int | None,
    lanes: int | None,
    global_batch: int | None,
    tsv: bool,
    plugins: tuple[Path, ...],
) -> None:
    """Print which images training sees, in their order.

    It is a function of the seed and the epoch alone: neither ranks, workers, nodes nor formats change which images
    a global batch holds; --ranks and --micro-batch only say which process gets which of them.
    """
    import numpy as np
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from mae_pipe import recipe
    from mae_pipe.catalog import Catalog
    from mae_pipe.data.arrange import advice, arranged, in_words
    from mae_pipe.data.order import Order, Share
    from mae_pipe.data.shelf import Shelf
    from mae_pipe.direct import shards_of
    from mae_pipe.wording import counted

    catalog = Catalog(plugins)
    shelf = Shelf(shards_of(shards, catalog), split, catalog)
    images, index = len(shelf.index), shelf.index
    positions = epoch * images * repeats + start + np.arange(head)
    chosen = {"window": window, "lanes": lanes, "global_batch": global_batch, "order": kind, "repeats": repeats}
    data = recipe.Data(**{name: value for name, value in chosen.items() if value is not None})  # type: ignore[arg-type]
    blocks = np.array([shard.images for shard in shelf.split.shards], np.int64)
    arrangement = arranged(blocks, data, seed, far=shelf.depot.far)
    numbers = arrangement.at(positions // repeats)
    job = Share(0, ranks, micro_batch)
    rows = []
    for position, number in zip(positions.tolist(), numbers.tolist(), strict=True):
        shard = shelf.split.shards[int(index.shard[number])].name
        label = int(index.label[number])
        name = shelf.manifest.classes[label] if label >= 0 else ""
        rank = position % job.advance // micro_batch
        rows.append((str(position), str(rank), index.key(number), name, shard))
    labels = np.array(index.label)
    shelf.close()
    columns = ("position", "rank", "key", "class", "shard")
    if tsv:
        for row in (columns, *rows):
            click.echo("\t".join(row))
        return
    rule = Order.rule(images) if isinstance(arrangement, Order) else arrangement.RULE
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    console.print(
        f"epoch {epoch} of {counted(images, 'image')} of {split}, seed {seed}, {in_words(arrangement)}, "
        f"rule {rule}; a micro-batch of every process takes {job.advance} places",
        highlight=False,
    )
    if said := advice(arrangement, labels):
        console.print(said, highlight=False)
