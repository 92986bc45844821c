import os

from redis import Redis
from rq import Queue, get_current_job

connection = Redis.from_url(os.environ["REDIS_URL"])
default = Queue(connection=connection)
mails = Queue("mail", connection=connection)


def charge(order, cents):
    attempt = 6 - get_current_job().retries_left
    if attempt == 1:
        raise ConnectionError("the bank does not answer")
    mails.enqueue(mail, order, f"{cents} cents paid")
    return f"order {order} paid on attempt {attempt}"


def mail(order, text):
    print(f"mail: order {order}: {text}", flush=True)


def remind(order):
    print(f"reminder: order {order}", flush=True)


def report():
    print("report", flush=True)
