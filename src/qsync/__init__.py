"""qsync: a distributed task queue for Python on Redis or Valkey."""
