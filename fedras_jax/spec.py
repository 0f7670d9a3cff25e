"""A declarative, JSON-able experiment: what flags build, what `run` takes, what is stored.

A Spec says what is simulated, never where or how: folders, chunk sizes and devices are arguments
of `run`, because they don't change the experiment.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedras_jax import registry
from fedras_jax.errors import ResultsError, SpecError

# What the data, its held-out items and their candidates depend on.
DATA_FIELDS = (
    "dataset",
    "dataset_args",
    "min_rating",
    "k_core",
    "validation",
    "candidates",
    "evaluate_on",
    "data_seed",
)
# Changing these continues, observes or permits the same experiment; the digest leaves them out.
NOT_IN_DIGEST = ("rounds", "eval_every", "feedback_gib", "flight_gib")
# Fields that came later: an empty one is left out too, so that digests stay what they were.
_LATER = ("client_optimizer_args", "dataset_args", "reducer_args", "server_optimizer_args")

SPLITS = ("test", "valid")


@dataclasses.dataclass(frozen=True)
class Spec:
    """One arm of an experiment. Defaults are the reference training on the bundled dataset.

    Values are kept as `plain` has them.

    Attributes:
      dataset: a name from `fedras_jax.data.datasets()`, 'synthetic:UxM', or a path.
      dataset_args: the header's names of its 'user', 'item', 'rating' and 'time', where they differ
        from the guesses of `data.read`; None ignores a column.
      min_rating: keep interactions rated at least this; all when None.
      k_core: drop clients and items with fewer interactions, until none is left; 0: keep all.
      validation: hold out a validation item too; None: unless the dataset brings its own split.
      candidates: sampled items to rank each held-out item among; 0 ranks all unseen items.
      evaluate_on: 'test' or 'valid', the held-out item to rank.
      model, model_args, dim: the recommender, its further arguments, its embedding width D.
      rounds: rounds R.
      sampler, sampler_args: who takes part; 'fixed_size' takes its size from `cohort_size`.
      cohort_size: clients a round C, 0 for all of them ('fixed_size' only).
      local_epochs, batch_size: passes over a client's examples, examples per minibatch.
      client_optimizer, client_optimizer_args, client_lr, weight_decay: local training.
      negatives: drawn negatives per training item.
      transforms: what happens to an update before the codec: ({"name": ..., **args}, ...).
      codec, codec_args: the payload.
      feedback_rows: rows of what codecs lost that each client remembers and adds to its next update
        (error feedback); 0: none.
      feedback_gib: memory that all clients' feedback may take.
      budget, budget_args: how many actions a client may send; 'fixed' without k: as many as the
        codec holds.
      profile, profile_args: the clients' devices and networks: 'ideal' (no time passes), a preset,
        or the path of a table with a line a client, or of a trace (`data.profile_file`),
        which takes `period`, s after which it begins anew.
      arrival, arrival_args: when a round ends, and whose payload counts.
      encode_work: examples whose training takes as long as encoding a row with one action.
      flight_gib: memory that payloads in flight may take on a device.
      downlink, downlink_args: the server's payload; 'dense' sends the whole public table.
      snapshot_bits: 32, or 4 to 8, bits an entry of the public table, as clients fetch it whole.
      downlink_trend: share of what the server sends that clients go on with by themselves, in every
        round from then on.
      downlink_feedback: whether what the downlink loses stays in the server's own table and is sent
        later; if not it is lost, as where aggregated updates are compressed without feedback.
      reducer, reducer_args: how payloads become one change of the table.
      server_optimizer, server_optimizer_args, server_lr: the server's step, fed the negated mean
        change.
      seed: addresses all randomness of training; the split and its candidates have `data_seed`,
        so that runs with different seeds are evaluated alike.
      data_seed: seed of splits, candidates and synthetic data.
      eval_every: rounds between evaluations; the last round is always evaluated.
    """

    dataset: str = "ml-latest-small-2016"
    dataset_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    min_rating: float | None = None
    k_core: int = 0
    validation: bool | None = None
    candidates: int = 99
    evaluate_on: str = "test"
    model: str = "mf"
    model_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dim: int = 64
    rounds: int = 400
    sampler: str = "fixed_size"
    sampler_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cohort_size: int = 60
    local_epochs: int = 2
    batch_size: int = 256
    client_optimizer: str = "sgd"
    client_optimizer_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    client_lr: float = 0.5
    weight_decay: float = 5e-4
    negatives: int = 4
    transforms: tuple[Mapping[str, Any], ...] = ()
    codec: str = "actions"
    codec_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    feedback_rows: int = 0
    feedback_gib: float = 4.0
    budget: str = "fixed"
    budget_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    profile: str = "ideal"
    profile_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arrival: str = "synchronous"
    arrival_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    encode_work: float = 0.2
    flight_gib: float = 4.0
    downlink: str = "dense"
    downlink_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    snapshot_bits: int = 32
    downlink_trend: float = 0.0
    downlink_feedback: bool = True
    reducer: str = "touched_mean"
    reducer_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    server_optimizer: str = "sgd"
    server_optimizer_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    server_lr: float = 1.0
    seed: int = 0
    data_seed: int = 0
    eval_every: int = 50

    def __post_init__(self):
        """Check every name and value.

        Raises:
          SpecError: says which field, what was found and what would do.
        """
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        _check_types(self)
        for field in dataclasses.fields(self):  # 1 and 1.0 are the same experiment
            value = getattr(self, field.name)
            if field.type in (float, float | None) and value is not None:
                object.__setattr__(self, field.name, float(value))
        for name in ("dim", "rounds", "local_epochs", "batch_size", "eval_every"):
            _at_least(self, name, 1)
        for name in (
            *("k_core", "candidates", "cohort_size", "negatives", "seed", "data_seed"),
            "feedback_rows",
        ):
            _at_least(self, name, 0)
        for name in ("client_lr", "server_lr", "feedback_gib", "encode_work", "flight_gib"):
            _at_least(self, name, 0.0)
        if not 0 <= self.weight_decay < math.inf:
            raise SpecError(f"weight_decay must be a number >= 0, not {self.weight_decay}")
        if max(self.seed, self.data_seed) >= 2**31:
            raise SpecError("seeds must be below 2**31")
        for role, name in self.dataset_args.items():
            if name is not None and not isinstance(name, str):
                raise SpecError(f"dataset_args: {role} must be a column's name, not {name!r}")
        if self.evaluate_on not in SPLITS:
            raise SpecError(f"evaluate_on must be one of {SPLITS}, not {self.evaluate_on!r}")
        if self.evaluate_on == "valid" and self.validation is False:
            raise SpecError("evaluate_on='valid' needs a validation item: leave validation on")
        registry.build("codec", registry.CODECS, self.codec, **self.codec_args)
        registry.downlink(self.downlink, self.downlink_args)
        registry.snapshot(self.snapshot_bits)
        registry.build("model", registry.MODELS, self.model, self.dim, **self.model_args)
        registry.build("reducer", registry.REDUCERS, self.reducer, **self.reducer_args)
        registry.build(
            "client_optimizer",
            registry.CLIENT_OPTIMIZERS,
            self.client_optimizer,
            *(self.client_lr, self.weight_decay),
            **self.client_optimizer_args,
        )
        registry.build(
            "server_optimizer",
            registry.SERVER_OPTIMIZERS,
            self.server_optimizer,
            self.server_lr,
            **self.server_optimizer_args,
        )
        registry.lookup("sampler", registry.SAMPLERS, self.sampler)
        registry.build("budget", registry.BUDGETS, self.budget, **self.budget_args)
        registry.build("arrival", registry.ARRIVALS, self.arrival, **self.arrival_args)
        if not 0 <= self.downlink_trend < 1:
            raise SpecError(f"downlink_trend must be in [0, 1), not {self.downlink_trend}")
        if self.downlink_trend and self.downlink == "dense":
            raise SpecError("downlink_trend: a dense downlink has no use for it, choose a codec")
        if not self.downlink_feedback and self.downlink == "dense" and self.snapshot_bits == 32:
            raise SpecError("downlink_feedback: a dense downlink in float32 loses nothing")
        _check_profile(self)
        if self.sampler == "fixed_size" and "size" in self.sampler_args:
            raise SpecError("sampler_args: the size of a cohort is cohort_size")
        for entry in self.transforms:
            if not isinstance(entry, Mapping) or "name" not in entry:
                raise SpecError(f"transforms: each needs a name, got {entry!r}")
            rest = {k: v for k, v in entry.items() if k != "name"}
            registry.build("transform", registry.TRANSFORMS, entry["name"], **rest)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Spec":
        """From `to_json`'s form; missing fields take their defaults.

        Raises:
          SpecError: a field that does not exist, or a value that does not fit.
        """
        _check_names(fields)
        return cls(**fields)

    def replace(self, **changes: Any) -> "Spec":
        """A Spec with some fields changed.

        Raises:
          SpecError: a field that does not exist, or a value that does not fit.
        """
        _check_names(changes)
        return dataclasses.replace(self, **changes)

    def digest(self) -> str:
        """12 hex digits that name the experiment, whatever the fields of `NOT_IN_DIGEST`."""
        fields = {
            name: value
            for name, value in self.to_json().items()
            if name not in NOT_IN_DIGEST and (value or name not in _LATER)
        }
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]

    def differences(self, other: "Spec") -> list[str]:
        """The fields in which two experiments differ, as 'name: mine, not theirs'."""
        mine, theirs = self.to_json(), other.to_json()
        return [
            f"{name}: {theirs[name]!r}, not {mine[name]!r}"
            for name in mine
            if mine[name] != theirs[name] and name not in NOT_IN_DIGEST
        ]

    def require_same(self, other: "Spec", found: str, advice: str) -> None:
        """Refuse what belongs to another experiment.

        Args:
          other: whose it is.
          found: what it is, as in 'FOLDER already holds another experiment'.
          advice: what would do.

        Raises:
          ResultsError: the experiments differ, with the fields in which they do.
        """
        if other.digest() != self.digest():
            raise ResultsError(f"{found} ({'; '.join(self.differences(other))}): {advice}")


def plain(value: Any) -> Any:
    """NumPy's values as Python's, lists as tuples, paths as text; in mappings and lists too."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


