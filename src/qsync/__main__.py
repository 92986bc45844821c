"""Run the command `qsync` as `python -m qsync`."""

from qsync.cli.main import main

main()
