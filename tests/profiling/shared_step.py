"""A step that tests of several files compile for a TPU, and the folder in which all find it.

Its kernels are in loops over blocks and over accumulated parts.
"""

import os
import pathlib

from profiling.compile.request import StepRequest, plain_experiment, replace_fields

FLAGS = (
  *("--variant=P0", "--pixels=16", "--batch_per_chip=8", "--num_classes=10"),
  *("--kernels=pallas", "--block_execution=scan", "--gradient_accumulation=2"),
  "--config.loss.label_smoothing=0.1",
)
"""Arguments of `profiling.step`."""

REQUEST = StepRequest(
  experiment=replace_fields(
    plain_experiment("P0", batch_size=32, pixels=16, num_classes=10),
    model={"kernels": "pallas", "block_execution": "scan"},
    optimizer={"gradient_accumulation": 2},
    loss={"label_smoothing": 0.1},
  ),
  topology="v4:2x2x1",
)
"""The same step."""

USER_CACHE = pathlib.Path(os.environ["TEST_TPU_COMPILATIONS"])
"""Value of XDG_CACHE_HOME for commands; all test processes share it."""
COMPILATIONS = USER_CACHE / "nfnets-at-scale" / "compilations"
"""The folder in it that the commands use."""
