"""What must happen before the library is imported, in every test.

An import hook checks every annotated shape and type at each call, in the whole suite. Eight CPU
devices exist, so that sharding can be tested without any other. Compiled programs are kept in
`.pytest_cache`, which makes a second run three times as fast.
"""

import os
import sys
from pathlib import Path

# LLVM does not optimise what tests compile, which takes two thirds of the time then. XLA's own
# passes, which fuse and reorder, are those of users; `OPTIMISED` in `toys` is for tests that need
# the last instruction to be.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
from jaxtyping import install_import_hook

if any(name.split(".")[0] == "fedras_jax" for name in sys.modules):
    raise RuntimeError("fedras_jax was imported before the type checks could be installed")

# Neither `data`, which annotates no shapes and holds a protocol that cannot be checked, nor
# `types`, whose bundles grow axes and hold anything that a tree may: NumPy arrays, shapes, specs;
# nor `spec`, which checks its own types, with messages for users.
_PACKAGE = Path(__file__).parents[1] / "fedras_jax"
_CHECKED = [p.stem for p in _PACKAGE.glob("*.py") if p.stem not in ("__init__", "spec", "types")]
install_import_hook(
    [f"fedras_jax.{name}" for name in (*_CHECKED, "codecs", "models", "results")],
    "typecheck.checked",
)
jax.config.update("jax_num_cpu_devices", 8)
# Programs that several tests compile, in this process or another one, are compiled once.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "programs"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_PROGRAMS)  # for binaries that tests start
    jax.config.update("jax_compilation_cache_dir", str(_PROGRAMS))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
