"""Rounds become programs of platforms that are not here.

What an accelerator's compiler makes of them only an accelerator can tell; but a call that a
platform does not have (of a loop for CPU, say, or of LAPACK) shows when a program is lowered for
it.
"""

import jax
import pytest

from fedras_jax import cohort, native, registry
from fedras_jax.assembly import assemble, split_of
from fedras_jax.simulate import simulate
from fedras_jax.spec import Spec

PLATFORMS = ["cuda", "tpu"]
BASE = Spec(dataset="synthetic:60x60x8", dim=16, cohort_size=40, candidates=0)
CHUNK = 32  # more than CPUs run at once, where payloads in flight are handled otherwise


def lowered(spec, mesh=None):
    """Two rounds as a program for both platforms."""
    _, algorithm, data = assemble(spec, split_of(spec), mesh=mesh, chunk=CHUNK)
    state, histories = jax.eval_shape(algorithm.init), jax.eval_shape(lambda: data)
    rounds = jax.jit(lambda state, data: simulate(algorithm, state, data, 2))
    return jax.export.export(rounds, platforms=PLATFORMS)(state, histories)


VARIANTS = {
    **{codec: {"codec": codec} for codec in registry.CODECS},
    "gmf": {"model": "gmf"},
    "adaptive": {"codec": "directional", "profile": "mobile", "budget": "adaptive"},
    "buffered": {
        "codec": "actions",
        "profile": "mobile",
        "arrival": "buffered",
        "arrival_args": {"in_flight": 50},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_rounds_are_lowered_for_accelerators(variant):
    with native.use(False):
        found = lowered(BASE.replace(**VARIANTS[variant]))
    assert list(found.platforms) == PLATFORMS


def test_rounds_on_a_mesh_are_lowered_for_accelerators():
    with native.use(False):
        found = lowered(BASE.replace(codec="actions"), cohort.client_mesh(2))
    assert found.nr_devices == 2


@pytest.mark.skipif(not native.on(), reason="the loops are for CPU, and need numba")
def test_calls_of_a_single_platform_are_seen():
    with native.use(True), pytest.raises(ValueError, match=r"fedras_jax\.fold"):
        lowered(BASE)
