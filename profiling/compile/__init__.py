"""Compiles training steps and ops for TPUs that need not be there.

On the command's side, `request` defines which step to compile, `cache` finds earlier results,
`worker_process` starts a process that compiles, and `compilation` reads the result for a step. On
the compiling process's side are the workers, and `worker` with the code that they share.
"""
