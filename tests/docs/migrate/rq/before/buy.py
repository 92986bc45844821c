import time
from datetime import timedelta

from rq import Retry
from shop import charge, default, remind

job = default.enqueue(
    charge, 7, 12500, retry=Retry(max=5, interval=1), job_timeout=30, result_ttl=3600
)
default.enqueue_in(timedelta(seconds=1), remind, 7)
while job.get_status() not in ("finished", "failed"):
    time.sleep(0.1)
print(job.return_value())
