"""What a way of pretraining promises: views in, a loss out, an encoder at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mae_pipe import appearance
from mae_pipe.contracts import Target, View
from mae_pipe.errors import PluginError
from mae_pipe.pixels import normalise, normalise_
from mae_pipe.rng import Rng
from mae_pipe.seeding import key
from mae_pipe.views import PLAIN, Crop, check

if TYPE_CHECKING:
    from mae_pipe.data.batch import Batch
    from mae_pipe.masking import Mask


@dataclass(frozen=True)
class Reconstruction:
    """What a model makes of a batch; every image is normalised, [B, C, H, W] float32.

    Attributes:
        images: the originals.
        mask: what was hidden.
        picture: the prediction at every patch, as the target draws it.
        caption: how the target made the picture.
    """

    images: Tensor
    mask: Mask
    picture: Tensor
    caption: str


class Method(nn.Module, ABC):
    """How an encoder learns from images. Kind ``method``; the whole of it is what DeepSpeed wraps.

    Built with its options and with what its ``__init__`` asks for by name: ``encoder``, with first weights that the
    recipe's seed decides; ``view``; ``classes`` of the shards; ``epochs`` of the schedule; and of the recipe's other
    tables ``sampler``, ``ratio``, ``target``, ``everywhere``, ``decoder``. A recipe that sets a table which nobody
    asked for is refused. Its state dict is the checkpoint: what it goes on from must be a parameter or a buffer.

    Attributes:
        encoder: that is trained, an ``Encoder``, with timm's names.
        views: the crops that it wants of every image, from one decode.
        labelled: whether it learns from classes; ``batch.labels`` are then [B] int64 without -1.
        follows: whether it has parts that are not trained and follow others, which every rank has to hold
            whole: ZeRO 3 is refused.
        published: the part of the state dict that becomes ``encoder.safetensors``: its names' beginning.
        batchwise: whether an image's loss depends on which others are in its micro-batch.
        held_back: beginnings of parameter names -> epochs at the start in which they stay as they are.
        seed: of every random number that it draws.
    """

    labelled: ClassVar[bool] = False
    follows: ClassVar[bool] = False
    batchwise: ClassVar[bool] = False
    published: ClassVar[str] = "encoder"

    encoder: nn.Module
    views: tuple[Crop, ...] = PLAIN
    held_back: dict[str, float] = {}  # noqa: RUF012 (a default, which nobody writes into)
    view: View
    seed: int

    def bind(self, *, view: View, seed: int) -> Self:
        """Said once, by who builds it: what its images look like, and the recipe's seed."""
        check(self.views, view)
        self.view, self.seed = view, seed
        return self

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of a micro-batch, a float32 scalar.

        Draw only from ``rng``. Nothing here may change what the next loss is, but sums for ``after_step``, and those
        only while ``training``.
        """

    def after_step(self, progress: float) -> None:
        """After every optimizer step, on every rank; ``progress`` in (0, 1] of the schedule. Default: nothing."""

    def after_skip(self) -> None:
        """After a step that was skipped, in place of ``after_step``: forget its sums. Default: nothing."""

    def signs(self) -> dict[str, float]:
        """Numbers of the last step that tell how it goes, such as a teacher's entropy; the monitor writes them down."""
        return {}

    def provenance(self) -> dict[str, str]:
        """What else than options and data decides what is learned. Default: the target's."""
        target = self.fitted()
        return {} if target is None else target.provenance()

    def fitted(self) -> Target | None:
        """What is fitted to training images before the first step. Default: ``target``, if it has one."""
        return getattr(self, "target", None)

    def features(self, images: Tensor) -> Tensor:
        """[B, C, H, W] normalised images -> [B, D] float32, by which monitors and k-NN judge.

        Default: the mean of the published encoder's patch tokens.
        """
        encoder: Any = self.get_submodule(self.published)
        tokens: Tensor = encoder(images)  # [B, T + N, D]
        return tokens[:, encoder.num_prefix_tokens :].float().mean(dim=1)

    def reconstruction(self, batch: Batch) -> Reconstruction:
        """What is predicted of the batch, for people to look at; called in evaluation, without gradients.

        A method that predicts patches says it here, and its runs draw pictures. Default: it predicts none.

        Raises:
            PluginError: it predicts none.
        """
        raise PluginError(f"{type(self).__name__} predicts no patches; give it a reconstruction, or draw no pictures")

    @property
    def reconstructs(self) -> bool:
        """Whether there is anything to draw."""
        return type(self).reconstruction is not Method.reconstruction

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Reconstruction:
        """``reconstruction``, whatever mode this is in."""
        training = self.training
        self.eval()
        try:
            return self(batch, mode="reconstruct")  # type: ignore[no-any-return]
        finally:
            self.train(training)

    def forward(self, batch: Batch, mode: str = "loss") -> Any:
        """``loss`` of a batch, or ``reconstruct``, ``features`` or ``pairs``.

        Features are of its centre views, [B, D] float32; pairs are [B, 2, D], of the first two views of every image,
        as the loss sees them; ``reconstruct`` gives a ``Reconstruction``.

        All goes through here because ZeRO 3 gathers weights when the root module is called.
        """
        if mode == "loss":
            return self.loss(batch)
        if mode == "reconstruct":
            return self.reconstruction(batch)
        if mode == "features":
            return self.features(normalise(batch.pixels, self.view.mean, self.view.std))
        if mode == "pairs":
            return torch.stack([self.features(images) for images in self.images_of(batch)[:2]], dim=1)
        raise ValueError(f"there is no mode {mode!r}")

    def rng(self, batch: Batch, purpose: str) -> Rng:
        """Random numbers of every image for one purpose; they depend on its position in the stream alone."""
        return Rng(key(self.seed, purpose), batch.positions)

    def images_of(self, batch: Batch) -> list[Tensor]:
        """The batch's ``views``, each [B, C, h, w] normalised float32, with colours changed as its ``Crop`` says.

        What is changed depends on the positions alone: in evaluation too.
        """
        groups = (group if group.dim() == 5 else group[:, None] for group in (batch.pixels, *batch.others))
        seen = [pixels for group in groups for pixels in group.unbind(1)]
        mean, std = self.view.mean, self.view.std
        if all(view.plain for view in self.views):
            return [normalise(pixels, mean, std) for pixels in seen]
        positions, found = batch.positions.cpu().numpy(), []  # a GPU's queue is waited for once, here
        for number, (view, pixels) in enumerate(zip(self.views, seen, strict=True)):
            if view.plain:
                found.append(normalise(pixels, mean, std))
                continue
            how = appearance.drawn(view, number, self.seed, positions)
            images = appearance.changed(pixels.float().div_(255), view, how)
            found.append(normalise_(images, mean, std))
        return found
