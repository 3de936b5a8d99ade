"""The LDAP client without a server: octets of requests, filters as templates, and answers that are none."""

from __future__ import annotations

import asyncio
import random

import pytest

from iems.config import ConfigError, Ldap, parse
from iems.net import breaker
from iems.net.ldap import Connection, Filter, LdapError, Server, element, integer, number, tlv
from iems.smtpd.ldaplookup import LdapLookup

ADDRESS = {"s": b"ann@x.test", "u": b"ann", "d": b"x.test"}


def test_ber():
    assert tlv(0x04, b"ab") == b"\x04\x02ab"
    assert tlv(0x04, b"x" * 200)[:3] == b"\x04\x81\xc8" and tlv(0x04, b"x" * 70_000)[:5] == b"\x04\x83\x01\x11\x70"
    assert [number(n) for n in (0, 1, 127, 128, 255, 256, -1)] == [
        b"\x02\x01\x00", b"\x02\x01\x01", b"\x02\x01\x7f", b"\x02\x02\x00\x80", b"\x02\x02\x00\xff", b"\x02\x02\x01\x00", b"\x02\x01\xff",
    ]  # fmt: skip
    for size in (0, 127, 128, 255, 256, 65_536):
        assert element(tlv(0x30, b"y" * size)) == (0x30, b"y" * size, len(tlv(0x30, b"y" * size)))
    for bad in (b"", b"\x30", b"\x30\x80", b"\x30\x81", b"\x30\x85\0\0\0\0\0", b"\x30\x05abc", b"\x3f\x01\x00", b"\x04\x84\xff\xff\xff\xff"):
        with pytest.raises(LdapError):
            element(bad)
    for bad in (b"", b"\0" * 5):
        with pytest.raises(LdapError):
            integer(bad)


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        ("(mail=%s)", tlv(0xA3, b"\x04\x04mail" + b"\x04\x0aann@x.test")),
        ("(mail=*)", b"\x87\x04mail"),
        ("(proxyAddresses=smtp:%s)", tlv(0xA3, tlv(4, b"proxyAddresses") + tlv(4, b"smtp:ann@x.test"))),
        ("(mail=%u@*)", tlv(0xA4, tlv(4, b"mail") + tlv(0x30, tlv(0x80, b"ann@")))),
        ("(mail=*@%d)", tlv(0xA4, tlv(4, b"mail") + tlv(0x30, tlv(0x82, b"@x.test")))),
        ("(cn=a*b*c)", tlv(0xA4, tlv(4, b"cn") + tlv(0x30, tlv(0x80, b"a") + tlv(0x81, b"b") + tlv(0x82, b"c")))),
        ("(cn=100%%\\2a\\28)", tlv(0xA3, tlv(4, b"cn") + tlv(4, b"100%*("))),
        ("(a>=1)", tlv(0xA5, tlv(4, b"a") + tlv(4, b"1"))),
        ("(a<=1)", tlv(0xA6, tlv(4, b"a") + tlv(4, b"1"))),
        ("(a~=1)", tlv(0xA8, tlv(4, b"a") + tlv(4, b"1"))),
        ("(a:1.2.3:=2)", tlv(0xA9, tlv(0x81, b"1.2.3") + tlv(0x82, b"a") + tlv(0x83, b"2"))),
        ("(a:dn:=2)", tlv(0xA9, tlv(0x82, b"a") + tlv(0x83, b"2") + b"\x84\x01\xff")),
        ("(&(a=1)(|(b=2)(!(c=*))))", tlv(0xA0, tlv(0xA3, b"\x04\x01a\x04\x011") + tlv(0xA1, tlv(0xA3, b"\x04\x01b\x04\x012") + tlv(0xA2, b"\x87\x01c")))),
        ("(&)", b"\xa0\x00"),
    ],
)
def test_filters(text, octets):
    assert Filter(text).encode(ADDRESS) == octets


@pytest.mark.parametrize(
    "text",
    [
        "", "mail=%s", "(mail=%s", "(mail=%s))", "(mail=%x)", "(mail=%)", "(%s=a)", "(=a)", "(a b=c)", "(&(a=1)", "(!(a=1)(b=2))", "(mail=\\2)", "(mail=\\zz)",
        "(a>=*b)", "(a=(b))", "()", "(" * 100, "(!" * 50 + "(a=1)" + ")" * 50, "(:=a)", "(a::=b)", "(a=" + "x" * 5000 + ")", "(a=\0)",
    ],
)  # fmt: skip
def test_what_is_no_filter(text):
    with pytest.raises(ValueError):
        Filter(text)


def test_whatever_is_in_an_address_it_stays_one_value():
    """Every octet goes behind its length: the filter around it has the same shape."""
    rng = random.Random(4515)
    template = Filter("(|(mail=%s)(uid=%u))")
    for _ in range(2000):
        address = bytes(rng.choices(b"*()\\|&!=\0a@%", k=rng.randrange(1, 30)))
        tag, body, end = element(octets := template.encode({"s": address, "u": address}))
        assert tag == 0xA1 and end == len(octets)
        at = 0
        for name in (b"mail", b"uid"):
            tag, inner, at = element(body, at)
            _, attribute, behind = element(inner)
            assert (tag, attribute) == (0xA3, name) and element(inner, behind)[1:] == (address, len(inner))
        assert at == len(body)


