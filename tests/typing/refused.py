"""Code that mypy --strict must refuse. Each line lists the codes of its errors."""

from __future__ import annotations

from qsync import Handle, Qsync, TaskInfo

app = Qsync("redis://localhost")


@app.task
async def add(a: int, b: int = 2) -> int:
    return a + b


@app.task(queue="critical")
def greet(task: TaskInfo, name: str, *, times: int = 1) -> str:
    return name * times


@app.task(retires=5)  # error: call-overload untyped-decorator
def misspelt() -> None: ...


@app.task(delay="soon")  # error: call-overload untyped-decorator
def mistyped() -> None: ...


@app.batch("index")  # error: arg-type
async def of_one(task: TaskInfo) -> None: ...


@app.periodic(every=30, missed="some")  # error: call-overload untyped-decorator
def sometimes() -> None: ...


@app.periodic(every=30)  # error: arg-type
async def with_required(region: str) -> None: ...


@app.periodic(every=30)  # error: type-var
@app.task("required")
def task_with_required(region: str) -> None: ...


async def use(info: TaskInfo) -> None:
    await add.enqueue("1")  # error: arg-type
    await add.enqueue(1, b="2")  # error: arg-type
    await add.enqueue(1, c=2)  # error: call-arg
    await add.enqueue()  # error: call-arg
    await add.enqueue(1, 2, 3)  # error: call-arg
    add.enqueue_sync([1])  # error: arg-type
    add.build(1, b=None)  # error: arg-type
    await add(1, b="2")  # error: arg-type

    await greet.enqueue(info, "name")  # error: arg-type call-arg
    await greet.enqueue("name", 2)  # error: call-arg
    await greet.enqueue(name="name", times="2")  # error: arg-type
    greet("name")  # error: arg-type call-arg

    app.server(concurency=100)  # error: call-arg
    app.server(lease="long")  # error: arg-type

    await add.options(deley=60).enqueue(1)  # error: call-arg
    await add.options(retry="often").enqueue(1)  # error: arg-type
    await add.options(delay=60).enqueue("1")  # error: arg-type

    text: str = await (await add.enqueue(1)).result()  # error: assignment
    wrong: Handle[str] = add.enqueue_sync(1)  # error: assignment
    assert text, wrong
