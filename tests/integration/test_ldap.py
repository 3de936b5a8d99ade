"""Recipients of relay domains looked up in a real slapd: found, not found, no answer; TLS; what an address may hold."""

from __future__ import annotations

import asyncio
import smtplib
import time

import pytest

from iems.config import Ldap
from iems.net.ldap import Connection, LdapError, Server
from iems.perf.home import PrivateHome
from iems.smtpd.ldaplookup import LdapLookup
from tests.support.certificates import Authority
from tests.support.slapd import BASE, BIND_DN, PASSWORD, REASON, Slapd

pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

PEOPLE = ["ann@far.test", "o'neil+x@far.test", "star*(x)@far.test", "back\\5cslash@far.test"]
#: What would change a filter that is made of text.
INJECTIONS = [
    b"*@far.test", b"*)(mail=*@far.test", b"a)(|(mail=*)@far.test", b"ann@far.test)(uid=*", b"\\2a@far.test", b"*", b"ann*", b"(mail=ann@far.test)", b"ann@far.test\0",
    b"\xff\xfe@far.test", b"&", b"|", b"a" * 5000 + b"@far.test", b"../../etc/passwd", b"$(id)@far.test",
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with an authority, a certificate for localhost and the password, as a home has them."""
    folder = tmp_path_factory.mktemp("ldap")
    authority = Authority(folder)
    authority.server("localhost")
    (folder / "password").write_text(PASSWORD + "\n")
    (folder / "password").chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def slapd(files):
    with Slapd(files / "slapd", PEOPLE, files / "localhost.pem", files / "ca.pem") as server:
        yield server


def asked(files, *addresses, **settings):
    """What a look-up says to these addresses, asked side by side."""
    values = {"base": BASE, "bind_dn": BIND_DN, "password_file": "password", "timeout_s": 5.0} | settings

    async def main():
        lookup = LdapLookup(Ldap(**values), files)
        try:
            return await asyncio.gather(*(lookup.exists(address) for address in addresses))
        finally:
            lookup.close()

    return asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("way", ["clear", "starttls", "ldaps"])
def test_found_and_not_found(files, slapd, way):
    uri = slapd.tls_uri if way == "ldaps" else slapd.uri
    found = asked(files, *[p.encode() for p in PEOPLE], b"bob@far.test", uris=[uri], starttls=way == "starttls", ca_file="ca.pem")
    assert found == [True] * 4 + [False]


def test_no_address_is_a_filter(files, slapd):
    """Each finds nothing but itself; the server still answers afterwards (octets that are no UTF-8 are a no of the server, or no answer)."""
    found = asked(files, *INJECTIONS, b"ann@far.test", uris=[slapd.uri])
    assert found[-1] is True and not any(found[:-1])
    assert asked(files, b"star*(x)@far.test", b"star@far.test", uris=[slapd.uri], filter="(|(mail=%s)(&(objectClass=person)(mail=%u@%d)))") == [True, False]
    assert asked(files, b"ann@far.test", uris=[slapd.uri], filter="(mail=%u@*)") == [True]
    assert asked(files, b"*@far.test", uris=[slapd.uri], filter="(mail=%u@*)") == [False]


def test_what_goes_wrong_is_no_answer(files, slapd, tmp_path):
    (tmp_path / "password").write_text("wrong\n")
    (tmp_path / "password").chmod(0o600)
    (tmp_path / "ca.pem").write_bytes((files / "localhost.pem").read_bytes())
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    (open_to_all / "password").write_text(PASSWORD)
    (open_to_all / "password").chmod(0o644)
    for folder, settings in (
        (tmp_path, {}),  # a wrong password
        (open_to_all, {}),  # a file that others may read
        (files, {"base": "dc=nowhere"}),
        (files, {"uris": ["ldap://localhost:1"]}),
        (files, {"uris": [slapd.tls_uri]}),  # an authority nobody knows
        (files, {"uris": [f"ldaps://127.0.0.1:{slapd.tls_port}"], "ca_file": "ca.pem"}),  # another name
        (files, {"uris": [slapd.tls_uri.replace("ldaps", "ldap")], "timeout_s": 0.5}),
    ):
        assert asked(folder, b"ann@far.test", **({"uris": [slapd.uri]} | settings)) == [None], settings
    # Anonymous: slapd shows nothing, and says that the base is not there.
    assert asked(files, b"ann@far.test", uris=[slapd.uri], bind_dn="", password_file="") == [None]


def test_the_next_server_is_asked_and_a_restart_is_seen(files, slapd):
    async def main():
        settings = Ldap(uris=["ldap://localhost:1", slapd.uri], base=BASE, bind_dn=BIND_DN, password_file="password", known_s=0, unknown_s=0)
        lookup = LdapLookup(settings, files)
        found = [await lookup.exists(b"ann@far.test")]
        slapd.kill()
        slapd.start()
        found.append(await lookup.exists(b"ann@far.test"))  # over a new connection
        lookup.close()
        return found

    assert asyncio.run(main()) == [True, True]


def test_many_questions_share_one_connection(files, slapd):
    """Out of order and joined; the password is refused where it is wrong."""

    async def main():
        server = Server.of(slapd.uri)
        with pytest.raises(LdapError, match="bind: result 49"):
            await Connection.open(server, context=None, starttls=False, name=BIND_DN, password=b"no")
        lookup = LdapLookup(Ldap(uris=[slapd.uri], base=BASE, bind_dn=BIND_DN, password_file="password"), files)
        begun = time.perf_counter()
        found = await asyncio.gather(*(lookup.exists(b"u%d@far.test" % n if n % 2 else b"ann@far.test") for n in range(400)))
        took_s = time.perf_counter() - begun
        lookup.close()
        print(f"400 look-ups in {took_s:.3f} s")
        return found

    assert asyncio.run(main()) == [n % 2 == 0 for n in range(400)]


def rcpt(home, *addresses):
    """Replies to RCPT in one session."""
    with smtplib.SMTP("127.0.0.1", home.port("smtp"), timeout=60) as client:
        client.ehlo("c.test")
        client.mail("s@out.test")
        return [client.docmd("RCPT", f"TO:<{address}>") for address in addresses]


def test_at_the_door(files, slapd):
    """250, 550 5.1.1, 451 4.4.3; nobody else waits while the server does; a cached answer outlives it."""
    settings = {
        "ldap.uris": [slapd.uri], "ldap.base": BASE, "ldap.bind_dn": BIND_DN, "ldap.password_file": "conf/ldap", "ldap.timeout_s": 3.0, "smtpd.workers": 1,
    }  # fmt: skip
    with PrivateHome(1, settings) as home:
        (home.path / "conf/ldap").write_text(PASSWORD + "\n")
        (home.path / "conf/ldap").chmod(0o600)
        home.ctl("forward", "set", "far.test", "SMTPC", "127.0.0.1:1", "--check", "ldap")
        replies = rcpt(home, "ann@far.test", "Ann@FAR.test", "bob@far.test", '"*)(mail=*"@far.test', "a1@load.test", "x@else.test")
        assert [reply[0] for reply in replies] == [250, 250, 550, 550, 250, 550]
        assert replies[2][1].startswith(b"5.1.1")
        slapd.pause()
        try:
            with smtplib.SMTP("127.0.0.1", home.port("smtp"), timeout=60) as waiting:
                waiting.ehlo("c.test")
                waiting.mail("s@out.test")
                waiting.putcmd("RCPT", "TO:<new@far.test>")
                # The worker is one, and serves others meanwhile.
                assert [reply[0] for reply in rcpt(home, "a1@load.test", "ann@far.test", "bob@far.test")] == [250, 250, 550]
                code, text = waiting.getreply()
                assert code == 451 and text.startswith(b"4.4.3")
        finally:
            slapd.go_on()
        slapd.kill()
        assert [reply[0] for reply in rcpt(home, "gone@far.test", "ann@far.test")] == [451, 250]
        slapd.start()
        assert rcpt(home, "o'neil+x@far.test")[0][0] == 250
        log = (home.path / "log/mail.log").read_text()
        assert PASSWORD not in log and "bob@far.test" in log
