"""Calls every public function with a wrong value of one argument at a time; prints the errors.

It is a program of its own because the tests check the types of arguments, and what is looked at
here is what happens without that. No call computes anything: each is refused.
"""

import inspect
import json
import math
import pathlib

import jax
import numpy as np

import kernels
import nfnet
from kernels.packed_sums.formulas import Part
from train.step.gradient_transformations import (
  adaptive_gradient_clipping,
  nesterov_sgd_with_agc,
  nfnet_roles,
  uniform_roles,
)
from train.step.gradients.sharpness_aware import ascend

WRONG = {
  "None": None,
  "True": True,
  "-1": -1,
  "2.5": 2.5,
  "nan": math.nan,
  "inf": math.inf,
  "10**400": 10**400,
  "3j": 3j,
  "text": "nothing",
  "long text": "x" * 5000,
  "long path": "x/" * 3000,
  "bytes": b"x",
  "list": [],
  "ragged list": [[1.0, 2.0], [3.0]],
  "dictionary": {},
  "dictionary with a number": {1: 2.0, "a": 3.0},
  "function": len,
  "type": list,
  "object": object(),
  "path": pathlib.Path("nothing"),
  "int array": np.zeros((2, 3), np.int32),
  "array of 5 axes": np.zeros((1, 1, 1, 1, 7), np.float32),
  "array of objects": np.array([None, "a"], object),
  "key": jax.random.key(0),
}


def zeros(*shape):
  return np.zeros(shape, np.float32)


def calls():
  """Yields (name, function, arguments that are right, names in WRONG that are right too)."""
  model = nfnet.NFNet("P0", num_classes=10)
  parameters = nfnet.initial_parameters(model, seed=0)
  inputs = {"model": model, "parameters": parameters, "images": zeros(1, 32, 32, 3)}
  signature = inspect.signature(nfnet.NFNet.__init__)
  network = {name: one.default for name, one in signature.parameters.items() if name != "self"}
  network |= {"variant": "P0", "num_classes": 10}
  dropped = {"stochastic_depth_rate": [], "dropout_rate": ["None"], "alpha": ["2.5"]}
  yield "nfnet.NFNet", nfnet.NFNet, network, {**dropped, "rematerialize": ["True"]}
  yield "nfnet.apply", nfnet.apply, {**inputs, "keys": None}, {"keys": ["None"]}
  yield "nfnet.pooled_features", nfnet.pooled_features, inputs, {}
  yield "nfnet.stage_features", nfnet.stage_features, inputs, {}
  del inputs["images"]
  yield "nfnet.bind", nfnet.bind, inputs, {}
  yield (
    "nfnet.initial_parameters",
    nfnet.initial_parameters,
    {"model": model, "seed": 0},
    {"seed": ["10**400"]},
  )
  file = {"path": "nothing", "model": model, "prefer_ema": True}
  yield "nfnet.load", nfnet.load, file, {"model": ["None"], "prefer_ema": ["True"]}
  optional = ("variant", "activation", "numerics", "pixels", "resize")
  yield (
    "nfnet.load_classifier",
    nfnet.load_classifier,
    {"path": "nothing"} | dict.fromkeys(optional),
    {key: ["None"] for key in optional},
  )
  prepared = {"pixels": 8, "resize": "squash", "resize_margin": 32}
  picture = np.zeros((8, 8, 3), np.uint8)
  yield "nfnet.preprocess", nfnet.preprocess, {"pictures": picture, **prepared}, {}
  yield "nfnet.normalize", nfnet.normalize, {"images": picture}, {}
  own = {"model": model, "parameters": parameters, **prepared}
  own |= {"class_names": None, "is_multi_label": False}
  classifier = nfnet.Classifier(**own)
  yield (
    "nfnet.Classifier",
    nfnet.Classifier,
    own,
    {
      "parameters": list(WRONG),  # They are checked when they are used.
      "class_names": ["None"],
      "is_multi_label": ["True"],
    },
  )
  yield "Classifier.preprocess", classifier.preprocess, {"pictures": picture}, {}
  images = {"images": zeros(1, 32, 32, 3)}
  # What it keeps would be computed with the first images.
  classifier.__dict__["_standardized_parameters"] = parameters
  yield "Classifier.logits", classifier.logits, images, {}
  yield "Classifier.probabilities", classifier.probabilities, {"logits": zeros(10)}, {}
  yield "Classifier.top", classifier.top, {"logits": zeros(10), "count": 3}, {"count": ["10**400"]}
  yield from calls_of_kernels()
  yield from calls_of_train()


