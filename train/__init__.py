"""Training: data, step, loop, checkpoints, and the commands that run them."""

from nfnet.system.interrupts import end_in_one_line_while_importing

end_in_one_line_while_importing()
