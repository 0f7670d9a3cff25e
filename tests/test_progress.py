"""The bar says that there is none before anything has begun, also where others wait for it."""

import sys

import pytest

from fedras_jax.errors import SpecError
from fedras_jax.progress import Progress, bar


def test_a_bar_without_tqdm_is_refused_where_it_is_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with bar("dense", 3, enabled=False) as show:
        show(Progress(1, {}))
    with pytest.raises(SpecError, match="a progress bar needs tqdm"):
        bar("dense", 3, enabled=True)
