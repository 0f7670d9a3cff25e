"""Fetches a file into the cache: whole and verified, or not at all."""

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from fedras_jax.errors import DataError

_TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 1 << 20


def cache_dir() -> Path:
    """$FEDRAS_JAX_CACHE, or ~/.cache/fedras_jax."""
    chosen = os.environ.get("FEDRAS_JAX_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "fedras_jax"


def download(url: str, target: Path, md5: str, *, timeout: float = _TIMEOUT_SECONDS) -> None:
    """Downloads a file, checks its sum and only then gives it its name.

    Args:
        url: what to fetch.
        target: where it goes; its folder is made.
        md5: the published MD5 sum, hexadecimal.
        timeout: seconds to wait for an answer, or for more of it.

    Raises:
        DataError: unreachable, cut off, another checksum, or a cache that cannot be written.
            Nothing is kept.
    """
    part: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder, so that the rename is atomic; with a name of its own, so that two
        # processes may download at once.
        handle, part_name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        part = Path(part_name)
        with os.fdopen(handle, "wb") as file:
            found = _copy(url, file, timeout)
        if found != md5:
            raise DataError(
                f"{url}: expected MD5 {md5}, found {found}; the download was damaged or the "
                "file has changed, nothing is kept."
            )
        part.replace(target)
    # URLError is an OSError, and so are timeouts, resets and a full disk.
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            # It is the response too, and would keep its socket for as long as the traceback.
            error.close()
        raise DataError(f"{url}: cannot be downloaded to {target} ({error}).") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _copy(url: str, file: BinaryIO, timeout: float) -> str:
    """Writes what the URL gives into a file; returns its MD5."""
    md5 = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(url, timeout=timeout) as response:
        while chunk := response.read(_CHUNK_BYTES):
            md5.update(chunk)
            file.write(chunk)
    return md5.hexdigest()
