import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import CurrentMessage
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

url = os.environ["REDIS_URL"]
broker = RedisBroker(url=url)
broker.add_middleware(Results(backend=RedisBackend(url=url), result_ttl=3_600_000))
broker.add_middleware(CurrentMessage())
dramatiq.set_broker(broker)


@dramatiq.actor(
    max_retries=5, min_backoff=1000, max_backoff=1000, time_limit=30_000, store_results=True
)
def charge(order, cents):
    retries = CurrentMessage.get_current_message().options.get("retries", 0)
    if retries == 0:
        raise ConnectionError("the bank does not answer")
    mail.send(order, f"{cents} cents paid")
    return f"order {order} paid on attempt {retries + 1}"


@dramatiq.actor(queue_name="mail")
def mail(order, text):
    print(f"mail: order {order}: {text}", flush=True)


@dramatiq.actor
def remind(order):
    print(f"reminder: order {order}", flush=True)
