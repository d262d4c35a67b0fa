"""Compiles small Pallas kernels for described TPUs and keeps what the compiler writes about them.

    python -m tests.profiling.dump_kernels

replaces everything in `tests/profiling/excerpts/bundles/`, in about 20 seconds. Needs the extra
`tpu`, whose package contains the compiler, but no TPU.

It keeps the final schedule of each kernel of `excerpt_kernels.py`; for v4 also the use of the
units; and for most kernels on v5p the compiler's own static profile and the last lines of its trace
of all bundles in the order of issue. Long texts are compressed; nothing in them is changed.
"""

import argparse
import functools
import gzip
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

from profiling.compiler_text.kernel_dumps import dump_arguments

EXCERPTS = pathlib.Path(__file__).parent / "excerpts" / "bundles"
COMPRESS_ABOVE_BYTES = 12_000
TRACE_END_BYTES = 200

# A v4 chip has two cores; with "megacore", a grid is split over them.
TOPOLOGIES = {
  "v4": dict(topology_name="v4:2x2x1", chip_config_name="megacore"),
  "v5p": dict(topology_name="v5p:2x2x1"),
}
DUMPS = (
  ("v4", "matmul"),
  ("v4", "nested_loops"),
  ("v4", "first_and_last"),
  ("v4", "odd_grid"),
  ("v4", "region_by_data"),
  ("v4", "loop_by_data"),
  ("v4", "loop_after_region"),
  ("v4", "region_by_step_and_data"),
  ("v4", "loop_by_step"),
  ("v4", "arithmetic"),
  ("v5p", "matmul"),
  ("v5p", "nested_loops"),
  ("v5p", "normalize"),
  ("v5p", "convolution_3x3"),
  ("v5p", "weight_gradient"),
  ("v5p", "every_third"),
  ("v5p", "arithmetic"),
)
# The compiler aborts if a profile is requested of instructions that its evaluator does not know:
# v4's copies, and a division by a constant on v5p.
WITH_PROFILE = tuple(dump for dump in DUMPS if dump[0] == "v5p" and dump[1] != "arithmetic")


def compile_one(chip, name):
  """Compiles a kernel; the process has to have the environment of `environment`."""
  # Not before the environment is set, and not in the process that starts the others.
  import jax
  from jax.experimental import topologies

  from tests.profiling import excerpt_kernels

  topology = topologies.get_topology_desc(platform="tpu", **TOPOLOGIES[chip])
  sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
  function, arguments = getattr(excerpt_kernels, name)()
  arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in arguments]
  jax.jit(function).lower(*arguments).compile()


def environment(chip, name, directory):
  """Returns the environment of a process that compiles a kernel and dumps into a directory."""
  flags = [dump_arguments(directory)]
  if (chip, name) in WITH_PROFILE:
    flags += [
      f"--xla_jf_dump_static_llo_profile_to={directory}",
      "--xla_tpu_impure_dump_unrolled_bundles=true",
    ]
  return os.environ | dict(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE=f"{chip}-8",
    TPU_WORKER_HOSTNAMES="localhost",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    LIBTPU_INIT_ARGS=" ".join(flags),
  )


def dump_texts(chip, name):
  """Compiles a kernel and returns the compiler's texts by the end of an excerpt's name."""
  with tempfile.TemporaryDirectory() as directory:
    subprocess.run(
      [sys.executable, "-m", "tests.profiling.dump_kernels", f"--chip={chip}", f"--kernel={name}"],
      env=environment(chip, name, directory),
      check=True,
      preexec_fn=functools.partial(resource.setrlimit, resource.RLIMIT_CORE, (0, 0)),
    )

    def read(pattern):
      (path,) = pathlib.Path(directory).glob(pattern)
      return path.read_text()

    # The pattern leaves out "*-schedule-analysis_final_bundles.txt".
    texts = {"final_bundles.txt": read(f"*-{name}.*[0-9]-final_bundles.txt")}
    if chip == "v4":
      texts["utilization.txt"] = read(f"*-{name}.*-final_hlo-static-per-bundle-utilization.txt")
    if (chip, name) in WITH_PROFILE:
      texts["static_llo_profile.textproto"] = read(f"{name}.*_static_llo_profile.textproto")
      texts["trace_end.txt"] = read(f"{name}.*_bundles.txt")[-TRACE_END_BYTES:]
    return texts


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--chip", choices=TOPOLOGIES, help="with --kernel: only compile that one")
  parser.add_argument("--kernel")
  arguments = parser.parse_args()
  if arguments.kernel:
    compile_one(arguments.chip, arguments.kernel)
    return
  EXCERPTS.mkdir(parents=True, exist_ok=True)
  for path in EXCERPTS.iterdir():
    path.unlink()
  for chip, name in DUMPS:
    for end, text in dump_texts(chip, name).items():
      path = EXCERPTS / f"{chip}_{name}_{end}"
      if len(text) > COMPRESS_ABOVE_BYTES:
        path = path.with_name(path.name + ".gz")
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
      else:
        path.write_text(text)
      print(path.name, path.stat().st_size)


if __name__ == "__main__":
  main()
