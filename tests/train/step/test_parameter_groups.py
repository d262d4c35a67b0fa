import jax
import pytest

from nfnet.model import NFNet, parameter_shapes
from nfnet.variants import VARIANTS
from train.step.parameter_groups import (
  PARAMETER_GROUPS,
  ParameterGroup,
  assign_groups,
  parameter_name,
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_groups_of_every_variant_follow_the_papers(variant):
  assigned = jax.tree_util.tree_leaves_with_path(
    assign_groups(parameter_shapes(NFNet(variant, 10)))
  )
  for path, group in assigned:
    name = parameter_name(path)
    assert group.clipped == (name != "classifier/weight")
    assert group.decayed == name.endswith("/weight")


def test_a_parameter_without_group_is_an_error():
  with pytest.raises(ValueError, match="'stem/extra' is in no group"):
    assign_groups({"stem": {"extra": 0}})


def test_a_group_without_parameter_is_an_error():
  idle = ParameterGroup("attention/.*", clipped=True, decayed=True)
  with pytest.raises(ValueError, match="no parameter matches attention"):
    assign_groups(parameter_shapes(NFNet("P0", 10)), (*PARAMETER_GROUPS, idle))


def test_the_first_match_counts():
  everything = ParameterGroup(".*", clipped=False, decayed=False)
  assigned = assign_groups({"a": {"weight": 0}}, (everything,))
  assert assigned["a"]["weight"] is everything
