import functools
import math

import jax
import jax.extend
import jax.numpy as jnp
import pytest

from nfnet.cost import count
from nfnet.model import NFNet, apply, parameter_shapes
from nfnet.variants import VARIANTS, get_variant
from nfnet.weights.haiku_and_timm_names import parameter_names

# Printed in paper B, table 1 (F0-F6) and section 5 (F4+); F7 is counted from the released code.
# Multiply-adds at the test resolution in units of 1e9, parameters in 1e6.
PUBLISHED = {
  "F0": ("12.38", "71.5"),
  "F1": ("35.54", "132.6"),
  "F2": ("62.59", "193.8"),
  "F3": ("114.76", "254.9"),
  "F4": ("215.24", "316.1"),
  "F5": ("289.76", "377.2"),
  "F6": ("377.28", "438.4"),
  "F7": ("478.78", "499.5"),
}


def printed(number, digits):
  return f"{number:.{digits}f}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_paper_b_table_1(name):
  cost = count(name, num_classes=1000, pixels=get_variant(name).test_pixels)
  assert (printed(cost.macs / 1e9, 2), printed(cost.parameters / 1e6, 1)) == PUBLISHED[name]


@pytest.mark.parametrize(
  ("bottleneck", "giga_macs", "mega_parameters"),
  [("paper", "367.41", "527.03"), ("released", "333.39", "524.95")],
)
def test_f4_plus_of_paper_b_table_5(bottleneck, giga_macs, mega_parameters):
  """The table prints 367 B and 527 M, which only a bottleneck of 192 channels gives."""
  cost = count("F4+", num_classes=1000, pixels=512, bottleneck=bottleneck)
  assert printed(cost.macs / 1e9, 2) == giga_macs
  assert printed(cost.parameters / 1e6, 2) == mega_parameters


@pytest.mark.parametrize(
  ("name", "giga_macs", "mega_parameters_1k", "mega_parameters_30k"),
  [
    ("F0", "9.58", "71.5", "160.6"),
    ("F1", "17.53", "132.6", "221.8"),
    ("F3", "33.43", "254.9", "344.0"),
    ("F3+", "57.04", "425.1", "543.9"),
    ("F7", "65.23", "499.5", "588.6"),
    ("F7+", "111.30", "832.9", "951.7"),
  ],
)
def test_pretraining_of_paper_a(name, giga_macs, mega_parameters_1k, mega_parameters_30k):
  """Paper A pre-trains with 224 px and 30,000 classes."""
  cost = count(name, num_classes=30_000, pixels=224)
  assert printed(cost.macs / 1e9, 2) == giga_macs
  assert printed(cost.parameters / 1e6, 1) == mega_parameters_30k
  small = count(name, num_classes=1000, pixels=224)
  assert printed(small.parameters / 1e6, 1) == mega_parameters_1k
  assert cost.training_flops == 6 * cost.macs


@pytest.mark.parametrize(("name", "giga_macs"), [("F3+", "51.84"), ("F7+", "100.86")])
def test_pretraining_with_the_released_bottleneck(name, giga_macs):
  cost = count(name, num_classes=30_000, pixels=224, bottleneck="released")
  assert printed(cost.macs / 1e9, 2) == giga_macs


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_those_of_the_names(name):
  paths = {
    tuple(key.key for key in keys)
    for keys, _ in jax.tree.leaves_with_path(parameter_shapes(NFNet(name, 7)))
  }
  assert paths == {parameter.path for parameter in parameter_names(name)}


def traced_macs(name, pixels):
  """Counts the multiply-adds of the products and convolutions in a traced forward pass."""
  model = NFNet(name, 10, block_execution="unrolled")
  image = jax.ShapeDtypeStruct((1, pixels, pixels, 3), jnp.float32)
  return macs_in(
    jax.make_jaxpr(functools.partial(apply, model))(parameter_shapes(model), image).jaxpr
  )


def macs_in(jaxpr):
  total = 0
  for equation in jaxpr.eqns:
    result = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "conv_general_dilated":
      total += result * math.prod(equation.invars[1].aval.shape[:3])
    elif equation.primitive.name == "dot_general":
      total += result * equation.invars[1].aval.shape[0]
    inner = list(jax.extend.core.jaxprs_in_params(equation.params))
    if equation.primitive.name == "cond":
      # The branches compute the same product; the platform decides which one runs.
      (macs,) = {macs_in(branch) for branch in inner}
      total += macs
    else:
      total += sum(map(macs_in, inner))
  return total


@pytest.mark.parametrize(
  ("name", "pixels"), [("N0", 32), ("N0", 33), ("N0", 63), ("N1", 1), ("F0+", 224)]
)
def test_multiply_adds_are_those_of_the_real_network(name, pixels):
  assert count(name, num_classes=10, pixels=pixels).macs == traced_macs(name, pixels)


def test_parts_are_in_order_and_say_their_sides():
  cost = count("F1", num_classes=10, pixels=225)
  assert [(part.name, part.blocks, part.output_pixels) for part in cost.parts] == [
    ("stem", 0, 57),
    ("stage 1", 2, 57),
    ("stage 2", 4, 29),
    ("stage 3", 12, 15),
    ("stage 4", 6, 8),
    ("final conv", 0, 8),
    ("classifier", 0, 1),
  ]
