"""Accuracy predictors: measured networks in, top-1 of any network with its error bar out. Torch only to fit."""

from ofasearch.predictor.check import FitError, check
from ofasearch.predictor.encode import TUTORIAL_ENCODER, Encoder, blocks_encoder, encoder_of
from ofasearch.predictor.files import load_predictor, save_predictor
from ofasearch.predictor.fit import FitConfig, fit
from ofasearch.predictor.model import Predictor
from ofasearch.predictor.pairs import LabelNoise, Pairs, Source, read_pairs, write_pairs

__all__ = [
    "TUTORIAL_ENCODER",
    "Encoder",
    "FitConfig",
    "FitError",
    "LabelNoise",
    "Pairs",
    "Predictor",
    "Source",
    "blocks_encoder",
    "check",
    "encoder_of",
    "fit",
    "load_predictor",
    "read_pairs",
    "save_predictor",
    "write_pairs",
]
