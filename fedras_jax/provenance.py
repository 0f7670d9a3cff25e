"""What data a run is of: digests that its folder keeps, so that no other data is taken for it.

A Spec names data, by a dataset's name or a file's path; what lies there may change.
"""

import numpy as np

from fedras_jax import assembly, checkpoint, registry
from fedras_jax.data import Split
from fedras_jax.data.store import Store
from fedras_jax.spec import Spec

Data = dict[str, str]


def of_split(spec: Spec, split: Split) -> Data:
    """SHA-256 of a Spec's interactions, and of its clients' devices where they are from a file.

    Raises:
      DataError: that file cannot be read, or knows too few clients.
    """
    sizes = np.asarray([split.n_clients, split.n_items])
    arrays = [sizes, split.offsets, split.items, split.valid, split.test]
    if split.candidates is not None:
        arrays.append(split.candidates)
    return {"interactions": checkpoint.digest(arrays), **_of_profile(spec, split.n_clients)}


def of_store(spec: Spec, store: Store) -> Data:
    """The same of a Spec whose dataset is a store: its digest was taken as it was written.

    Raises:
      DataError: as `of_split`.
    """
    return {"interactions": store.digest, **_of_profile(spec, store.n_clients)}


def _of_profile(spec: Spec, n_clients: int) -> Data:
    if not registry.is_file(spec.profile):
        return {}
    return {"profile": checkpoint.digest(assembly.profile_of(spec, n_clients))}