_ACCEPTED: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    str: ((str,), "a string"),
    float | None: ((int, float, type(None)), "a number or None"),
    bool: ((bool,), "True or False"),
    bool | None: ((bool, type(None)), "True, False or None"),
    Mapping[str, Any]: ((Mapping,), "a mapping of arguments"),
    tuple[Mapping[str, Any], ...]: ((tuple,), "a tuple of mappings"),
}


def _check_names(fields: Mapping[str, Any]) -> None:
    known = [f.name for f in dataclasses.fields(Spec)]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise SpecError(f"unknown field {unknown[0]!r} in a Spec: it has {', '.join(known)}")


def _check_types(spec: Spec) -> None:
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        types, words = _ACCEPTED[field.type]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise SpecError(f"{field.name} must be {words}, not {value!r}")


_LONGEST = 2.0**127  # seconds; near the end of float32


def _check_profile(spec: Spec) -> None:
    if spec.profile in registry.PROFILES:
        registry.build("profile", registry.PROFILES, spec.profile, 1, **spec.profile_args)
        return
    is_file = registry.is_file(spec.profile)
    if not is_file:
        registry.lookup("profile", {**registry.PROFILES, "ideal": lambda: None}, spec.profile)
    if other := sorted(set(spec.profile_args) - ({"period"} if is_file else set())):
        raise SpecError(f"profile {spec.profile!r} takes no profile_args {', '.join(other)}")
    period = spec.profile_args.get("period", 1)
    number = isinstance(period, int | float) and not isinstance(period, bool)
    if not number or not 0 < period <= _LONGEST:
        raise SpecError(f"profile_args: period must be positive seconds, not {period!r}")


def _at_least(spec: Spec, name: str, low: float) -> None:
    value = getattr(spec, name)
    if not low <= value < math.inf:
        raise SpecError(f"{name} must be at least {low}, not {value}")
