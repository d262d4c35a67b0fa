"""Writes the README of an exported program: how it is served, in Python that runs as it stands."""

import textwrap
from typing import Any

from nfnet.errors import format_count
from nfnet.export.jax_format import PROGRAM_FILE, WEIGHTS_FILE
from nfnet.export.onnx_format import FILE as ONNX_FILE
from nfnet.export.saved_model import FOLDER as SAVED_MODEL_FOLDER

README_FILE = "README.md"

_READ = """def read_rgb(path):
  image = Image.open(path)
  if image.mode.startswith("I"):
    # The upper 8 of 16 bits; Pillow itself would make nearly all of such an image white.
    image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
  return image.convert("RGB")"""
_PREPARE = {
  "squash": """def prepare(path, pixels={pixels}, margin={margin}):
  image = read_rgb(path).resize((pixels + margin,) * 2, Image.Resampling.BICUBIC)
  start = (margin + 1) // 2
  return np.asarray(image)[start : start + pixels, start : start + pixels]""",
  "shorter_side": """def prepare(path, pixels={pixels}, margin={margin}):
  image = read_rgb(path)
  width, height = image.size
  side = min(width, height) * pixels / (pixels + margin)
  left, top = (width - side) / 2, (height - side) / 2
  box = (left, top, left + side, top + side)
  return np.asarray(image.resize((pixels, pixels), Image.Resampling.BICUBIC, box=box))""",
}
"""Source that resizes as `nfnet.images.resizing` does, for each way of resizing."""
_NORMALIZE = """
images = ((images - np.float32({mean})) / np.float32({stddev})).astype(np.float32)"""
_IMPORTS = {
  "jax": """import jax
import numpy as np
from jax import export
from PIL import Image
from safetensors.numpy import load_file""",
  "saved_model": """import numpy as np
import tensorflow as tf
from PIL import Image""",
  "onnx": """import numpy as np
import onnxruntime
from PIL import Image""",
}
_LOAD = {
  "jax": f"""with open("{PROGRAM_FILE}", "rb") as file:
  program = jax.jit(export.deserialize(bytearray(file.read())).call)
weights = jax.device_put(load_file("{WEIGHTS_FILE}"))""",
  "saved_model": f"""network = tf.saved_model.load("{SAVED_MODEL_FOLDER}")
program = network.signatures["serving_default"]""",
  "onnx": f"""program = onnxruntime.InferenceSession("{ONNX_FILE}")""",
}
_CALL = {
  "jax": """outputs = program(weights, images)
probabilities = np.asarray(outputs["probabilities"])""",
  "saved_model": """outputs = program(images=tf.constant(images))
probabilities = outputs["probabilities"].numpy()""",
  "onnx": """(probabilities,) = program.run(["probabilities"], {"images": images})""",
}
_NEEDS = {
  "jax": "jax, flatbuffers (with which JAX reads programs), safetensors and pillow",
  "saved_model": "tensorflow and pillow",
  "onnx": "onnxruntime and pillow",
}
_NOTES = {
  "jax": f"`{PROGRAM_FILE}` runs on CPUs, NVIDIA and AMD GPUs, and TPUs. JAX reads it for at least "
  "six months after the version in `network.json`. Each new number of images is compiled once.",
  "saved_model": f"`{SAVED_MODEL_FOLDER}` runs on CPUs, NVIDIA GPUs and TPUs, and in TensorFlow "
  "Serving. TensorFlow compiles each new number of images once, by XLA.",
  "onnx": f"`{ONNX_FILE}` takes any number of images.",
}


def readme(description: dict[str, Any]) -> str:
  """Returns the text.

  Args:
    description: what `nfnet.export.description.describe` returns.
  """
  kind, network, own = (description[key] for key in ("format", "network", "preprocessing"))
  is_normalized = description["input"]["dtype"] == "float32"
  prepare = _PREPARE[own["resize"]].format(pixels=own["pixels"], margin=own["resize_margin"])
  normalize = _NORMALIZE.format(mean=own["mean_rgb"], stddev=own["stddev_rgb"])
  what, pixels = "normalized float32" if is_normalized else "uint8", own["pixels"]
  paragraphs = (
    f"The program takes {what} RGB images [n, {pixels}, {pixels}, 3], for any n from 1, and "
    f"returns `logits` and `probabilities`, float32 [n, {network['num_classes']}]. `network.json` "
    f"has the way of preparing images, the names of the classes and all versions. {_NOTES[kind]}",
    f"This Python serves it. It needs {_NEEDS[kind]}. `prepare` reads JPEG, PNG and WebP files as "
    "nfnet does, but for two differences: values of CMYK files may differ by 2 of 255, and images "
    "of more than 16.8 million pixels are not reduced before they are resized.",
  )
  text = "\n\n".join(textwrap.fill(one, 100, break_on_hyphens=False) for one in paragraphs)
  return f"""# {network["variant"]} with {format_count(network["num_classes"], "class")}

{text}

```python
import json

{_IMPORTS[kind]}

with open("network.json", encoding="utf-8") as file:
  names = json.load(file)["class_names"]
{_LOAD[kind]}


{_READ}


{prepare}


images = np.stack([prepare(path) for path in ["a.png", "b.png"]]){normalize * is_normalized}
{_CALL[kind]}
for row in probabilities:
  best = int(row.argmax())
  print(names[best] if names else best, f"{{row[best]:.2%}}")
```
"""
