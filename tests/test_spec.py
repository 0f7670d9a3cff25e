import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from fedras_jax import reducers, registry
from fedras_jax.errors import ResultsError, SpecError
from fedras_jax.spec import Spec
from fedras_jax.types import Number


def test_round_trips_through_json():
    spec = Spec(
        codec="directional",
        codec_args={"k": 4, "dtype": "float32"},
        transforms=({"name": "clip_norm", "max_norm": 2.0},),
        sampler_args={},
        seed=7,
    )
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_digest_names_the_experiment_and_not_its_length():
    spec = Spec()
    assert spec.replace(rounds=7, eval_every=3).digest() == spec.digest()
    assert spec.replace(seed=1).digest() != spec.digest()
    assert spec.replace(codec_args={"k": 4}).digest() != spec.digest()


def test_fields_that_came_later_leave_digests_alone_while_they_are_empty():
    assert Spec().digest() == "9006b511bc24"
    assert Spec(server_optimizer="momentum", seed=3).digest() == "a30e5a2e1def"
    optimized = Spec(server_optimizer="momentum", server_optimizer_args={"decay": 0.9})
    assert optimized.digest() != Spec(server_optimizer="momentum").digest()


def test_an_own_reducers_arguments_are_checked(monkeypatch):
    def own(share: Number = 0.5, power: int = 1):
        return reducers.touched_mean()

    monkeypatch.setitem(registry.REDUCERS, "own", own)
    Spec(reducer="own", reducer_args={"share": 1, "power": 2})
    for args, message in (
        ({"share": "x"}, "reducer 'own': share must be a number, not 'x'"),
        ({"power": 0.5}, "reducer 'own': power must be an integer, not 0.5"),
        ({"part": 1}, "its arguments are: share=0.5, power=1"),
    ):
        with pytest.raises(SpecError, match=message):
            Spec(reducer="own", reducer_args=args)


def test_differences_name_the_fields():
    assert Spec(seed=1).differences(Spec(seed=2, rounds=9)) == ["seed: 2, not 1"]


