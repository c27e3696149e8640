"""An exported ONNX graph computes what PyTorch does, for any number of images."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from mae_pipe.errors import MaePipeError, RunError
from mae_pipe.interop import onnx
from mae_pipe.interop.exports import send_out
from mae_pipe.interop.imports import bring_in
from mae_pipe.interop.leaving import model_of_run
from mae_pipe.interop.model import Model

from .travelling import HEADS, TINY, classifier, drawn, features_of, images, logits_of, near, saved


def imported(model: Model, tmp_path: Path) -> Path:
    bring_in(saved({"model": drawn(model)}, tmp_path / "in.pth"), tmp_path / "run", **HEADS)
    return tmp_path / "run"


def computed(path: Path, pixels: torch.Tensor) -> np.ndarray:
    (output,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"images": pixels.numpy()}
    )
    return output  # type: ignore[no-any-return]


def test_a_classifier_with_its_normalisation_inside(tmp_path: Path) -> None:
    run = imported(classifier(), tmp_path)
    out, said = send_out(run, "onnx", normalise=True)
    assert "differ by" in said[0]
    pixels = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    wanted = logits_of(run, (pixels - mean) / std).numpy()
    assert np.abs(computed(out, pixels) - wanted).max() < 1e-4
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.onnx"]


@pytest.mark.slow
def test_an_encoders_features(tmp_path: Path) -> None:
    run = imported(TINY, tmp_path)
    tokens = features_of(run, images(32, 3))
    out, _ = send_out(run, "onnx", features="mean")
    assert np.abs(computed(out, images(32, 3)) - tokens[:, 1:].mean(dim=1).numpy()).max() < 1e-4
    for features, wanted in (("tokens", tokens), ("token", tokens[:, 0])):
        with torch.no_grad():
            near(onnx.Network(model_of_run(run), features, normalise=False)(images(32, 3)), wanted)


def test_numbers_that_differ_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = imported(TINY, tmp_path)

    class Wrong:
        """Stands for a graph that was written wrongly, and for what computes it."""

        def save(self, path: Path, external_data: bool) -> None:
            path.touch()

        def run(self, names: None, given: dict[str, np.ndarray]) -> tuple[np.ndarray]:
            return (np.zeros((len(given["images"]), 17, 48), np.float32),)

    monkeypatch.setattr(torch.onnx, "export", lambda *given, **options: Wrong())
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *given, **options: Wrong())
    with pytest.raises(MaePipeError, match="differ by"):
        send_out(run, "onnx", tmp_path / "no.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "run"]


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = imported(TINY, tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MaePipeError, match=r"pip install 'mae-pipe\[onnx\]'"):
        send_out(run, "onnx")


def test_a_class_token_must_be_there(tmp_path: Path) -> None:
    model = Model({}, TINY.encoder.model_copy(update={"class_tokens": 0}), TINY.data)
    with pytest.raises(RunError, match="wants a class token"):
        send_out(imported(model, tmp_path), "onnx", features="token")
