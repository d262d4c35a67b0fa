"""Keeps compiled programs on disk, so that a run that starts again does not compile again.

    python -m train.pretrain ... --compilation_cache=DIR

Any number of runs and processes may share the folder. JAX's key of a program covers the program,
the devices, the compiler's version and its flags, so a changed program gets another file, and
nothing has to be deleted by hand. If several processes run one program together, the first one
writes it. (On CPUs, each process has its own keys, so only the first one finds its programs again.)

If a file cannot be read, because another run is still writing it or was killed while writing, the
program is compiled anew with a warning. JAX does not write the file again, so delete the folder if
the warning comes back at every start.

The cache is off by default, because the programs of a large network take hundreds of megabytes, and
programs for a CPU contain the instructions of one CPU model only. `python -m train.launch` always
turns it on.
"""

import pathlib

import jax

from nfnet.errors import UserError
from nfnet.system.paths import define_path

_FOLDER = define_path(
  "compilation_cache",
  None,
  "Folder for compiled programs; runs and processes may share it.",
  use="write folder",
)


def use_compilation_cache() -> None:
  """Turns the cache on if the flag names a folder; to be called before anything is compiled.

  Raises:
    UserError: the folder cannot be written.
  """
  if _FOLDER.value is None:
    return
  folder = pathlib.Path(_FOLDER.value).absolute()
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f"--compilation_cache={folder} cannot be written: {error.strerror}; give another folder"
    ) from error
  jax.config.update("jax_compilation_cache_dir", str(folder))
  # XLA's own caches, which are for GPUs only, would put the folder's name into JAX's keys, so that
  # the folder would be useless once it is moved or mounted elsewhere.
  jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
