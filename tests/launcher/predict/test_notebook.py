"""The notebook's cells run in order on a run."""

import json

import matplotlib
import numpy as np
from matplotlib import pyplot
from PIL import Image
from support.places import ROOT

NOTEBOOK = ROOT / "docs/notebooks/predict.ipynb"
PLACE = 'MODEL = Path("runs/demo/student")'


def test_its_cells_run_in_order_and_it_holds_no_outputs(run, capsys):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)).save("frame.jpg")
    matplotlib.use("agg")
    names: dict = {}
    try:
        for number, cell in enumerate(code):
            text = "".join(cell["source"]).replace(PLACE, f'MODEL = Path("{run}")')
            assert number > 0 or str(run) in text
            exec(compile(text, f"{NOTEBOOK}, cell {number}", "exec"), names)
        assert [axis.get_title() for axis in names["axes"]] == ["frame.jpg", "mask", "map of smoke"]
    finally:
        pyplot.close("all")
    said = capsys.readouterr().out
    assert "smoke: probability 0." in said and said.count("of the picture") == 4
