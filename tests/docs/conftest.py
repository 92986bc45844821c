"""Excludes the tests in the migration guides' programs from collection; test_migrate.py runs
them."""

collect_ignore = ["migrate"]
