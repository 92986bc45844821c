"""Excludes the tests of the migration guides' programs, which test_migrate.py runs."""

collect_ignore = ["migrate"]
