"""Networks of tokenizers from elsewhere, with the names of weights that their files have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EDGE = 0.1  # DALL-E's images are brought into [0.1, 0.9] (Ramesh et al. 2021, A.3)


class _Convolution(nn.Module):
    """DALL-E's: its weights are called w and b."""

    def __init__(self, channels_in: int, channels_out: int, side: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(channels_out, channels_in, side, side))
        self.b = nn.Parameter(torch.zeros(channels_out))

    def forward(self, maps: Tensor) -> Tensor:
        return F.conv2d(maps, self.w, self.b, padding=(self.w.shape[-1] - 1) // 2)


class _DalleBlock(nn.Module):
    """Four convolutions beside a straight way; ``sides`` are of their kernels."""

    def __init__(self, channels_in: int, channels_out: int, sides: tuple[int, ...], gain: float) -> None:
        super().__init__()
        hidden = channels_out // 4
        self.gain = gain
        same = channels_in == channels_out
        self.id_path = nn.Identity() if same else _Convolution(channels_in, channels_out, 1)
        widths = pairwise((channels_in, hidden, hidden, hidden, channels_out))
        layers = {f"conv_{n}": _Convolution(*w, side) for n, (w, side) in enumerate(zip(widths, sides, strict=True), 1)}
        self.res_path = nn.ModuleDict(layers)

    def forward(self, maps: Tensor) -> Tensor:
        found = maps
        for layer in self.res_path.values():
            found = layer(F.relu(found))
        straight: Tensor = self.id_path(maps)
        return straight + self.gain * found


class _DalleStack(nn.Module):
    """One half of OpenAI's dVAE: a convolution, four groups of blocks, a convolution.

    Args:
        first, last: channels in and out.
        widths: channels after the first convolution, and of the four groups.
        sides: of the kernels of the first convolution and of a block's.
        resize: what is done between groups.
    """

    def __init__(
        self,
        first: int,
        last: int,
        widths: tuple[int, ...],
        *,
        blocks: int,
        sides: tuple[int, tuple[int, ...]],
        resize: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.resize = resize
        gain = 1 / (4 * blocks) ** 2
        layers: dict[str, nn.Module] = {"input": _Convolution(first, widths[0], sides[0])}
        for group, (before, wide) in enumerate(pairwise(widths), 1):
            layers[f"group_{group}"] = nn.ModuleDict(
                {f"block_{n + 1}": _DalleBlock(wide if n else before, wide, sides[1], gain) for n in range(blocks)}
            )
        layers["output"] = nn.ModuleDict({"conv": _Convolution(widths[-1], last, 1)})
        self.blocks = nn.ModuleDict(layers)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.blocks["input"](maps)
        for number in range(1, 5):
            for block in self.blocks[f"group_{number}"].values():  # type: ignore[operator]
                maps = block(maps)
            if number < 4:
                maps = self.resize(maps)
        logits: Tensor = self.blocks["output"]["conv"](F.relu(maps))  # type: ignore[index]
        return logits


class DalleVae(nn.Module):
    """OpenAI's dVAE (Ramesh et al. 2021, A.1), 8 pixels a token; without a decoder where ``decoder_width`` is 0.

    Args:
        width: channels of the encoder's first group; 256 in the published one, as ``decoder_width``.
        blocks: in a group.
        codebook: tokens.
        code_width: channels after the decoder's first convolution; 128 in the published one.
    """

    def __init__(
        self,
        width: int = 256,
        blocks: int = 2,
        codebook: int = 8192,
        channels: int = 3,
        code_width: int = 128,
        decoder_width: int = 0,
        decoder_blocks: int = 2,
    ) -> None:
        super().__init__()
        self.codebook, self.channels = codebook, channels
        widths = (width, *(width * 2**group for group in range(4)))
        self.encoder = _DalleStack(
            channels,
            codebook,
            widths,
            blocks=blocks,
            sides=(7, (3, 3, 3, 1)),
            resize=partial(F.max_pool2d, kernel_size=2),
        )
        if decoder_width:
            widths = (code_width, *(decoder_width * 2**group for group in (3, 2, 1, 0)))
            self.decoder = _DalleStack(
                codebook,
                2 * channels,  # a mean and a scale each
                widths,
                blocks=decoder_blocks,
                sides=(1, (1, 3, 3, 3)),
                resize=partial(F.interpolate, scale_factor=2),
            )

    def tokens(self, colours: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, H / 8, W / 8] int64."""
        logits: Tensor = self.encoder((1 - 2 * EDGE) * colours + EDGE)
        return logits.argmax(dim=1)

    def picture(self, tokens: Tensor) -> Tensor:
        """[B, h, w] int64 -> [B, 3, H, W] in [0, 1]."""
        chosen = F.one_hot(tokens, self.codebook).permute(0, 3, 1, 2).float()
        colours: Tensor = self.decoder(chosen)[:, : self.channels].sigmoid()
        return ((colours - EDGE) / (1 - 2 * EDGE)).clamp(0, 1)


class _StridedBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        out: Tensor = self.net(maps) + maps
        return out


class StridedVae(nn.Module):
    """A discrete VAE of strided convolutions and residual blocks, of colours in [-1, 1].

    Args:
        levels: halvings of the size.
        width: channels everywhere.
        blocks: residual blocks on the smallest maps, as DALLE-pytorch has them; None: one after each
            convolution, as BEiT's repository has them.
        code_width: numbers a code.
    """

    def __init__(
        self, levels: int, width: int, codebook: int, code_width: int, channels: int = 3, blocks: int | None = None
    ) -> None:
        super().__init__()
        self.codebook = nn.Embedding(codebook, code_width)
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        if blocks:
            up.append(nn.Conv2d(code_width, width, 1))
        up += [_StridedBlock(width) for _ in range(blocks or 0)]
        for level in range(levels):
            first = channels if level == 0 else width
            down.append(nn.Sequential(nn.Conv2d(first, width, 4, stride=2, padding=1), nn.ReLU()))
            first = code_width if level == 0 and not blocks else width
            up.append(nn.Sequential(nn.ConvTranspose2d(first, width, 4, stride=2, padding=1), nn.ReLU()))
            if blocks is None:
                down.append(_StridedBlock(width))
                up.append(_StridedBlock(width))
        down += [_StridedBlock(width) for _ in range(blocks or 0)]
        down.append(nn.Conv2d(width, codebook, 1))
        up.append(nn.Conv2d(width, channels, 1))
        self.encoder, self.decoder = nn.Sequential(*down), nn.Sequential(*up)

    def tokens(self, colours: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, h, w] int64."""
        logits: Tensor = self.encoder(2 * colours - 1)
        return logits.argmax(dim=1)

    def picture(self, tokens: Tensor) -> Tensor:
        """[B, h, w] int64 -> [B, 3, H, W] in [0, 1]."""
        decoded: Tensor = self.decoder(self.codebook(tokens).permute(0, 3, 1, 2))
        return ((decoded + 1) / 2).clamp(0, 1)
