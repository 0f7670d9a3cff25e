"""Widths, chunks and devices: every client is run exactly once, wherever it lands."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedras_jax import cohort

# ---------------------------------------------------------------- plan_widths


def padded(lengths, widths) -> float:
    """Slots that are run, each length at the narrowest width that holds it."""
    return sum(min(w for w in widths if w >= n) for n in lengths)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("n_widths", [1, 2, 3])
def test_plan_widths_is_optimal(seed, n_widths):
    rng = np.random.default_rng(seed)
    lengths = (rng.pareto(1, 30) * 8 + 1).astype(int).clip(0, 200)
    widths = cohort.plan_widths(lengths, n_widths, multiple=16)
    assert len(widths) <= n_widths
    assert list(widths) == sorted(set(widths))
    assert all(w % 16 == 0 and type(w) is int for w in widths)
    assert widths[-1] >= lengths.max() > widths[-1] - 16
    choices = itertools.combinations(range(16, widths[-1], 16), n_widths - 1)
    best = min(padded(lengths, (*some, widths[-1])) for some in choices) if n_widths > 1 else None
    assert padded(lengths, widths) == (best or 30 * widths[-1])


def test_plan_widths_of_few_and_of_no_examples():
    assert cohort.plan_widths(np.array([5, 64, 64]), 5) == (64,)
    assert cohort.plan_widths(np.array([0, 0]), 5) == (64,)
    assert cohort.plan_widths(np.array([1, 65, 129]), 5) == (64, 128, 192)


def test_chunks_hold_equally_many_rows():
    assert cohort.chunk_sizes((64, 128, 640), 16) == (16, 8, 1)
    assert cohort.chunk_sizes((64, 6400), 16) == (16, 1)


# ---------------------------------------------------------------- fold_clients

WIDTHS = (4, 8, 20)
C = 37


def random_cohort(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.choice([0, 1, 4, 5, 8, 9, 20], C).astype(np.int32)


@pytest.fixture(scope="module", params=[(1, 1), (3, 1), (16, 1), (256, 1), (1, 8), (3, 8), (16, 8)])
def fold(request):
    """`fold_clients` as chunk and devices say, of clients that count themselves."""
    chunk, devices = request.param
    mesh = None if devices == 1 else cohort.client_mesh(devices)

    def client(width, broadcast, inputs):
        name, length = inputs
        live = length > 0
        sent = (jnp.where(live, name, C), jnp.where(live, broadcast * (name + 1), 0))
        return sent, {"name": name, "fits": length <= width, "width": jnp.int32(width)}

    def add(acc, sent):
        runs, total = acc
        name, value = sent
        return runs.at[name].add(1, mode="drop"), total + value.sum()

    @jax.jit
    def run(length):
        return cohort.fold_clients(
            client,
            add,
            (jnp.zeros(C, jnp.int32), jnp.int32(0)),
            jnp.int32(3),
            (jnp.arange(C), length),
            length,
            widths=WIDTHS,
            chunk=chunk,
            mesh=mesh,
        )

    return run


@pytest.mark.parametrize("seed", range(6))
def test_every_client_is_run_once_at_a_width_that_holds_it(fold, seed):
    length = random_cohort(seed)
    (runs, total), kept = jax.tree.map(np.asarray, fold(length))
    live = length > 0
    np.testing.assert_array_equal(runs, live)
    assert total == 3 * np.sum((np.arange(C) + 1) * live)
    np.testing.assert_array_equal(kept["name"][live], np.arange(C)[live])  # the inputs' order
    assert kept["fits"][live].all()
    # Only clients that fill up a wider chunk are run at more than the width they need.
    assert set(kept["width"][live].tolist()) <= set(WIDTHS)


@pytest.mark.parametrize("length", [np.zeros(C), np.full(C, 20), np.full(C, 1), np.eye(C)[5]])
def test_cohorts_of_one_kind(fold, length):
    (runs, _), kept = jax.tree.map(np.asarray, fold(length.astype(np.int32)))
    np.testing.assert_array_equal(runs, length > 0)
    assert kept["fits"][length > 0].all()


def test_one_program_for_all_cohorts(fold):
    for seed in range(3):
        fold(random_cohort(seed))
    assert fold._cache_size() == 1


def test_narrow_clients_are_run_narrow():
    """One long client does not widen the others' chunks (beyond its own)."""
    length = jnp.full(C, 3).at[11].set(17)
    _, width = cohort.fold_clients(
        lambda width, _, length: (length, jnp.int32(width)),
        lambda acc, sent: acc + sent.sum(),
        jnp.int32(0),
        (),
        length,
        length,
        widths=WIDTHS,
        chunk=10,
    )
    np.testing.assert_array_equal(np.sort(width), [4] * (C - 2) + [20] * 2)
    assert width[11] == 20


