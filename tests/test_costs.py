"""What `mae-pipe plan` counts, against formulas and the paper."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.costs import Costs, costs


def of(name: str, *changes: str) -> Costs:
    chosen = recipe.load(name, changes)
    assert isinstance(chosen, recipe.Pretrain)
    return costs(chosen, Catalog())


@pytest.mark.parametrize("class_tokens", [0, 1])
def test_mask_tokens_in_the_encoder_cost_what_table_1c_says(class_tokens: int) -> None:
    with_one = of("mae_vit_large_patch16", f"encoder.class_tokens={class_tokens}", "encoder.mask_tokens=true")
    without = of("mae_vit_large_patch16", f"encoder.class_tokens={class_tokens}")
    assert round(with_one.forward / without.forward, 1) == 3.3
    assert round(with_one.training / without.training, 1) == 3.3


def block(tokens: int, width: int, kept: int | None = None) -> int:
    """FLOPs of a transformer block: qkv of all tokens; attention, its output and an MLP of ratio 4 of the kept."""
    kept = tokens if kept is None else kept
    return 2 * tokens * width * 3 * width + 2 * 2 * kept * tokens * width + 2 * kept * width * (1 + 8) * width


def test_the_flops_are_those_of_the_formula() -> None:
    found = of("mae_vit_base_patch16")
    encoder = 2 * 49 * 768 * 768 + 12 * block(50, 768)
    decoder = 2 * 50 * 768 * 512 + 7 * block(197, 512) + block(197, 512, kept=147) + 2 * 147 * 512 * 768
    assert found.forward == encoder + decoder
    # Backward: twice the products, but for the gradient of the pixels, which nobody wants.
    assert found.training == 3 * found.forward - 2 * 49 * 768 * 768


def test_the_parameters_are_the_published_ones() -> None:
    found = of("mae_vit_huge_patch14")
    assert found.encoder_parameters + found.decoder_parameters == 656_613_964
    assert (found.patches, found.visible, found.encoder_tokens, found.decoder_tokens) == (256, 64, 65, 257)


def test_plan_and_check_say_it_in_words() -> None:
    for words, said in [
        (["plan", "digits", "--images", "4000"], "1,875 steps, 30 epochs of 4,000 images"),
        (["check", "digits", "--set", "encoder.depth=1"], "every trainable parameter gets a gradient"),
    ]:
        done = subprocess.run([sys.executable, "-m", "mae_pipe", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert said in " ".join(done.stdout.split())


def test_a_recipe_that_cannot_learn_fails_its_check() -> None:
    command = [sys.executable, "-m", "mae_pipe", "check", "digits", "--set", "decoder.depth=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 8
    wrong = [line for line in done.stdout.splitlines() if line.split()[:1] == ["wrong"]]
    assert len(wrong) == 1
    assert "every trainable parameter gets a gradient" in wrong[0]
    assert done.stderr.startswith("mae-pipe: 1 check does not hold")
