"""Writes a folder from which a network is served without this project.

    python -m nfnet.export --weights=PATH --out=DIR
    python -m nfnet.export --weights=PATH --out=DIR --compute_dtype=bfloat16 --input=float32
    python -m nfnet.export --weights=PATH --out=DIR --format=saved_model

The folder holds a program for any number of images, its weights, `network.json` (how images are
prepared, the classes, versions) and `README.md` with the Python that serves it. The program takes
uint8 RGB images [n, height, width, 3] or, with --input=float32, normalized ones, and returns logits
and probabilities. By default it is StableHLO, written by `jax.export` for CPUs, GPUs and TPUs;
docs/serving.md describes the other formats.

PATH is what `python -m nfnet.predict` takes, and so are the flags that describe it: checkpoints
know their own variant, activation, numerics, resolution, way of resizing and class names.
"""

import json
import sys
import typing

from absl import flags

from nfnet.command_line import refuse_arguments, run_main
from nfnet.errors import UserError
from nfnet.export import jax_format, onnx_format, saved_model
from nfnet.export.description import DESCRIPTION_FILE, describe
from nfnet.export.folder import new_folder
from nfnet.export.program import ComputeDtype, InputDtype, make_program
from nfnet.export.readme import README_FILE, readme
from nfnet.prediction.classifier_flags import (
  check_variant_flag,
  classifier_of_flags,
  define_classifier_flags,
)
from nfnet.system.paths import define_path

_FORMATS = {
  "jax": (jax_format, jax_format.write_jax),
  "saved_model": (saved_model, saved_model.write_saved_model),
  "onnx": (onnx_format, onnx_format.write_onnx),
}
"""Module of each format, and the function in it that writes it."""


def _define_flags() -> None:
  define_classifier_flags()
  define_path("out", None, "New folder for the program.", use="write folder", required=True)
  flags.DEFINE_enum(
    "format", "jax", list(_FORMATS), "Format of the program; docs/serving.md compares them."
  )
  flags.DEFINE_enum(
    "input", "uint8", typing.get_args(InputDtype), "Images from 0 to 255, or normalized ones."
  )
  flags.DEFINE_enum(
    "compute_dtype", "float32", typing.get_args(ComputeDtype), "Dtype of activations and products."
  )


def main(argv: list[str]) -> None:
  """Writes the folder."""
  refuse_arguments(argv)
  arguments = flags.FLAGS
  check_variant_flag()
  if arguments.format == "onnx" and arguments.compute_dtype != "float32":
    raise UserError(
      f"--format=onnx computes in float32, not --compute_dtype={arguments.compute_dtype}"
    )
  format_module, write = _FORMATS[arguments.format]
  # Before the weights are read, which may take a while.
  format_module.import_packages()
  with new_folder(arguments.out, last=DESCRIPTION_FILE) as folder:
    _say(f"reading {arguments.weights}")
    classifier = classifier_of_flags()
    _say("standardizing filters")
    program = make_program(
      classifier, input_dtype=arguments.input, compute_dtype=arguments.compute_dtype
    )
    _say(f"writing the program and {sum(x.nbytes for x in program.weights.values()):,} bytes")
    write(program, folder)
    description = describe(
      classifier,
      program,
      weights=arguments.weights,
      format_name=arguments.format,
      compute_dtype=arguments.compute_dtype,
      packages=format_module.PACKAGES,
    )
    (folder / README_FILE).write_text(readme(description), encoding="utf-8")
    text = json.dumps(description, indent=2, ensure_ascii=False)
    (folder / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")
  print(
    f"{arguments.out}: {classifier.model}; {arguments.input} images of {classifier.pixels} px; "
    f"{README_FILE} has the Python that serves it"
  )


def _say(step: str) -> None:
  print(step, file=sys.stderr, flush=True)


if __name__ == "__main__":
  _define_flags()
  run_main(main)
