"""A method for tests: two views of an image should have the same features as a teacher's, which follows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mae_pipe.api import Batch, Crop, Method, MomentumCopy, plugin


@plugin("follower")
class Follower(Method):
    """Predict what a mean teacher says of the other view.

    Args:
        momentum: of the teacher.
        broken: a position in the stream; the loss of its micro-batch is not a number.
    """

    follows = True
    published = "teacher.part"
    views = (Crop(), Crop())
    calls: Tensor

    def __init__(self, encoder: nn.Module, momentum: float = 0.5, broken: int = -1) -> None:
        super().__init__()
        self.encoder, self.momentum, self.broken = encoder, momentum, broken
        self.teacher = MomentumCopy(encoder)
        self.predict = nn.Linear(32, 32)
        self.held_back = {"predict.": 1.0}
        self.register_buffer("calls", torch.zeros(()))

    def loss(self, batch: Batch) -> Tensor:
        one, other = self.images_of(batch)
        if self.training:
            self.calls += 1
        error = self.predict(self.encoder(one)) - self.teacher(other).to(self.predict.weight.dtype)
        bad = (batch.positions == self.broken).any()
        return error.float().square().mean() * torch.where(bad, torch.nan, 1.0)

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.encoder, self.momentum)
        assert self.calls == 2  # the micro-batches of this step, none of a skipped one
        self.calls.zero_()

    def after_skip(self) -> None:
        self.calls.zero_()