def test_what_belongs_to_another_experiment_is_refused_with_the_difference():
    spec = Spec(seed=1)
    spec.require_same(spec.replace(rounds=9), "F is of another", "take G")
    with pytest.raises(ResultsError, match=r"^F is of another \(seed: 2, not 1\): take G$"):
        spec.require_same(Spec(seed=2), "F is of another", "take G")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": "zip"}, "unknown codec 'zip': choose one of actions, colr, count_sketch, dense"),
        ({"downlink": "zip"}, "unknown codec 'zip': choose one of actions, "),
        (
            {"downlink": "ternary"},
            "codec 'ternary' cannot be a downlink: its noise exceeds what it is given",
        ),
        ({"downlink": "colr"}, "the server's change does not lie in the round's basis"),
        (
            {"downlink": "dense", "downlink_args": {"dtype": "float16"}},
            "downlink 'dense' sends the public table itself, without {'dtype': 'float16'}",
        ),
        ({"downlink": "actions", "downlink_args": {"k": 0}}, "actions: k must be 1 to 65535"),
        ({"snapshot_bits": 16}, "snapshot_bits must be one of [32, 4, 5, 6, 7, 8], not 16"),
        ({"downlink_feedback": False}, "downlink_feedback: a dense downlink in float32 loses"),
        ({"feedback_rows": -1}, "feedback_rows must be at least 0, not -1"),
        ({"model": "gcn"}, "unknown model 'gcn': choose one of gmf, mf"),
        ({"reducer": "sum"}, "unknown reducer 'sum': choose one of cohort_mean, touched_mean"),
        ({"sampler": "all"}, "unknown sampler 'all': choose one of fixed_size, poisson"),
        ({"client_optimizer": "lion"}, "unknown client_optimizer 'lion': choose one of adamw, sgd"),
        ({"server_optimizer": "x"}, "unknown server_optimizer 'x': choose one of adagrad, adam"),
        ({"reducer_args": {"share": 1}}, "reducer 'touched_mean': got an unexpected keyword"),
        ({"client_optimizer_args": {"b1": 0.5}}, "client_optimizer 'sgd': got an unexpected"),
        (
            {"client_optimizer": "adamw", "client_optimizer_args": {"beta": 0.5}},
            "its arguments are: b1=0.9, b2=0.999, eps=1e-08",
        ),
        (
            {"client_optimizer": "adamw", "client_optimizer_args": {"b1": 1}},
            "adamw: b1 must be in [0, 1), not 1",
        ),
        ({"server_optimizer_args": {"decay": 0.5}}, "its arguments are: none"),
        (
            {"server_optimizer": "adam", "server_optimizer_args": {"learning_rate": 0.5}},
            "multiple values for argument 'learning_rate'; its arguments are: b1=0.9, b2=0.999",
        ),
        (
            {"server_optimizer": "momentum", "server_optimizer_args": {"decay": "x"}},
            "server_optimizer 'momentum': decay must be a number, not 'x'",
        ),
        ({"codec_args": {"q": 3}}, "its arguments are: k=16, index='touched', dtype='float32'"),
        ({"codec": "dense", "codec_args": {"k": 3}}, "its arguments are: dtype='float32'"),
        ({"codec_args": {"k": 16.5}}, "codec 'actions': k must be an integer, not 16.5"),
        ({"codec_args": {"k": True}}, "codec 'actions': k must be an integer, not True"),
        ({"codec_args": {"name": 3}}, "its arguments are: k=16, index="),
        (
            {"downlink": "quantized", "downlink_args": {"bits": "x"}},
            "codec 'quantized': bits must be an integer, not 'x'",
        ),
        (
            {"downlink": "quantized", "downlink_args": {"bits": 2}},
            "codec 'quantized' with 2 bits cannot be a downlink",
        ),
        ({"sampler_args": {"size": 3}}, "the size of a cohort is cohort_size"),
        ({"feedback_gib": math.nan}, "feedback_gib must be at least 0.0, not nan"),
        ({"codec_args": {"k": 0}}, "actions: k must be 1 to 65535, not 0"),
        ({"codec_args": {"k": "many"}}, "codec 'actions': k must be an integer, not 'many'"),
        ({"codec_args": {"dtype": "int3"}}, "dtype must be one of ['float32', 'float16']"),
        ({"rounds": 0}, "rounds must be at least 1, not 0"),
        ({"rounds": 2.5}, "rounds must be an integer, not 2.5"),
        ({"rounds": True}, "rounds must be an integer, not True"),
        ({"client_lr": math.nan}, "client_lr must be at least 0.0, not nan"),
        ({"weight_decay": -1.0}, "weight_decay must be a number >= 0, not -1.0"),
        ({"cohort_size": -5}, "cohort_size must be at least 0, not -5"),
        ({"seed": 2**31}, "seeds must be below 2**31"),
        ({"evaluate_on": "train"}, "evaluate_on must be one of ('test', 'valid')"),
        ({"evaluate_on": "valid", "validation": False}, "needs a validation item"),
        ({"transforms": ({"max_norm": 1.0},)}, "transforms: each needs a name"),
        ({"transforms": ({"name": "noise"},)}, "unknown transform 'noise'"),
        ({"transforms": ["noise"]}, "transforms: each needs a name, got 'noise'"),
        ({"transforms": {"name": "clip_norm"}}, "transforms must be a tuple of mappings"),
        ({"rounds": np.float64(2.5)}, "rounds must be an integer, not 2.5"),
        ({"codec_args": {"k": np.float64(4)}}, "k must be an integer, not 4.0"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(SpecError) as e:
        Spec(**changes)
    assert message in str(e.value)


def test_unknown_field_lists_those_that_exist():
    with pytest.raises(SpecError, match="unknown field 'learning_rate' in a Spec: it has dataset,"):
        Spec.from_json({"learning_rate": 0.1})

    with pytest.raises(SpecError, match="unknown field 'round' in a Spec: it has dataset,"):
        Spec().replace(round=3)


def test_values_of_numpy_lists_and_paths_are_plain():
    plain = Spec(
        dataset="d/r.csv",
        rounds=5,
        validation=False,
        client_lr=0.25,
        codec_args={"k": 5},
        budget="schedule",
        budget_args={"k": (2, 4), "until": (1,)},
        transforms=({"name": "clip_norm", "max_norm": 2.0},),
    )
    odd = Spec(
        dataset=Path("d") / "r.csv",  # type: ignore[arg-type]
        rounds=np.int64(5),  # type: ignore[arg-type]
        validation=np.bool_(False),  # type: ignore[arg-type]
        client_lr=np.float32(0.25),  # type: ignore[arg-type]
        codec_args={"k": np.int64(5)},
        budget="schedule",
        budget_args={"k": np.array([2, 4]), "until": [1]},
        transforms=[{"name": "clip_norm", "max_norm": np.float64(2)}],  # type: ignore[arg-type]
    )
    assert odd == plain == Spec.from_json(json.loads(json.dumps(odd.to_json())))
    assert odd.digest() == plain.digest()
    assert type(odd.rounds) is type(odd.codec_args["k"]) is int
    assert pickle.loads(pickle.dumps(odd)) == plain


def test_every_codec_is_a_downlink_or_has_a_reason_not_to_be():
    assert set(registry.DOWNLINKS) | set(registry.NOT_DOWNLINKS) == set(registry.CODECS)
    assert not set(registry.DOWNLINKS) & set(registry.NOT_DOWNLINKS)


def test_a_trace_has_a_period_and_nothing_else():
    Spec(profile="trace.csv", profile_args={"period": 60})
    for args, message in (
        ({"failure": 0.1}, "profile 'trace.csv' takes no profile_args failure"),
        ({"period": 0}, "period must be positive seconds, not 0"),
        ({"period": "day"}, "period must be positive seconds, not 'day'"),
        ({"period": float("inf")}, "period must be positive seconds, not inf"),
        ({"period": True}, "period must be positive seconds, not True"),
        ({"period": 10**400}, "period must be positive seconds, not 1000"),
        ({"period": 1e39}, r"period must be positive seconds, not 1e\+39"),
    ):
        with pytest.raises(SpecError, match=message):
            Spec(profile="trace.csv", profile_args=args)
    with pytest.raises(SpecError, match="profile 'ideal' takes no profile_args period"):
        Spec(profile_args={"period": 60})