def test_servers():
    assert Server.of("ldap://x.test") == Server("x.test", 389, False) and Server.of("ldaps://[::1]:1/") == Server("::1", 1, True)
    for bad in ("x.test", "http://x", "ldap://", "ldap://a/b", "ldap://u:p@a", "ldap://a:99999", "ldap://a?b"):
        with pytest.raises(ValueError):
            Server.of(bad)


def test_settings():
    with pytest.raises(ConfigError) as found:
        parse(b'[ldap]\nuris = ["http://x"]\nfilter = "(mail=x)"\n', "f")
    assert len(found.value.problems if hasattr(found.value, "problems") else str(found.value).splitlines()) == 2
    with pytest.raises(ConfigError, match="password_file"):
        parse(b'[ldap]\nbind_dn = "cn=x"\n', "f")


def result(id, operation, code, text=b""):
    return tlv(0x30, number(id) + tlv(operation, number(code, 0x0A) + tlv(4, b"") + tlv(4, text)))


ENTRY = tlv(0x64, tlv(4, b"cn=x") + tlv(0x30, b""))
REFERENCE = tlv(0x73, tlv(4, b"ldap://other/"))


def answers(make, settings=None):
    """What a search gives at a server that binds us and then says `make(id)`; the requests it had."""
    heard = []

    async def serve(reader, writer):
        try:
            while head := await reader.read(2):
                body = await reader.readexactly(head[1]) if head[1] < 0x80 else await reader.readexactly(int.from_bytes(await reader.readexactly(head[1] & 0x7F), "big"))
                _, id, at = element(body)
                operation, value, _ = element(body, at)
                heard.append((operation, value))
                if operation == 0x60:
                    writer.write(result(integer(id), 0x61, 0))
                elif operation == 0x63:
                    for piece in make(integer(id)):
                        if piece is None:
                            writer.close()
                            return
                        for at in range(0, len(piece), 5):
                            writer.write(piece[at : at + 5])
                            await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        where = Server("127.0.0.1", server.sockets[0].getsockname()[1], False)
        connection = await Connection.open(where, context=None, starttls=False, name="", password=b"")
        try:
            return await asyncio.wait_for(connection.exists("dc=x", "sub", Filter("(mail=%s)").encode(ADDRESS), 3), 60)
        finally:
            connection.close()
            server.close()

    return asyncio.run(main()), heard


def test_a_search_as_octets():
    found, heard = answers(lambda id: [tlv(0x30, number(id) + ENTRY), result(id, 0x65, 0)])
    assert found is True and heard[0] == (0x60, b"\x02\x01\x03\x04\x00\x80\x00")
    assert heard[1] == (0x63, b"\x04\x04dc=x\x0a\x01\x02\x0a\x01\x00\x02\x01\x01\x02\x01\x03\x01\x01\xff" + Filter("(mail=%s)").encode(ADDRESS) + b"\x30\x05\x04\x031.1")


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        (lambda id: [result(id, 0x65, 0)], False),
        (lambda id: [tlv(0x30, number(id) + ENTRY), result(id, 0x65, 4)], True),
        (lambda id: [result(id + 7, 0x65, 0), result(id, 0x65, 0)], False),
        (lambda id: [result(id, 0x65, 4)], None),
        (lambda id: [result(id, 0x65, 32)], None),  # a base that is not there is a mistake of ours, not a no
        (lambda id: [result(id, 0x65, 10)], None),
        (lambda id: [result(id, 0x65, 51)], None),
        (lambda id: [tlv(0x30, number(id) + REFERENCE), result(id, 0x65, 0)], None),
        (lambda id: [None], None),
        (lambda id: [result(0, 0x78, 52)], None),
        (lambda id: [b"\x30\x80"], None),
        (lambda id: [b"\x30\x84\x7f\xff\xff\xff"], None),
        (lambda id: [b"HTTP/1.1 200 OK\r\n"], None),
        (lambda id: [tlv(0x30, b"\x04\x01x")], None),
        (lambda id: [tlv(0x30, number(id) + tlv(0x65, b"\x02\x01\x00"))], None),
        (lambda id: [tlv(0x30, number(id))], None),
    ],
)
def test_answers(pieces, found):
    if found is None:
        with pytest.raises(LdapError):
            answers(pieces)
    else:
        assert answers(pieces)[0] is found


def test_a_server_that_is_away_is_not_asked_for_a_while(tmp_path, monkeypatch):
    """Unsure is kept for seconds; after some failures in a row nobody connects until the pause is over."""
    told = []

    async def main():
        connections = 0

        async def serve(reader, writer):
            nonlocal connections
            connections += 1
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        lookup = LdapLookup(Ldap(uris=[f"ldap://127.0.0.1:{port}"], base="dc=x", timeout_s=1.0), tmp_path, lambda *what: told.append(what))
        found = [await lookup.exists(b"a%d@x.test" % n) for n in range(breaker.FAILURES + 5)]
        assert [await lookup.exists(b"a0@x.test") for _ in range(3)] == [None] * 3
        lookup.close()
        server.close()
        return found, connections

    found, connections = asyncio.run(main())
    assert set(found) == {None} and connections == breaker.FAILURES and [what[0] for what in told] == [True]
