"""Mask samplers."""
