import pytest

from qsync import Qsync, Retry
from qsync.testing import Kit, task_info
from shop import app, charge


@pytest.fixture
def qsync_app() -> Qsync:
    return app


@pytest.mark.asyncio
async def test_charge_is_retried_and_mails_a_receipt(
    qsync: Kit, capsys: pytest.CaptureFixture[str]
) -> None:
    handle = await charge.enqueue(7, 12500)
    await qsync.drain()  # runs the first attempt, which raises Retry
    await qsync.advance(seconds=1, schedules=False)
    await qsync.drain()
    assert await handle.result() == "order 7 paid on attempt 2 by a connection to the bank"
    assert "mail: order 7: 12500 cents paid" in capsys.readouterr().out


@pytest.mark.asyncio
async def test_charge_asks_for_a_second_attempt() -> None:
    with pytest.raises(Retry, match="the bank does not answer"):
        await charge(task_info(attempt=1), 7, 12500)
