"""Strictness that every test runs under; it has to be set before JAX or the project is imported."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Several devices, so that sharding is real.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jaxtyping

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jaxtyping.install_import_hook(["kernels", "nfnet"], "beartype.beartype")
