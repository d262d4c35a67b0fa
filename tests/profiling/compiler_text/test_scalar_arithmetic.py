import pytest

from profiling.compiler_text.scalar_arithmetic import compute


def quotient_of_57(x):
  """Divides as the compiler does, by (x + 1) * factor >> 37 in two words."""
  factor = 2411209710
  upper = compute("smulhi.u32", [x, factor])
  carry = compute("sc.u32", [compute("smul.u32", [x, factor]), factor])
  one = compute("scalar_select", [carry, 1, 0])
  return compute("sshrl.u32", [compute("sadd.s32", [upper, one]), 5])


@pytest.mark.parametrize("x", [0, 1, 56, 57, 58, 113, 114, 2**31 - 1])
def test_the_carry_of_an_addition(x):
  assert quotient_of_57(x) == x // 57


def test_what_depends_on_an_unknown_value_is_unknown():
  assert compute("sc.u32", [None, 1]) is None
  assert compute("sadd.s32", [1, None]) is None
  assert compute("pand", [0, None]) == 0
