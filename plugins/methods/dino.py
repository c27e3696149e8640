"""Self-distillation: a student learns to say of a part of an image what its own slow mean says of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from mae_pipe.api import Batch, Crop, Method, MomentumCopy, View, keep_float32, plugin, rising

GLOBAL = 2  # views of most of the image, which the teacher sees
Range = tuple[float, float]


@plugin("dino")
class DINO(Method):
    """Predict, from any view of an image, the prototypes that a teacher finds in another (Caron et al. 2021).

    The teacher is a moving mean of the student, and becomes the encoder. It sees two views of most of the image; the
    student sees these and small ones. What keeps both from saying the same of everything: the teacher's outputs are
    centred, so that no prototype wins everywhere, and sharpened, so that not all win alike.

    Not as in the authors' code: centre, temperature and momentum move with optimizer steps, whatever the micro-batches;
    gradients are clipped by the norm of all of them (``optimizer.clip``), not tensor by tensor; while the prototypes
    are frozen, the optimizer's moments of them do move.

    Options:
        out: prototypes, K.
        hidden: numbers of the head's two hidden layers.
        bottleneck: numbers of the unit vector that is compared with the prototypes.
        local_crops: small views of an image.
        local_size: their side in pixels, a multiple of the encoder's patch.
        local_scale: of the image's area, of a small view; of a large one, ``data.crop_scale`` says it.
        momentum: of the teacher at the start; it rises to 1 by half a cosine.
        student_temperature: by which the student's outputs are divided.
        teacher_temperature: by which the teacher's are, at the start and after the warmup.
        teacher_warmup_epochs: in which it rises.
        frozen_epochs: at the start, in which the prototypes stay as they are.
        centring: whether the teacher's outputs are centred; without it, DINO collapses.
        centre_momentum: of the moving mean of the teacher's outputs, a step.
    """

    follows: ClassVar[bool] = True
    published: ClassVar[str] = "teacher.part"

    def __init__(
        self,
        *,
        encoder: Any,
        view: View,
        epochs: float,
        out: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        local_crops: int = 10,
        local_size: int = 96,
        local_scale: Range = (0.05, 0.25),
        momentum: float = 0.996,
        student_temperature: float = 0.1,
        teacher_temperature: Range = (0.04, 0.07),
        teacher_warmup_epochs: float = 30.0,
        frozen_epochs: float = 1.0,
        centring: bool = True,
        centre_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        if not encoder.num_prefix_tokens:
            raise ValueError("it compares class tokens, and the encoder has none; set encoder.class_tokens to 1")
        if min(out, hidden, bottleneck) < 2 or local_crops < 0:
            raise ValueError(
                f"out, hidden and bottleneck must be 2 or more and local_crops 0 or more, got {out}, {hidden}, "
                f"{bottleneck} and {local_crops}"
            )
        if local_crops and (local_size < 1 or any(local_size % side for side in view.patch)):
            raise ValueError(f"local_size must be a multiple of the patch {view.patch}, got {local_size}")
        if min(student_temperature, *teacher_temperature) <= 0:
            raise ValueError(f"temperatures must be above 0, got {student_temperature} and {list(teacher_temperature)}")
        self.encoder = encoder
        self.head = Head(encoder.embed_dim, hidden=hidden, bottleneck=bottleneck, out=out)
        self.teacher, self.teacher_head = MomentumCopy(encoder), MomentumCopy(self.head)
        self.views = _views(local_crops, local_size, local_scale)
        self.held_back = {"head.prototypes": frozen_epochs}
        self.epochs, self.momentum = epochs, momentum
        self.student_temperature = student_temperature
        self.teacher_temperature, self.teacher_warmup_epochs = teacher_temperature, teacher_warmup_epochs
        self.centring, self.centre_momentum = centring, centre_momentum
        self.sharpened = Sharpened(out, self._temperature(0.0))
        self._told: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Self:
        """The student alone ever drops paths."""
        super().train(mode)
        self.teacher.eval()
        return self

    def loss(self, batch: Batch) -> Tensor:
        """The mean cross-entropy of all pairs of a teacher's view and another one of the student's."""
        images = self.images_of(batch)
        student = self._student(images)  # V of [B, K]
        outputs = self._teacher(images[:GLOBAL])  # [2 B, K]
        shares = self.sharpened(outputs)
        teacher = shares.chunk(GLOBAL)
        loss = torch.zeros((), device=outputs.device)
        for number, said in enumerate(student):
            others = sum(share for other, share in enumerate(teacher) if other != number)  # [B, K]
            loss = loss + F.cross_entropy(said / self.student_temperature, others)
        loss = loss / (GLOBAL * (len(student) - 1))
        if self.training:
            self.sharpened.note(outputs, shares, loss)
        return loss

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move centre, temperature and teacher."""
        self._told = self.sharpened.step(1 - self.centre_momentum if self.centring else 0.0)
        self.sharpened.temperature.fill_(self._temperature(progress * self.epochs))
        momentum = rising(self.momentum, progress)
        self.teacher.follow(self.encoder, momentum)
        self.teacher_head.follow(self.head, momentum)

    def after_skip(self) -> None:
        """The skipped step's outputs move no centre."""
        self.sharpened.pending.zero_()

    def signs(self) -> dict[str, float]:
        """Of the last step's images on all ranks; entropies are in [0, 1], of the logarithm of K.

        ``teacher_entropy``: the mean entropy of what the teacher says of a view; 1: it says nothing.
        ``mean_output_entropy``: the entropy of the mean of it; 0: it says the same of every view.
        ``teacher_student_kl``: the mean divergence of the student from the teacher, in nats.
        """
        return {name: float(value) for name, value in self._told.items()}

    def features(self, images: Tensor) -> Tensor:
        """The teacher's class token, which the authors judge by (their ``eval_knn.py``)."""
        tokens: Tensor = self.teacher(images)
        return tokens[:, 0].float()

    def _student(self, images: Sequence[Tensor]) -> Sequence[Tensor]:
        """V views, each [B, C, h, w] -> V of [B, K] float32; those of one size go through the encoder at once."""
        groups = [torch.cat(list(views)) for _, views in groupby(images, key=lambda view: view.shape)]
        tokens = torch.cat([self.encoder(group)[:, 0] for group in groups])  # [V B, D]
        outputs: Tensor = self.head(tokens)
        return outputs.float().chunk(len(images))

    def _teacher(self, images: Sequence[Tensor]) -> Tensor:
        """The same of the teacher, [V B, K]: float32 weights, and products in the student's precision."""
        precision = self.head.prototypes.dtype
        with torch.autocast(images[0].device.type, precision, enabled=precision != torch.float32):
            outputs: Tensor = self.teacher_head(self.teacher(torch.cat(list(images)))[:, 0])
        return outputs.float()

    def _temperature(self, epoch: float) -> float:
        """The teacher's after so many epochs."""
        first, last = self.teacher_temperature
        warmup = self.teacher_warmup_epochs
        return first + (last - first) * (min(1.0, epoch / warmup) if warmup else 1.0)


