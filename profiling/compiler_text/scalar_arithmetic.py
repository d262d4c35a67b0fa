"""Computes scalar instructions of a TPU core on values that may be unknown.

Values are nonnegative numbers below 2**32; None is an unknown value.
"""

import operator
from collections.abc import Callable, Mapping

WORD = 2**32


def signed(x: int) -> int:
  """Returns the number that 32 bits represent in two's complement."""
  return x - WORD if x >= WORD // 2 else x


def negation(a: int | None) -> int | None:
  """Returns whether a predicate is false."""
  return None if a is None else int(not a)


def _either(a: int | None, b: int | None) -> int | None:
  return 1 if a or b else None if a is None or b is None else 0


def _both(a: int | None, b: int | None) -> int | None:
  return negation(_either(negation(a), negation(b)))


_ARITHMETIC: Mapping[str, Callable[..., int]] = {
  "smov": lambda a: a,
  "sadd": operator.add,
  "sc": lambda a, b: a + b >> 32,  # the carry of an addition
  "ssub": operator.sub,
  "smul": operator.mul,
  "smulhi": lambda a, b: a * b >> 32,
  "quotient": lambda a, b: a // b if b else WORD - 1,
  "remainder": lambda a, b: a % b if b else a,
  "sand": operator.and_,
  "sor": operator.or_,
  "sxor": operator.xor,
  "sshll": lambda a, b: a << b if b < 32 else 0,
  "sshrl": lambda a, b: a >> b if b < 32 else 0,
  "sshra": lambda a, b: signed(a) >> min(b, 31),
}
_SIGNED_ARITHMETIC = {"smin": min, "smax": max}
_COMPARISONS = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
# The result may be known although one of the operands is not.
_LOGIC: Mapping[str, Callable[..., int | None]] = {
  "por": _either,
  "pand": _both,
  "pnand": lambda a, b: negation(_both(a, b)),
  "pnor": lambda a, b: negation(_either(a, b)),
  "pxor": lambda a, b: None if a is None or b is None else a ^ b,
  "pneg": negation,
  "pmov": lambda a: a,
}


def compute(operation: str, values: list[int | None]) -> int | None:
  """Returns the result of an instruction, or None if it is not known.

  Args:
    operation: name of the operation, for example "sadd.s32".
    values: values of the operands.
  """
  name, *kinds = operation.split(".")
  if name in _LOGIC:
    return _LOGIC[name](*values)
  if name == "scalar_select":
    predicate, on_true, on_false = values
    if predicate is None:
      return on_true if on_true == on_false else None
    return on_true if predicate else on_false
  if None in values:
    return None
  if name == "spop":  # It takes what an earlier instruction left in a queue.
    return values[0]
  if name == "scmp" and kinds[1][0] in "su" and kinds[0] in _COMPARISONS:
    numbers = map(signed, values) if kinds[1][0] == "s" else values
    return int(_COMPARISONS[kinds[0]](*numbers))
  if name in _ARITHMETIC and (not kinds or kinds[0][0] in "su"):
    return _ARITHMETIC[name](*values) % WORD
  if name in _SIGNED_ARITHMETIC and kinds and kinds[0][0] in "su":
    numbers = map(signed, values) if kinds[0][0] == "s" else values
    return _SIGNED_ARITHMETIC[name](*numbers) % WORD
  return None
