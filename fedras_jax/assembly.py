"""From a Spec to functions: its data, its algorithm, and what its compiled program is told.

Two Specs share one compiled program if they differ in numbers alone: the seed, learning rates and
other floats, and what clients' devices and networks are like. `arguments` are those numbers of a
Spec, `program` is all the rest of it.
"""

import inspect
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedras_jax import client, evaluate, factored, registry, rounds
from fedras_jax.codecs.feedback import error_feedback
from fedras_jax.data import Interactions, Split, leave_one_out, load
from fedras_jax.data.profile_file import read_profile
from fedras_jax.data.split import padded
from fedras_jax.errors import SpecError
from fedras_jax.spec import DATA_FIELDS, NOT_IN_DIGEST, Spec
from fedras_jax.types import (
    Algorithm,
    Arguments,
    Array,
    Codec,
    FedState,
    Histories,
    LocalTraining,
    Number,
    Profile,
    RecModel,
    Trace,
)

_NUMBERS = ("client_lr", "weight_decay", "server_lr", "encode_work")
# Fields whose factories take numbers too, and how many of the Spec's own come first.
_FACTORIES: dict[str, tuple[registry.Factories, int]] = {
    "budget": (registry.BUDGETS, 0),
    "arrival": (registry.ARRIVALS, 0),
    "reducer": (registry.REDUCERS, 0),
    "client_optimizer": (registry.CLIENT_OPTIMIZERS, 2),
    "server_optimizer": (registry.SERVER_OPTIMIZERS, 1),
}


def arguments(spec: Spec, n_clients: int) -> Arguments:
    """A Spec's numbers, as host arrays.

    Raises:
      DataError: a profile's file that cannot be read, or that knows too few clients.
    """
    return Arguments(
        seed=np.asarray(spec.seed, np.uint32),
        numbers={path: np.asarray(x, np.float32) for path, x in _numbers(spec).items()},
        profile=profile_of(spec, n_clients),
    )


def program(spec: Spec) -> str:
    """All that a compiled program depends on: equal texts share one."""
    fields = spec.to_json()
    for path in ("seed", "evaluate_on", *_numbers(spec)):
        name, _, entry = path.partition(".")
        if entry:
            fields[name].pop(entry, None)
        else:
            del fields[name]
    del fields["profile_args"]
    if not registry.is_file(spec.profile):  # traces differ in their lengths
        fields["profile"] = spec.profile != "ideal"
    return json.dumps({k: v for k, v in fields.items() if k not in NOT_IN_DIGEST}, sort_keys=True)


def _numbers(spec: Spec) -> dict[str, float]:
    """Numbers that may be tracers, by their path: a Spec's own, and those of what it names."""
    found = {name: getattr(spec, name) for name in _NUMBERS}
    for kind, (factories, n_own) in _FACTORIES.items():
        given = getattr(spec, f"{kind}_args")
        parameters = inspect.signature(factories[getattr(spec, kind)]).parameters.values()
        for parameter in list(parameters)[n_own:]:
            if parameter.annotation == Number:
                value = given.get(parameter.name, parameter.default)
                found[f"{kind}_args.{parameter.name}"] = value
    return found


def interactions_of(spec: Spec, data_dir: str | os.PathLike | None = None) -> Interactions:
    """The dataset that a Spec names, filtered as it says.

    Raises:
      DataError: it cannot be found or read.
    """
    return load(
        spec.dataset,
        data_dir=data_dir,
        columns=spec.dataset_args,
        min_rating=spec.min_rating,
        k_core=spec.k_core,
        seed=spec.data_seed,
    )


def split_of(
    spec: Spec,
    *,
    data_dir: str | os.PathLike | None = None,
    interactions: Interactions | None = None,
) -> Split:
    """The training, validation and test items that a Spec asks for.

    Args:
      spec: the experiment.
      data_dir: where datasets lie.
      interactions: the dataset itself, instead of loading it.

    Raises:
      DataError: the dataset cannot be found or read.
    """
    if interactions is None:
        interactions = interactions_of(spec, data_dir)
    return leave_one_out(
        interactions,
        validation=True if spec.evaluate_on == "valid" else spec.validation,
        n_candidates=spec.candidates,
        seed=spec.data_seed,
    )


