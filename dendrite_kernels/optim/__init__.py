"""Optimizers that take the gradients of dendritic layers as factors."""

from .adam import Adam

__all__ = ["Adam"]
