"""Settings: every error at once with its line, nearest names, generated pages."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path

import msgspec
import pytest

from iems import config as settings
from iems.config import Config, Smtpd, host_port, key_lines, parse
from iems.errors import ConfigError

ROOT = Path(__file__).parents[3]


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "F")
    return caught.value.problems


def test_an_empty_file_is_all_defaults() -> None:
    assert parse(b"", "F") == Config()


def test_names_and_defaults_that_others_rely_on() -> None:
    config = Config()
    assert config.master.drain_s == 10
    assert config.smtpd.max_sessions == 0
    assert config.smtpd.limit_loopback is False
    assert config.smtpd.bare_lf == "refuse"
    assert config.smtpd.trusted_networks == config.smtpd.xclient_networks == config.smtpd.proxy_networks == []
    assert config.auth.plaintext == "loopback"
    assert config.store.partitions == 1
    assert config.preprocessor.max_trips == 25
    assert config.dns.servers == config.smtpc.relay_hosts == []
    for value in ("dns", "dns-hosts", "hosts-dns"):
        assert parse(f'[smtpc]\nresolution = "{value}"'.encode(), "F").smtpc.resolution == value


def test_every_error_is_reported_with_its_line() -> None:
    text = """hostnam = "x"
domain = "a b"

[smtpd]
workes = 3
trusted_networks = ["10.0.0.0/8",
  "x"]
size_limit = "big"
bare_lf = "pass"

