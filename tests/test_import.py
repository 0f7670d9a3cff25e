"""What importing the package brings along."""

import subprocess
import sys

OPTIONAL = (
    *("constriction", "duckdb", "jinja2", "matplotlib", "orbax.checkpoint", "pandas", "plotly"),
    *("ray", "sklearn", "submitit", "tensorboardX", "tqdm"),
)


def test_no_optional_dependency_is_imported_and_no_device_is_started():
    code = (
        "import sys, fedras_jax, jax;"
        f"print([name for name in {OPTIONAL} if name in sys.modules]);"
        "print(jax._src.xla_bridge._backends)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "{}"]
