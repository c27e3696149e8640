"""Networks of tokenizers from elsewhere, with the names of weights that their files have."""

from __future__ import annotations

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
    def __init__(self, channels_in: int, channels_out: int, gain: float) -> None:
        super().__init__()
        hidden = channels_out // 4
        self.gain = gain
        same = channels_in == channels_out
        self.id_path = nn.Identity() if same else _Convolution(channels_in, channels_out, 1)
        self.res_path = nn.ModuleDict(
            {
                "conv_1": _Convolution(channels_in, hidden, 3),
                "conv_2": _Convolution(hidden, hidden, 3),
                "conv_3": _Convolution(hidden, hidden, 3),
                "conv_4": _Convolution(hidden, channels_out, 1),
            }
        )

    def forward(self, maps: Tensor) -> Tensor:
        found = maps
        for layer in self.res_path.values():
            found = layer(F.relu(found))
        straight: Tensor = self.id_path(maps)
        return straight + self.gain * found


class DalleEncoder(nn.Module):
    """The encoder of OpenAI's dVAE: four groups of blocks with pooling between, 8 pixels a token.

    Args:
        width: channels of the first group; 256 in the published one.
        blocks: in a group.
        codebook: tokens.
    """

    def __init__(self, width: int = 256, blocks: int = 2, codebook: int = 8192, channels: int = 3) -> None:
        super().__init__()
        groups = 4
        gain = 1 / (groups * blocks) ** 2
        layers: dict[str, nn.Module] = {"input": _Convolution(channels, width, 7)}
        at = width
        for group in range(1, groups + 1):
            wide = width * 2 ** (group - 1)
            parts = {}
            for block in range(1, blocks + 1):
                parts[f"block_{block}"] = _DalleBlock(at, wide, gain)
                at = wide
            layers[f"group_{group}"] = nn.ModuleDict(parts)
        layers["output"] = nn.ModuleDict({"conv": _Convolution(at, codebook, 1)})
        self.blocks = nn.ModuleDict(layers)

    def tokens(self, colours: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, H / 8, W / 8] int64."""
        maps: Tensor = self.blocks["input"]((1 - 2 * EDGE) * colours + EDGE)
        for number in range(1, 5):
            for block in self.blocks[f"group_{number}"].values():  # type: ignore[operator]
                maps = block(maps)
            if number < 4:
                maps = F.max_pool2d(maps, 2)
        logits: Tensor = self.blocks["output"]["conv"](F.relu(maps))  # type: ignore[index]
        return logits.argmax(dim=1)


class _BeitBlock(nn.Module):
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


class BeitVae(nn.Module):
    """The discrete VAE of BEiT's repository, which is DALLE-pytorch's: strided convolutions, residual blocks.

    Args:
        levels: halvings of the size.
        width: channels everywhere.
        blocks: residual blocks.
        code_width: numbers a code.
    """

    def __init__(self, levels: int, width: int, blocks: int, codebook: int, code_width: int, channels: int = 3) -> None:
        super().__init__()
        self.codebook = nn.Embedding(codebook, code_width)
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for level in range(levels):
            wide = channels if level == 0 else width
            down.append(nn.Sequential(nn.Conv2d(wide, width, 4, stride=2, padding=1), nn.ReLU()))
        down += [_BeitBlock(width) for _ in range(blocks)]
        down.append(nn.Conv2d(width, codebook, 1))
        if blocks:
            up.append(nn.Conv2d(code_width, width, 1))
        up += [_BeitBlock(width) for _ in range(blocks)]
        for level in range(levels):
            wide = code_width if level == 0 and not blocks else width
            up.append(nn.Sequential(nn.ConvTranspose2d(wide, width, 4, stride=2, padding=1), nn.ReLU()))
        up.append(nn.Conv2d(width, channels, 1))
        self.encoder, self.decoder = nn.Sequential(*down), nn.Sequential(*up)

    def tokens(self, colours: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, h, w] int64; the images are brought into [-1, 1] first."""
        logits: Tensor = self.encoder(2 * colours - 1)
        return logits.argmax(dim=1)

    def picture(self, tokens: Tensor) -> Tensor:
        """[B, h, w] int64 -> [B, 3, H, W] in [0, 1]."""
        decoded: Tensor = self.decoder(self.codebook(tokens).permute(0, 3, 1, 2))
        return ((decoded + 1) / 2).clamp(0, 1)
