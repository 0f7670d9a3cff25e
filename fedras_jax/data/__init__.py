"""Datasets on the host: reading, catalogue, leave-one-out splits and synthetic interactions."""

from fedras_jax.data.catalogue import datasets, load
from fedras_jax.data.interactions import HeldOut, Interactions
from fedras_jax.data.readers import read
from fedras_jax.data.split import Split, leave_one_out
from fedras_jax.data.synthetic import synthetic

__all__ = [
    "HeldOut",
    "Interactions",
    "Split",
    "datasets",
    "leave_one_out",
    "load",
    "read",
    "synthetic",
]
