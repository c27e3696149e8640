"""Tokenizers: the quantizers against direct formulas, their folder, files from elsewhere, and the target."""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mae_pipe.catalog import Catalog
from mae_pipe.contracts import Target, View
from mae_pipe.errors import DataError, PluginError
from mae_pipe.tables import TokenizerShape
from mae_pipe.tokenizer.folder import About, load_tokenizer, save_tokenizer
from mae_pipe.tokenizer.foreign import DalleVae
from mae_pipe.tokenizer.imports import import_tokenizer
from mae_pipe.tokenizer.network import DiscreteVae
from mae_pipe.tokenizer.quantize import GumbelQuantizer, VectorQuantizer

SHAPE = TokenizerShape(codebook=32, code_width=8, width=8, blocks=1, downsampling=4)
VIEW = View(32, 48, patch=(8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def maps(seed: int = 0, width: int = 8) -> Tensor:
    return torch.randn(4, width, 6, 5, generator=torch.Generator().manual_seed(seed))


def test_vq_takes_the_nearest_code_and_passes_gradients_straight_through() -> None:
    quantizer = VectorQuantizer(32, 8).eval()
    found = maps().requires_grad_()
    out, tokens, loss = quantizer(found, 1.0)
    unit = F.normalize(found.double(), dim=1)
    distance = (unit[:, None] - quantizer.codes.double()[None, :, :, None, None]).square().sum(2)  # [B, K, h, w]
    assert torch.equal(tokens, distance.argmin(1))
    assert torch.allclose(out.double(), quantizer.codes.double()[tokens].permute(0, 3, 1, 2), atol=1e-6)
    assert loss.item() == pytest.approx(0.25 * distance.min(1).values.mean().item(), rel=1e-5)
    (through,) = torch.autograd.grad(out.sum(), found, retain_graph=True)
    (straight,) = torch.autograd.grad(F.normalize(found, dim=1).sum(), found)
    assert torch.allclose(through, straight, atol=1e-6)
    assert torch.equal(quantizer.tokens(found), tokens)


def test_the_codebook_follows_the_moving_means_of_whole_steps() -> None:
    torch.manual_seed(1)
    quantizer = VectorQuantizer(16, 8, decay=0.9).train()
    quantizer(maps(1), 1.0)
    quantizer.after_step()  # all codes were dead: they are now vectors of the step
    uses, sums = quantizer.uses.double().clone(), quantizer.sums.double().clone()
    for seeds in ((2, 3), (4,)):  # a step of two micro-batches, and one of one
        before, found = quantizer.codes.clone(), []
        for seed in seeds:
            _, tokens, _ = quantizer(maps(seed), 1.0)
            assert torch.equal(quantizer.codes, before)  # the book moves between steps only
            vectors = F.normalize(maps(seed).double(), dim=1).permute(0, 2, 3, 1).reshape(-1, 8)
            assert torch.equal(tokens.flatten(), (vectors @ before.double().T).argmax(1))
            found.append((vectors, tokens.flatten()))
        quantizer.after_step()
        vectors, numbers = (torch.cat(part) for part in zip(*found, strict=True))
        for code in range(16):
            mine = vectors[numbers == code]
            uses[code] = 0.9 * uses[code] + 0.1 * len(mine)
            sums[code] = 0.9 * sums[code] + 0.1 * mine.sum(0)
        assert (uses >= 0.05 * len(vectors) / 16).all()  # none died: the formula is the whole story
        assert torch.allclose(quantizer.uses.double(), uses, atol=1e-4)
        assert torch.allclose(quantizer.codes.double(), F.normalize(sums, dim=1), atol=1e-4)


def test_dead_codes_are_revived_and_used_ones_left() -> None:
    torch.manual_seed(2)
    quantizer, near = VectorQuantizer(8, 8, decay=0.5).train(), maps(4) + 2  # all on one side
    for _ in range(12):
        quantizer(near, 1.0)
        quantizer.after_step()
    assert (quantizer.uses >= 0.05 * 120 / 8).all()
    quantizer.uses[3], quantizer.codes[3], quantizer.sums[3] = 0.0, -(8**-0.5), 0.0  # the other side
    quantizer(near, 1.0)
    kept = quantizer.sums.lerp(quantizer.pending[:, :-1].float(), 0.5)
    unused = quantizer.pending[3, -1] == 0
    quantizer.after_step()
    vectors = F.normalize(near, dim=1).permute(0, 2, 3, 1).reshape(-1, 8)
    assert unused
    assert (vectors - quantizer.codes[3]).norm(dim=1).min() < 1e-6  # it is one of the step
    assert quantizer.uses[3] > 0
    others = [code for code in range(8) if code != 3]
    assert torch.allclose(quantizer.codes[others], F.normalize(kept, dim=1)[others], atol=1e-6)


def test_a_step_that_went_wrong_leaves_the_codebook_alone() -> None:
    torch.manual_seed(3)
    quantizer = VectorQuantizer(8, 8).train()
    quantizer(maps(4), 1.0)
    quantizer.after_step()
    before = {name: value.clone() for name, value in quantizer.named_buffers()}
    broken = maps(5)
    broken[0, 0, 0, 0] = torch.nan
    quantizer(broken, 1.0)
    quantizer.after_step()
    for name, value in quantizer.named_buffers():
        assert torch.allclose(value, before[name], atol=1e-6), name


def test_an_engine_in_bfloat16_does_not_round_the_codebook() -> None:
    quantizer = VectorQuantizer(8, 8)
    before = {name: value.clone() for name, value in quantizer.named_buffers()}
    quantizer.bfloat16()
    assert {name: value.dtype for name, value in quantizer.named_buffers()} == {n: v.dtype for n, v in before.items()}
    assert torch.equal(quantizer.codes, before["codes"])


def test_gumbel_mixes_in_training_and_picks_outside_it() -> None:
    torch.manual_seed(3)
    quantizer, found = GumbelQuantizer(12, 8, divergence=0.5), maps(5)
    codes = F.normalize(quantizer.codes.detach().double(), dim=1)
    logits = 10 * torch.einsum("bdhw,kd->bkhw", F.normalize(found.double(), dim=1), codes)
    cold, tokens, loss = quantizer.train()(found, 1e-3)
    chosen = (cold.double().permute(0, 2, 3, 1)[..., None, :] - codes).norm(dim=-1).min(-1).values
    assert chosen.median() < 1e-3  # nearly one code each, not always the likeliest
    share = logits.softmax(1)
    divergence = (share * (share * 12).log()).sum(1).mean()
    assert loss.item() == pytest.approx(0.5 * divergence.item(), rel=1e-5)
    picked, again, _ = quantizer.eval()(found, 1.0)
    assert torch.equal(tokens, logits.argmax(1))
    assert torch.equal(again, quantizer.tokens(found))
    assert torch.allclose(picked.double(), codes[tokens].permute(0, 3, 1, 2), atol=1e-6)


def test_gumbel_draws_each_code_as_often_as_it_is_likely() -> None:
    torch.manual_seed(3)
    quantizer = GumbelQuantizer(12, 8).train()
    one = torch.randn(1, 8, 1, 1)
    likely = (10 * F.cosine_similarity(one[0, :, 0, 0], quantizer.codes.detach())).softmax(0)
    mixed, _, _ = quantizer(one.expand(1, 8, 150, 150), 1e-4)
    codes = F.normalize(quantizer.codes.detach(), dim=1)
    drawn = torch.cdist(mixed.permute(0, 2, 3, 1).reshape(-1, 8), codes).argmin(1)
    often = torch.bincount(drawn, minlength=12) / len(drawn)
    assert likely.max() < 0.9
    assert (often - likely).abs().max() < 0.015


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    path = tmp_path_factory.mktemp("tokenizer") / "own"
    about = About(layout="mae-pipe", codebook=32, downsampling=4, shape=SHAPE)
    save_tokenizer(path, about, DiscreteVae(SHAPE).state_dict())
    return path


def test_a_folder_gives_the_same_tokenizer_back_and_its_hash_says_so(folder: Path, tmp_path: Path) -> None:
    found, again = load_tokenizer(folder), load_tokenizer(str(folder))
    colours = torch.rand(2, 3, 24, 16)
    assert torch.equal(found(colours, 6, 4), again(colours, 6, 4))
    assert found.hash == again.hash
    weights = dict(found.network.state_dict())
    assert save_tokenizer(tmp_path / "a", found.about.model_copy(update={"source": "x"}), weights) == found.hash
    weights["decoder.0.bias"] = weights["decoder.0.bias"] + 1
    assert save_tokenizer(tmp_path / "b", found.about, weights) != found.hash


def test_the_target_is_a_direct_run_of_the_tokenizer(folder: Path) -> None:
    target: Target = Catalog().build("target", "dvae", {"tokenizer": str(folder)}, view=VIEW)
    images = VIEW.normalised(torch.randint(0, 256, (2, 3, 32, 48)) / 255)
    direct = DiscreteVae(SHAPE).eval()
    direct.load_state_dict(load_tokenizer(folder).network.state_dict())
    small = F.interpolate(VIEW.colours(images).clamp(0, 1), (16, 24), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        expected = direct.quantizer.tokens(direct.encoder(2 * small - 1))
    truth = target.truth(images)
    assert torch.equal(truth, expected.flatten(1))
    assert truth.shape == (2, 24)
    prediction = torch.randn(2, 24, 32)
    picked = prediction.double().log_softmax(-1).gather(2, truth[..., None])[..., 0]
    assert torch.allclose(target.loss(prediction, truth).double(), -picked, atol=1e-5)
    assert target.picture(prediction, images).shape == images.shape
    assert target.provenance() == {"tokenizer": load_tokenizer(folder).hash}
    assert target.state_dict() == {}


def test_what_is_no_tokenizer_is_refused_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    for options, why in [({}, "tokenizer is missing"), ({"tokenizer": str(tmp_path / "gone")}, "holds no tokenizer")]:
        with pytest.raises((PluginError, DataError), match=why):
            Catalog().build("target", "dvae", options, view=VIEW)
    grey = View(32, 32, patch=(8, 8), mean=(0.5,), std=(0.5,))
    with pytest.raises(PluginError, match="is for 3 channels, the images have 1"):
        Catalog().build("target", "dvae", {"tokenizer": str(folder)}, view=grey)
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (torn / "tokenizer.safetensors").write_bytes((folder / "tokenizer.safetensors").read_bytes()[:-50])
    with pytest.raises(DataError, match="does not fit"):
        load_tokenizer(torn)
    (torn / "tokenizer.json").write_text('{"layout": "mine"}')
    with pytest.raises(DataError, match="is damaged: layout"):
        load_tokenizer(torn)


class Convolution(nn.Module):
    """Written anew after the paper's description, with the names that OpenAI's pickle has."""

    def __init__(self, before: int, after: int, side: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(after, before, side, side) / (before * side**2) ** 0.5)
        self.b = nn.Parameter(torch.randn(after) * 0.1)
        self.pad = (side - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=self.pad)


def openai_encoder(width: int, blocks: int, codebook: int) -> tuple[dict[str, Tensor], Any]:
    """Weights in OpenAI's layout, and an independent function of colours that gives the logits."""
    parts: dict[str, Convolution] = {"blocks.input": Convolution(3, width, 7)}
    order: list[tuple[str, int, int]] = []
    at = width
    for group in range(1, 5):
        for block in range(1, blocks + 1):
            wide, name = width * 2 ** (group - 1), f"blocks.group_{group}.block_{block}"
            if at != wide:
                parts[f"{name}.id_path"] = Convolution(at, wide, 1)
            for number, (a, b, side) in enumerate(
                [(at, wide // 4, 3), *[(wide // 4, wide // 4, 3)] * 2, (wide // 4, wide, 1)]
            ):
                parts[f"{name}.res_path.conv_{number + 1}"] = Convolution(a, b, side)
            order.append((name, group, block))
            at = wide
    parts["blocks.output.conv"] = Convolution(at, codebook, 1)
    parts["blocks.input"].w.data *= 6  # so that tokens differ from place to place

    def logits(colours: Tensor) -> Tensor:
        x = parts["blocks.input"](0.8 * colours + 0.1)
        for name, group, block in order:
            y = x
            for number in range(1, 5):
                y = parts[f"{name}.res_path.conv_{number}"](y.relu())
            straight = parts[f"{name}.id_path"](x) if f"{name}.id_path" in parts else x
            x = straight + y / (4 * blocks) ** 2
            if block == blocks and group < 4:
                x = F.max_pool2d(x, 2)
        found: Tensor = parts["blocks.output.conv"](x.relu())
        return found

    weights = {f"{name}.{n}": p.detach() for name, part in parts.items() for n, p in part.named_parameters()}
    return weights, logits


def pickled_module(weights: dict[str, Tensor], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenAI saved theirs: a whole module, of classes in a package that is not installed here."""
    packages = {name: types.ModuleType(name) for name in ("dall_e", "dall_e.encoder", "dall_e.utils")}
    for name, module in packages.items():
        monkeypatch.setitem(sys.modules, name, module)

    def kind(module: str, name: str) -> Any:
        cls = type(name, (nn.Module,), {"__module__": module})
        setattr(packages[module], name, cls)
        return cls

    encoder, convolution = kind("dall_e.encoder", "Encoder"), kind("dall_e.utils", "Conv2d")
    kind("dall_e.encoder", "EncoderBlock")
    root = encoder()
    root.n_hid, root.vocab_size = 8, 16
    for name, weight in weights.items():
        *path_to, last = name.split(".")
        at = root
        for depth, step in enumerate(path_to):
            if step not in at._modules:
                block, end = step.startswith("block_"), depth == len(path_to) - 1
                at.add_module(
                    step,
                    convolution() if end else packages["dall_e.encoder"].EncoderBlock() if block else nn.Sequential(),
                )
            at = at._modules[step]
        at.register_parameter(last, nn.Parameter(weight))
    root.blocks.group_1.add_module("pool", nn.MaxPool2d(2))
    torch.save(root, path)


@pytest.mark.parametrize("form", ["pkl", "pth", "safetensors"])
def test_openais_encoder_comes_in_and_gives_its_tokens(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(6)
    weights, logits = openai_encoder(8, 2, 16)
    path = tmp_path / f"encoder.{form}"
    if form == "pkl":
        pickled_module(weights, path, monkeypatch)
    elif form == "pth":
        torch.save({"model": weights}, path)
    else:
        save_file(weights, path)
    about, digest = import_tokenizer(path, tmp_path / "tok")
    found = load_tokenizer(tmp_path / "tok")
    assert (about.layout, about.codebook, about.downsampling, about.decodes) == ("dall-e", 16, 8, False)
    assert found.hash == digest
    colours = torch.rand(8, 3, 4, 6).repeat_interleave(8, 2).repeat_interleave(8, 3).round()
    tokens = found(colours, 4, 6)
    assert torch.equal(tokens, logits(colours).argmax(1))
    assert len(tokens.unique()) > 2
    view = View(64, 96, patch=(16, 16), mean=VIEW.mean, std=VIEW.std)
    target: Target = Catalog().build("target", "dvae", {"tokenizer": str(tmp_path / "tok")}, view=view)
    assert target.picture(torch.randn(2, 24, 16), torch.zeros(2, 3, 64, 96)).shape == (2, 3, 64, 96)
    assert "has no decoder" in target.caption


class Harm:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harm-was-done"),))


def test_no_file_runs_code_and_each_bad_one_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.pkl").write_bytes(pickle.dumps(Harm()))
    torch.save(Harm(), "new.pkl")
    torch.save({"codebook.weight": torch.ones(2, 2)}, "half.pth")
    torch.save({**DalleVae(8, 1, 4).encoder.state_dict(), "more": torch.ones(1)}, "more.pth")
    Path("torn.safetensors").write_bytes(b"12")
    Path("empty.pth").touch()
    for name in ("old.pkl", "new.pkl", "half.pth", "more.pth", "torn.safetensors", "empty.pth", "gone.pth"):
        with pytest.raises(DataError, match=name):
            import_tokenizer(Path(name), Path("out"))
        assert not Path("out").exists()
    assert not Path("harm-was-done").exists()
