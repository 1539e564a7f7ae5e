import os

import pytest

from ofasearch import zoo


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Nothing here has to survive a power cut, and a proof on 16 images is one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr("ofasearch.jobs.deliver.CHECK_IMAGES", 16)
        yield


@pytest.fixture(scope="module")
def shipped():
    return zoo.load_supernet(zoo.DEFAULT_SUPERNET)