def calls_of_kernels():
  x, bias, scale = zeros(4, 4, 2, 8), zeros(8), zeros()
  pending = kernels.PendingSum(x, x, zeros(2, 8), zeros(2, 8))
  gate = kernels.Gate(zeros(8, 4), zeros(4), zeros(4, 8), zeros(8))
  right = {
    "x": x,
    "weight": zeros(1, 1, 8, 8),
    "gain": bias,
    "bias": bias,
    "input_scale": scale,
    "filters": kernels.StandardizedFilters(zeros(1, 1, 8, 128), None),
    "shortcut": x,
    "gate": gate,
    "skip_gain": scale,
    "keep": zeros(2),
    "pending": pending,
    "dtype": np.float32,
    "images": zeros(8, 8, 2, 3),
    "weights": [zeros(3, 3, 3 if i == 0 else 8, 8) for i in range(4)],
    "gains": [bias] * 4,
    "biases": [bias] * 4,
    "activation": jax.nn.relu,
    "packed": None,
    "gradients": (zeros(16, 128),),
    "indices": np.zeros(1, np.int32),
    "parts": (Part(0, 2, 0),),
  }
  numbers = ["-1", "2.5", "nan", "inf", "10**400"]
  allowed = {
    "input_scale": ["None", *numbers],
    "keep": ["None"],
    "skip_gain": numbers,
    "activation": ["None", "function", "type"],
    "alpha": ["-1", "2.5"],
    "gradient_dtype": ["None"],
    "packed": ["None"],
    **{key: ["True"] for key in ("pool", "returns_input", "stacked", "unpacks")},
    **dict.fromkeys(("learning_rate", "momentum", "weight_decay"), numbers),
    **{key: ["None", *numbers] for key in ("clipping", "ema_decay")},
    "emas": ["None"],
  }
  step = {name: {"w": zeros(3, 2)} for name in ("parameters", "gradients", "momentum_buffers")}
  step |= dict.fromkeys(("learning_rate", "momentum", "weight_decay", "clipping"), scale)
  special = {
    "fully_connected_layer": {"x": zeros(2, 8), "weight": zeros(8, 8)},
    "sgd_agc_step": {**step, "emas": step["parameters"], "ema_decay": scale},
  }
  for name in kernels.__all__:
    function = getattr(kernels, name)
    if inspect.isfunction(function):
      arguments = {
        key: {**right, **special.get(name, {})}.get(key, parameter.default)
        for key, parameter in inspect.signature(function).parameters.items()
      }
      yield f"kernels.{name}", function, arguments, allowed


def calls_of_train():
  parameters = {"m": zeros(3, 2)}
  rates = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0, "clipping": 0.01}
  finite = ["2.5"]
  yield (
    "nesterov_sgd_with_agc",
    nesterov_sgd_with_agc,
    {**rates, "roles": uniform_roles, "implementation": "reference"},
    {
      "learning_rate": [*finite, "function", "type"],
      "weight_decay": finite,
      "clipping": ["None", *finite],
      "roles": ["function", "type"],
    },
  )
  clip = {"clipping": 0.01, "roles": uniform_roles}
  allowed = {"clipping": finite, "roles": ["function", "type"]}
  yield "adaptive_gradient_clipping", adaptive_gradient_clipping, clip, allowed
  trees = {"gradients": parameters, "parameters": parameters}
  yield "ascend", ascend, {**trees, "radius": 0.1}, {"radius": finite}
  empty = ["None", "list", "dictionary"]
  floats = ["2.5", "nan", "inf", "array of 5 axes", "ragged list"]
  yield "uniform_roles", uniform_roles, {"parameters": parameters}, {"parameters": empty + floats}
  yield "nfnet_roles", nfnet_roles, {"parameters": parameters}, {"parameters": empty}
  for make in (nesterov_sgd_with_agc, adaptive_gradient_clipping):
    optimizer = make(0.1, roles=uniform_roles)
    right = {**trees, "state": optimizer.init(parameters)}
    # AGC alone has no state.
    anything = list(WRONG) if make is adaptive_gradient_clipping else []

    def update(gradients, state, parameters, optimizer=optimizer):
      return optimizer.update(gradients, state, parameters)

    yield f"{make.__name__}.update", update, right, {"state": anything}


def mistakes():
  """Yields (call, argument, wrong value, type of the error or None, its text) of every mistake."""
  for call, function, arguments, allowed in calls():
    for argument in arguments:
      for wrong, value in WRONG.items():
        if wrong in allowed.get(argument, ()):
          continue
        kind, text = None, ""
        try:
          function(**{**arguments, argument: value})
        except Exception as error:
          is_user_error = isinstance(error, nfnet.UserError)
          kind, text = "UserError" if is_user_error else type(error).__name__, str(error)
        yield call, argument, wrong, kind, text


if __name__ == "__main__":
  for mistake in mistakes():
    print(json.dumps(mistake))
  print(json.dumps("the end"))
