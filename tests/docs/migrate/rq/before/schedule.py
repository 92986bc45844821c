from rq import cron
from shop import report

cron.register(report, queue_name="default", interval=1)
