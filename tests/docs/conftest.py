"""The programs of the migration guides have tests of their own, which test_migrate.py runs."""

collect_ignore = ["migrate"]
