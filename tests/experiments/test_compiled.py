"""Where the binaries keep compiled programs."""

from pathlib import Path

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import compiled
from fedras_jax.errors import SpecError

OPTIONS = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")


@pytest.fixture
def keep(monkeypatch):
    """`compiled.keep` for a value of the flag; what it tells JAX is taken back."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)

    def call(asked=None):
        with flagsaver.flagsaver(compilation_cache=asked):
            return compiled.keep()

    yield call
    for name, value in before.items():
        jax.config.update(name, value)


def test_by_default_in_the_users_cache_folder(keep, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = keep()
    assert folder.is_dir()
    assert folder.parent == tmp_path / "cache" / "fedras_jax"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert keep() == folder  # the same machine, the same folder


def test_a_folder_of_ones_own(keep, tmp_path):
    assert keep(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "a" / "b")


def test_the_environment_comes_before_the_default_and_after_the_flag(keep, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "environment"))
    assert keep() == tmp_path / "environment"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "environment")
    assert keep(str(tmp_path / "flag")) == tmp_path / "flag"


def test_a_folder_of_the_environments_must_be_writable_too(keep, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(SpecError, match=r"^JAX_COMPILATION_CACHE_DIR=.*can be written to"):
        keep()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/cache")
    assert keep() is not None  # JAX's to check


def test_none_keeps_nothing(keep, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert keep("none") is None
    assert not jax.config.jax_enable_compilation_cache
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_to_is_an_error_only_if_it_was_asked_for(
    keep, tmp_path, monkeypatch
):
    file = tmp_path / "file"
    file.write_text("in the way")
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert keep() is None
    for asked in (str(file), ""):
        with pytest.raises(SpecError, match=r"--compilation_cache=.*can be written to"):
            keep(asked)

    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert keep() is None
    assert jax.config.jax_compilation_cache_dir == before
