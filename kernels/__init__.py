"""Ops of normalizer-free networks: plain-JAX references and the dispatch to TPU kernels."""

from kernels.dispatch import Implementation, fallback_counts
from kernels.scaled_ws_conv.op import Convolution, scaled_ws_conv, stem
from kernels.se_residual.op import conv_se_residual
from kernels.sgd_agc.op import Step, sgd_agc
from kernels.tpu import IMAGES_MULTIPLE

__all__ = [
  "IMAGES_MULTIPLE",
  "Convolution",
  "Implementation",
  "Step",
  "conv_se_residual",
  "fallback_counts",
  "scaled_ws_conv",
  "sgd_agc",
  "stem",
]
