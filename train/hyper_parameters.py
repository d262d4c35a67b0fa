"""Prints every hyper-parameter of both papers beside its value in the configurations.

    python -m train.hyper_parameters > docs/hyper_parameters.md

A test compares the stored table with the configurations, and each value with the paper's, so that
neither can drift.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import train.configs
from kernels.sgd_agc.formulas import PARAMETER_NORM_FLOOR
from nfnet.command_line import refuse_arguments, run_main
from nfnet.variants import get_variant
from train.config.experiment import Experiment
from train.config.field_names import field_values
from train.config.files import load_experiment

_CONFIGS = pathlib.Path(train.configs.__file__).parent
_FS = tuple(f"F{n}" for n in range(8))
_EPOCHS = (0.25, 0.5, 1, 2, 4, 8)
_PAPER_A = "A, section 2"
_PAPER_A_FINE_TUNING = "A, section 3"
_PAPER_B_TABLE = "B, table 1"
_PAPER_B_RECIPE = "B, appendix A"
_PAPER_B_JFT = "B, section 5 and appendix A"
_PAPER_B_CODE = "code released with B"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HyperParameter:
  """One line of the table.

  Attributes:
    what: the hyper-parameter in words.
    stated: values that the paper states, one for each of `configs`; None where it states none.
    source: paper and place in it.
    field: dotted name of the experiment's field, or the name of what `value_of` returns.
    configs: files under `train/configs` that the values are for.
    value_of: function from an experiment to the value; None takes the field's value.
    remark: reason why a value differs from the stated one, or the origin of one that is not stated.
  """

  what: str
  stated: tuple[Any, ...]
  source: str
  field: str
  configs: tuple[str, ...]
  value_of: Callable[[Experiment], Any] | None = None
  remark: str = ""

  def values(self) -> tuple[Any, ...]:
    """Returns the values of this project, one for each of `configs`."""
    return tuple(self._value(_load(config)) for config in self.configs)

  def _value(self, experiment: Experiment) -> Any:
    if self.value_of is not None:
      return self.value_of(experiment)
    value = field_values(experiment)[self.field]
    return "none" if value is None else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
  """Hyper-parameters of one kind of training.

  Attributes:
    title: title of the table.
    configs: the configurations that the values come from, in words.
    rows: hyper-parameters in the order of the table.
  """

  title: str
  configs: str
  rows: tuple[HyperParameter, ...]


@functools.cache
def _load(config: str) -> Experiment:
  return load_experiment(str(_CONFIGS / config))


def _rows(configs: tuple[str, ...]) -> Callable[..., HyperParameter]:
  """Returns a function that makes a row; a single stated value holds for all configurations."""

  def row(what: str, field: str, stated: Any, source: str, **more: Any) -> HyperParameter:
    each = stated if isinstance(stated, list) else [stated] * len(configs)
    return HyperParameter(
      what=what, field=field, stated=tuple(each), source=source, configs=configs, **more
    )

  return row


def _of_variant(name: str) -> Callable[[Experiment], Any]:
  return lambda experiment: getattr(get_variant(experiment.model.variant), name)


def _dropout_rate(experiment: Experiment) -> float:
  own = get_variant(experiment.model.variant).dropout_rate
  return own if experiment.model.dropout_rate is None else experiment.model.dropout_rate


def _network() -> Section:
  row = _rows(("imagenet.py:variant=F1", "jft_pretrain.py:variant=F1+"))
  return Section(
    title="The networks",
    configs="F1 and F1+; F(N) has N + 1 times as many blocks as F0",
    rows=(
      row(
        "channels of the stages",
        "model.variant: stage_channels",
        [(256, 512, 1536, 1536), (384, 768, 2048, 2048)],
        "B, section 4.2 and appendix C",
        value_of=_of_variant("stage_channels"),
      ),
      row(
        "blocks of the stages",
        "model.variant: stage_depths",
        (2, 4, 12, 6),
        "B, section 4.2",
        value_of=_of_variant("stage_depths"),
      ),
      row(
        "channels of a group of a 3x3 convolution",
        "model.variant: group_channels",
        128,
        "B, section 4.2",
        value_of=_of_variant("group_channels"),
      ),
      row("activation", "model.activation", "gelu", "B, section 4.2"),
      row("compute dtype", "model.compute_dtype", "bfloat16", _PAPER_B_RECIPE),
    ),
  )


def _imagenet() -> Section:
  row = _rows(tuple(f"imagenet.py:variant={variant}" for variant in _FS))
  return Section(
    title="ImageNet from scratch",
    configs="`imagenet.py`, F0 to F7 where they differ (F7 is in the released code only)",
    rows=(
      row("epochs", "schedule.train_epochs", 360, _PAPER_B_RECIPE),
      row("batch size", "data.batch_size", 4096, _PAPER_B_RECIPE),
      row(
        "training resolution, px",
        "data.train_pixels",
        [192, 224, 256, 320, 384, 416, 448, 480],
        _PAPER_B_TABLE,
      ),
      row(
        "test resolution, px",
        "data.evaluation_pixels",
        [256, 320, 352, 416, 512, 544, 576, 608],
        _PAPER_B_TABLE,
      ),
      row("resize before the test crop", "data.evaluation_resize", "squash", _PAPER_B_CODE),
      row(
        "margin of the resize before the test crop, px",
        "data.evaluation_resize_margin",
        32,
        _PAPER_B_RECIPE,
      ),
      row("smallest crop, share of the area", "data.crop_area_min", 0.08, _PAPER_B_RECIPE),
      row("largest aspect ratio of crops", "data.crop_aspect_ratio_max", 4 / 3, _PAPER_B_RECIPE),
      row("random mirroring", "data.horizontal_flip", True, _PAPER_B_RECIPE),
      row("RandAugment, layers", "data.rand_augment_layers", 4, _PAPER_B_RECIPE),
      row(
        "RandAugment, magnitude",
        "data.rand_augment_magnitude",
        [5, 10, 10, 15, 15, 15, 15, 15],
        _PAPER_B_TABLE,
      ),
      row("MixUp, alpha; on half of the batch", "mixing.mixup_alpha", 0.2, _PAPER_B_RECIPE),
      row("CutMix; on the other half", "mixing.cutmix", True, _PAPER_B_RECIPE),
      row(
        "dropout",
        "model.dropout_rate",
        [0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5],
        _PAPER_B_TABLE,
        value_of=_dropout_rate,
      ),
      row("stochastic depth", "model.stochastic_depth_rate", 0.25, _PAPER_B_RECIPE),
      row("label smoothing", "loss.label_smoothing", 0.1, _PAPER_B_RECIPE),
      row("peak learning rate", "optimizer.peak_learning_rate", 1.6, _PAPER_B_RECIPE),
      row("warm-up, epochs", "optimizer.warmup_epochs", 5, _PAPER_B_RECIPE),
      row("Nesterov momentum", "optimizer.momentum", 0.9, _PAPER_B_RECIPE),
      row("weight decay (L2)", "optimizer.weight_decay", 2e-5, _PAPER_B_RECIPE),
      row("AGC, clipping threshold", "optimizer.agc_clipping", 0.01, "B, section 4.1"),
      row(
        "AGC, smallest parameter norm",
        "kernels.sgd_agc.formulas: PARAMETER_NORM_FLOOR",
        1e-3,
        "B, section 4",
        value_of=lambda _: PARAMETER_NORM_FLOOR,
      ),
      row("decay of the moving average", "optimizer.ema_decay", 0.99999, _PAPER_B_RECIPE),
    ),
  )


def _imagenet_sharpness() -> Section:
  row = _rows(tuple(f"imagenet.py:variant={variant},sharpness=true" for variant in ("F5", "F6")))
  return Section(
    title="ImageNet from scratch with SAM",
    configs="`imagenet.py:sharpness=true`, F5 and F6; everything else is as above",
    rows=(
      row("radius", "sharpness.radius", 0.05, _PAPER_B_RECIPE),
      row("share of the batch in the ascent step", "sharpness.ascent_share", 0.2, _PAPER_B_RECIPE),
      row("images that share a perturbation", "sharpness.group_images", 32, _PAPER_B_RECIPE),
    ),
  )


def _jft() -> Section:
  row = _rows(tuple(f"jft_pretrain.py:variant=F7+,epochs={epochs}" for epochs in _EPOCHS))

  def rates(variant: str, stated: list[float]) -> HyperParameter:
    each = _rows(tuple(f"jft_pretrain.py:variant={variant},epochs={epochs}" for epochs in _EPOCHS))
    return each(f"peak learning rate, {variant}", "optimizer.peak_learning_rate", stated, _PAPER_A)

  return Section(
    title="Pre-training on JFT",
    configs="`jft_pretrain.py`, 0.25 to 8 epochs where they differ",
    rows=(
      row("epochs", "schedule.train_epochs", list(_EPOCHS), _PAPER_A),
      row("batch size", "data.batch_size", 4096, _PAPER_A),
      row("number of classes", "data.num_classes", 30_000, _PAPER_A),
      row("training resolution, px", "data.train_pixels", 224, _PAPER_A),
      row("held-out resolution, px", "data.evaluation_pixels", 256, _PAPER_A),
      row("resize before the held-out crop", "data.evaluation_resize", "squash", _PAPER_B_CODE),
      rates("F0", [1.6, 1.6, 1.6, 1.6, 1.6, 0.8]),
      rates("F3", [1.6, 1.6, 1.6, 0.8, 0.8, 0.4]),
      rates("F7+", [1.6, 1.6, 1.6, 0.8, 0.4, 0.4]),
      row("Nesterov momentum", "optimizer.momentum", 0.9, _PAPER_B_JFT),
      row("AGC, clipping threshold", "optimizer.agc_clipping", 0.01, _PAPER_B_JFT),
      row("weight decay (L2)", "optimizer.weight_decay", 1e-6, _PAPER_B_JFT),
      row("decay of the moving average", "optimizer.ema_decay", "none", _PAPER_B_JFT),
      row("random mirroring", "data.horizontal_flip", True, _PAPER_B_JFT),
      row("RandAugment, layers", "data.rand_augment_layers", 0, _PAPER_B_JFT),
      row("MixUp, alpha", "mixing.mixup_alpha", "none", _PAPER_B_JFT),
      row(
        "warm-up, steps",
        "optimizer.warmup_steps",
        None,
        _PAPER_A,
        remark="as many images as the 5 epochs of ImageNet in paper B",
      ),
      row("loss", "loss.kind", None, _PAPER_A, remark="our choice"),
      row("label smoothing", "loss.label_smoothing", None, _PAPER_A, remark="our choice"),
      row("dropout", "model.dropout_rate", None, _PAPER_A, remark="our choice"),
      row("stochastic depth", "model.stochastic_depth_rate", None, _PAPER_A, remark="our choice"),
    ),
  )


def _fine_tuning() -> Section:
  row = _rows(("imagenet_finetune.py:variant=F7+",))
  repeated = _rows(("imagenet_finetune.py:variant=F7+,repetitions=4",))
  return Section(
    title="Fine-tuning on ImageNet",
    configs="`imagenet_finetune.py:variant=F7+`",
    rows=(
      row("epochs", "schedule.train_epochs", 50, _PAPER_A_FINE_TUNING),
      row("training resolution, px", "data.train_pixels", 384, _PAPER_A_FINE_TUNING),
      row("test resolution, px", "data.evaluation_pixels", 480, _PAPER_A_FINE_TUNING),
      row("resize before the test crop", "data.evaluation_resize", "squash", _PAPER_B_CODE),
      repeated(
        "repeated augmentation, repetitions of an image",
        "data.repetitions",
        4,
        _PAPER_A_FINE_TUNING,
      ),
      repeated(
        "epochs with repeated augmentation", "schedule.train_epochs", 50, _PAPER_A_FINE_TUNING
      ),
      row("batch size", "data.batch_size", 2048, _PAPER_B_JFT),
      row("peak learning rate", "optimizer.peak_learning_rate", 0.1, _PAPER_B_JFT),
      row("warm-up, steps", "optimizer.warmup_steps", 5000, _PAPER_B_JFT),
      row("weight decay (L2)", "optimizer.weight_decay", 1e-5, _PAPER_B_JFT),
      row("SAM, radius", "sharpness.radius", 0.05, _PAPER_B_JFT),
      row(
        "SAM, share of the batch in the ascent step", "sharpness.ascent_share", 0.2, _PAPER_B_JFT
      ),
      row(
        "SAM, images that share a perturbation",
        "sharpness.group_images",
        None,
        _PAPER_B_JFT,
        remark="the images of one of 128 chips",
      ),
      row("dropout", "model.dropout_rate", 0.25, _PAPER_B_JFT),
      row("stochastic depth", "model.stochastic_depth_rate", 0.1, _PAPER_B_JFT),
      row("decay of the moving average", "optimizer.ema_decay", 0.9999, _PAPER_B_JFT),
      row(
        "label smoothing",
        "loss.label_smoothing",
        None,
        _PAPER_B_JFT,
        remark="as in training from scratch",
      ),
      row("MixUp, alpha", "mixing.mixup_alpha", None, _PAPER_B_JFT, remark="our choice"),
      row(
        "RandAugment, layers", "data.rand_augment_layers", None, _PAPER_B_JFT, remark="our choice"
      ),
    ),
  )


def sections() -> tuple[Section, ...]:
  """Returns all tables."""
  return _network(), _imagenet(), _imagenet_sharpness(), _jft(), _fine_tuning()


def as_markdown() -> str:
  """Returns the text of docs/hyper_parameters.md."""
  lines = [
    "# Hyper-parameters of the papers and of this project",
    "",
    "`python -m train.hyper_parameters` generates this page from the files in `train/configs/`.",
    "A test compares every value with the paper's. A is",
    "[arXiv 2310.16764](https://arxiv.org/abs/2310.16764), B",
    "[arXiv 2102.06171](https://arxiv.org/abs/2102.06171).",
  ]
  for section in sections():
    lines += [
      "",
      f"## {section.title}",
      "",
      f"{section.configs[0].upper()}{section.configs[1:]}.",
      "",
      "| | in the paper | where | here | field |",
      "|---|---|---|---|---|",
    ]
    lines += [_as_line(row) for row in section.rows]
  return "\n".join([*lines, ""])


def _as_line(row: HyperParameter) -> str:
  here = _as_cell(row.values()) + (f" ({row.remark})" if row.remark else "")
  cells = (row.what, _as_cell(row.stated), row.source, here, f"`{row.field}`")
  return f"| {' | '.join(cells)} |"


def _as_cell(values: tuple[Any, ...]) -> str:
  different = [values[0]] if all(value == values[0] for value in values) else values
  return "; ".join(map(_as_words, different))


def _as_words(value: Any) -> str:
  match value:
    case None:
      return "not stated"
    case bool():
      return "yes" if value else "no"
    case float():
      return f"{value:.6g}"
    case tuple():
      return ", ".join(map(str, value))
    case _:
      return str(value)


def main(arguments: list[str]) -> None:
  """Prints the tables as Markdown."""
  refuse_arguments(arguments)
  print(as_markdown(), end="")


if __name__ == "__main__":
  run_main(main)
