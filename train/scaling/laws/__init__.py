"""The scaling laws, each with the function that fits it.

`power_law` relates loss to compute, `joint_law` relates it to size and epochs, `compute_optimum`
finds the best size and epochs for a given compute, and `finetuning_law` predicts the error after
fine-tuning. `law_set` fits the first three kinds to one table; `regression` has the
fitting methods.
"""
