"""Compiled programs that outlive their process, so that the next one starts in a few seconds.

The folder is `--compilation_cache`; without the flag that of JAX_COMPILATION_CACHE_DIR, else one in
the user's cache folder, by the processor's abilities: programs for one may not run on another. A
program that takes a second or more to compile is kept; nothing is ever deleted, as JAX can't know
what is still of use, and the folder may be deleted at any time. `none` keeps nothing.
"""

import hashlib
import os
import platform
from pathlib import Path

from absl import flags, logging

from fedras_jax.errors import SpecError

CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder that keeps compiled programs, 'none' for none; default: the user's cache folder.",
)

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def keep() -> Path | None:
    """Tells JAX where compiled programs are kept; returns the folder, None where none are.

    A folder of the user's own choice, by the flag or the variable, must be writable; an address
    like gs://... is JAX's to check. The default one that is not writable is left alone, with a line
    in the log.

    Raises:
      SpecError: the folder that was asked for can't be made or written to.
    """
    import jax

    asked, by = CACHE.value, "--compilation_cache"
    if asked == "none":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    if asked is None and os.environ.get(VARIABLE):
        asked, by = os.environ[VARIABLE], VARIABLE
        if "://" in asked:
            return Path(asked)
    folder = None
    try:
        folder = default_folder() if asked is None else Path(asked).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        writable = asked != "" and os.access(folder, os.W_OK | os.X_OK)
    except (OSError, RuntimeError):  # the latter where there is no home
        writable = False
    if not writable and asked is not None:
        raise SpecError(f"{by}={asked}: not a folder that can be written to")
    if not writable or folder is None:
        logging.info("%s can't be written to: programs are compiled anew each time", folder)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def default_folder() -> Path:
    """In XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fedras_jax" / f"{platform.machine()}-{_abilities()}"


def _abilities() -> str:
    """A digest of the instruction sets that the processor says it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (x for x in lines if x.lower().startswith(("flags", "features")))
    told = next(named, platform.processor())
    return hashlib.sha256(told.encode()).hexdigest()[:12]
