import os

os.environ.setdefault("QSYNC_URL", "embedded://")
