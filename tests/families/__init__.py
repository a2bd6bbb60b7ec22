"""A small instance of every diffusion transformer class of diffusers, for tests that hold for all of them."""

import importlib
from pathlib import Path

from families.base import Family

FAMILIES: list[Family] = [
    family
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if path.stem not in ("__init__", "base")
    for family in importlib.import_module(f"families.{path.stem}").FAMILIES
]
