"""A damaged queue index is replaced while the server works: every 250 is in a mailbox once, and nobody had to restart anything."""

import json

from iems.perf import queue
from iems.perf.home import PrivateHome
from iems.spool import recovery
from tests.support.senders import Senders, delivered
from tests.support.waiting import status, until


def test_index_replaced_under_load():
    with PrivateHome(3) as home:
        senders = Senders(
            home.port("smtp"), [f"a{i}@load.test" for i in (1, 2, 3)], body=b"x" * 2000, pause_s=0.01
        )
        try:
            until(lambda: len(senders.acknowledged) > 20)
            assert recovery.distrust(home.path / "spool")
            until(lambda: not recovery.distrusted(home.path / "spool"))
            seen = len(senders.acknowledged)
            until(lambda: len(senders.acknowledged) > seen + 50)
        finally:
            senders.stop()
        audit = json.loads(home.ctl("audit", "--json"))
        queue.until_drained(home.path, 120)
        found = delivered(home.path)
        assert not set(senders.acknowledged) - set(found)
        assert set(found.values()) == {1}
        assert audit["missing"] == 0
        assert all(role["restarts"] == 0 for role in status(home)["roles"].values())