# ---------------------------------------------------------------- devices, map_clients


def test_client_mesh():
    assert cohort.client_mesh().devices.size == len(jax.devices()) == 8
    assert cohort.client_mesh(3).devices.size == 3
    for wrong in (0, 9):
        with pytest.raises(ValueError, match=f"{wrong} devices asked for, but there are 8"):
            cohort.client_mesh(wrong)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("chunk", [1, 3, 100, None])
def test_map_clients(devices, chunk):
    mesh = None if devices == 1 else cohort.client_mesh(devices)
    inputs = (jnp.arange(13), jnp.arange(26.0).reshape(13, 2))
    found = cohort.map_clients(lambda x: (x[0] + 1, x[1].sum()), inputs, chunk=chunk, mesh=mesh)
    np.testing.assert_array_equal(found[0], np.arange(13) + 1)
    np.testing.assert_array_equal(found[1], np.arange(26.0).reshape(13, 2).sum(1))


def test_default_chunk():
    assert cohort.default_chunk() == cohort.CHUNK[jax.default_backend()]


def test_what_clients_keep_is_packed_and_unpacked_bit_for_bit():
    r = np.random.default_rng(0)
    kept = {
        dtype: jnp.asarray(r.normal(size=(4, *shape)) * 9).astype(dtype)
        for dtype, shape in {
            "bool": (3,),
            "int8": (2, 2),
            "float16": (5,),
            "bfloat16": (),
            "int32": (),
            "uint32": (2, 3),
            "float32": (3, 1),
        }.items()
    }
    kept["float32"] = kept["float32"].at[0, 0].set(jnp.nan)
    words = cohort._pack(kept, 4)
    assert words.shape == (4, 3 + 4 + 5 + 1 + 1 + 6 + 3)
    shapes = jax.eval_shape(lambda: kept)
    for found in (cohort._unpack(words, shapes), cohort._unpack(words[None], shapes)):
        for name, x in kept.items():
            assert found[name].dtype == x.dtype
            assert np.asarray(found[name]).tobytes() == np.asarray(x).tobytes()
    assert cohort._unpack(cohort._pack((), 4), ()) == ()


@pytest.mark.parametrize("devices", [1, 2])
def test_a_single_client_is_run_at_its_own_width_alone(devices):
    """XLA must not take what it does out of the loops of all the other widths."""
    mesh = None if devices == 1 else cohort.client_mesh(devices)
    ran = []

    def client(width, broadcast, one):
        def work(x):
            ran.append(width)
            return np.asarray(x)

        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(work, shape, one, vmap_method="expand_dims"), ()

    @jax.jit
    def fold(inputs, length):
        add, how = lambda acc, x: acc + x.sum(), {"widths": (1, 2, 3, 4), "chunk": 8, "mesh": mesh}
        return cohort.fold_clients(client, add, jnp.zeros(()), (), inputs, length, **how)[0]

    total = fold(jnp.arange(1.0, devices + 1), jnp.full(devices, 2, jnp.int32))
    assert total == sum(range(1, devices + 1))
    assert ran == [2] * devices
