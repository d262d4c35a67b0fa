"""Compiles a variant's training step for described TPU-v4 chips; prints seconds and bytes.

    python tests/train/compile_for_v4.py --variant=F7+ [--rematerialize] [--pixels=224] ...

Needs the extra `tpu`, whose package holds the compiler, and no TPU. Four chips of two cores each;
the ops are the XLA references, with equal blocks in a loop.
"""

import argparse
import os
import pathlib
import sys
import time

# Before JAX is imported: there is no TPU to ask what it is.
os.environ.update(
  JAX_PLATFORMS="cpu",
  TPU_SKIP_MDS_QUERY="1",
  TPU_ACCELERATOR_TYPE="v4-8",
  TPU_WORKER_HOSTNAMES="localhost",
  ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import json
import resource

import jax
from jax.experimental import topologies

from nfnet.block_arrangement import arrange_blocks
from nfnet.model import parameter_shapes
from train.experiment import Data, Experiment, Model, Optimizer, Schedule
from train.schedule import learning_rate_schedule
from train.step import (
  batch_sharding,
  initial_state,
  make_mesh,
  make_model,
  make_optimizer,
  make_train_step,
  replicated,
)


def parse_arguments():
  parser = argparse.ArgumentParser()
  parser.add_argument("--variant", required=True)
  parser.add_argument("--rematerialize", action="store_true")
  parser.add_argument("--images_per_chip", type=int, default=32)
  parser.add_argument("--pixels", type=int, default=224)
  parser.add_argument("--num_classes", type=int, default=1000)
  parser.add_argument("--ema", action="store_true")
  return parser.parse_args()


def main(arguments):
  topology = topologies.get_topology_desc(
    platform="tpu", topology_name="v4:2x2x1", chip_config_name="megacore"
  )
  mesh = make_mesh(topology.devices)
  batch_size = arguments.images_per_chip * mesh.size
  pixels = arguments.pixels
  experiment = Experiment(
    name="compilation",
    model=Model(variant=arguments.variant, rematerialize=arguments.rematerialize),
    data=Data(num_classes=arguments.num_classes, batch_size=batch_size, train_pixels=pixels),
    optimizer=Optimizer(warmup_steps=1, ema_decay=0.9999 if arguments.ema else None),
    schedule=Schedule(train_steps=1000),
  )
  model = make_model(experiment)
  rate = learning_rate_schedule(experiment, train_examples=10**6)
  optimizer = make_optimizer(experiment, rate)

  def described(tree, sharding):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

  state = jax.eval_shape(
    lambda parameters: initial_state(experiment, optimizer, parameters),
    arrange_blocks(parameter_shapes(model), model.block_keys),
  )
  batch = {
    "image": jax.ShapeDtypeStruct((batch_size, pixels, pixels, 3), "uint8"),
    "labels": jax.ShapeDtypeStruct((batch_size, 1), "int32"),
    "weight": jax.ShapeDtypeStruct((batch_size,), "float32"),
  }
  started_seconds = time.monotonic()
  step = jax.jit(make_train_step(experiment, model, optimizer, rate, mesh), donate_argnums=0)
  lowered = step.lower(described(state, replicated(mesh)), described(batch, batch_sharding(mesh)))
  lowered_seconds = time.monotonic()
  compiled = lowered.compile()
  memory = compiled.memory_analysis()
  print(
    json.dumps(
      {
        **vars(arguments),
        "lower_seconds": round(lowered_seconds - started_seconds, 1),
        "compile_seconds": round(time.monotonic() - lowered_seconds, 1),
        "peak_host_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "hbm_bytes_per_chip": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
      }
    )
  )


if __name__ == "__main__":
  main(parse_arguments())
