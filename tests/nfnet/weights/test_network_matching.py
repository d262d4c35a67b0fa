import jax
import numpy as np
import pytest

from nfnet.errors import UserError
from nfnet.weights.haiku import from_haiku, to_haiku
from tests.nfnet.weights.whole_networks import without_memory

# One network for each depth, and pairs that differ only in widths or in the bottleneck.
NETWORKS = [
  *(("F0", "paper"), ("F3", "paper"), ("F0+", "paper"), ("F0+", "released")),
  *(("N1", "paper"), ("M0", "paper"), ("P0", "paper")),
]


@pytest.mark.parametrize(("name", "bottleneck"), NETWORKS)
def test_a_tree_tells_its_own_variant(name, bottleneck):
  weights = from_haiku(to_haiku(without_memory(name, 3, bottleneck), name))
  assert (weights.variant, weights.bottleneck, weights.num_classes) == (name, bottleneck, 3)


@pytest.mark.parametrize(
  ("holds", "asked", "difference"),
  [
    ("N0", "M0", r"stem_conv1/w has shape \(3, 3, 8, 8\), must be \(3, 3, 8, 16\)"),
    ("N0", "N1", "NFNet/~/nf_block_2/~/conv_shortcut/w is missing"),
    ("N1", "N0", "nf_block_1/~/conv_shortcut/w|is not a parameter of it"),
    ("F0+", "F0", "stem_conv3/w has shape"),
  ],
)
def test_weights_of_another_variant_are_an_error_that_names_both(holds, asked, difference):
  tree = to_haiku(without_memory(holds, 3), holds)
  with pytest.raises(UserError, match=rf"do not fit {asked}: .*{difference}") as error:
    from_haiku(tree, asked)
  assert f"they look like {holds} (" in str(error.value)


def test_a_missing_and_a_superfluous_parameter_are_errors(parameters):
  tree = to_haiku(parameters, "P0")
  without = {module: leaves for module, leaves in tree.items() if module != "NFNet/~/linear"}
  with pytest.raises(UserError, match="NFNet/~/linear/w is missing; they fit no variant"):
    from_haiku(without, "P0")
  with pytest.raises(UserError, match="NFNet/~/surplus/w is not a parameter of it"):
    from_haiku({**tree, "NFNet/~/surplus": {"w": np.zeros(3, np.float32)}}, "P0")
  with pytest.raises(UserError, match="fit no variant; the closest is P0, but NFNet/~/linear/w is"):
    from_haiku(without)
  named = {f"module.{module}": leaves for module, leaves in tree.items()}
  message = "none of their names is known: the first is module.NFNet/~/stem_conv0/w, and not NFNet"
  with pytest.raises(UserError, match=message):
    from_haiku(named)


def test_integers_are_an_error(parameters):
  tree = jax.tree.map(lambda array: array.astype(np.int32), to_haiku(parameters, "P0"))
  with pytest.raises(UserError, match="stem_conv0/w is int32, not floating point"):
    from_haiku(tree, "P0")


@pytest.mark.parametrize(
  ("dtype", "value"),
  [(np.float32, np.nan), (np.float32, -np.inf), (np.float16, np.inf), (np.float64, 1e300)],
)
def test_what_is_not_finite_is_an_error_without_a_warning(parameters, dtype, value):
  tree = jax.tree.map(lambda array: array.astype(dtype), to_haiku(parameters, "P0"))
  tree["NFNet/~/linear"]["b"][-1] = value
  with pytest.raises(UserError, match="NFNet/~/linear/b has values that are not finite"):
    from_haiku(tree, "P0")
