"""A head on an encoder: what trains, what does not, and which weights it begins with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.classification import Classification, read_weights
from mae_pipe.contracts import Grid
from mae_pipe.data.batch import Batch
from mae_pipe.errors import RunError
from mae_pipe.positions import resized, sincos_positions
from mae_pipe.tasks import MaskedAutoencoder

MAE = recipe.Pretrain(
    seed=5,
    data=recipe.Data(size=16),
    encoder=recipe.EncoderShape(width=32, depth=2, heads=2, patch=4),
    decoder=recipe.DecoderShape(width=16, depth=1, heads=2),
)
WEIGHTS = {
    name: tensor.clone() for name, tensor in MaskedAutoencoder.from_recipe(MAE, Catalog()).encoder.state_dict().items()
}


def task(
    kind: str, weights: dict[str, Tensor] | None = None, size: int | tuple[int, int] = 16, **changes: object
) -> Classification:
    chosen = recipe.Downstream(**{"task": kind, "data": recipe.Data(size=size), **changes})  # type: ignore[arg-type]
    return Classification.from_recipe(chosen, MAE, weights, Catalog(), classes=3)


def batch(images: int = 6, size: int = 16, padding: int = 0) -> Batch:
    pixels = torch.randint(0, 256, (images, 3, size, size), generator=torch.manual_seed(1), dtype=torch.uint8)
    numbers = torch.arange(images)
    labels = numbers % 3
    if padding:
        numbers[-padding:] = labels[-padding:] = -1
    return Batch(pixels, labels, numbers, torch.arange(images))


def test_a_probe_trains_its_head_alone() -> None:
    probe = task("probe", WEIGHTS)
    probe(batch()).backward()
    assert {n for n, p in probe.named_parameters() if p.requires_grad} == {"head.classify.weight", "head.classify.bias"}
    assert all(p.grad is None for p in probe.encoder.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in probe.head.parameters())


def test_the_frozen_encoder_stays_in_evaluation_mode() -> None:
    probe = task("probe", WEIGHTS).train()
    assert not any(part.training for part in probe.encoder.modules())
    assert probe.head.training
    assert all(part.training for part in task("finetune", WEIGHTS).train().modules())


def test_finetuning_trains_everything_and_learns_positions_from_the_table() -> None:
    tuned = task("finetune", WEIGHTS)
    tuned(batch()).backward()
    assert isinstance(tuned.encoder.pos_embed, torch.nn.Parameter)
    assert torch.equal(tuned.encoder.pos_embed.detach(), sincos_positions(32, 4, 4))
    assert all(p.grad is not None for p in tuned.parameters())


def test_both_begin_as_the_pretrained_encoder() -> None:
    given = {name: tensor + 0.01 for name, tensor in WEIGHTS.items()}
    for kind in ("probe", "finetune"):
        state = task(kind, given).encoder.state_dict()
        assert set(state) == set(given)
        assert all(torch.equal(state[name], given[name]) for name in given)


def test_a_head_that_norms_the_mean_itself_takes_the_encoder_without_its_norm() -> None:
    tuned = task("finetune", WEIGHTS, head=recipe.Chosen(name="linear", options={"layer_norm": True}))
    assert isinstance(tuned.encoder.norm, torch.nn.Identity)
    assert set(WEIGHTS) - set(tuned.encoder.state_dict()) == {"norm.weight", "norm.bias"}
    assert "eps=1e-06" in str(tuned.head.norm)
    tuned(batch()).backward()
    assert all(p.grad is not None for p in tuned.parameters())
    by_token = task(
        "finetune", WEIGHTS, head=recipe.Chosen(name="linear", options={"layer_norm": True, "pool": "token"})
    )
    assert set(by_token.encoder.state_dict()) == set(WEIGHTS)


def test_an_untrained_encoder_is_the_one_that_pretraining_began_with() -> None:
    for kind in ("probe", "finetune"):
        state = task(kind).encoder.state_dict()
        assert all(torch.equal(state[name], WEIGHTS[name]) for name in WEIGHTS)
    before = torch.get_rng_state()
    task("probe")
    assert torch.equal(before, torch.get_rng_state())


def test_the_recipes_seed_decides_the_head() -> None:
    one, same, other = (task("probe", WEIGHTS, seed=seed).head.state_dict()["classify.weight"] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"norm.weight": None}, "no weight 'norm.weight'"),
        (
            {"blocks.1.mlp.fc1.weight": torch.zeros(3, 3)},
            r"'blocks.1.mlp.fc1.weight' has .*\[3, 3\].*\[128, 32\]",
        ),
        ({"fc_norm.weight": torch.zeros(32)}, "'fc_norm.weight', which its recipe has not"),
        ({"pos_embed": torch.zeros(1, 17, 8)}, "'pos_embed' has shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change: dict[str, Tensor | None], says: str) -> None:
    given = {name: tensor for name, tensor in {**WEIGHTS, **change}.items() if tensor is not None}
    with pytest.raises(RunError, match=says):
        task("finetune", given)


def test_positions_are_resampled_for_another_image_size() -> None:
    probe = task("probe", WEIGHTS, size=32)
    assert probe.encoder.pos_embed.shape == (1, 65, 32)
    assert torch.equal(probe.encoder.pos_embed[:, 0], WEIGHTS["pos_embed"][:, 0])
    assert torch.isfinite(probe(batch(size=32)))
    flat = task("probe", WEIGHTS, size=(8, 32))  # as many patches as before, in other places
    old, new = Grid(4, 4), Grid(2, 8)
    assert torch.equal(flat.encoder.pos_embed, resized(WEIGHTS["pos_embed"], old, new))


def test_smoothed_labels_give_torchs_smoothed_loss() -> None:
    given, plain = batch(), task("finetune", WEIGHTS)
    smooth = task("finetune", WEIGHTS, label_smoothing=0.2)
    seen: list[Tensor] = []
    plain.head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    plain(given)
    wanted = torch.nn.functional.cross_entropy(seen[0], given.labels, label_smoothing=0.2)
    assert smooth(given).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_metrics_are_one_number_an_image_and_bear_padding() -> None:
    probe = task("probe", WEIGHTS, label_smoothing=0.2).eval()
    with torch.no_grad():
        measured = probe(batch(padding=2), mode="metrics")
        whole = probe(batch(), mode="metrics")
    assert set(measured) == {"loss", "top1", "top5"}
    assert all(value.shape == (6,) and value.dtype == torch.float32 for value in measured.values())
    assert all(torch.equal(measured[name][:4], whole[name][:4]) for name in whole)
    assert whole["top5"].tolist() == [1.0] * 6  # of three classes, one of the best three


def test_missing_or_damaged_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no encoder.safetensors; .*--from-scratch"):
        read_weights(tmp_path)
    save_file(WEIGHTS, tmp_path / "encoder.safetensors")
    weights, fingerprint = read_weights(tmp_path)
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(RunError, match=r"encoder.safetensors is damaged"):
        read_weights(tmp_path)
    save_file({**WEIGHTS, "norm.bias": WEIGHTS["norm.bias"] + 1}, path)
    assert read_weights(tmp_path)[1] != fingerprint
