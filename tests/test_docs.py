"""What the documentation says runs."""

import configparser
import re
from pathlib import Path

import pytest

from fedras_jax import registry

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/functional.md", "docs/codecs.md", "docs/sweeps.md"]
LONG = ["docs/functional.md", "docs/sweeps.md"]


def _blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.long if page in LONG else ()) for page in PAGES]
)
def test_python_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = _blocks(page)
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")))
def test_files_that_a_page_names_exist(page):
    named = re.findall(
        r"`((?:fedras_jax|experiments|benchmarks|tests|docs)/[\w./]+\.\w+)`", page.read_text()
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_the_readme_says_what_its_commands_need():
    cfg = configparser.ConfigParser()
    cfg.read(ROOT / "setup.cfg")
    first = (ROOT / "README.md").read_text().split("## Use")[1].split("python -m")[0]
    assert ". .venv/bin/activate\n" in first
    named = {name for told in re.findall(r"'\.\[([\w,]+)\]'", first) for name in told.split(",")}
    assert named == {"demo", "report"} <= set(cfg["options.extras_require"])


def test_the_recipe_of_a_codec_names_what_tests_look_at():
    told = (ROOT / "docs/architecture.md").read_text().split("## Adding things")[1]
    for what in (
        *("State:", "Biased", "Unbiased", "Support:", "The server can read:", "Source:"),
        *("registry.CODECS", "registry.DOWNLINKS", "registry.NOT_DOWNLINKS", "README"),
        *("test_contract.py", "test_docstrings.py", "test_wire.py", "extend.ipynb"),
    ):
        assert what in told
    assert 'registry.CODECS["' in (ROOT / "experiments/colab/extend.ipynb").read_text().replace(
        "\\", ""
    )


def test_every_codec_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    assert [name for name in registry.CODECS if f"`{name}`" not in text] == []