class Head(nn.Module):
    """Three layers to a unit vector, and its cosines with ``out`` prototypes.

    Prototypes are directions: a linear layer whose weights' norms are fixed at 1.
    """

    def __init__(self, width: int, *, hidden: int, bottleneck: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(nn.Linear(bottleneck, out, bias=False).weight.detach().clone())

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, D] -> [N, K] in [-1, 1]."""
        points = F.normalize(self.layers(tokens).float(), dim=1)
        directions = F.normalize(self.prototypes.float(), dim=1)
        precision = self.prototypes.dtype
        return F.linear(points.to(precision), directions.to(precision))


class Sharpened(nn.Module):
    """Outputs of the teacher, centred, divided by a temperature, as shares of 1.

    Attributes:
        centre: [1, K], the moving mean of outputs.
        temperature: by which they are divided.
        pending: sums since the last optimizer step, zero after it, so that neither micro-batches nor ranks change
            the next centre: of outputs [K] and of shares [K], then rows, entropies and losses.
    """

    centre: Tensor
    temperature: Tensor
    pending: Tensor

    def __init__(self, out: int, temperature: float) -> None:
        super().__init__()
        self.out = out
        self.register_buffer("centre", torch.zeros(1, out))
        self.register_buffer("temperature", torch.tensor(temperature))
        self.register_buffer("pending", torch.zeros(2 * out + 3, dtype=torch.float64))

    def forward(self, outputs: Tensor) -> Tensor:
        """[N, K] -> [N, K]."""
        return ((outputs - self.centre) / self.temperature).softmax(dim=1)

    @torch.no_grad()
    def note(self, outputs: Tensor, shares: Tensor, loss: Tensor) -> None:
        """Add a micro-batch to the sums."""
        rows = len(outputs)
        entropy = torch.special.entr(shares).sum(dtype=torch.float64)
        numbers = torch.stack([torch.full_like(entropy, rows), entropy, loss.double() * rows])
        self.pending += torch.cat([part.sum(dim=0, dtype=torch.float64) for part in (outputs, shares)] + [numbers])

    def step(self, rate: float) -> dict[str, Tensor]:
        """Move the centre by ``rate`` to the mean of the sums over all ranks; the ``signs`` of the step."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self.pending)
        outputs, shares, (rows, entropy, loss) = torch.split(self.pending, [self.out, self.out, 3])
        mean = torch.where(rows > 0, outputs / rows, self.centre[0])
        self.centre.lerp_(mean.float(), rate)
        whole = math.log(self.out)
        told = {
            "teacher_entropy": entropy / rows / whole,
            "mean_output_entropy": torch.special.entr(shares / rows).sum() / whole,
            "teacher_student_kl": (loss - entropy) / rows,
        }
        self.pending.zero_()
        return told

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Sharpened:
        keep_float32(self, partial(super()._apply, fn, recurse))
        return self


def _views(local_crops: int, local_size: int, local_scale: Range) -> tuple[Crop, ...]:
    """The authors' ``DataAugmentationDINO``, after BYOL's (Grill et al. 2020)."""
    colours = partial(Crop, jitter=(0.4, 0.4, 0.2, 0.1), jitter_share=0.8, grey=0.2)
    return (
        colours(blur=1.0),
        colours(blur=0.1, solarize=0.2),
        *[colours(size=local_size, scale=local_scale, blur=0.5)] * local_crops,
    )
