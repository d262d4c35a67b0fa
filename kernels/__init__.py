"""Ops of normalizer-free networks: references in plain JAX, and Pallas kernels for TPU.

The names of the ops differ from those of the packages that define them, so that `kernels.OP` is
always the package.
"""

from kernels.dispatch import Implementation, fallback_counts
from kernels.fully_connected.op import fully_connected_layer
from kernels.packed_sums.op import add_parts
from kernels.scaled_ws_conv.filters import StandardizedFilters
from kernels.scaled_ws_conv.formulas import PendingSum, Standardization
from kernels.scaled_ws_conv.op import (
  Convolution,
  scaled_ws_convolution,
  standardize_filters,
  standardized_convolution,
)
from kernels.se_residual.formulas import Gate
from kernels.se_residual.op import (
  add_up,
  conv_se_residual,
  standardized_conv_se,
  standardized_conv_se_residual,
  standardized_convolution_of_sum,
)
from kernels.sgd_agc.formulas import Step
from kernels.sgd_agc.op import sgd_agc_step
from kernels.stem.op import stem_convolutions
from kernels.tpu import IMAGES_MULTIPLE

__all__ = [
  "IMAGES_MULTIPLE",
  "Convolution",
  "Gate",
  "Implementation",
  "PendingSum",
  "Standardization",
  "StandardizedFilters",
  "Step",
  "add_parts",
  "add_up",
  "conv_se_residual",
  "fallback_counts",
  "fully_connected_layer",
  "scaled_ws_convolution",
  "sgd_agc_step",
  "standardize_filters",
  "standardized_conv_se",
  "standardized_conv_se_residual",
  "standardized_convolution",
  "standardized_convolution_of_sum",
  "stem_convolutions",
]
