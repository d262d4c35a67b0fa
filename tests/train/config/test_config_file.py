import dataclasses
import json
import re
import subprocess
import sys
import textwrap
import typing

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from nfnet.errors import UserError
from train.config.config_file import (
  as_argument,
  field_types,
  field_values,
  from_json,
  load_experiment,
  parse_arguments,
  to_json,
  validate,
)
from train.config.experiment import CHANGEABLE_ON_RESUME, Data, Experiment, Optimizer, Schedule

VALID = Experiment(
  name="valid",
  data=Data(batch_size=64),
  optimizer=Optimizer(warmup_steps=10),
  schedule=Schedule(train_steps=100),
)


@pytest.fixture
def config(tmp_path):
  path = tmp_path / "config.py"
  path.write_text(
    textwrap.dedent("""\
      from train.config.experiment import Data, Experiment, Optimizer, Schedule

      def experiment():
        return Experiment(
          name="valid",
          data=Data(batch_size=64),
          optimizer=Optimizer(warmup_steps=10),
          schedule=Schedule(train_steps=100),
        )
      """)
  )
  return str(path)


def replaced(**sections):
  return dataclasses.replace(
    VALID,
    **{
      name: dataclasses.replace(getattr(VALID, name), **value) if isinstance(value, dict) else value
      for name, value in sections.items()
    },
  )


def test_file_gives_the_experiment_and_no_bytecode(config, tmp_path):
  assert load_experiment(config) == VALID
  assert [path.name for path in tmp_path.iterdir()] == ["config.py"]


@pytest.mark.parametrize(
  ("argument", "field", "value"),
  [
    ("--config.optimizer.peak_learning_rate=0.4", "optimizer.peak_learning_rate", 0.4),
    ("--config.optimizer.weight_decay=1e-3", "optimizer.weight_decay", 1e-3),
    ("--config.optimizer.peak_learning_rate=2", "optimizer.peak_learning_rate", 2.0),
    ("-config.seed=7", "seed", 7),
    ("--config.data.horizontal_flip=False", "data.horizontal_flip", False),
    ("--config.model.rematerialize=true", "model.rematerialize", True),
    ("--config.optimizer.ema_decay=none", "optimizer.ema_decay", None),
    ("--config.model.bottleneck=released", "model.bottleneck", "released"),
    ("--config.name=a=b none", "name", "a=b none"),
    ("--config.initial_weights=/runs/f0", "initial_weights", "/runs/f0"),
    ("--config.data.path=", "data.path", ""),
  ],
)
def test_override_sets_one_field(config, argument, field, value):
  changed = field_values(load_experiment(config, [argument]))
  assert changed[field] == value
  assert type(changed[field]) is type(value)
  assert {**changed, field: None} == {**field_values(VALID), field: None}


def test_later_override_wins(config):
  overrides = ["--config.seed=1", "--config.seed=2"]
  assert load_experiment(config, overrides).seed == 2


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--config.optimizer.peak_lerning_rate=1", "nearest: --config.optimizer.peak_learning_rate"),
    ("--config.momentum=1", "nearest: --config.optimizer.momentum"),
    ("--config.data.batch_size=1.5", "--config.data.batch_size='1.5': must be an integer"),
    ("--config.data.batch_size=none", "must be an integer"),
    ("--config.optimizer.momentum=nan", "must be a finite number"),
    ("--config.optimizer.momentum=fast", "must be a finite number"),
    ("--config.optimizer.agc_clipping=x", "must be a finite number or none"),
    ("--config.data.horizontal_flip=1", "must be true or false"),
    ("--config.loss.kind=hinge", "'hinge': must be one of softmax, sigmoid"),
    ("--config.model=F0", "section of fields"),
    ("--config.seed", "write --config.seed=VALUE"),
  ],
)
def test_bad_override_is_refused(config, argument, message):
  with pytest.raises(UserError, match=re.escape(message)):
    load_experiment(config, [argument])


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("def experiment(:", "line 1: invalid syntax"),
    ("x = 1", "has no function experiment()"),
    ("experiment = 3", "has no function experiment()"),
    ("def experiment():\n  return {}", "returned dict"),
    ("import nothing_like_this", "line 1: ModuleNotFoundError"),
    ("def experiment():\n  return 1 / 0", "line 2: ZeroDivisionError"),
    (
      "from train.config.experiment import Data\ndef experiment():\n  return Data(batchsize=1)",
      "nearest field: batch_size",
    ),
    (
      "from train.config.experiment import *\n"
      "def experiment():\n  return Experiment(name='x', model='F0')",
      "model='F0': must be a Model(...)",
    ),
  ],
)
def test_bad_file_is_refused(tmp_path, source, message):
  path = tmp_path / "config.py"
  path.write_text(source)
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    load_experiment(str(path))
  assert "\n" not in str(caught.value)
  assert message.startswith(("model", "nearest")) or str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["absent.py", "."])
def test_unreadable_file_is_refused(tmp_path, name):
  with pytest.raises(UserError, match="cannot be read"):
    load_experiment(str(tmp_path / name))


