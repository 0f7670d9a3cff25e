"""Where the real data lies that some tests read, and the small datasets that all may share."""

import gzip
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """A dataset's folder in $FEDRAS_JAX_TEST_DATA, by default ../shared/data; skips without."""
    root = Path(os.environ.get("FEDRAS_JAX_TEST_DATA", _ROOT.parent / "shared" / "data"))

    def folder(name: str) -> Path:
        path = root / name
        if not path.is_dir():
            pytest.skip(f"needs the dataset {name} in {root} (set FEDRAS_JAX_TEST_DATA)")
        return path

    return folder


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., Path]:
    """Writes text or bytes to a file, compressed as the name's end says."""

    def write(name: str, content: str | bytes, member: str | None = None) -> Path:
        data = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(data))
        elif name.endswith(".zip"):
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(member or path.name.removesuffix(".zip"), data)
        else:
            path.write_bytes(data)
        return path

    return write
