"""Certificates of a real server: the one of the name asked for at every door, renewed without a restart, kept if the new one is bad."""

import imaplib
import shutil
import ssl
import subprocess

import pytest

from iems.cli.init import self_signed
from iems.perf.home import PrivateHome
from tests.support.waiting import events, until

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def put(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    chain, key = self_signed(name, [name])
    for path, octets in ((folder / "cert.pem", chain), (folder / "key.pem", key)):
        fresh = path.with_suffix(".new")
        fresh.write_bytes(octets)
        fresh.replace(path)


@pytest.fixture(scope="module")
def home():
    home = PrivateHome(1)
    home._make()
    put(home.path / "conf/tls", "first.test")
    put(home.path / "conf/tls/second.test", "second.test")
    try:
        home.start()
        yield home
    finally:
        home.__exit__(None, None, None)


def shown(home, port, name="", starttls=""):
    """The subject openssl is shown."""
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{home.base + port}"]
        + (["-servername", name] if name else ["-noservername"])
        + (["-starttls", starttls] if starttls else []),
        input=b"", capture_output=True, timeout=60,
    )  # fmt: skip
    return next(line for line in done.stdout.decode().splitlines() if line.startswith("subject="))


DOORS = [(465, ""), (587, "smtp"), (25, "smtp"), (993, ""), (143, "imap"), (995, ""), (110, "pop3")]


def test_the_certificate_of_the_name_at_every_door(home):
    for port, starttls in DOORS:
        assert "first.test" in shown(home, port, "", starttls), port
        assert "second.test" in shown(home, port, "mail.second.test", starttls), port
        assert "first.test" in shown(home, port, "third.test", starttls), port


def test_renewal_and_a_bad_pair_without_a_restart(home):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    roles = home.roles()
    with imaplib.IMAP4_SSL("127.0.0.1", home.port("imaps"), ssl_context=context, timeout=60) as client:
        client.login("a1@load.test", "pw")
        put(home.path / "conf/tls", "renewed.test")
        until(lambda: all("renewed.test" in shown(home, port, "", starttls) for port, starttls in DOORS))
        # The pair of the other domain, and the connection that stood, are as they were.
        assert "second.test" in shown(home, 993, "second.test")
        assert client.noop()[0] == "OK"
        shutil.copy(home.path / "conf/tls/key.pem", home.path / "conf/tls/second.test/key.pem")
        until(lambda: events(home, "alarm"))
        assert "second.test/cert.pem" in events(home, "alarm")[0]["detail"]["cause"]
        assert "second.test" in shown(home, 993, "second.test")
        assert client.noop()[0] == "OK"
    assert {role: sorted(pids) for role, pids in home.roles().items()} == {
        role: sorted(pids) for role, pids in roles.items()
    }


def test_old_tls_is_refused(home):
    for version, good in (("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)):
        done = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{home.base + 993}", version, "-cipher", "ALL:@SECLEVEL=0"],
            input=b"", capture_output=True, timeout=60,
        )  # fmt: skip
        assert (b"BEGIN CERTIFICATE" in done.stdout) == good, version
