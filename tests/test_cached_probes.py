"""Probes on features: the same as probes on images, and as independent code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from mae_pipe import cli, outcome, recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data.shelf import Shelf
from mae_pipe.downstream import Result, downstream
from mae_pipe.engine.lars import Lars, each_alone
from mae_pipe.errors import RecipeError, RunError
from mae_pipe.features import heads
from mae_pipe.features.folder import Features
from mae_pipe.features.heads import Setting
from mae_pipe.features.logistic import chosen as searched
from mae_pipe.features.logistic import fit
from mae_pipe.features.regression import regression
from mae_pipe.features.rules import rule_of
from mae_pipe.features.sweep import sweep
from mae_pipe.provenance import as_toml
from mae_pipe.reporting import render
from mae_pipe.runs import read_recipe
from mae_pipe.tables import Optimizer
from tests import test_downstream as small
from tests.test_downstream import chosen

run, shards = small.run, small.shards  # fixtures
PLAIN = ("data.crop=centre", "data.flip=0.0", "eval_every_epochs=100", "schedule.epochs=5")
BATCHNORM = "head.options={ pool = 'mean', batch_norm = true }"
RULES = {
    "lars": ("optimizer.name=lars", "optimizer.base_lr=200.0", "optimizer.weight_decay=0.01"),
    "sgd": ("optimizer.name=sgd", "optimizer.base_lr=4.0", "optimizer.weight_decay=0.001"),
    "adamw": ("optimizer.base_lr=0.2", "optimizer.weight_decay=0.1", "optimizer.clip=0.05", "label_smoothing=0.1"),
}


def head_of(folder: Path) -> dict[str, torch.Tensor]:
    return {n: w for n, w in load_file(folder / "model.safetensors").items() if n.startswith("head.")}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("head", [BATCHNORM, "head.options={ pool = 'token' }"])
def test_on_the_same_views_images_features_and_the_sweep_give_the_same_head(name: str, head: str, run: Path) -> None:
    settings = chosen("probe", *PLAIN, *RULES[name], head)
    online = downstream(run, settings, catalog=Catalog())
    cached = downstream(run, settings, catalog=Catalog(), cached=True)
    rate = settings.optimizer.base_lr
    many = sweep(run, settings, catalog=Catalog(), rates=(rate / 50, rate, rate * 3))
    tried = {row["base_lr"]: {n: row[n] for n in online.metrics} for row in many.tried}
    assert cached.metrics == pytest.approx(online.metrics, abs=1e-4)
    assert tried[rate] == pytest.approx(online.metrics, abs=1e-4)
    assert abs(tried[rate / 50]["loss"] - tried[rate]["loss"]) > 1e-3  # a rate matters
    again = sweep(run, settings, catalog=Catalog(), rates=(rate,))  # replaces the result of before
    assert again.metrics == pytest.approx(tried[rate], abs=1e-5)
    before = head_of(run / "probe")
    for folder in ("probe-cached", "probe-sweep"):
        after = head_of(run / folder)
        assert set(after) == set(before)
        for weight in before:
            assert torch.allclose(after[weight], before[weight], atol=1e-4), (folder, weight)


def test_with_as_many_views_as_epochs_random_crops_are_those_of_the_probe_on_images(run: Path) -> None:
    random = ("data.crop=random", "data.flip=0.5", "schedule.epochs=3", BATCHNORM)
    settings = chosen("probe", *random)
    online = downstream(run, settings, catalog=Catalog())
    said = Console(record=True, width=300)
    cached = downstream(run, settings, catalog=Catalog(), cached=True, views=3, console=said)
    assert cached.metrics == pytest.approx(online.metrics, abs=1e-4)
    assert "the same random views as without --cached" in said.export_text()
    many = sweep(run, settings, catalog=Catalog(), rates=(settings.optimizer.base_lr,), views=3)
    assert many.metrics == pytest.approx(online.metrics, abs=1e-4)
    centre = downstream(run, settings, catalog=Catalog(), cached=True, out=run / "centre")
    assert abs(centre.metrics["loss"] - online.metrics["loss"]) > 1e-4
    few = Console(record=True, width=300)
    downstream(run, settings, catalog=Catalog(), cached=True, views=2, out=run / "few", console=few)
    assert "2 random crops of every image, those of the first 2 epochs, come again" in few.export_text()


def features_of(run: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, D] float64 of mean tokens, and labels."""
    found = Features.open(next((run / "features").glob(f"{split}-mean-*")))
    return found.whole().double().numpy(), found.labels.numpy()


