"""What flags make of an experiment."""

import pytest
from absl import flags as absl_flags

from experiments import flags
from fedras_jax import registry, transforms
from fedras_jax.errors import SpecError


@pytest.fixture
def spec_of():
    """Parses flags, in this process, and returns the Spec that they describe."""
    values = absl_flags.FLAGS
    saved = {name: values[name].value for name in values}

    def parse(*arguments):
        values.unparse_flags()
        values(["run", *arguments])
        return flags.spec_from_flags()

    yield parse
    values.unparse_flags()
    for name, value in saved.items():
        values[name].value = value
        values[name].present = 0


def test_reducers_and_optimizers_take_arguments(spec_of):
    spec = spec_of(
        *("--server_optimizer=adam", "--server_optimizer_arg=b1=0.5"),
        *("--server_optimizer_arg=eps=1e-3", "--client_optimizer=adamw"),
        "--client_optimizer_arg=b2=0.9",
    )
    assert spec.server_optimizer_args == {"b1": 0.5, "eps": 1e-3}
    assert spec.client_optimizer_args == {"b2": 0.9}
    with pytest.raises(SpecError, match=r"reducer 'touched_mean': .*; its arguments are: none"):
        spec_of("--reducer_arg=share=0.5")


def test_registered_transforms_are_chosen_by_flag(spec_of, monkeypatch):
    monkeypatch.setitem(registry.TRANSFORMS, "own", lambda: transforms.clip_norm(1.0))
    spec = spec_of("--transform=own", "--transform=pseudo_items:share=0.5,rows=zero")
    assert spec.transforms == (
        {"name": "own"},
        {"name": "pseudo_items", "share": 0.5, "rows": "zero"},
    )


def test_transforms_come_after_those_with_flags_of_their_own(spec_of):
    spec = spec_of("--transform=clip_norm:max_norm=2.0", "--pseudo_items=1", "--clip_norm=3")
    assert [entry["name"] for entry in spec.transforms] == [
        *("clip_norm", "pseudo_items", "clip_norm")
    ]
    assert spec.transforms[0]["max_norm"] == 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noise", "unknown transform 'noise': choose one of clip_norm, pseudo_items"),
        ("clip_norm", "its arguments are: max_norm"),
        ("clip_norm:2", "--transform=2: expected NAME=VALUE"),
    ],
)
def test_mistakes_in_a_transform(spec_of, text, message):
    with pytest.raises(SpecError, match=message):
        spec_of(f"--transform={text}")
