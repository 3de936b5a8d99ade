"""The table of aims: what is reached, what isn't, and what was not measured, said as it is."""

from iems.perf import rigs, spine

HEADER = {
    "run": "2026-11-24T08:00:00Z", "version": "0.1.0", "flushes_per_s": 4000.0, "loopback_mb_per_s": 3000.0, "write_mb_per_s": 300.0,
    "repeats": 3, "run_s": 3.0, "machine": {"cpu": "X", "cores": 2, "kernel": "6.18", "filesystem": "ext4"},
    "peers": {"postfix": "3.7.11"},
}  # fmt: skip
RUN = [
    HEADER,
    {"rig": "smtp_accept", "case": "4096x50", "per_s": [9000, 8000, 9500], "cpu_us": [160.0, 150.0, 170.0]},
    {"rig": "smtp_accept", "case": "4096x50", "peer": "postfix", "per_s": [1000, 900, 1100], "cpu_us": [1500.0] * 3},
    {"rig": "smtp_accept", "case": "4096x50", "versus": "postfix", "ratios": {"per_s": [9.0, 8.2, 9.9], "cpu_us": [9.4, 9, 10]}},
    {"rig": "memory", "case": "tls 200", "octets_each": [22_500.0] * 3},
]


def test_rows_say_what_is_reached():
    lines = spine.table(RUN).splitlines()
    (accept,) = [line for line in lines if line.startswith("| SMTP accept, 4 KB, 50 sessions")]
    assert "1,000/s, 1,500 us | 9,000/s, 160 us" in accept
    assert "rate 9.0 (8.2-9.9), CPU 9.4 (9.0-10.0)" in accept
    assert "8x yes" in accept and "<= 150 us **no**" in accept
    (tls,) = [line for line in lines if line.startswith("| the same with TLS")]
    assert "22.5 KB" in tls and "not measured" in tls and "<= 40.0 KB yes" in tls
    assert sum("?" in line for line in lines) >= 12, "what was not measured is not claimed"
    assert "postfix" in lines[-1] or "3.7.11" in lines[-1]
    assert len(lines) == 2 + len(spine.ROWS) + 2


def test_every_row_can_be_measured():
    for row in spine.ROWS:
        assert row.rig in rigs.NAMES
        if row.rig != "mime":
            assert row.peer in rigs.rig(row.rig).PEERS
        for aim in row.aims:
            assert (aim.times is None) != (aim.most is None)


def test_an_empty_run_claims_nothing():
    text = spine.table([])
    assert "yes" not in text and "no**" not in text
