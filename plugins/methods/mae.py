"""Masked autoencoding."""

from __future__ import annotations

from mae_pipe.api import MaskedAutoencoder, Method, plugin


@plugin("mae")
class MAE(MaskedAutoencoder, Method):
    """Hide patches, encode those that are left, predict the hidden ones (MAE, He et al. 2022).

    What is hidden, predicted and by what decoder the tables ``[mask]``, ``[target]`` and ``[decoder]`` say.
    """