def test_nearest_neighbours_on_features_vote_as_on_images_and_as_the_formula(run: Path) -> None:
    settings = recipe.load("knn", ["data.workers=1", "data.micro_batch=8", "data.global_batch=8"], task="probe")
    assert isinstance(settings, recipe.Downstream)
    online = downstream(run, settings, catalog=Catalog())
    cached = downstream(run, settings, catalog=Catalog(), cached=True)
    assert cached.metrics == pytest.approx(online.metrics, abs=1e-6)
    bank, known = features_of(run, "train")
    asked, truth = features_of(run, "val")
    cosine = (asked / np.linalg.norm(asked, axis=1)[:, None]) @ (bank / np.linalg.norm(bank, axis=1)[:, None]).T
    for k, name in ((20, "top1"), (10, "top1_k10"), (100, "top1_k100"), (200, "top1_k200")):
        nearest = np.argsort(-cosine, axis=1)[:, :k]
        votes = np.stack(
            [(np.exp(np.take_along_axis(cosine, nearest, 1) / 0.07) * (known[nearest] == c)).sum(1) for c in range(3)]
        )
        assert cached.metrics[name] == pytest.approx((votes.argmax(axis=0) == truth).mean(), abs=1e-6)


def test_an_attentive_probe_learns_from_all_tokens(run: Path) -> None:
    settings = chosen("probe", *PLAIN, "head.name=attentive", "optimizer.base_lr=0.05", "schedule.epochs=3")
    online = downstream(run, settings, catalog=Catalog())
    cached = downstream(run, settings, catalog=Catalog(), cached=True)
    assert cached.metrics == pytest.approx(online.metrics, abs=1e-4)
    assert {path.name.split("-")[1] for path in (run / "features").iterdir() if path.is_dir()} == {"tokens"}
    with pytest.raises(RecipeError, match="not one linear layer"):
        sweep(run, settings, catalog=Catalog(), rates=(1.0,))


def test_few_labels_and_an_untrained_encoder_have_results_of_their_own(run: Path) -> None:
    settings = chosen("probe", *PLAIN, BATCHNORM, "labels_per_class=4")
    online = downstream(run, settings, catalog=Catalog(), from_scratch=True)
    many = sweep(run, settings, catalog=Catalog(), rates=(settings.optimizer.base_lr,), from_scratch=True)
    assert many.folder.name == "probe-sweep-scratch-4"
    assert many.metrics == pytest.approx(online.metrics, abs=1e-4)
    downstream(run, settings, catalog=Catalog(), cached=True)
    found = {(one.folder, one.how, one.pretrained) for one in outcome.results(run)}
    assert found == {
        ("probe-scratch-4", "", False),
        ("probe-sweep-scratch-4", "sweep", False),
        ("probe-cached-4", "cached", True),
    }
    assert outcome.pays(outcome.results(run)) is False  # no two of the same kind
    assert "Linear probe, best rate, untrained" in render([run])


def test_first_weights_of_a_recipe_are_probed_with_features_in_the_probes_folder(
    run: Path, shards: Path, tmp_path: Path
) -> None:
    settings, shape = chosen("probe", *PLAIN, BATCHNORM), tmp_path / "shape.toml"
    shape.write_text(as_toml(read_recipe(run)), encoding="utf-8")
    given: dict[str, Any] = {"catalog": Catalog(), "shards": shards, "from_scratch": True}
    online = downstream(shape, settings, out=tmp_path / "online", **given)
    cached = downstream(shape, settings, out=tmp_path / "cached", cached=True, **given)
    assert cached.metrics == pytest.approx(online.metrics, abs=1e-4)
    features = tmp_path / "cached" / "features"
    assert len([path for path in features.iterdir() if path.is_dir()]) == 2  # of each split
    killed = tmp_path / "killed"
    shutil.copytree(features, killed / "features")  # before there was anything else
    assert downstream(shape, settings, out=killed, cached=True, **given).metrics == cached.metrics


