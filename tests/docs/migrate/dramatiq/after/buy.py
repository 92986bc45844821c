from shop import app, charge, remind

with app:
    handle = charge.enqueue_sync(7, 12500)
    remind.options(delay=1).enqueue_sync(7)
    print(handle.result(timeout=30))
