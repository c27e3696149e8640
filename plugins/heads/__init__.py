"""Downstream heads."""
