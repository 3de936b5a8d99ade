"""Peers: what is missing is named with its package; configurations are private; an installed one plays."""

import os
import time

import pytest
from click.testing import CliRunner

from iems._native import loadgen
from iems.cli.perf import perf
from iems.perf import messages, peers
from iems.perf.measure import Options
from iems.perf.peers.dovecot import Dovecot
from iems.perf.peers.exim import Exim
from iems.perf.peers.postfix import Postfix


def test_names_and_programs():
    assert peers.parse("postfix, exim=/opt/exim") == {"postfix": None, "exim": "/opt/exim"}
    for wrong in ("sendmail", "", ","):
        with pytest.raises(ValueError, match="peer"):
            peers.parse(wrong)


def test_missing_peers_name_their_package(monkeypatch, tmp_path):
    monkeypatch.setattr(peers.shutil, "which", lambda name, path: None)
    found = peers.missing({"postfix": None, "dovecot": None, "exim": str(tmp_path / "exim")})
    assert "apt install postfix" in found["postfix"] and "dovecot-lmtpd" in found["dovecot"] and "no program" in found["exim"]
    result = CliRunner().invoke(perf, ["run", "--quick", "--compare", "postfix"])
    assert result.exit_code == 1 and "without postfix: not installed (Debian: apt install postfix)" in result.stderr
    assert CliRunner().invoke(perf, ["run", "--compare", "qmail"]).exit_code == 2
    with pytest.raises(RuntimeError, match="apt install postfix"):
        peers.started("postfix", Options(peers={"postfix": None}))


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
def test_configurations_stay_in_their_folder():
    made = [Dovecot(1, None, "/bin/true")] + ([Postfix(1, None, "/bin/true", hold=True)] if _user("postfix") else [])
    for peer in made:
        peer._configure()
        texts = [file.read_text() for file in peer.path.rglob("*.c*f*") if file.is_file()]
        assert texts and all("/var/spool" not in text and "0.0.0.0" not in text for text in texts)
        assert any("127.0.0.1" in text for text in texts)
        peer.close()


def test_a_folder_of_ours_alone_is_refused(tmp_path):
    tmp_path.chmod(0o700)
    with pytest.raises(RuntimeError, match="may not enter"):
        Postfix(1, tmp_path, "/bin/true")


def _user(name):
    import pwd

    return name in {entry.pw_name for entry in pwd.getpwall()}


@pytest.mark.skipif(bool(peers.missing({"postfix": None})), reason="no Postfix to run")
def test_postfix_accepts_and_goes():
    with Postfix(2, None, peers.program("postfix"), hold=True) as peer:
        result = loadgen.smtp(peer.port("smtp"), messages.pool(4096, 2), peer.users(), b"s@load.test", count=5)
        assert (result["done"], result["errors"]) == (5, 0)
        assert peer.waiting() == 0 and len(list((peer.path / "spool/hold").rglob("*"))) >= 5
        assert peer.cpu_s() > 0 and peer.cpu_by_role()
        pids = peer.pids()
        path = peer.path
    assert not path.exists() and not any(_lives(pid) for pid in pids)


@pytest.mark.skipif(bool(peers.missing({"dovecot": None})), reason="no Dovecot to run")
def test_dovecot_delivers_and_serves():
    with Dovecot(1, None, peers.program("dovecot")) as peer:
        sent = loadgen.smtp(peer.port("lmtp"), messages.pool(4096, 2), peer.users(), b"s@load.test", count=3, lmtp=True)
        assert (sent["done"], sent["errors"]) == (3, 0)
        got = loadgen.fetch(
            peer.port("imap"), peer.users(), b"pw", b"FETCH %ld BODY.PEEK[]", 1, 3, sessions=1, warmup_s=0.1, run_s=0.1
        )
        assert got["done"] > 0 and got["errors"] == 0 and got["octets"] / got["done"] > 4000
        pids = peer.pids()
    assert not any(_lives(pid) for pid in pids)


def _lives(pid):
    for _ in range(1000):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return False
        except OSError:
            return False
        time.sleep(0.02)
    return True


def test_exim_relays_to_one_port(monkeypatch):
    monkeypatch.setattr("iems.perf.peers.exim._user", lambda path: "root")
    if os.geteuid():
        pytest.skip("gives files to another user")
    peer = Exim(1, None, "/bin/true", next_hop=2525)
    peer._configure()
    text = (peer.path / "exim.conf").read_text()
    assert "127.0.0.1::2525" in text and "queue_only" not in text and peer.waiting() == 0
    peer.close()
