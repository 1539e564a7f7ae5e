"""Once-for-all's predictors say here what they say there, and ours say there what they say here (ofa_predictors.npz)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import LAYOUT, SIZES, SPACE, newer_state, ours, records

from ofasearch.predictor import TUTORIAL_ENCODER, load_predictor
from ofasearch.predictor.foreign import load_foreign, save_foreign
from ofasearch.predictor.layouts import MBV3, settings_of

OUTPUTS = np.load(Path(__file__).with_name("ofa_predictors.npz"))
NAMES = tuple(SIZES)
PUBLISHED = {"tutorial": "acc_predictor.pth", "resnet50": "ofa_resnet50_acc_predictor.pth"}


def networks(name):
    """The 64 networks, as settings."""
    return settings_of(LAYOUT.get(name, MBV3), records(name, OUTPUTS[f"{name}-rows"]))


@pytest.mark.parametrize("name", NAMES)
def test_features_stand_where_once_for_all_puts_them(name):
    encoder = TUTORIAL_ENCODER if name == "tutorial" else LAYOUT[name].encoder(SIZES[name])
    expected = np.unpackbits(OUTPUTS[f"{name}-features"], axis=1)[:, : encoder.dims]
    assert (encoder.encode(networks(name)) == expected).all()
    assert len(np.unique(expected, axis=0)) > 60  # they are different networks


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_predicts_what_it_predicts_there(shared_data, name):
    found = load_predictor(shared_data / "ofa" / PUBLISHED[name])
    assert found.space == SPACE[name]
    assert found(networks(name)) == pytest.approx(OUTPUTS[f"{name}-top1"], abs=1e-6)


@pytest.mark.parametrize("name", ["mbv3", "mbv2"])
def test_a_newer_file_predicts_what_it_predicts_there(tmp_path, name):
    torch.save({key: torch.from_numpy(array) for key, array in newer_state(name).items()}, tmp_path / "p.pth")
    found = load_foreign(tmp_path / "p.pth", space=SPACE[name], resolutions=SIZES[name])
    assert found(networks(name)) == pytest.approx(OUTPUTS[f"{name}-top1"], abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_ours_predicted_there_what_it_predicts_here(tmp_path, name):
    fitted, expected = ours(name), OUTPUTS[f"{name}-exported"]
    knows = np.isin(networks(name).r, fitted.encoder.resolutions)
    assert (np.isfinite(expected) == knows).all()
    assert knows.sum() > 20
    settings = networks(name).take(knows.nonzero()[0])
    assert fitted(settings) == pytest.approx(expected[knows], abs=1e-6)
    save_foreign(tmp_path / "p.pth", fitted, "tutorial" if name == "tutorial" else "encoder")
    told = {"space": fitted.space, "resolutions": fitted.encoder.resolutions}
    assert load_foreign(tmp_path / "p.pth", **told)(settings) == pytest.approx(expected[knows], abs=1e-6)
