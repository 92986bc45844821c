"""`python -m qsync` is the command `qsync`."""

from qsync.cli.main import main

main()
