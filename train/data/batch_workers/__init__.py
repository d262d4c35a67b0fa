"""Makes batches ahead of the training, by threads or by worker processes that may die.

A batch is a pure function of the positions of its examples, so whoever has lost one makes it again.
`threads` and `pool` (processes) have the same methods: `request`, `receive` in the order of the
requests, `close`. `process` is the program of a worker process, `messages` is how it talks to the
process that started it, and `deaths` counts workers that were killed. `batches_ahead` decides how
many batches are made in advance.
"""
