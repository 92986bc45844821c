import asyncio

from shop import app, charge, remind


async def main() -> None:
    async with app:
        handle = await charge.enqueue(7, 12500)
        await remind.options(delay=1).enqueue(7)
        print(await handle.result(timeout=30))


asyncio.run(main())
