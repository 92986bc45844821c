"""A mixin for unittest and Django test cases."""

from __future__ import annotations

import os
import unittest
from typing import TYPE_CHECKING, Any, ClassVar

from qsync.app import Qsync
from qsync.errors import ConfigError
from qsync.testing.kit import Kit, SyncKit

if TYPE_CHECKING:
    _Base = unittest.TestCase
else:
    _Base = object


class QsyncMixin(_Base):
    """Gives a test case the attribute `qsync`; name the app in `qsync_app`.

        class TestShop(QsyncMixin, unittest.TestCase):
            qsync_app = app

            def test_buy(self):
                buy(7)
                self.qsync.assert_enqueued(send, invoice=7)

    `qsync` is a SyncKit, or a Kit in a `unittest.IsolatedAsyncioTestCase`. `QSYNC_TEST_URL` names a
    store to use instead of the private one.
    """

    qsync_app: ClassVar[Qsync | None] = None
    qsync: Any
    """The Kit or SyncKit of the test."""

    def setUp(self) -> None:
        """Point the app at the test's store."""
        super().setUp()
        if self.qsync_app is None:
            name = type(self).__name__
            raise ConfigError(f"{name}: name the app under test in the attribute qsync_app")
        kind = Kit if isinstance(self, unittest.IsolatedAsyncioTestCase) else SyncKit
        self.qsync = kind(self.qsync_app, url=os.environ.get("QSYNC_TEST_URL", ""))
        self.qsync.__enter__()
        self.addCleanup(self.qsync.__exit__, None, None, None)
