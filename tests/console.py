"""The program `nfnets` as a module, for `tests.commands.run`."""

from nfnet.system.console_script import main

main()
