from shop import charge, remind

result = charge(7, 12500)
remind.schedule((7,), delay=1)
print(result.get(blocking=True, timeout=30))
