import os

from celery import Celery

url = os.environ["REDIS_URL"]
app = Celery("shop", broker=url, backend=url)
app.conf.update(
    result_expires=3600,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_routes={"shop.mail": {"queue": "mail"}},
    task_time_limit=30,
    beat_schedule={"report": {"task": "shop.report", "schedule": 1.0}},
)


@app.task(bind=True, autoretry_for=(ConnectionError,), max_retries=5, default_retry_delay=1)
def charge(self, order, cents):
    if self.request.retries == 0:
        raise ConnectionError("the bank does not answer")
    mail.delay(order, f"{cents} cents paid")
    return f"order {order} paid on attempt {self.request.retries + 1}"


@app.task
def mail(order, text):
    print(f"mail: order {order}: {text}")


@app.task
def remind(order):
    print(f"reminder: order {order}")


@app.task
def report():
    print("report")
