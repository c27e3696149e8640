"""What a recipe's model costs: parameters, and arithmetic an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mae_pipe.autoencoder import Decoder, Encoder, build_encoder
from mae_pipe.building import build
from mae_pipe.catalog import Catalog
from mae_pipe.masking import Mask, visible_count
from mae_pipe.recipe import Pretrain
from mae_pipe.standins import loss_on_shapes
from mae_pipe.tasks import MaskedAutoencoder, view_of


@dataclass(frozen=True)
class Costs:
    """Of one model; FLOPs count a multiplication and an addition as two, as torch's FlopCounter does.

    Attributes:
        forward, training: FLOPs of one image; training is forward and backward.
        decoder_parameters: all that is trained beside the encoder.
        patches, visible: N and V.
        encoder_tokens, decoder_tokens: in a sequence; 0 of the decoder where the method is no masked autoencoder.
    """

    encoder_parameters: int
    decoder_parameters: int
    forward: int
    training: int
    patches: int
    visible: int
    encoder_tokens: int
    decoder_tokens: int


class _Model(nn.Module):
    """Encoder and decoder without a sampler and a target, whose arithmetic is no matrix product."""

    def __init__(self, encoder: Encoder, decoder: Decoder, everywhere: bool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.everywhere = encoder, decoder, everywhere

    def forward(self, images: Tensor, mask: Mask) -> Tensor:
        prediction: Tensor = self.decoder(self.encoder(images, mask), mask, everywhere=self.everywhere)
        return prediction


def costs(recipe: Pretrain, catalog: Catalog) -> Costs:
    """Count them without weights and without data: the model has shapes only.

    Raises:
        RecipeError: the loss of its method needs numbers, not only shapes.
    """
    if not issubclass(catalog.find("method", recipe.method.name), MaskedAutoencoder):
        return _of_method(recipe, catalog)
    view = view_of(recipe.data, recipe.encoder)
    target = catalog.build("target", recipe.target.name, recipe.target.options, view=view)
    size, mask_tokens = view.grid.size, recipe.encoder.mask_tokens
    visible = visible_count(size, recipe.mask.ratio)
    with torch.device("meta"):
        encoder = build_encoder(recipe.encoder, recipe.data.sides, channels=view.channels)
        decoder = Decoder(
            recipe.decoder,
            width=recipe.encoder.width,
            out=target.width,
            grid=view.grid,
            class_tokens=recipe.encoder.class_tokens,
            mask_tokens=not mask_tokens,
        )
        model = _Model(encoder, decoder, recipe.target.loss_on == "all")
        images = torch.empty(1, view.channels, view.height, view.width)
        mask = Mask(torch.arange(size)[None], visible)
    forward, training = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with training:
        with forward:
            prediction = model(images, mask)
        prediction.sum().backward()
    return Costs(
        encoder_parameters=sum(p.numel() for p in encoder.parameters()),
        decoder_parameters=sum(p.numel() for p in decoder.parameters()),
        forward=forward.get_total_flops(),
        training=training.get_total_flops(),
        patches=size,
        visible=visible,
        encoder_tokens=recipe.encoder.class_tokens + (size if mask_tokens else visible),
        decoder_tokens=recipe.encoder.class_tokens + size,
    )


def _of_method(recipe: Pretrain, catalog: Catalog) -> Costs:
    """Of two images by the method itself: teachers and all views count."""
    images = 2  # that can be compared with each other
    with torch.device("meta"):
        task = build(recipe, catalog)
    forward, training = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with training:
        with forward:
            loss = loss_on_shapes(task, images)
        loss.backward()  # type: ignore[no-untyped-call]
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    encoder = sum(p.numel() for p in task.encoder.parameters() if p.requires_grad)
    size = task.view.grid.size
    return Costs(
        encoder_parameters=encoder,
        decoder_parameters=trained - encoder,
        forward=forward.get_total_flops() // images,
        training=training.get_total_flops() // images,
        patches=size,
        visible=size,
        encoder_tokens=recipe.encoder.class_tokens + size,
        decoder_tokens=0,
    )