@pytest.mark.parametrize("choice", ["lars", "sgd", "adamw"])
def test_a_rule_on_many_heads_is_the_optimizers_on_each(choice: str) -> None:
    torch.manual_seed(0)
    rates, decays, steps = (0.03, 0.5), (0.0, 0.2), 6
    options = Optimizer(name=choice, momentum=0.8, trust=0.01, betas=(0.8, 0.95), eps=1e-6)  # type: ignore[arg-type]
    weights, biases = torch.randn(2, 3, 5), torch.randn(2, 3)
    gradients = [(torch.randn(2, 3, 5), torch.randn(2, 3)) for _ in range(steps)]
    alone = [(nn.Parameter(weights[n].clone()), nn.Parameter(biases[n].clone())) for n in range(2)]
    step = rule_of(options, weights, biases, torch.tensor(decays))
    for of_weights, of_biases in gradients:
        step(of_weights, of_biases, torch.tensor(rates))
    for number, (weight, bias) in enumerate(alone):
        groups = [{"params": [weight], "weight_decay": decays[number]}, {"params": [bias], "weight_decay": 0.0}]
        optimizer: torch.optim.Optimizer
        if choice == "lars":
            optimizer = Lars(each_alone(groups), lr=rates[number], momentum=0.8, trust=0.01)
        elif choice == "sgd":
            optimizer = torch.optim.SGD(groups, lr=rates[number], momentum=0.8)
        else:
            optimizer = torch.optim.AdamW(groups, lr=rates[number], betas=(0.8, 0.95), eps=1e-6)
        for of_weights, of_biases in gradients:
            weight.grad, bias.grad = of_weights[number].clone(), of_biases[number].clone()
            optimizer.step()
        assert torch.allclose(weights[number], weight.data, atol=1e-6)
        assert torch.allclose(biases[number], bias.data, atol=1e-6)


def test_a_head_that_does_more_than_its_layer_is_refused() -> None:
    catalog = Catalog()
    built = {"width": 8, "classes": 3, "class_tokens": 1}
    plain = catalog.build("head", "linear", {"batch_norm": True}, **built)
    features, labels = torch.randn(20, 8), torch.randint(3, (20,))
    heads.check(plain, features, labels)
    plain.forward = lambda tokens: 2 * type(plain).forward(plain, tokens)  # type: ignore[method-assign]
    with pytest.raises(RecipeError, match="more than its linear layer"):
        heads.check(plain, features, labels)
    for name, options in (("mlp", {}), ("linear", {"layer_norm": True}), ("knn", {})):
        with pytest.raises(RecipeError, match="not one linear layer"):
            heads.parts_of(catalog.build("head", name, options, **built))


def test_held_out_images_choose_and_the_eval_split_only_measures(run: Path) -> None:
    settings = chosen("probe", *PLAIN, BATCHNORM)
    rates = (0.001, 0.1, 0.4)
    result = sweep(run, settings, catalog=Catalog(), rates=rates, aside=0.25)
    assert result.chosen_on == "6 held-out training images"
    best = max(result.tried, key=lambda row: (row["top1"], -row["base_lr"]))
    assert result.best["base_lr"] == best["base_lr"]
    again = sweep(run, settings, catalog=Catalog(), rates=(best["base_lr"],))  # on all training images
    assert result.metrics == again.metrics
    assert not any("as papers do" in note for note in result.notes)
    assert any("as papers do" in note for note in again.notes)
    edge = sweep(run, settings, catalog=Catalog(), rates=(1e-6, 1e-5, 0.1))
    assert any("the highest that was tried" in note for note in edge.notes)
    kept = json.loads((run / "probe-sweep" / "result.json").read_text())
    assert [row["base_lr"] for row in kept["tried"]] == [1e-6, 1e-5, 0.1]
    assert json.loads((run / "probe-sweep" / "recipe.json").read_text())["optimizer"]["base_lr"] == 0.1


def test_logistic_regression_is_scikit_learns_on_the_same_images(run: Path, shards: Path) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    settings = chosen("probe", *PLAIN, BATCHNORM)
    result = regression(run, settings, catalog=Catalog(), aside=0.25)
    features, labels = features_of(run, "train")
    asked, truth = features_of(run, "val")
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    theirs = linear_model.LogisticRegression(C=result.best["C"], max_iter=1000, tol=1e-4)
    theirs.fit((features - mean) / deviation, labels)
    right = (theirs.predict((asked - mean) / deviation) == truth).sum()
    assert abs(round(result.metrics["top1"] * len(truth)) - right) <= 1
    head = head_of(run / "probe-logistic")
    assert set(head) == {"head.classify.weight", "head.classify.bias"}
    scores = asked @ head["head.classify.weight"].double().numpy().T + head["head.classify.bias"].double().numpy()
    assert (scores.argmax(axis=1) == truth).mean() == pytest.approx(result.metrics["top1"])
    assert len(Shelf(shards, "train", Catalog()).index) == len(labels)


