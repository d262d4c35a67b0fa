"""Cost of training: step time, core-hours, kernels, traces."""
