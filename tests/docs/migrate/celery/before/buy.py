from shop import charge, remind

result = charge.delay(7, 12500)
remind.apply_async((7,), countdown=1)
print(result.get(timeout=30))
