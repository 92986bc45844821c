from qsync import CRITICAL, Qsync, TaskInfo

app = Qsync(prefix="shop")  # QSYNC_URL names the store


@app.task(retry=5, retry_delay=1, retention=3600)
def charge(task: TaskInfo, order: int, cents: int) -> str:
    if task.attempt == 1:
        raise ConnectionError("the bank does not answer")
    mail.enqueue_sync(order, f"{cents} cents paid")
    return f"order {order} paid on attempt {task.attempt}"


@app.task(queue=CRITICAL)
def mail(order: int, text: str) -> None:
    print(f"mail: order {order}: {text}")


@app.task
def remind(order: int) -> None:
    print(f"reminder: order {order}")


@app.periodic(cron="0 9 * * *")
def report() -> None:
    print("report")
