"""What is wrong with a run, in words: rules on the rows of its journal, each with what to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mae_pipe.recipe import Pretrain

Row = dict[str, Any]

LEAST_RANK = 0.02  # of what RankMe can be at most; runs that did well had 0.04 and more in their first epochs
FEWEST = 2.5  # directions, but of ten images or less a quarter of the greatest: two clusters have 2
ALIKE = 0.99  # mean cosine above which all features are one
STAYS = 3  # readings in a row in which a method's sign has to be bad
ONE_OUTPUT, NO_OPINION = 0.1, 0.99  # entropies, as shares of the greatest, of the mean output and of a teacher's
NOTHING = 0.98  # of the loss of a constant prediction; .985 to .999 was seen where a decoder learned nothing
WORSE, BETTER = 1.02, 0.99  # held-out loss and training loss, in those of the best reading


class Story:
    """A journal up to its newest reading.

    Attributes:
        readings: rows of kind "monitor".
        now: the newest of them.
    """

    def __init__(self, recipe: Pretrain, rows: list[Row]) -> None:
        self.recipe = recipe
        self.readings = [row for row in rows if row["kind"] == "monitor"]
        self.now = self.readings[-1]
        self._trained = [row for row in rows if row["kind"] == "train" and row["loss"] is not None]

    def training_loss(self, reading: Row) -> float:
        """The mean over the epoch before a reading; NaN where nothing was written down."""
        epoch = reading["epoch"]
        found = [row["loss"] for row in self._trained if epoch - 1 < row["epoch"] <= epoch]
        return math.fsum(found) / len(found) if found else math.nan

    def last(self, name: str, count: int) -> list[float]:
        """A number in the newest ``count`` readings after the first step; fewer where it is not there."""
        found = [row[name] for row in self.readings[-count:] if row["step"] > 0 and row.get(name) is not None]
        return found if len(found) == count else []


def warnings(recipe: Pretrain, rows: list[Row]) -> Iterator[tuple[str, str]]:
    """(rule, sentence) of every rule that a journal has not been warned of yet."""
    said = {row.get("rule") for row in rows if row["kind"] == "warning"}
    story = Story(recipe, rows)
    for name, rule in RULES.items():
        if name not in said and (text := rule(story)):
            yield name, text


def outside_the_band(story: Story) -> str | None:
    """The training loss is not what the recipe expects at this epoch."""
    epoch, loss = story.now["epoch"], story.training_loss(story.now)
    band = story.recipe.monitor.band
    if not band or math.isnan(loss) or not band[0][0] <= epoch <= band[-1][0]:
        return None
    epochs, lows, highs = zip(*band, strict=True)
    low, high = (float(np.interp(epoch, epochs, values)) for values in (lows, highs))
    if low <= loss <= high:
        return None
    why = (
        "it learns too little: look at the learning rate, the warmup and the pictures"
        if loss > high
        else "the task is easier than it should be: look at mask.ratio, the crops, and whether images are much alike"
    )
    return (
        f"the training loss is {loss:.4f} at epoch {epoch:.1f}, and the recipe expects {low:.4f} to {high:.4f}; {why}; "
        "of other images or another network, set monitor.band"
    )


def learns_nothing(story: Story) -> str | None:
    """Normalised pixels: an epoch after the warmup, training and held-out loss are those of one answer for all."""
    recipe, loss = story.recipe, story.training_loss(story.now)
    held_out = story.now.get("held_out_loss")
    of_pixels = recipe.method.name == "mae" and recipe.target.name == "normalized_pixel"
    if not of_pixels or story.now["epoch"] < recipe.schedule.warmup_epochs + 1 or math.isnan(loss):
        return None
    numbers = math.prod(recipe.encoder.sides) * recipe.data.channels
    constant = (numbers - 1) / numbers  # the mean square of a patch whose variance, with n - 1, is one
    if min(loss, loss if held_out is None else held_out) < NOTHING * constant:
        return None
    return (
        f"the training loss is {loss:.4f} at epoch {story.now['epoch']:.1f}, after the warmup, and {constant:.4f} is "
        "what a prediction of zeros has: the decoder has learned nothing; look at the learning rate and its warmup, at "
        "optimizer.betas, and at the pictures"
    )


def few_directions(story: Story) -> str | None:
    """RankMe is a small share of what it can be, or has fallen by half since the last reading.

    First weights do not count: from theirs it fell by half in runs that did well.
    """
    now, before = story.last("rankme", 1), story.last("rankme", 2)
    if not now:
        return None
    most = min(story.now["images"], story.recipe.encoder.width)
    what = ""
    if now[0] < max(LEAST_RANK * most, min(FEWEST, most / 4)):
        what = f"RankMe of the features is {now[0]:.1f}, of {most} at most"
    elif before and now[0] < before[0] / 2:
        what = f"RankMe of the features has fallen from {before[0]:.1f} to {now[0]:.1f}"
    return what and f"{what}: they collapse; {LOOK}"


def one_point(story: Story) -> str | None:
    """The features of all images point the same way."""
    now = story.last("cosine", 1)
    if not now or now[0] <= ALIKE:
        return None
    return f"the features of different images have a mean cosine of {now[0]:.4f}: they are all alike; {LOOK}"


def one_output(story: Story) -> str | None:
    """A method with a teacher chooses the same output for every image."""
    found = story.last("mean_output_entropy", STAYS)
    if not found or max(found) >= ONE_OUTPUT:
        return None
    return (
        f"the mean output's entropy is {found[-1]:.3f} of what it can be, in {STAYS} readings: every image gets the "
        "same output; look at the centring of the teacher's outputs"
    )


def no_opinion(story: Story) -> str | None:
    """A teacher's outputs are all equal, so they teach nothing."""
    found = story.last("teacher_entropy", STAYS)
    if not found or min(found) <= NO_OPINION:
        return None
    return (
        f"the teacher's entropy is {found[-1]:.3f} of what it can be, in {STAYS} readings: it tells no output from "
        "another; look at the sharpening, the teacher's temperature"
    )


def overfits(story: Story) -> str | None:
    """The held-out loss has risen since its best reading, and the training loss has fallen all the same."""
    found = [row for row in story.readings if row["step"] > 0 and row.get("held_out_loss") is not None]
    if len(found) < STAYS + 1 or found[-1] is not story.now:
        return None
    best = min(found, key=lambda row: float(row["held_out_loss"]))
    since = found[found.index(best) + 1 :]
    first, last = story.training_loss(best), story.training_loss(story.now)
    low, high = float(best["held_out_loss"]), float(story.now["held_out_loss"])
    if len(since) < STAYS or low <= 0 or high < WORSE * low or not last < BETTER * first:
        return None
    return (
        f"the held-out loss was {low:.4f} at epoch {best['epoch']:.1f} and is {high:.4f} now, while the training loss "
        f"has fallen from {first:.4f} to {last:.4f}: it learns its images by heart; more images, stronger crops, a "
        "higher mask.ratio or fewer epochs help"
    )


LOOK = "look at the learning rate, at weight decay, and at what keeps this method from one answer for all images"
RULES: dict[str, Callable[[Story], str | None]] = {
    "band": outside_the_band,
    "plateau": learns_nothing,
    "rank": few_directions,
    "alike": one_point,
    "one_output": one_output,
    "no_opinion": no_opinion,
    "overfitting": overfits,
}
