"""Fixtures of the comparisons with once-for-all."""

import pytest
import torch


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Writes a checkpoint."""
    folder = tmp_path_factory.mktemp("official")

    def write(name, content):
        path = folder / name
        torch.save(content, path)
        return path

    return write