@pytest.mark.parametrize(
  ("experiment", "message"),
  [
    (replaced(schedule={"train_epochs": 1.0}), "exactly one of the two"),
    (replaced(schedule={"train_steps": None}), "exactly one of the two"),
    (replaced(optimizer={"warmup_epochs": 1.0}), "exactly one of the two"),
    (replaced(optimizer={"warmup_steps": None}), "exactly one of the two"),
    (replaced(optimizer={"warmup_steps": 101}), "must not exceed schedule.train_steps=100"),
    (replaced(optimizer={"gradient_accumulation": 3}), "must divide data.batch_size=64"),
    (replaced(loss={"kind": "sigmoid", "label_smoothing": 0.1}), "softmax only"),
    (replaced(sharpness={"radius": 0.05}), "sharpness.group_images=None: set both"),
    (replaced(sharpness={"group_images": 16}), "sharpness.group_images=16: set both"),
    (replaced(sharpness={"radius": -0.1, "group_images": 16}), "radius=-0.1: must be greater than"),
    (replaced(sharpness={"ascent_share": 1.5}), "ascent_share=1.5: must be greater than 0 and at"),
    (replaced(loss={"kind": "hinge"}), "loss.kind='hinge': must be one of softmax, sigmoid"),
    (replaced(model={"variant": "F9"}), "model.variant: variant 'F9' is none of"),
    (replaced(model={"activation": "gelo"}), "model.activation='gelo': must be one of"),
    (replaced(data={"batch_size": 0}), "data.batch_size=0: must be at least 1"),
    (replaced(data={"batch_size": "64"}), "data.batch_size='64': must be an integer"),
    (replaced(data={"batch_size": True}), "data.batch_size=True: must be an integer"),
    (replaced(data={"crop_area_min": 0.0}), "data.crop_area_min=0.0: must be greater than 0"),
    (replaced(optimizer={"momentum": 1.0}), "optimizer.momentum=1.0: must be at least 0 and less"),
    (replaced(optimizer={"peak_learning_rate": float("inf")}), "must be a finite number"),
    (replaced(optimizer={"agc_clipping": 0}), "optimizer.agc_clipping=0: must be greater than 0"),
    (replaced(seed=-1), "seed=-1: must be between 0 and"),
  ],
)
def test_rule_names_field_value_and_requirement(experiment, message):
  with pytest.raises(UserError, match=re.escape(message)):
    validate(experiment)


def experiments():
  """Experiments with any values of the right types, whether they make sense or not."""

  def strategy(annotation):
    if dataclasses.is_dataclass(annotation):
      hints = typing.get_type_hints(annotation)
      return st.builds(annotation, **{name: strategy(hint) for name, hint in hints.items()})
    if typing.get_origin(annotation) is typing.Literal:
      return st.sampled_from(typing.get_args(annotation))
    strategies = {
      int: st.integers(),
      float: st.floats(allow_nan=False, allow_infinity=False),
      bool: st.booleans(),
      str: st.text(),
      type(None): st.none(),
    }
    if annotation in strategies:
      return strategies[annotation]
    return st.one_of(*map(strategy, typing.get_args(annotation)))

  return strategy(Experiment)


@given(experiments())
def test_json_round_trip_is_exact(experiment):
  assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


def test_arguments_reproduce_an_experiment(config):
  wanted = replaced(
    name="wanted",
    model={"variant": "N0", "rematerialize": True, "dropout_rate": 0.1},
    data={"horizontal_flip": False},
    optimizer={"ema_decay": None, "weight_decay": 1e-7},
    schedule={"train_steps": None, "train_epochs": 2.5},
  )
  arguments = [as_argument(field, value) for field, value in field_values(wanted).items()]
  assert load_experiment(config, arguments) == wanted


def test_json_of_another_version_is_refused_by_name():
  fields = to_json(VALID)
  fields["optimizer"]["lookahead"] = 3
  with pytest.raises(UserError, match=r"optimizer\.lookahead"):
    from_json(fields)


def test_changeable_fields_exist():
  assert set(field_types()) >= CHANGEABLE_ON_RESUME


@pytest.fixture
def absl_flags():
  """Restores absl's flags, which are global, and gives them two as a main would."""
  values = flags.FLAGS
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  yield values
  del values.workdir
  values.unparse_flags()


def test_arguments_are_split_between_absl_and_the_experiment(absl_flags):
  rest = parse_arguments(["main", "--workdir=/tmp/a", "--config.seed=3", "-config.name=b"])
  assert rest == ["main", "--config.seed=3", "-config.name=b"]
  assert absl_flags.is_parsed()
  assert absl_flags.workdir == "/tmp/a"


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--wordkir=x", "unknown flag --wordkir; nearest: --workdir"),
    ("--optimizer.momentum=0.8", "nearest: --config.optimizer.momentum"),
    ("0.8", "unexpected argument '0.8'"),
    ("--workdir", "workdir"),
  ],
)
def test_bad_flag_is_refused(absl_flags, argument, message):
  with pytest.raises(UserError, match=re.escape(message)):
    parse_arguments(["main", argument])


def test_main_prints_one_line_and_exits_with_2(config, tmp_path):
  main = tmp_path / "main.py"
  main.write_text(
    textwrap.dedent("""\
      import sys
      from absl import flags
      from nfnet.command_line import run_main
      from train.config.config_file import load_experiment, parse_arguments

      CONFIG = flags.DEFINE_string("config", None, "file", required=True)

      def main(arguments):
        print(load_experiment(CONFIG.value, arguments[1:]).seed)

      if __name__ == "__main__":
        run_main(main, flags_parser=parse_arguments)
      """)
  )

  def run(*arguments):
    return subprocess.run(
      [sys.executable, main, *arguments],
      env={"PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu"},
      capture_output=True,
      text=True,
      check=False,
    )

  good = run(f"--config={config}", "--config.seed=5")
  assert (good.returncode, good.stdout, good.stderr) == (0, "5\n", "")
  for arguments in ((f"--config={config}", "--config.sed=5"), ("--confg=x",), ()):
    bad = run(*arguments)
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: ")
    assert bad.stderr.count("\n") == 1, bad.stderr
