import runpy
from pathlib import Path

import pytest
from PIL import Image

from ofasearch import zoo

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("with_image", [False, True])
def test_find_and_run_names_a_class_of_the_supernet(tmp_path, with_image, capsys):
    image = tmp_path / "image.png"
    Image.new("RGB", (48, 40), "blue").save(image)
    main = runpy.run_path(str(EXAMPLES / "find_and_run.py"))["main"]
    assert main([str(image)] if with_image else []) in zoo.load_supernet(zoo.DEFAULT_SUPERNET).weights.class_names
    assert "M MACs, test top-1" in capsys.readouterr().out
