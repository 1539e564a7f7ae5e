"""What all tests share: the data of every developer, a cache of their own, and a space small enough to count by hand."""

import os
from pathlib import Path

import pytest
import torch

from ofasearch import zoo
from ofasearch.space.families import MobileDesign, Stage, mobile_space

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Tests never touch the user's cache; what one test decodes, the next finds."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("OFASEARCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data beside the repository; on CI its absence is a failure, elsewhere a reason to skip."""
    folder = Path(os.environ.get("OFASEARCH_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop(f"the shared data must lie in {folder}, but there is none; set OFASEARCH_DATA")
    return folder


@pytest.fixture
def frozen_tables(monkeypatch):
    """Shipped tables are measured anew at times; tests that quote figures of one find it as it was (tests/tables)."""
    shipped = zoo._shipped
    monkeypatch.setattr(zoo, "_shipped", lambda room: REPOSITORY / "tests" / "tables" if room == "latency_tables" else shipped(room))


@pytest.fixture
def one_thread():
    """Bit-identical training needs one order of summation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_design():
    """Two stages on 8x8 images: all that the large families have (kernels, ratios, depths, skip, squeeze-excite)."""
    stages = (Stage(8, 1, "relu", se=False, kernel=3), Stage(16, 2, "h_swish", se=True, kernel=5))
    return MobileDesign(
        name="tiny",
        stem=8,
        stem_stride=1,
        first=8,
        stages=stages,
        c_expand=16,
        c_feature=24,
        classes=3,
        resolutions=(8,),
        depths=(1, 2),
        expands=(2, 3),
        kernels=(3, 5),
    )


@pytest.fixture(scope="session")
def tiny_space(tiny_design):
    """The space of the tiny design."""
    return mobile_space(tiny_design)
