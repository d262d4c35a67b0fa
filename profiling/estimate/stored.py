"""Names the folder of figures that are kept with the source."""

import pathlib

RESULTS = pathlib.Path(__file__).parents[1] / "results"
