"""Reconstruction targets."""
