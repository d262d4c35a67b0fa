"""Names the folder of the figures that the repository keeps."""

import pathlib

RESULTS = pathlib.Path(__file__).parents[1] / "results"
