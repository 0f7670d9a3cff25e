"""The notebooks run from top to bottom, with fewer rounds."""

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="the extra 'dev' is not installed")
nbformat = pytest.importorskip("nbformat", reason="the extra 'dev' is not installed")
pytest.importorskip("ipykernel", reason="the extra 'dev' is not installed")
FOLDER = Path(__file__).parents[2] / "experiments/colab"
# What the cell of parameters is followed by, and how many pictures are drawn.
SHORT = {
    "fedras_jax.ipynb": ("ROUNDS, SEEDS, ACTIONS = 2, 1, [4]", 2),
    "extend.ipynb": ("ROUNDS = 5", 3),
}


def read(name):
    return nbformat.read(FOLDER / name, as_version=4)


def test_every_notebook_is_run_here():
    assert {path.name for path in FOLDER.glob("*.ipynb")} == set(SHORT)


@pytest.mark.parametrize("name", SHORT)
def test_notebooks_are_stored_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.nbformat_minor >= 5  # cells have ids
    for cell in notebook.cells:
        assert not cell.id.isdecimal()  # a name, not a counter
        assert cell.source.strip()
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.long
@pytest.mark.parametrize("name", SHORT)
def test_notebooks_run_from_top_to_bottom(name, tmp_path):
    notebook = read(name)
    short, pictures = SHORT[name]
    (at,) = (i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", []))
    assigned = {line.split("=")[0].strip() for line in notebook.cells[at].source.splitlines()}
    assert assigned == set(short.split(" = ")[0].split(", "))
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(short))
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=resources
    ).execute()  # a cell that raises is an error here
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    said = [out.text for out in outputs if out.output_type == "stream" and out.name == "stderr"]
    assert said == []  # no warnings
    drawn = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(drawn) == pictures
