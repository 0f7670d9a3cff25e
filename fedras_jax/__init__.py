"""Federated recommendation with gradients as actions, as a functional JAX toolkit.

Two ways in: `run(Spec(...))` for declared experiments, and `federated(...)` with `simulate(...)`
for functions that can be jitted, mapped and taken apart.
"""

from fedras_jax.data import datasets, leave_one_out, load, synthetic
from fedras_jax.errors import (
    DataError,
    DivergedError,
    FedrasError,
    ResultsError,
    SpecError,
    StoppedError,
)
from fedras_jax.rounds import federated
from fedras_jax.run import Result, run
from fedras_jax.simulate import simulate
from fedras_jax.spec import Spec
from fedras_jax.sweeps import sweep

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "DivergedError",
    "FedrasError",
    "Result",
    "ResultsError",
    "Spec",
    "SpecError",
    "StoppedError",
    "datasets",
    "federated",
    "leave_one_out",
    "load",
    "run",
    "simulate",
    "sweep",
    "synthetic",
]
