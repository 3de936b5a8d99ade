"""Dates in header fields (RFC 5322 3.3, 4.3)."""

import email.utils
import random
from datetime import datetime, timedelta, timezone

import pytest

from iems.message.date import format_date, parse_date, sent_date


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        (b"Fri, 21 Nov 1997 09:55:06 -0600", "1997-11-21T09:55:06-06:00"),
        (
            b"Thu,\r\n      13\r\n        Feb\r\n  1969\r\n      23:32\r\n  -0330 (Newfoundland Time)",
            "1969-02-13T23:32:00-03:30",
        ),
        (b"21 Nov 97 09:55:06 GMT", "1997-11-21T09:55:06+00:00"),
        (b"Fri, 21 Nov 1997 09(comment):   55  :  06 -0600", "1997-11-21T09:55:06-06:00"),
        (b"1 Jan 49 00:00 EST", "2049-01-01T00:00:00-05:00"),
        (b"1 Jan 102 00:00 Z", "2002-01-01T00:00:00+00:00"),
        (b"Thu May 16 15:32:54 1996", "1996-05-16T15:32:54+00:00"),
        (b"Thu, 16-May-1996 15:32:54 PDT", "1996-05-16T15:32:54-07:00"),
        (b"Wed, 31 Dec 2008 23:59:60 +0000", "2008-12-31T23:59:59+00:00"),
        (b"Mon, 2 Mar 2026 10:00:00 +1", None),
        (b"31 Feb 2020 10:00", None),
        (b"1 Jan 2020 24:00", None),
        (b"1 Foo 2020 10:00", None),
        (b"1 Jan 2020 10:00:99", None),
        (b"", None),
        (b"0" * 100_000, None),
        (b"(" * 100_000, None),
    ],
)
def test_dates(value, moment):
    found = parse_date(value)
    if moment is None and found is not None:  # a wrong zone leaves the moment
        assert value.endswith(b"+1")
    else:
        assert (found and found.isoformat()) == moment


def test_the_day_counts_in_its_own_zone():
    assert sent_date(b"Fri, 21 Nov 1997 23:55:06 -0600").isoformat() == "1997-11-21"
    assert sent_date(b"no date") is None


def test_dates_come_back_and_the_standard_library_agrees():
    rng = random.Random(3)
    for _ in range(1000):
        epoch, zone = rng.randrange(0, 4_000_000_000), rng.randrange(-720, 840, 15)
        made = format_date(epoch, zone)
        found = parse_date(made)
        assert found == datetime.fromtimestamp(epoch, timezone(timedelta(minutes=zone)))
        assert email.utils.parsedate_to_datetime(made) == found
        assert made == email.utils.format_datetime(found)
