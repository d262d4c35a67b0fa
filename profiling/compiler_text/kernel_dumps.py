"""Keeps what the compiler writes about each Pallas kernel of a program.

With `dump_arguments` in `LIBTPU_INIT_ARGS`, the compiler writes one set of texts for each call of a
kernel. Equal calls have equal texts, which are kept once. `kernel_profiles` reads figures from what
is kept; its source is not here, so that changing it compiles nothing anew.
"""

import gzip
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping

from profiling.compiler_text.hlo_text import Instruction, kernel_of, parse

_TEXTS = {
  "allocations": "*-{name}-*-pre-finalize-registers-and-allocations.txt",
  "bundles": "*-{name}-[0-9]*-final_bundles.txt",
  "utilization": "*-{name}-*-final_hlo-static-per-bundle-utilization.txt",
}
DUMPS = "dumps"
"""Name of the folder for the compiler's texts, inside the folder of the process that compiles."""
INDEX = "kernels.json"
"""Name of the file that says which texts belong to which call, beside the texts."""


def dump_arguments(folder: pathlib.Path) -> str:
  """Returns arguments for `LIBTPU_INIT_ARGS`, which has to be set before JAX starts."""
  return (
    f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_hlo_text=true "
    "--xla_jf_dump_llo_pass_label_regex=final"
  )


def keep(dumps: pathlib.Path, hlo_text: str, folder: pathlib.Path) -> None:
  """Keeps the texts of a program's kernels and deletes all other dumps.

  The compiler writes nothing about a call that equals an earlier one (same kernel, same types and
  memories of operands and results). Such a call gets the texts of the earlier one.

  Args:
    dumps: folder to which the compiler wrote.
    hlo_text: text of the compiled program.
    folder: folder in which the texts are kept.

  Raises:
    FileNotFoundError: the compiler wrote nothing about a kernel.
  """
  computations, _ = parse(hlo_text)
  # The compiler calls a kernel inside a fusion by the fusion's name.
  fused = {
    instruction.attribute("calls")
    for instructions in computations.values()
    for instruction in instructions.values()
  }
  calls = {
    instruction.name: _signature(instructions, instruction, kernel)
    for name, instructions in computations.items()
    if name not in fused
    for instruction in instructions.values()
    if (kernel := kernel_of(computations, instruction)) is not None
  }
  kept_by_signature: dict[str, str] = {}
  for name, signature in calls.items():
    texts = {key: _read_dump(dumps, pattern.format(name=name)) for key, pattern in _TEXTS.items()}
    if None not in texts.values():
      content = json.dumps(texts).encode()
      path = folder / f"kernel_{hashlib.sha256(content).hexdigest()}.json.gz"
      path.write_bytes(gzip.compress(content, compresslevel=5, mtime=0))
      kept_by_signature[signature] = path.name
  if unknown := [name for name, signature in calls.items() if signature not in kept_by_signature]:
    raise FileNotFoundError(f"the compiler wrote nothing about {', '.join(unknown)}")
  kept = {name: kept_by_signature[signature] for name, signature in calls.items()}
  (folder / INDEX).write_text(json.dumps(kept, indent=1))
  for path in dumps.iterdir():
    path.unlink()


def _signature(
  instructions: Mapping[str, Instruction], call: Instruction, kernel: Instruction
) -> str:
  operands = [instructions[name].type for name in call.operands if name in instructions]
  # The body is the kernel itself, as the compiler received it.
  body = re.search(r'"body":"([^"]*)"', kernel.rest)
  return json.dumps([call.type, operands, body and body[1]])


def _read_dump(dumps: pathlib.Path, pattern: str) -> str | None:
  paths = list(dumps.glob(pattern))
  if not paths:
    return None
  # Without the compiler's name of the call, equal kernels have equal texts.
  return re.sub(r"#\{[\w.]+\}", "#{kernel}", paths[0].read_text())
