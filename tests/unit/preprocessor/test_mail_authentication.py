"""Modules authres, dkim and arc, without a server: whom they look at, what they take out, tell, refuse and sign."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import dkim as dkimpy
import pytest

from iems.authres import arc, dkim, reports, sign
from iems.authres.canonical import BodyHash
from iems.authres.header import parse
from iems.authres.keyring import Keyring
from iems.authres.mail import Mail
from iems.config import Authres as Settings
from iems.config import Config, Smtpd
from iems.config import Dkim as DkimSettings
from iems.config import parse as parse_config
from iems.errors import ConfigError
from iems.model import INPUT, Channel, Envelope, Extent, Recipient, Verdict
from iems.preprocessor.batch import Plan, again_item
from iems.preprocessor.modules import NAMES, Work, installed
from iems.preprocessor.modules.arc import Seal
from iems.preprocessor.modules.authres import MAX_SPANS, Authres
from iems.preprocessor.modules.dkim import Sign
from iems.preprocessor.route import Part
from iems.spool import Item
from tests.support.zones import Zones

MAIL = b"Received: from x by mx\r\nFrom: A <a@d.example>\r\nTo: b@load.test\r\nSubject: x\r\n\r\nHello\r\n"
KEY = sign.new_key("ed25519")
PEM = sign.key_pem(sign.new_key("rsa")).encode()
ZONE = {
    "d.example": {"TXT": [b"v=spf1 ip4:192.0.2.1 -all"]},
    "_dmarc.d.example": {"TXT": [b"v=DMARC1; p=reject; rua=mailto:r@d.example"]},
    "s._domainkey.d.example": {"TXT": [sign.record(KEY).encode()]},
    "_dmarc.q.example": {"TXT": [b"v=DMARC1; p=quarantine"]},
    "other.example": {"TXT": [b"v=spf1 ip4:192.0.2.9 -all"]},
}


class Context(SimpleNamespace):
    def __init__(self, home, **settings):
        config = Config(hostname="mx.load.test", domain="load.test", **settings)
        super().__init__(home=home, config=config, hostname=config.hostname, slot=3, errors=[], answers=None)
        self.log = SimpleNamespace(error=lambda *a: self.errors.append(a))

    def count(self, name, n=1):
        pass


class Disk:
    """Content as one extent, read and written as the spool does."""

    def __init__(self, content):
        self.octets = content
        self.rope = [Extent(1, 0, len(content))]

    def read(self, rope, start, length):
        whole = b"".join(piece if isinstance(piece, bytes) else self.octets[piece.offset : piece.offset + piece.length] for piece in rope)
        return whole[start : start + length]

    async def write(self, octets):
        at = len(self.octets)
        self.octets += octets
        return Extent(1, at, len(octets))


def work(content=MAIL, ip="192.0.2.1", sender=b"a@d.example", channel=Channel.SMTPD, out=(Channel.LOCAL,), auth="", id=b"\0" * 16):
    disk = Disk(content)
    envelope = Envelope(channel, sender, [], 1, client_ip=ip, helo=b"h.example", auth=auth)
    parts = []
    for way in out:
        recipient = Recipient(b"b@load.test")
        envelope.recipients.append(recipient)
        parts.append(Part(way, "", [recipient], [recipient]))
    made = Work(id, envelope, parts, disk.rope, disk.read, disk.write)
    return made, disk


def examine(module, given):
    made, disk = given
    verdict = asyncio.run(module.examine(made))
    return verdict, disk.read(verdict.rope, 0, 1 << 24) if verdict.rope is not None else None


def module(tmp_path, zone=None, **settings):
    more = {"smtpd": settings.pop("smtpd")} if "smtpd" in settings else {}
    return Authres(Context(tmp_path, authres=Settings(verify=True, **settings), **more), zone or Zones(ZONE))


def told(content):
    name, _, value = content.partition(b":")
    assert name == b"Authentication-Results"
    end = value.index(b"\r\n" + (b"Received" if b"\r\nReceived" in value else b"From"))
    found = parse(value[:end])
    assert found.authserv_id == "mx.load.test"
    return [(one.method, one.result) for one in found.results]


DIRECTORY = SimpleNamespace(attachment_rules=list, tag_default=str, autotexts=dict, seen=0)


def names(ctx):
    return [one.name for one in installed(ctx.config, ctx.home, DIRECTORY, lambda part: False, print, ctx)]


def test_off_by_default(tmp_path):
    assert "authres" not in names(Context(tmp_path)) and "arc" not in names(Context(tmp_path))
    assert "dkim" not in names(Context(tmp_path, dkim=DkimSettings(sign=False)))
    on = names(Context(tmp_path, authres=Settings(verify=True), dkim=DkimSettings(seal=True)))
    # What is signed is looked at before it is rewritten, and signed after.
    assert on[0] == "authres" and on[-2:] == ["arc", "dkim"] and on == [name for name in NAMES if name in on]


def test_who_is_looked_at_at_all(tmp_path):
    ctx = Context(tmp_path, authres=Settings(verify=True))
    authres, signing = Authres(ctx, Zones({})), Sign(ctx)
    outside, user = work()[0].envelope, work(auth="u")[0].envelope
    assert authres.wants(outside) and not authres.wants(work(channel=Channel.MTA)[0].envelope) and not authres.wants(work(ip="127.0.0.1")[0].envelope)
    assert not signing.wants(user)  # there is no key yet
    ring(tmp_path)
    signing._look_at = 0.0
    assert signing.wants(user) and not signing.wants(outside)


def test_told_on_top_and_content_not_copied(tmp_path):
    verdict, content = examine(module(tmp_path), work())
    assert content.endswith(MAIL) and told(content) == [("spf", "pass"), ("dkim", "none"), ("dmarc", "pass")]
    assert verdict.rope[-1] == Extent(1, 0, len(MAIL)) and not verdict.failed and not verdict.tags


@pytest.mark.parametrize("given", [
    {"channel": Channel.MTA}, {"channel": Channel.LOCALOUT}, {"ip": "127.0.0.1"}, {"ip": "::1"}, {"ip": "198.51.100.4"}, {"ip": "203.0.113.7"},
])  # fmt: skip
def test_mail_of_ours_costs_no_question(tmp_path, given):
    lookup = Zones(ZONE)
    one = module(tmp_path, lookup, trusted_networks=["198.51.100.0/24"], smtpd=Smtpd(trusted_networks=["203.0.113.0/24"]))
    forged = b"Authentication-Results: mx.load.test; dmarc=pass\r\n" + MAIL
    assert examine(one, work(forged, **given)) == (asyncio.run(one.examine(work(forged, **given)[0])), None)
    assert lookup.asked == []


FORGED = [
    b"Authentication-Results: mx.load.test; dmarc=pass\r\n", b"authentication-results : MX.load.test\r\n ;dmarc=pass\r\n",
    b"Authentication-Results: (x) \"mx.load.test\" 1; spf=pass\r\n", b"AUTHENTICATION-RESULTS:\r\n\tmx.load.test; spf=pass\r\n",
    b"Authentication-Results: (never ends mx.load.test; spf=pass\r\n",
]  # fmt: skip
KEPT = b"Authentication-Results: mx.other.example; spf=pass\r\nX-Authentication-Results: mx.load.test; none\r\n"


def test_settings_that_need_each_other():
    for text, key in (("[dkim]\nseal = true\n", "dkim.seal"), ("[authres]\nreports = true\n", "authres.reports"), ('[authres]\ntrusted_networks = ["x"]\n', "trusted_networks")):
        with pytest.raises(ConfigError, match=key):
            parse_config(text.encode(), "x.toml")


def test_mail_that_was_picked_up_is_stripped_and_not_asked_about(tmp_path):
    lookup = Zones(ZONE)
    assert examine(module(tmp_path, lookup), work(FORGED[0] + MAIL, ip="", channel=Channel.BSMTPIN))[1] == MAIL
    assert lookup.asked == []


@pytest.mark.parametrize("auth", ["", "a1@load.test"])
def test_forged_fields_go(tmp_path, auth):
    for forged in (*([one] for one in FORGED), FORGED, FORGED * MAX_SPANS):
        before, after = MAIL.split(b"Subject")
        given = KEPT + forged[0] + before + b"".join(forged[1:]) + b"Subject" + after
        verdict, content = examine(module(tmp_path), work(given, auth=auth))
        assert content.endswith(KEPT + MAIL), forged
        assert (b"mx.load.test" in content.replace(KEPT, b"")) == (not auth)
        assert f"{len(forged)} forged" in verdict.note
    last = MAIL.replace(b"\r\n\r\n", b"\r\n" + FORGED[0] + b"\r\n", 1)
    assert examine(module(tmp_path), work(last, auth=auth))[1].endswith(MAIL)
    in_body = MAIL + FORGED[0]
    assert in_body in (examine(module(tmp_path), work(in_body))[1])
    long = b"X: " + b"y" * (2 << 20) + b"\r\n"
    assert examine(module(tmp_path), work(long + FORGED[0] + MAIL, auth="u"))[1] == long + MAIL


@pytest.mark.parametrize(("limit", "ip", "sender", "mail", "end"), [
    ("none", "192.0.2.7", b"a@d.example", MAIL, "pass on"),
    ("quarantine-tag", "192.0.2.7", b"a@d.example", MAIL, "tag"),
    ("reject", "192.0.2.7", b"a@d.example", MAIL, "drop"),  # nobody to tell: the reverse-path is borrowed
    ("reject", "192.0.2.9", b"x@other.example", MAIL, "refuse"),
    ("reject", "192.0.2.7", b"a@q.example", MAIL.replace(b"d.example", b"q.example"), "tag"),
    ("reject", "192.0.2.1", b"a@d.example", MAIL, "pass on"),
    ("reject", "192.0.2.7", b"a@none.example", MAIL.replace(b"d.example", b"none.example"), "pass on"),
    ("reject", "192.0.2.9", b"x@other.example", MAIL.replace(b"To:", b"From: z@d.example\r\nTo:"), "refuse"),
    ("quarantine-tag", "192.0.2.1", b"a@d.example", MAIL.replace(b"To:", b"From: z@d.example\r\nTo:"), "tag"),
    ("none", "192.0.2.1", b"a@d.example", MAIL.replace(b"<a@d.example>", b"a@d.example, b@d.example"), "pass on"),
])  # fmt: skip
def test_policy(tmp_path, limit, ip, sender, mail, end):
    given = work(mail, ip, sender, out=(Channel.LOCAL, Channel.SMTPC))
    verdict, _ = examine(module(tmp_path, dmarc=limit), given)
    assert (len(verdict.tags), len(verdict.failed), len(verdict.discarded)) == {
        "pass on": (0, 0, 0), "tag": (1, 0, 0), "refuse": (0, 2, 0), "drop": (0, 0, 2)}[end]  # fmt: skip
    if end == "tag" and b"q.example" in mail:
        assert verdict.tags == (Verdict("dmarc", "q.example", "fail, policy quarantine"),)


def test_a_tag_stays_with_a_message_that_starts_again():
    recipient = Recipient(b"b@load.test")
    mark, known = Verdict("dmarc", "q.example", "fail"), Verdict("dnsbl", "bl.test", "127.0.0.2")
    item = Item(b"i" * 16, INPUT, "", Envelope(Channel.SMTPD, b"", [recipient], 1, verdicts=(known,)), [b"x"])
    plan = Plan(item, [Part(Channel.LOCAL, "", [recipient], [recipient], tags=(known, mark))], [], again=(Channel.TNEF, [b"y"]))
    again = again_item(plan, Item)
    assert again.envelope.verdicts == (known, mark) and again.envelope.input_channel == Channel.TNEF and again.rope == [b"y"]


def test_dns_that_fails_or_hangs_has_no_effect(tmp_path):
    sick = Zones({}, ("d.example", "_dmarc.d.example"))
    verdict, content = examine(module(tmp_path, sick, dmarc="reject"), work(ip="192.0.2.7"))
    assert told(content) == [("spf", "temperror"), ("dkim", "none"), ("dmarc", "temperror")]
    assert not verdict.failed and not verdict.discarded and not verdict.tags

    class Silent:
        async def query(self, name, kind, *, loose=False):
            await asyncio.Event().wait()

    verdict, content = examine(module(tmp_path, Silent(), dmarc="reject", timeout_s=0.05), work(ip="192.0.2.7"))
    assert ("dmarc", "temperror") in told(content) and not verdict.discarded and not verdict.tags


def test_groups_of_one_message_share_what_was_found(tmp_path):
    lookup = Zones(ZONE)
    one = module(tmp_path, lookup, reports=True)
    first, _ = work(out=(Channel.LOCAL,))
    second, _ = work(out=(Channel.SMTPC,))
    second.shared = first.shared
    asyncio.run(one.examine(first))
    count = len(lookup.asked)
    asyncio.run(one.examine(second))
    assert len(lookup.asked) == count
    (day,) = reports.days(tmp_path)
    ((row, messages),) = reports.counted(tmp_path, day)["d.example"].items()
    assert messages == 1 and (row.ip, row.spf, row.disposition, row.envelope_from) == ("192.0.2.1", True, "none", "d.example")


def test_a_trusted_seal_speaks_for_a_changed_message(tmp_path):
    signer = sign.Signer("d.example", "s", KEY)
    told_there = [parse(b"list.example; dmarc=pass").results[0]]
    sealed = asyncio.run(arc.seal(signer, Mail.of(MAIL), arc.Arc("none"), "list.example", told_there, 1_700_000_000)) + MAIL
    for sealers, count in (([], 1), (["d.example"], 0)):
        verdict, content = examine(module(tmp_path, dmarc="quarantine-tag", trusted_sealers=sealers), work(sealed, "192.0.2.7", b"l@list.example"))
        assert len(verdict.tags) == count and b"arc=pass" in content


def ring(tmp_path):
    found = Keyring(tmp_path)
    found.create("d.example", selector="r", pem=PEM)
    found.create("d.example", "ed25519", "e")
    zone = {key.name: {"TXT": [key.record.encode()]} for key in found.find()}
    return zone


@pytest.mark.parametrize(("given", "count"), [
    ({"auth": "a1@load.test", "ip": "192.0.2.200"}, 2), ({"channel": Channel.MTA, "ip": ""}, 2), ({"ip": "203.0.113.7"}, 2),
    ({"ip": "192.0.2.1"}, 0), ({"channel": Channel.LOCALOUT}, 0), ({"channel": Channel.BSMTPIN, "ip": ""}, 0), ({"ip": ""}, 0),
    ({"auth": "u", "content": MAIL.replace(b"d.example", b"mail.d.example")}, 2), ({"auth": "u", "content": MAIL.replace(b"d.example", b"o.example")}, 0),
    ({"auth": "u", "content": MAIL.replace(b"To:", b"From: z@d.example\r\nTo:")}, 0), ({"auth": "u", "content": MAIL.replace(b"d.example", b"../x")}, 0),
])  # fmt: skip
def test_what_is_signed(tmp_path, given, count):
    zone = ring(tmp_path)
    one = Sign(Context(tmp_path, smtpd=Smtpd(trusted_networks=["203.0.113.0/24"])))
    made, disk = work(out=(Channel.LOCAL, Channel.SMTPC), **given)
    verdict = asyncio.run(one.examine(made))
    assert verdict.rope is None and len(verdict.ropes) == (1 if count else 0)
    for part, rope in verdict.ropes:
        assert part.channel == Channel.SMTPC and rope[-1] == disk.rope[0]
        octets = disk.read(rope, 0, 1 << 20)
        found = asyncio.run(dkim.verify(Zones(zone), Mail.of(octets), 4_000_000_000))
        assert [signature.result for signature in found] == ["pass"] * count
        assert dkimpy.verify(octets, dnsfunc=lambda name, timeout=5: zone[name.decode().rstrip(".")]["TXT"][0])


def test_a_key_that_is_broken_costs_a_signature_not_the_mail(tmp_path):
    ring(tmp_path)
    (tmp_path / "conf/dkim/d.example/r.json").write_text("{}")
    ctx = Context(tmp_path)
    assert asyncio.run(Sign(ctx).examine(work(out=(Channel.SMTPC,), auth="u")[0])).ropes == [] and len(ctx.errors) == 1


def test_sealed_when_it_leaves_again(tmp_path):
    ring(tmp_path)
    zone = ZONE | {key.name: {"TXT": [key.record.encode()]} for key in Keyring(tmp_path).find()}
    ctx = Context(tmp_path, authres=Settings(verify=True), dkim=DkimSettings(seal=True, seal_domain="d.example"))
    made, disk = work(out=(Channel.LOCAL, Channel.SMTPC))
    verdict = asyncio.run(Authres(ctx, Zones(zone)).examine(made))
    made.rope = verdict.rope
    verdict = asyncio.run(Seal(ctx).examine(made))
    ((part, rope),) = verdict.ropes
    octets = disk.read(rope, 0, 1 << 20)
    found = asyncio.run(arc.verify(Zones(zone), Mail.of(octets), 4_000_000_000))
    assert part.channel == Channel.SMTPC and (found.result, found.sealer) == ("pass", "d.example")
    assert found.reported == {"spf": "pass", "dkim": "none", "dmarc": "pass"}
    assert asyncio.run(Seal(ctx).examine(work(out=(Channel.SMTPC,))[0])).ropes == []  # nothing was found: mail of ours


@pytest.mark.parametrize(("changed", "hashes"), [(False, 1), (True, 2)])
def test_a_body_is_hashed_once_unless_it_was_changed(tmp_path, monkeypatch, changed, hashes):
    """For the signature that came and for the seal; whatever is in front of the body may differ."""
    ring(tmp_path)
    zone = ZONE | {key.name: {"TXT": [key.record.encode()]} for key in Keyring(tmp_path).find()}
    ctx = Context(tmp_path, authres=Settings(verify=True), dkim=DkimSettings(seal=True, seal_domain="d.example"))
    signed = asyncio.run(sign.Signer("d.example", "s", KEY).sign(Mail.of(MAIL), 1_700_000_000)) + MAIL
    made = []
    monkeypatch.setattr("iems.authres.mail.BodyHash", lambda *given: made.append(given) or BodyHash(*given))
    one, disk = work(signed, out=(Channel.SMTPC,))
    verdict = asyncio.run(Authres(ctx, Zones(zone)).examine(one))
    assert "dkim=pass" in verdict.note
    one.rope = verdict.rope
    if changed:
        one.rope = [*verdict.rope[:-1], asyncio.run(disk.write(signed.replace(b"Hello", b"Hullo")))]
    ((_, rope),) = asyncio.run(Seal(ctx).examine(one)).ropes
    assert len(made) == hashes
    octets = disk.read(rope, 0, 1 << 20)
    assert asyncio.run(arc.verify(Zones(zone), Mail.of(octets), 4_000_000_000)).result == "pass"


@pytest.mark.parametrize("channel", [Channel.LOCALOUT, Channel.DLOUT, Channel.TNEF])
def test_sealed_when_it_starts_again_inside(tmp_path, channel):
    ring(tmp_path)
    zone = ZONE | {key.name: {"TXT": [key.record.encode()]} for key in Keyring(tmp_path).find()}
    ctx = Context(tmp_path, authres=Settings(verify=True), dkim=DkimSettings(seal=True, seal_domain="d.example"))
    content = MAIL
    for count in (1, 2):  # the second time with a chain that came in
        told_of = examine(Authres(ctx, Zones(zone)), work(content))[1]
        inside = b"Return-Path: <a@d.example>\r\n" + told_of.replace(b"Hello", b"Hallo")
        made, disk = work(inside, channel=channel, out=(Channel.SMTPC,))
        assert Seal(ctx).wants(made.envelope)
        ((_, rope),) = asyncio.run(Seal(ctx).examine(made)).ropes
        content = disk.read(rope, 0, 1 << 20)
        found = asyncio.run(arc.verify(Zones(zone), Mail.of(content), 4_000_000_000))
        assert (found.result, found.instance, found.reported["spf"]) == ("pass", count, "pass")
    # Nothing is sealed that was not looked at, or whose chain was broken, or that gained one inside.
    for bad in (MAIL, told_of.replace(b"arc=pass", b"arc=fail"), content[len(content) - len(disk.octets) :].replace(b"arc=pass;", b"x=pass;")):
        assert asyncio.run(Seal(ctx).examine(work(bad, channel=channel, out=(Channel.SMTPC,))[0])).ropes == []
