"""Compiles training steps and ops for TPUs that need not be there.

On the command's side, `request` says which step, `cache` finds what was compiled before,
`worker_process` starts a process that compiles, and `compilation` is what comes of a step. On the
compiling process's side are the workers, and `worker` for what they have in common.
"""