def data_key(spec: Spec) -> tuple[Any, ...]:
    """What a Spec's data depends on: whichever item is ranked, it is the same data."""
    validation = True if spec.evaluate_on == "valid" else spec.validation
    fields = {name: getattr(spec, name) for name in DATA_FIELDS if name != "evaluate_on"}
    columns = tuple(sorted(spec.dataset_args.items()))
    return tuple((fields | {"validation": validation, "dataset_args": columns}).values())


def histories(split: Split) -> Histories:
    """The clients' training items, as a program reads them.

    Raises:
      SpecError: 2**31 or more.
    """
    if split.items.size >= 2**31:
        raise SpecError(
            f"{split.items.size:,} training items are too many to lie on a device: make a store "
            "(experiments.convert) and use experiments.stream"
        )
    return Histories(
        offset=jnp.asarray(split.offsets, jnp.int32), item=jnp.asarray(split.items, jnp.int32)
    )


def assemble(
    spec: Spec,
    split: Split,
    *,
    given: Arguments | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    spread_items: bool = False,
) -> tuple[RecModel, Algorithm, Histories]:
    """The functions that a Spec names, put together for this data, and the data.

    Args:
      spec: the experiment.
      split: its data.
      given: numbers instead of the Spec's own; they may be tracers, so that one program serves all
        Specs that differ in them.
      chunk, mesh, spread_items: as in `rounds.federated`.

    Raises:
      SpecError: sizes that do not fit together.
    """
    if given is None:
        seed: Any = spec.seed
        numbers: dict[str, Any] = _numbers(spec)
        profile = profile_of(spec, split.n_clients)
    else:
        seed, numbers, profile = given.seed, dict(given.numbers), given.profile

    def numbered(kind: str, *own: Any) -> Any:
        return _numbered(spec, kind, numbers, *own)

    def named(kind: str, factories: registry.Factories, *args: Any, **kwargs: Any) -> Any:
        return registry.build(kind, factories, getattr(spec, kind), *args, **kwargs)

    model = named("model", registry.MODELS, spec.dim, **spec.model_args)
    size = {"size": spec.cohort_size} if spec.sampler == "fixed_size" else {}
    algorithm = rounds.federated(
        model=model,
        n_clients=split.n_clients,
        n_items=split.n_items,
        history_lengths=np.diff(split.offsets),
        training=local_training(spec, model, numbers),
        codec=_uplink(spec, split.n_clients),
        sampler=named("sampler", registry.SAMPLERS, split.n_clients, **size, **spec.sampler_args),
        seed=seed,
        negatives=spec.negatives,
        budget=numbered("budget"),
        transforms=[_transform(**entry) for entry in spec.transforms],
        profile=profile,
        arrival=numbered("arrival"),
        encode_work=numbers["encode_work"],
        flight_gib=spec.flight_gib,
        reducer=numbered("reducer"),
        downlink=registry.downlink(spec.downlink, spec.downlink_args),
        snapshot=registry.snapshot(spec.snapshot_bits),
        downlink_trend=spec.downlink_trend,
        downlink_feedback=spec.downlink_feedback,
        server_optimizer=numbered("server_optimizer", numbers["server_lr"]),
        chunk=chunk,
        mesh=mesh,
        spread_items=spread_items,
    )
    return model, algorithm, histories(split)


def profile_of(spec: Spec, n_clients: int) -> Profile | Trace | None:
    """The clients' devices and networks; None for 'ideal'.

    Raises:
      SpecError: arguments that do not fit.
      DataError: a file that cannot be read, or that knows too few clients.
    """
    if spec.profile == "ideal":
        return None
    if spec.profile in registry.PROFILES:
        return registry.build(
            "profile", registry.PROFILES, spec.profile, n_clients, **spec.profile_args
        )
    return read_profile(spec.profile, n_clients, **spec.profile_args)


