"""SGD with Nesterov momentum, adaptive gradient clipping and L2 decay (paper B, section 4)."""
