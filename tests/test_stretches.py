"""Parts of a file's tensors are what the library reads of them; a file that changed under way is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mae_pipe.errors import RunError
from mae_pipe.stretches import Stretches


def test_every_part_is_what_the_library_reads(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    drawn = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    save_file({"a": drawn, "b": drawn.bfloat16(), "c": torch.arange(5), "none": torch.empty(0)}, path)
    found = Stretches(path)
    for name, whole in load_file(path).items():
        assert found.dtypes[name] == whole.dtype
        assert torch.equal(found.read(name), whole.flatten())
        for begin, end in ((0, 1), (2, 5), (4, 4)):
            if end <= whole.numel():
                assert torch.equal(found.read(name, begin, end), whole.flatten()[begin:end])


def test_a_file_that_was_cut_after_it_was_opened_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file({"a": torch.ones(64)}, path)
    found = Stretches(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RunError, match=r"some.safetensors cannot be read any more: it has become shorter; check"):
        found.read("a")
