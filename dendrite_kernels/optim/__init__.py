"""Adam that takes the gradients of dendritic layers as factors, and Synaptic Intelligence around any optimizer."""

from .adam import Adam
from .synaptic_intelligence import SynapticIntelligence

__all__ = ["Adam", "SynapticIntelligence"]
