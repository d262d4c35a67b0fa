"""Describes an exported program for a server: `network.json`."""

import contextlib
import importlib.metadata
import platform
from typing import Any

import numpy as np

import nfnet
from nfnet.export.program import ComputeDtype, Program
from nfnet.images.normalization import MEAN_RGB, STDDEV_RGB
from nfnet.inference import Classifier

DESCRIPTION_FILE = "network.json"
_PACKAGES = ("jax", "jaxlib", "numpy")


def describe(
  classifier: Classifier,
  program: Program,
  *,
  weights: str,
  format_name: str,
  compute_dtype: ComputeDtype,
  packages: tuple[str, ...],
) -> dict[str, Any]:
  """Returns what a server needs to know, as JSON can hold it.

  Args:
    classifier: the network.
    program: its program.
    weights: path of the weights that the program was made of.
    format_name: format of the program.
    compute_dtype: dtype of activations and matrix products.
    packages: distributions that may have written the format; the versions of those that are
      installed are named beside JAX's.
  """
  model = classifier.model
  shape = [None, classifier.pixels, classifier.pixels, 3]
  output = {"shape": [None, model.num_classes], "dtype": "float32"}
  return {
    "format": format_name,
    "network": {
      "variant": model.variant,
      "num_classes": model.num_classes,
      "activation": model.activation_name,
      "numerics": model.numerics,
      "bottleneck": model.bottleneck,
    },
    "compute_dtype": compute_dtype,
    "input": {
      "name": "images",
      "shape": shape,
      "dtype": program.input_dtype,
      "layout": "NHWC",
      "channels": "RGB",
    },
    "outputs": {
      "logits": output,
      "probabilities": {
        **output,
        "function": "sigmoid" if classifier.is_multi_label else "softmax",
      },
    },
    "preprocessing": {
      "resize": classifier.resize,
      "pixels": classifier.pixels,
      "resize_margin": classifier.resize_margin,
      "filter": "bicubic",
      "normalization": "in the program" if program.input_dtype == "uint8" else "before the program",
      "mean_rgb": np.round(MEAN_RGB, 6).tolist(),
      "stddev_rgb": np.round(STDDEV_RGB, 6).tolist(),
    },
    "class_names": classifier.class_names and list(classifier.class_names),
    "weights": weights,
    "versions": {
      "nfnets-at-scale": nfnet.__version__,
      "python": platform.python_version(),
      **_installed_versions((*_PACKAGES, *packages)),
    },
  }


def _installed_versions(packages: tuple[str, ...]) -> dict[str, str]:
  versions = {}
  for name in packages:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  return versions
