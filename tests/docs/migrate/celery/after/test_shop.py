import pytest

from qsync import Qsync
from qsync.testing import SyncKit
from shop import app, charge, remind


@pytest.fixture
def qsync_app() -> Qsync:
    return app


def test_charge_is_retried_and_mails_a_receipt(
    qsync_sync: SyncKit, capsys: pytest.CaptureFixture[str]
) -> None:
    handle = charge.enqueue_sync(7, 12500)
    with pytest.raises(ConnectionError):  # raised by the first attempt
        qsync_sync.drain()
    qsync_sync.advance(seconds=2, schedules=False)
    qsync_sync.drain()
    assert handle.result() == "order 7 paid on attempt 2"
    assert "mail: order 7: 12500 cents paid" in capsys.readouterr().out


def test_reminder_comes_later(qsync_sync: SyncKit, capsys: pytest.CaptureFixture[str]) -> None:
    remind.options(delay=3600).enqueue_sync(7)
    qsync_sync.drain()
    assert "reminder" not in capsys.readouterr().out
    qsync_sync.advance(hours=1, schedules=False)
    qsync_sync.drain()
    assert "reminder: order 7" in capsys.readouterr().out
