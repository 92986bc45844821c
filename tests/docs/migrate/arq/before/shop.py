import os

from arq import Retry, cron
from arq.connections import RedisSettings

REDIS = RedisSettings.from_dsn(os.environ["REDIS_URL"])


async def charge(ctx, order, cents):
    if ctx["job_try"] == 1:
        raise Retry(defer=1)
    await ctx["redis"].enqueue_job("mail", order, f"{cents} cents paid")
    return f"order {order} paid on attempt {ctx['job_try']} by {ctx['bank']}"


async def mail(ctx, order, text):
    print(f"mail: order {order}: {text}", flush=True)


async def remind(ctx, order):
    print(f"reminder: order {order}", flush=True)


async def report(ctx):
    print("report", flush=True)


async def startup(ctx):
    ctx["bank"] = "a connection to the bank"


class WorkerSettings:
    redis_settings = REDIS
    functions = (charge, mail, remind)
    cron_jobs = (cron(report, second=set(range(60)), run_at_startup=True),)
    on_startup = startup
    max_tries = 5
    job_timeout = 30
    keep_result = 3600
