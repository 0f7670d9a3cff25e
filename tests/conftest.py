"""What must happen before the library is imported, in every test.

An import hook checks every annotated shape and type at each call, in the whole suite. Eight CPU
devices exist, so that sharding can be tested without any other. Compiled programs are kept in
`.pytest_cache`, which makes a second run three times as fast.
"""

import gc
import os
import sys
from pathlib import Path

# LLVM does not optimise what tests compile, and loops become LLVM's code without MLIR in between,
# which leaves less than a third of the time. XLA's own passes, which fuse and reorder, are those of
# users; `OPTIMISED` in `toys` is for tests that need the last instruction to be.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)

import jax
import pytest
from jaxtyping import install_import_hook

# Traces are many small objects that live long, and each collection looks at all of them.
gc.set_threshold(100_000, 50, 100)

if any(name.split(".")[0] == "fedras_jax" for name in sys.modules):
    raise RuntimeError("fedras_jax was imported before the type checks could be installed")

# Neither `data`, which annotates no shapes and holds a protocol that cannot be checked, nor
# `types`, whose bundles grow axes and hold anything that a tree may: NumPy arrays, shapes, specs;
# nor `spec`, which checks its own types, with messages for users.
_PACKAGE = Path(__file__).parents[1] / "fedras_jax"
_CHECKED = [p.stem for p in _PACKAGE.glob("*.py") if p.stem not in ("__init__", "spec", "types")]
install_import_hook(
    [f"fedras_jax.{name}" for name in (*_CHECKED, "codecs", "models", "native.forms", "results")],
    "typecheck.checked",
)
jax.config.update("jax_num_cpu_devices", 8)
# Programs that several tests compile, in this process or another one, are compiled once.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "programs"
    # By the environment too, for binaries that tests start.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_PROGRAMS)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    jax.config.update("jax_compilation_cache_dir", str(_PROGRAMS))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# Where most of the time goes: these begin, so that no process is left alone with one of them.
_LONGEST = [
    "test_binaries.py",
    "test_rounds_in_time.py",
    "test_contract.py",
    "test_determinism.py",
    "test_sweeps.py",
    "test_docs.py",
    "test_notebooks.py",
    "test_engines.py",
    "test_run.py",
    "test_rounds.py",
    "test_shards.py",
    "test_hosts.py",
    "test_stopping.py",
]
# A file and the other one whose compiled programs it uses: one process runs both.
_USES = {"tests/codecs/test_wire.py": "tests/codecs/test_contract.py"}


def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    class ByUse(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return _USES.get(file, file)

    if config.getoption("dist") != "loadfile":
        return None  # as the command line says
    config.option.loadscopereorder = False  # the order above
    return ByUse(config, log)
