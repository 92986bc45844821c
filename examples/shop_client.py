"""Enqueues tasks of shop.py and waits for their results."""

import asyncio

from shop import Invoice, app, digest, send


async def main() -> None:
    async with app:
        sent = await send.enqueue(Invoice(7, 125_00), copy=True)
        hashed = await digest.options(queue="lower", timeout=10).enqueue(b"seed", rounds=1000)
        print(await sent.result(timeout=30))
        print(await hashed.result(timeout=30))


if __name__ == "__main__":
    asyncio.run(main())
