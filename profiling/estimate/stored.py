"""Figures that are kept with the source, as data."""

import pathlib

RESULTS = pathlib.Path(__file__).parents[1] / "results"