def tiers_of(spec: Spec, n_clients: int) -> np.ndarray | None:
    """The clients' kinds of device, i32[U], of a trace those at its beginning; None for 'ideal'.

    Raises:
      SpecError, DataError: as `profile_of`.
    """
    found = profile_of(spec, n_clients)
    if isinstance(found, Trace):
        return np.asarray(found.stretch.tier)[found.offset[:-1]]
    return None if found is None else np.asarray(found.tier)


def local_training(
    spec: Spec, model: RecModel, numbers: Mapping[str, Any] | None = None
) -> LocalTraining:
    """The factored client where it computes the same, the generic one otherwise.

    Args:
      spec: the experiment.
      model: its model.
      numbers: by their paths, instead of the Spec's; they may be tracers.
    """
    numbers = _numbers(spec) if numbers is None else numbers
    lr, weight_decay = numbers["client_lr"], numbers["weight_decay"]
    static = {"epochs": spec.local_epochs, "batch_size": spec.batch_size}
    if model.is_dot_product and spec.client_optimizer == "sgd":
        return factored.factored(model, lr, weight_decay, **static)
    optimizer = _numbered(spec, "client_optimizer", numbers, lr, weight_decay)
    return client.autodiff(model, optimizer, **static)


def held_out(spec: Spec, split: Split) -> np.ndarray:
    """The items that clients are evaluated on, i32[U], -1 for none.

    Raises:
      SpecError: there is none at all.
    """
    items = split.test if spec.evaluate_on == "test" else split.valid
    if not (items >= 0).any():
        raise SpecError(
            f"{split.name}: no client has a {spec.evaluate_on} item, so there is nothing to "
            "evaluate: every client has too few interactions"
        )
    return np.asarray(items, np.int32)


def n_candidates(spec: Spec, split: Split) -> np.ndarray:
    """How many items each client's held-out item is ranked against, i64[U].

    Fewer than `spec.candidates` where there are fewer that a client has not seen.
    """
    if split.candidates is not None:
        return (split.candidates >= 0).sum(axis=1)
    seen = np.diff(split.offsets) + (split.valid >= 0) + (split.test >= 0)
    unseen = split.n_items - seen
    return np.minimum(unseen, spec.candidates) if spec.candidates else unseen


def ranking(
    split: Split, model: RecModel, mesh: Mesh | None = None
) -> Callable[[FedState, Array], Array]:
    """(state, held-out items i32[U]) -> their ranks, all clients, whom a mesh's devices share."""
    rows = split.candidates
    ranks = evaluate.full_ranks if rows is None else evaluate.sampled_ranks
    if rows is None:
        rows = padded(split.offsets, split.items, split.valid, split.test)
    others = jnp.asarray(rows, jnp.int32)

    def of(state, target):
        own = (state.clients, target, others)
        return ranks(model, state.public, state.shared, *own, mesh=mesh)

    return of


def _numbered(spec: Spec, kind: str, numbers: Mapping[str, Any], *own: Any) -> Any:
    """What a Spec names of a kind, with these numbers and, in front, some of its own."""
    prefix = f"{kind}_args."
    floats = {k.removeprefix(prefix): v for k, v in numbers.items() if k.startswith(prefix)}
    args = {**getattr(spec, f"{kind}_args"), **floats}
    return registry.build(kind, _FACTORIES[kind][0], getattr(spec, kind), *own, **args)


def _transform(name: str, **args: Any) -> Any:
    return registry.build("transform", registry.TRANSFORMS, name, **args)


def _uplink(spec: Spec, n_clients: int) -> Codec:
    """The codec of a Spec, with error feedback where it asks for it."""
    codec = registry.build("codec", registry.CODECS, spec.codec, **spec.codec_args)
    if not spec.feedback_rows:
        return codec
    size = n_clients * spec.feedback_rows * 4 * (spec.dim + 1)
    if size > spec.feedback_gib * 2**30:
        raise SpecError(
            f"feedback_rows={spec.feedback_rows} for {n_clients} clients takes "
            f"{size / 2**30:.1f} GiB, above feedback_gib={spec.feedback_gib:g}: remember fewer "
            "rows, or allow more memory"
        )
    return error_feedback(codec, spec.feedback_rows)
