"""Published recipes of the ImageNet networks, for 8 processes.

Source: Kag and Saligrama, CVPR 2022, appendix.
"""

from __future__ import annotations

from ..recipe import Recipe

RECIPES: tuple[Recipe, ...] = ()
MODELS: dict[str, str] = {}
