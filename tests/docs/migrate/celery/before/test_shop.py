import pytest

from shop import app, charge, remind


@pytest.fixture(autouse=True)
def eager():
    app.conf.task_always_eager = True


def test_charge_is_retried_and_mails_a_receipt(capsys):
    assert charge.delay(7, 12500).get() == "order 7 paid on attempt 2"
    assert "mail: order 7: 12500 cents paid" in capsys.readouterr().out


def test_reminder_comes_later(capsys):
    remind.apply_async((7,), countdown=3600)  # eager mode ignores the countdown
    assert "reminder: order 7" in capsys.readouterr().out
