"""What every codec's module must say of it."""

import importlib
import inspect
import pkgutil
import re

import pytest

from fedras_jax import codecs, registry

MODULES = sorted(module.name for module in pkgutil.iter_modules(codecs.__path__))


def said(name: str) -> str:
    """The module's docstring as one line."""
    return " ".join((importlib.import_module(f"fedras_jax.codecs.{name}").__doc__ or "").split())


@pytest.mark.parametrize("name", MODULES)
def test_a_codec_says_what_it_is(name):
    text = said(name)
    for what in ("State:", "Biased|[Uu]nbiased", "Support:", "The server can read:", "Sources?:"):
        assert re.search(what, text), f"{name} does not say {what}"


@pytest.mark.parametrize("name", registry.CODECS)
def test_a_codec_says_what_it_declares(name):
    factory = registry.CODECS[name]
    (support,) = re.findall(r"Support: (?:an? )?(\w+)", said(name))
    assert factory().support == support
    if factory().unbiased:
        assert "Unbiased" in said(name)
    else:
        assert re.search("Biased|Nearly unbiased", said(name))
    scales = inspect.signature(factory).parameters.get("scale")
    if scales is not None and factory(scale="payload").support != support:
        assert f"with a scale a payload a {factory(scale='payload').support}" in said(name)
