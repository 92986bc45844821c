import asyncio

from arq import create_pool
from shop import REDIS


async def main():
    pool = await create_pool(REDIS)
    job = await pool.enqueue_job("charge", 7, 12500)
    await pool.enqueue_job("remind", 7, _defer_by=1)
    print(await job.result(timeout=30))
    await pool.aclose()


asyncio.run(main())
