import os

from huey import PriorityRedisHuey, crontab

huey = PriorityRedisHuey("shop", url=os.environ["REDIS_URL"], store_intermediate_errors=False)


@huey.task(retries=5, retry_delay=1, context=True)
def charge(order, cents, task=None):
    attempt = 6 - task.retries
    if attempt == 1:
        raise ConnectionError("the bank does not answer")
    mail(order, f"{cents} cents paid")
    return f"order {order} paid on attempt {attempt}"


@huey.task(priority=10)
def mail(order, text):
    print(f"mail: order {order}: {text}", flush=True)


@huey.task()
def remind(order):
    print(f"reminder: order {order}", flush=True)


@huey.periodic_task(crontab(minute="0", hour="9"))
def report():
    print("report", flush=True)