def test_what_needs_pixels_or_another_probe_is_refused(run: Path) -> None:
    for change, said in (("data.erase=0.5", "change pixels"), ("mixing.mixup=0.8", "change pixels")):
        with pytest.raises(RecipeError, match=said):
            downstream(run, chosen("probe", change), catalog=Catalog(), cached=True)
    with pytest.raises(RecipeError, match="--views is for all labels"):
        downstream(run, chosen("probe", "labels_per_class=3"), catalog=Catalog(), cached=True, views=2)
    sweep(run, chosen("probe", *PLAIN), catalog=Catalog(), rates=(0.1,), out=run / "mine")
    with pytest.raises(RunError, match="something else than a result of --logistic"):
        regression(run, chosen("probe", *PLAIN), catalog=Catalog(), out=run / "mine")
    for words in ("--rates 1 --cached", "--views 2", "--sweep --logistic", "--held-out 0.1", "--sweep --rates a,b"):
        assert CliRunner().invoke(cli._group, ["probe", str(run), *words.split()]).exit_code == 2


def test_the_command_shows_every_rate_the_best_and_what_decided(run: Path) -> None:
    words = ["probe", str(run), "--recipe", "probe_digits", "--sweep", "--rates", "0.0001,0.2"]
    for change in ("data.global_batch=6", "data.micro_batch=3", "data.workers=1", "schedule.epochs=3"):
        words += ["--set", change]
    shown = CliRunner().invoke(cli._group, words, catch_exceptions=False, env={"COLUMNS": "160"})
    assert shown.exit_code == 0
    for said in ("on 'val'", "0.0001", "base_lr", "as papers do", "highest that was tried", "probe-sweep"):
        assert said in shown.output


def test_a_setting_that_diverged_is_never_the_best() -> None:
    from mae_pipe.features.sweep import _best

    settings = [Setting(1.0, 0.0), Setting(2.0, 0.0), Setting(0.5, 0.0)]
    rows = [{"loss": 1.0, "top1": 0.5}, {"loss": float("nan"), "top1": 0.9}, {"loss": 3.0, "top1": 0.5}]
    assert _best(rows, settings, "top1", chosen("probe")) == 2
    with pytest.raises(RecipeError, match="lower --rates"):
        _best(rows[1:2], settings[1:2], "top1", chosen("probe"))


def test_a_result_says_how_it_came_about(run: Path) -> None:
    result = sweep(run, chosen("probe", *PLAIN), catalog=Catalog(), rates=(0.1, 0.2))
    assert isinstance(result, Result)
    kept = json.loads((result.folder / "result.json").read_text())
    assert (kept["how"], len(kept["tried"]), kept["chosen_on"]) == ("sweep", 2, "'val'")
    assert kept["top1"] == max(row["top1"] for row in kept["tried"])


@pytest.mark.parametrize("c", [0.05, 2.0])
def test_a_fit_has_scikit_learns_coefficients(c: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 300)
    features = random.normal(size=(300, 12)) + 0.5 * random.normal(size=(4, 12))[labels]
    theirs = linear_model.LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(features, labels)
    ours = fit(torch.from_numpy(features), torch.from_numpy(labels), 4, c, tolerance=1e-7)
    assert ours.converged
    assert np.abs(ours.weights.numpy() - theirs.coef_).max() < 1e-3
    # Biases are not penalised, so all of them may be moved together.
    moved = [biases - biases.mean() for biases in (ours.biases.numpy(), theirs.intercept_)]
    assert np.abs(moved[0] - moved[1]).max() < 1e-3


def test_c_is_searched_about_the_best_down_to_an_eighth_of_a_decade() -> None:
    torch.manual_seed(0)
    labels = torch.arange(160) % 4
    features = (torch.randn(160, 10) + torch.eye(4).repeat(1, 3)[:, :10][labels]).double()
    tried = searched(features[:100], labels[:100], features[100:], labels[100:], 4)
    powers = [float(np.log10(c)) for c, _, _ in tried]
    peak = max(tried, key=lambda one: (one[2]["top1"], -one[2]["loss"]))
    at = float(np.log10(peak[0]))
    assert powers == sorted(powers)
    assert min(abs(power - at) for power in powers if power != at) == pytest.approx(0.125, abs=1e-6)
    assert len(tried) <= 7 + 2 * 4
    alone = fit(features[:100], labels[:100], 4, peak[0])
    assert torch.allclose(alone.weights, peak[1].weights, atol=5e-3)  # wherever it began
