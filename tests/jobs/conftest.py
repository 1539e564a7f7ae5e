import os

import pytest
from brute import Everything

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


@pytest.fixture(scope="module")
def loaded_once(shipped):
    """The shipped supernet is read once for all tests of a file; other names go to the zoo."""
    load = zoo.load_supernet
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "load_supernet", lambda name: shipped if name == zoo.DEFAULT_SUPERNET else load(name))
        yield


@pytest.fixture(scope="module")
def everything(shipped):
    """The shipped supernet's networks and predictions, to count by."""
    members = shipped.members
    labels = {split: values.astype(int) for split, values in members.labels.items()}
    return Everything(shipped.weights.space, members.codes, members.predictions, labels)
