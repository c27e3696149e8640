"""Tokenizers from elsewhere give the tokens of their own networks, each written anew here; no file runs anything."""

from __future__ import annotations

import io
import pickle
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mae_pipe.errors import DataError
from mae_pipe.tokenizer.folder import Tokenizer, load_tokenizer
from mae_pipe.tokenizer.imports import _Box, import_tokenizer

Weights = dict[str, Tensor]


class Draw:
    """Random weights by name, strong enough that tokens differ."""

    def __init__(self, seed: int) -> None:
        self.generator, self.weights = torch.Generator().manual_seed(seed), Weights()

    def __call__(self, name: str, *shape: int, scale: float = 1.5) -> Tensor:
        fan = torch.Size(shape[1:]).numel() if len(shape) > 1 else 25  # biases are small: the image decides
        self.weights[name] = torch.randn(shape, generator=self.generator) * scale / fan**0.5
        return self.weights[name]

    def convolution(self, name: str, before: int, after: int, side: int, *, turned: bool = False) -> None:
        self(f"{name}.weight", *((before, after) if turned else (after, before)), side, side)
        self(f"{name}.bias", after)


def colours(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def brought_in(weights: Any, tmp_path: Path, **options: Any) -> Tokenizer:
    torch.save(weights, tmp_path / "file.pth")
    about, digest = import_tokenizer(tmp_path / "file.pth", tmp_path / "tok", **options)
    found = load_tokenizer(tmp_path / "tok")
    assert (found.hash, found.about) == (digest, about)
    return found


def openai(seed: int, *, down: bool, width: int, first: int, last: int, codes: int = 0) -> Weights:
    """One half of OpenAI's dVAE with one block a group: its encoder if ``down``, else its decoder."""
    draw = Draw(seed)
    sides = (3, 3, 3, 1) if down else (1, 3, 3, 3)
    groups = (1, 2, 4, 8) if down else (8, 4, 2, 1)

    def convolution(name: str, before: int, after: int, side: int) -> None:
        draw(f"{name}.w", after, before, side, side)
        draw(f"{name}.b", after)

    at = width if down else codes
    convolution("blocks.input", first, at, 7 if down else 1)
    for group, factor in enumerate(groups, 1):
        wide, name = width * factor, f"blocks.group_{group}.block_1"
        if wide != at:
            convolution(f"{name}.id_path", at, wide, 1)
        for number, side in enumerate(sides, 1):
            before, after = at if number == 1 else wide // 4, wide if number == 4 else wide // 4
            convolution(f"{name}.res_path.conv_{number}", before, after, side)
        at = wide
    convolution("blocks.output.conv", at, last, 1)
    return draw.weights


def run_openai(weights: Weights, x: Tensor, *, down: bool) -> Tensor:
    def convolved(name: str, x: Tensor) -> Tensor:
        kernel = weights[f"{name}.w"]
        return F.conv2d(x, kernel, weights[f"{name}.b"], padding=kernel.shape[-1] // 2)

    x = convolved("blocks.input", x)
    for group in (1, 2, 3, 4):
        name, y = f"blocks.group_{group}.block_1", x
        for number in (1, 2, 3, 4):
            y = convolved(f"{name}.res_path.conv_{number}", y.relu())
        x = (convolved(f"{name}.id_path", x) if f"{name}.id_path.w" in weights else x) + y / 16  # 4 layers, squared
        if group < 4 and down:
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
        elif group < 4:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return convolved("blocks.output.conv", x.relu())


def test_openais_decoder_draws_what_its_encoder_read(tmp_path: Path) -> None:
    encoder = openai(1, down=True, width=8, first=3, last=24)
    decoder = openai(2, down=False, width=8, first=24, last=6, codes=5)
    torch.save(decoder, tmp_path / "decoder.pth")
    found, images = brought_in(encoder, tmp_path, decoder=tmp_path / "decoder.pth"), colours(2, 3, 32, 48)
    tokens = run_openai(encoder, 0.8 * images + 0.1, down=True).argmax(1)
    assert len(tokens.unique()) >= 3
    assert torch.equal(found(images, 4, 6), tokens)
    chosen = torch.eye(24)[tokens].permute(0, 3, 1, 2)
    mean = run_openai(decoder, chosen, down=False)[:, :3].sigmoid()
    assert torch.allclose(found.picture(tokens), ((mean - 0.1) / 0.8).clamp(0, 1), atol=1e-5)
    assert mean.std() > 0.05
    assert found.about.decodes


def test_a_decoder_that_does_not_belong_to_it_is_refused(tmp_path: Path) -> None:
    encoder = openai(1, down=True, width=8, first=3, last=24)
    torch.save(openai(2, down=False, width=8, first=25, last=6, codes=5), tmp_path / "decoder.pth")
    with pytest.raises(DataError, match="no decoder of 24 tokens"):
        brought_in(encoder, tmp_path, decoder=tmp_path / "decoder.pth")
    with pytest.raises(DataError, match="give the encoder's file"):
        import_tokenizer(tmp_path / "decoder.pth", tmp_path / "other")
    with pytest.raises(DataError, match="leave out --decoder"):
        brought_in(strided(3, blocks=None), tmp_path, decoder=tmp_path / "decoder.pth")
    assert not (tmp_path / "tok").exists()


def strided(seed: int, *, blocks: int | None, levels: int = 2, width: int = 8, codebook: int = 20) -> Weights:
    """BEiT's discrete VAE (``blocks`` None: a residual block after each convolution), or DALLE-pytorch's."""
    draw = Draw(seed)
    draw("codebook.weight", codebook, 6)

    def residual(name: str) -> None:
        for place, side in ((0, 3), (2, 3), (4, 1)):
            draw.convolution(f"{name}.net.{place}", width, width, side)

    down, up = 0, 0
    if blocks:
        draw.convolution("decoder.0", 6, width, 1)
        for up in range(1, blocks + 1):
            residual(f"decoder.{up}")
        up += 1
    for level in range(levels):
        draw.convolution(f"encoder.{down}.0", width if level else 3, width, 4)
        draw.convolution(f"decoder.{up}.0", width if level or blocks else 6, width, 4, turned=True)
        down, up = down + 1, up + 1
        if blocks is None:
            residual(f"encoder.{down}")
            residual(f"decoder.{up}")
            down, up = down + 1, up + 1
    for _ in range(blocks or 0):
        residual(f"encoder.{down}")
        down += 1
    draw.convolution(f"encoder.{down}", width, codebook, 1)
    draw.convolution(f"decoder.{up}", width, 3, 1)
    return draw.weights


def run_strided(weights: Weights, part: str, x: Tensor) -> Tensor:
    """Layer after layer by what weights it has."""
    number = 0
    while any(name.startswith(f"{part}.{number}.") for name in weights):
        name, y = f"{part}.{number}", x
        if f"{name}.net.0.weight" in weights:
            for place, pad in ((0, 1), (2, 1), (4, 0)):
                y = F.conv2d(y, weights[f"{name}.net.{place}.weight"], weights[f"{name}.net.{place}.bias"], padding=pad)
                y = y.relu() if place < 4 else y
            x = x + y
        elif f"{name}.0.weight" in weights:
            apply = F.conv2d if part == "encoder" else F.conv_transpose2d
            x = apply(x, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"], stride=2, padding=1).relu()
        else:
            x = F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
        number += 1
    return x


@pytest.mark.parametrize(("blocks", "layout"), [(None, "beit"), (0, "dalle-pytorch"), (2, "dalle-pytorch")])
@pytest.mark.parametrize("levels", [1, 3])
def test_beits_and_dalle_pytorchs_discrete_vaes_come_in_whole(
    blocks: int | None, layout: str, levels: int, tmp_path: Path
) -> None:
    weights = strided(4, blocks=blocks, levels=levels)
    found = brought_in({"hparams": {"num_layers": levels}, "weights": weights}, tmp_path)
    assert (found.about.layout, found.about.downsampling, found.codebook) == (layout, 2**levels, 20)
    images = colours(2, 3, 32, 48)
    tokens = run_strided(weights, "encoder", images / 0.5 - 1).argmax(1)
    assert len(tokens.unique()) >= 3
    assert torch.equal(found(images, 32 >> levels, 48 >> levels), tokens)
    drawn = run_strided(weights, "decoder", weights["codebook.weight"][tokens].permute(0, 3, 1, 2))
    assert torch.allclose(found.picture(tokens), (drawn * 0.5 + 0.5).clamp(0, 1), atol=1e-5)


def vqkd(seed: int, *, rows: int = 3, depth: int = 2) -> Weights:
    """BEiT v2's tokenizer as its checkpoints hold it, with parts that only training needs."""
    draw, width, patch = Draw(seed), 128, 8
    draw("encoder.cls_token", 1, 1, width)
    draw("encoder.pos_embed", 1, rows * rows + 1, width, scale=8)
    draw("encoder.patch_embed.proj.weight", width, 3, patch, patch)
    draw("encoder.patch_embed.proj.bias", width)
    for block in range(depth):
        name = f"encoder.blocks.{block}"
        draw(f"{name}.attn.qkv.weight", 3 * width, width)
        for short in ("attn.q_bias", "attn.v_bias", "attn.proj.bias", "mlp.fc2.bias"):
            draw(f"{name}.{short}", width)
        draw(f"{name}.attn.proj.weight", width, width)
        draw(f"{name}.mlp.fc1.weight", 2 * width, width)
        draw(f"{name}.mlp.fc1.bias", 2 * width)
        draw(f"{name}.mlp.fc2.weight", width, 2 * width)
        for norm in ("norm1", "norm2"):
            draw(f"{name}.{norm}.weight", width, scale=5)
            draw(f"{name}.{norm}.bias", width)
    draw("encoder.fc_norm.weight", width, scale=5)
    draw("encoder.fc_norm.bias", width)
    for place, after in ((0, width), (2, 8)):
        draw(f"encode_task_layer.{place}.weight", after, width)
        draw(f"encode_task_layer.{place}.bias", after)
    draw.weights["quantize.embedding.weight"] = F.normalize(draw("codes", 30, 8), dim=1)
    del draw.weights["codes"]
    for other in ("quantize.cluster_size", "quantize.embedding.cluster_size", "quantize.embedding.initted"):
        draw(other, 30)
    draw("decoder.blocks.0.norm1.weight", width)
    draw("decode_task_layer.0.bias", width)
    return draw.weights


def run_vqkd(weights: Weights, images: Tensor) -> Tensor:
    def normed(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    x = F.conv2d(
        2 * images - 1, weights["encoder.patch_embed.proj.weight"], weights["encoder.patch_embed.proj.bias"], stride=8
    ).flatten(2)
    x = torch.cat([weights["encoder.cls_token"].expand(len(x), 1, -1), x.mT], 1) + weights["encoder.pos_embed"]
    for block in range(2):
        name, y = f"encoder.blocks.{block}", normed(f"encoder.blocks.{block}.norm1", x)
        query, key, value = (y @ weights[f"{name}.attn.qkv.weight"].T).chunk(3, -1)
        query, value = query + weights[f"{name}.attn.q_bias"], value + weights[f"{name}.attn.v_bias"]
        heads = [part.unflatten(-1, (2, 64)).transpose(1, 2) for part in (query, key, value)]
        seen = (heads[0] @ heads[1].mT / 8).softmax(-1) @ heads[2]
        seen = seen.transpose(1, 2).flatten(2)
        x = x + seen @ weights[f"{name}.attn.proj.weight"].T + weights[f"{name}.attn.proj.bias"]
        y = normed(f"{name}.norm2", x) @ weights[f"{name}.mlp.fc1.weight"].T + weights[f"{name}.mlp.fc1.bias"]
        x = x + F.gelu(y) @ weights[f"{name}.mlp.fc2.weight"].T + weights[f"{name}.mlp.fc2.bias"]
    x = normed("encoder.fc_norm", x[:, 1:])
    x = (x @ weights["encode_task_layer.0.weight"].T + weights["encode_task_layer.0.bias"]).tanh()
    x = x @ weights["encode_task_layer.2.weight"].T + weights["encode_task_layer.2.bias"]
    return torch.cdist(F.normalize(x, dim=-1), weights["quantize.embedding.weight"]).argmin(-1)


def test_beit_v2s_tokenizer_comes_in_without_what_only_trains_it(tmp_path: Path) -> None:
    weights = vqkd(5)
    found, images = brought_in({"model": weights}, tmp_path), colours(4, 3, 24, 24)
    tokens = run_vqkd(weights, images)
    assert len(tokens.unique()) >= 3
    assert torch.equal(found(images, 3, 3).flatten(1), tokens)
    about = found.about
    assert (about.layout, about.codebook, about.downsampling, about.trained_at) == ("vq-kd", 30, 8, (24, 24))
    assert not about.decodes
    assert found(images, 4, 5).shape == (4, 4, 5)  # its positions are interpolated


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    for weights, gone in [
        (vqkd(5), "encoder.pos_embed"),
        (vqkd(5), "encoder.blocks.0.attn.q_bias"),
        (strided(4, blocks=None), "decoder.0.0.bias"),
        (openai(1, down=True, width=8, first=3, last=24), "blocks.input.w"),
        (openai(1, down=True, width=8, first=3, last=24), "blocks.group_3.block_1.res_path.conv_2.b"),
    ]:
        torch.save({n: w for n, w in weights.items() if n != gone}, tmp_path / "half.pth")
        with pytest.raises(DataError, match=r"half\.pth is no whole"):
            import_tokenizer(tmp_path / "half.pth", tmp_path / "tok")


def opcodes(*parts: bytes) -> bytes:
    """A pickle of protocol 2 as torch writes it, by hand."""
    return b"\x80\x02" + b"".join(parts) + b"."


def archive(data: bytes, path: Path) -> None:
    """``data`` in the place of a saved file's own pickle."""
    import zipfile

    torch.save({"x": torch.ones(1)}, io.BytesIO() if path is None else path)
    with zipfile.ZipFile(path) as old:
        parts = {name: data if name.endswith("data.pkl") else old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, part in parts.items():
            new.writestr(name, part)


class _Loop:
    """Pickles as a Sequential that holds itself."""


def test_stand_ins_cannot_be_made_to_do_anything(tmp_path: Path) -> None:
    box = b"cdall_e.encoder\nEncoder\n"
    hostile = [
        opcodes(b"cposix\nsystem\n", b"X\x04\x00\x00\x00true", b"\x85R"),
        opcodes(b"cbuiltins\neval\n", b"X\x01\x00\x00\x001", b"\x85R"),
        opcodes(b"cdall_e.encoder\nos.system\n", b"X\x04\x00\x00\x00true", b"\x85R"),  # an attribute of a name
        opcodes(box, b"X\x01\x00\x00\x001", b"\x85R"),  # called with an argument
        opcodes(box, b"X\x01\x00\x00\x001", b"\x85\x81"),  # built with one
        opcodes(box, b")\x81", b"]b"),  # its state is a list
        opcodes(box, b")\x81q\x00}", b"X\x08\x00\x00\x00_modulesNsb"),  # its modules are None
        opcodes(box, b")\x81q\x00}X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00ah\x00ssb"),  # its module is itself
        b"\x80\x02",
        b"",
    ]
    for number, data in enumerate(hostile):
        path = tmp_path / f"file-{number}.pkl"
        archive(data, path)
        with pytest.raises(DataError, match=path.name):
            import_tokenizer(path, tmp_path / "tok")
        (tmp_path / f"bare-{number}.pkl").write_bytes(data)
        with pytest.raises(DataError, match=f"bare-{number}.pkl"):
            import_tokenizer(tmp_path / f"bare-{number}.pkl", tmp_path / "tok")


def test_a_damaged_file_is_a_sentence_whatever_byte_is_wrong(tmp_path: Path) -> None:
    path, chance = tmp_path / "vae.pth", random.Random(0)
    torch.save(strided(4, blocks=None, levels=1, width=4), path)
    whole = path.read_bytes()
    for _ in range(150):
        torn = bytearray(whole)
        for _ in range(chance.choice((1, 3, 30))):
            torn[chance.randrange(len(torn))] = chance.randrange(256)
        path.write_bytes(torn[: chance.choice((len(torn), chance.randrange(len(torn))))])
        out = tmp_path / f"tok-{chance.random()}"
        with suppress(DataError):  # any other error fails; damage in a weight alone goes unseen
            import_tokenizer(path, out)
            assert load_tokenizer(out).about.layout == "beit"


def test_the_stand_ins_are_forgotten_after_an_import(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        import_tokenizer(tmp_path / "gone.pkl", tmp_path / "tok")
    assert _Box not in [value[0] for value in torch.serialization.get_safe_globals() if isinstance(value, tuple)]
    data = pickle.dumps({})
    (tmp_path / "plain.pkl").write_bytes(data)
    with pytest.raises(DataError, match=r"plain\.pkl"):
        import_tokenizer(tmp_path / "plain.pkl", tmp_path / "tok")
