r"""Estimates what one training step costs on a TPU slice, which need not be there.

    python -m profiling.step --config=FILE[:ARGUMENTS] --topology=v4:4x4x8 \
        [--config.FIELD=VALUE ...] [--json=OUT]
    python -m profiling.step --variant=F3 --batch_per_chip=32 --pixels=224 --num_classes=1000 \
        --topology=v4:2x2x1 [--kernels=pallas] [--config.FIELD=VALUE ...] [--json=OUT]

Compiles the training step of this project ahead of time with the real TPU compiler (extra `tpu`)
and adds up the compiler's own estimates. Every time printed is such an estimate, not a measurement.
A second call with the same arguments is instant.

With --config, this is exactly the step that `train.pretrain` runs with the same configuration and
overrides on that slice. No data set is read; the number of its images is only a constant in the
learning-rate schedule and does not affect the cost. Without --config, the flags describe the step.
The rest is what both papers have in common, with weight decay and the variant's own dropout as the
only regularization.
"""

from collections.abc import Sequence

from absl import flags

from nfnet.command_line import run_main
from nfnet.errors import UserError
from nfnet.system.paths import define_path
from nfnet.variants import VARIANTS
from profiling.compile import command_flags
from profiling.compile.request import (
  StepRequest,
  block_execution_for,
  plain_experiment,
  replace_fields,
)
from profiling.compile.topology import parse_topology
from profiling.estimate.report import as_json, as_text, report
from train.config.experiment import Experiment
from train.config.files import load_experiment
from train.config.overrides import override, parse_arguments
from train.report.output import print_and_write, write_json

FIELD_OF_FLAG = {
  "variant": "model.variant",
  "batch_per_chip": "data.batch_size",
  "pixels": "data.train_pixels",
  "num_classes": "data.num_classes",
  "kernels": "model.kernels",
  "bottleneck": "model.bottleneck",
  "block_execution": "model.block_execution",
  "rematerialize": "model.rematerialize",
  "ema": "optimizer.ema_decay",
  "parameter_shards": "parallelism.parameter_shards",
  "gradient_accumulation": "optimizer.gradient_accumulation",
  "gradient_dtype": "parallelism.gradient_dtype",
  "sharpness_group_images": "sharpness.group_images",
}
"""Flags that describe an experiment, and the field that each sets."""


def _define_flags() -> None:
  """Defines all flags; those of `FIELD_OF_FLAG` cannot be combined with --config."""
  define_path(
    "config", None, "Python file of the experiment, or a name such as imagenet.", use="read"
  )
  command_flags.define_topology("v4:2x2x1")
  command_flags.define_json()
  command_flags.define_limits()
  flags.DEFINE_string("variant", None, f"One of {', '.join(VARIANTS)}.")
  flags.DEFINE_integer(
    "batch_per_chip", 32, "Images per step and chip, over all accumulated parts.", lower_bound=1
  )
  flags.DEFINE_integer("pixels", 224, "Side of an image.", lower_bound=1)
  flags.DEFINE_integer("num_classes", 1000, "Width of the classifier.", lower_bound=1)
  command_flags.define_kernels()
  flags.DEFINE_enum(
    "bottleneck", "paper", ["paper", "released"], "First stage of F+: 192 channels or 128."
  )
  command_flags.define_block_execution()
  flags.DEFINE_bool("rematerialize", False, "Recompute each block in the backward pass.")
  flags.DEFINE_bool("ema", False, "Keep a moving average of the parameters.")
  flags.DEFINE_integer(
    "parameter_shards", 1, "Chips that hold one copy of the parameters together.", lower_bound=1
  )
  flags.DEFINE_integer(
    "gradient_accumulation",
    1,
    "Number of parts in which a chip computes its images, one after another.",
    lower_bound=1,
  )
  command_flags.define_gradient_dtype()
  flags.DEFINE_integer(
    "sharpness_group_images",
    None,
    "SAM: number of a chip's images that share a perturbation; default: no SAM.",
    lower_bound=1,
  )


def experiment_of_flags(overrides: Sequence[str]) -> Experiment:
  """Returns the experiment that the flags describe.

  Args:
    overrides: arguments `--config.FIELD=VALUE`.

  Raises:
    UserError: flags contradict each other, or one is missing or has an invalid value.
  """
  values = flags.FLAGS
  if values.config is not None:
    for flag, field in FIELD_OF_FLAG.items():
      if values[flag].present:
        raise UserError(
          f"--{flag} cannot be combined with --config={values.config}, which sets it; "
          f"write --config.{field}=VALUE"
        )
    return load_experiment(values.config, overrides)
  if values.variant is None:
    raise UserError("neither --config nor --variant is given; say which network to compile")
  command_flags.check_variant(values.variant)
  experiment = plain_experiment(
    values.variant,
    batch_size=values.batch_per_chip * parse_topology(values.topology).chips,
    pixels=values.pixels,
    num_classes=values.num_classes,
  )
  sharpness_radius = None if values.sharpness_group_images is None else 0.05
  experiment = replace_fields(
    experiment,
    model={
      "bottleneck": values.bottleneck,
      "kernels": values.kernels,
      "block_execution": values.block_execution
      or block_execution_for(values.variant, values.kernels),
      "rematerialize": values.rematerialize,
    },
    optimizer={
      "ema_decay": 0.9999 if values.ema else None,
      "gradient_accumulation": values.gradient_accumulation,
    },
    parallelism={
      "parameter_shards": values.parameter_shards,
      "gradient_dtype": values.gradient_dtype or "float32",
    },
    sharpness={"radius": sharpness_radius, "group_images": values.sharpness_group_images},
  )
  return override(experiment, overrides)


def main(arguments: list[str]) -> None:
  """Prints the report that the flags ask for."""
  values = flags.FLAGS
  request = StepRequest(experiment=experiment_of_flags(arguments[1:]), topology=values.topology)
  result = report(request, **command_flags.limits())
  print_and_write(as_text(result), lambda: write_json("json", values.json, as_json(result)))


if __name__ == "__main__":
  _define_flags()
  run_main(main, flags_parser=parse_arguments)
