"""Reads what libtpu itself estimates for one Pallas kernel; not for v4, where libtpu aborts.

`LIBTPU_INIT_ARGS="--xla_jf_dump_static_llo_profile_to=FOLDER"` writes one estimate for each kernel,
and with `--xla_tpu_impure_dump_unrolled_bundles=true` also a trace: all bundles in the order of
issue. The compiler follows core 0. It assumes 0 for some scalars that it does not compute (such as
the remainder of a division), so that trace and estimate may contain a region too often or not at
all. It aborts at some instructions, and gives some kernels an estimate of 0.
"""

import re

_NAME = re.compile(r'^  hlo_op_name: "(.*)"$', re.M)
_CYCLES = re.compile(r"^  estimated_cycles: (\d+)$", re.M)
_TRACED_BUNDLE = re.compile(r"^0x([0-9a-f]+): bundle slots:$", re.M)


def read_estimated_cycles(static_profile_text: str) -> int:
  """Reads the cycles of one core, including waits, from a `*_static_llo_profile.textproto`.

  Raises:
    ValueError: the text is not such a profile of one kernel, or the compiler gave up on the kernel
      (it then writes 0).
  """
  names, cycles = _NAME.findall(static_profile_text), _CYCLES.findall(static_profile_text)
  if len(names) != 1 or len(cycles) != 1:
    raise ValueError(f"static_profile_text: {len(names)} names and {len(cycles)} estimates, not 1")
  if not int(cycles[0]):
    raise ValueError(f"static_profile_text: the compiler has no estimate for {names[0]}")
  return int(cycles[0])


def read_traced_bundles(trace_text: str) -> int:
  """Reads the number of issued bundles from a trace (`NAME_bundles.txt`) or its end.

  Raises:
    ValueError: there is no bundle in the text.
  """
  numbers = _TRACED_BUNDLE.findall(trace_text)
  if not numbers:
    raise ValueError("trace_text contains no traced bundle")
  return int(numbers[-1], 16) + 1