[smtpd2]
a = 1
[master]
ports = 3
drain_s = -1
size_limit = 3
ready_s = inf
"""
    assert problems(text) == [
        "F:1: hostnam: unknown setting (did you mean hostname?)",
        "F:2: domain: 'a b' is no host name",
        "F:5: smtpd.workes: unknown setting (did you mean smtpd.workers?)",
        "F:6: smtpd.trusted_networks: 'x' is no IP address or network (write 192.0.2.0/24)",
        "F:8: smtpd.size_limit: must be a whole number, at least 0",
        'F:9: smtpd.bare_lf: must be "refuse" or "normalise"',
        "F:11: smtpd2: unknown setting (did you mean smtpd?)",
        "F:14: master.ports: unknown setting (did you mean smtpc.port?)",
        "F:15: master.drain_s: must be a number, at least 0, at most 3600",
        "F:16: master.size_limit: unknown setting (did you mean smtpd.size_limit?)",
        "F:17: master.ready_s: must be a finite number",
    ]


def test_syntax_errors_name_their_line() -> None:
    assert problems("a = 1\nb = = 2\n")[0].startswith("F:2: -: not TOML: ")
    assert problems("[smtpd\n")[0].startswith("F:1: -: not TOML")
    with pytest.raises(ConfigError) as caught:
        parse(b"a = 1\n\xff", "F")
    assert caught.value.problems == ["F:2: -: not UTF-8 text"]


def test_contradictions() -> None:
    assert problems('[smtpc]\nresolution = "relay"') == [
        "F:2: smtpc.resolution: 'relay' needs smtpc.relay_hosts"
    ]
    assert problems("[ports]\nimap = 25")[0].startswith("F:2: ports.imap: the same port as ports.")
    assert problems("[store]\nworkers = 2\n") == ["F:2: store.workers: must not be above store.partitions"]


def test_a_section_is_no_value() -> None:
    assert problems("smtpd = 3") == ["F:1: smtpd: is a section: write [smtpd]"]


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="No such file"):
        settings.load("/nonexistent/iems.toml")


def test_hosts_and_ports() -> None:
    assert host_port("mx.example.org", 25) == ("mx.example.org", 25)
    assert host_port("mx.example.org:26", 25) == ("mx.example.org", 26)
    assert host_port("[::1]:53", 25) == ("::1", 53)
    assert host_port("::1", 53) == ("::1", 53)
    for bad in ("", ":25", "a:b", "a:0", "a:65536", "[::1", "[::1]x"):
        with pytest.raises(ValueError):
            host_port(bad, 25)
    assert "a DNS server is named by its IP address" in problems('[dns]\nservers = ["localhost"]')[0]


def test_lines_of_all_toml_forms() -> None:
    text = '''# comment with = and [x]
top = "a # no comment"
"quoted key" = 1
a.b . "c d" = """
lines = 1
""""
after = [
  1, # one ]
  [2, "]"],
  {x = 3, y = 'z}'},
]
inline = {p = {q = 1}}

[t.u] # here
k = 'lit\\'
m = \'\'\'
[no]
\'\'\'
[[arr]]
n = 1979-05-27 07:32:00
[[arr]]
n = 2
'''
    tomllib.loads(text)
    lines = key_lines(text)
    assert {".".join(key): line for key, line in lines.items()} == {
        "top": 2,
        "quoted key": 3,
        "a.b.c d": 4,
        "after": 7,
        "after.x": 10,
        "after.y": 10,
        "inline": 12,
        "inline.p": 12,
        "inline.p.q": 12,
        "t.u": 14,
        "t.u.k": 15,
        "t.u.m": 16,
        "arr": 19,
        "arr.n": 20,
    }


def test_the_scanner_survives_every_valid_text() -> None:
    """Mutated text: whatever tomllib takes, the scanner takes, and finds every top-level key."""
    rng = random.Random(9)
    base = settings.sample({"hostname": "h", "smtpd.trusted_networks": ["10.0.0.0/8", "::1"]})
    taken = 0
    for _ in range(3000):
        start = rng.randrange(len(base) - 200)
        text = list(base[start : start + 200])
        for _ in range(rng.randrange(1, 6)):
            text.insert(rng.randrange(len(text)), rng.choice("\"'[]{}=#\n.,\\ a1"))
        try:
            raw = tomllib.loads("".join(text))
        except tomllib.TOMLDecodeError:
            continue
        taken += 1
        assert set(raw) == {key[0] for key in key_lines("".join(text))}
    assert taken > 100


def test_the_sample_is_valid_and_changes_nothing() -> None:
    assert parse(settings.sample().encode(), "F") == Config()
    uncommented = "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in settings.sample().splitlines()
    )
    assert parse(uncommented.encode(), "F") == Config()


def test_generated_pages_are_committed() -> None:
    assert (ROOT / "docs/config.md").read_text() == settings.reference(), "make generated"
    assert (ROOT / "conf/iems.toml").read_text() == settings.sample(), "make generated"


def test_every_setting_says_what_it_means() -> None:
    for key, _, setting in settings.walk():
        assert setting.description.endswith((".", ")")), key
    assert Smtpd.__struct_config__.forbid_unknown_fields
    with pytest.raises(AttributeError):
        Config().smtpd.workers = 3  # type: ignore[misc]
    assert msgspec.to_builtins(Config())["smtpd"]["workers"] == 2


def test_tables_of_pickup() -> None:
    """Tables of an array are checked like sections, and shown as TOML that reads back."""
    table = '[[bsmtp.pickup]]\nname = "a"\nhost = "h"\nlogin = "l"\npassword_file = "p"\n'
    found = settings.parse(f"[bsmtp]\nkey_file = 'k'\n{table}relay = true\n".encode(), "x").bsmtp
    shown = f"[bsmtp]\nkey_file = 'k'\npickup = {settings.toml_value(found.pickup)}\n"
    assert settings.parse(shown.encode(), "x").bsmtp == found
    for text, what in (
        (table + 'hosst = "h"\n', "unknown field `hosst`"),
        (table + "relay = true\n", "relay needs a key"),
        (table + table, "two profiles are called 'a'"),
        (table.replace('"h"', '"a b"'), "must be a host name"),
        (table.replace('name = "a"', 'name = "a b"'), "regex"),
        ("[bsmtp]\nfolder_relay = true\n", "needs bsmtp.key_file"),
    ):
        with pytest.raises(ConfigError, match=r"^x:\d+: bsmtp\.") as caught:
            settings.parse(text.encode(), "x")
        assert what in str(caught.value)


def test_what_tags_mail():
    """Every setting that lets mail in with a tag is known, so that none tags while a channel has no default."""
    from msgspec import convert

    from iems.config import Config, tagging_settings

    assert tagging_settings(Config()) == []
    for section, values, named in (
        ("smtpd", {"check_helo": "tag"}, "smtpd.check_helo"),
        ("antivirus", {"infected": "tag", "scanners": ["clamd:/x"]}, "antivirus.infected"),
        ("attachment", {"unparsable": "tag"}, "attachment.unparsable"),
        ("milter", {"rejected": "tag", "milters": ["unix:/x"]}, "milter.rejected"),
        ("content", {"checker": "spamd:h:1"}, "content.action"),
        ("content", {"checker": "spamd:h:1", "action": "bounce", "channel_actions": ["LOCAL subject"]}, "content.action"),
        ("authres", {"verify": True, "dmarc": "quarantine-tag"}, "authres.dmarc"),
    ):
        assert tagging_settings(convert({section: values}, Config)) == [named]
    assert tagging_settings(convert({"antivirus": {"infected": "tag"}, "content": {"action": "tag"}}, Config)) == [], "nobody is asked"
