"""The thin library under the notebooks: models, losses, attacks, methods, training, evaluation, runs, reports."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout: `notebooks/`, `params/` and `outputs/` are found from here, never from the working directory.

A wheel holds none of the three: what is installed from one has the library's rooms, and no table to open."""
