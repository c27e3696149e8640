"""Weights that come from elsewhere, and weights that go elsewhere; docs/weights.md says which.

Between them all stand the official names of a masked autoencoder (``official.py``): every family translates to them or
from them, so that none knows another.
"""
