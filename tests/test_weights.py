"""The same weights give the same bytes, which the library alone does not promise."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from mae_pipe.weights import to_safetensors

ROOT = Path(__file__).parents[1]
METADATA = {"step": 7, "recipe": {"name": "ö", "list": [1, 2.5, None]}, "classes": ["a", "b"], "encoder": {}, "z": True}


def made() -> bytes:
    weights = {f"layer.{n}": torch.arange(n + 1, dtype=torch.float32) for n in range(9)}
    return to_safetensors(weights | {"half": torch.ones(3, dtype=torch.bfloat16)}, METADATA)


def test_every_process_writes_the_same_bytes() -> None:
    program = "from tests.test_weights import *; print(hashlib.sha256(made()).hexdigest())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    runs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(3)]
    assert {run.stdout for run in runs} == {hashlib.sha256(made()).hexdigest() + "\n"}


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(made())
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        metadata = file.metadata()
        assert metadata.pop("format") == "pt"
        assert {name: json.loads(value) for name, value in metadata.items()} == METADATA
        assert torch.equal(file.get_tensor("layer.8"), torch.arange(9, dtype=torch.float32))
        assert torch.equal(file.get_tensor("half"), torch.ones(3, dtype=torch.bfloat16))
        assert len(file.keys()) == 10
