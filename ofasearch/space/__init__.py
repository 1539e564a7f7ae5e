"""Design spaces: architectures as values, as integer matrices, and as blueprints of layers."""

from ofasearch.space.core import Arch, Blueprint, Codes, LayerSpec, Settings, Space
from ofasearch.space.families import get_space
from ofasearch.space.pricing import Cost

__all__ = ["Arch", "Blueprint", "Codes", "Cost", "LayerSpec", "Settings", "Space", "get_space"]
