from shop import charge, remind

message = charge.send(7, 12500)
remind.send_with_options(args=(7,), delay=1000)
print(message.get_result(block=True, timeout=30_000))
