"""Where the repository's files are, for tests that read or run them."""

import pathlib

ROOT = pathlib.Path(__file__).parents[1]
