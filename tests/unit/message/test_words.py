"""Encoded words, parameters, charsets (RFC 2047, 2231)."""

import email.header
import random

import pytest

from iems.message.words import (
    codec,
    content_type,
    decode,
    decode_parameters,
    decode_words,
    disposition,
    encode_parameter,
    encode_words,
    unbase64,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b" plain ", "plain"),
        (b"=?utf-8?q?Quart=C3=A4r?=", "Quartär"),
        (b"=?UTF-8?Q?a_b?= c", "a b c"),
        (b"=?iso-8859-1?q?a?= =?iso-8859-1?q?b?=", "ab"),  # RFC 2047 8
        (b"=?iso-8859-1?q?a?=\r\n  =?iso-8859-2?q?b?=", "ab"),
        (b"(=?iso-8859-1?q?a?= b)", "(a b)"),
        (b"=?iso-8859-1?q?a_?= =?iso-8859-1?q?b?=", "a b"),
        (b"=?us-ascii*en?q?tagged?=", "tagged"),  # RFC 2231 5
        (b"=?utf-8?b?4oI=?= =?utf-8?b?rA==?=", "€"),  # a character cut in two
        (b"=?utf-8?b?4oKs", "=?utf-8?b?4oKs"),
        (b"=?utf-8?x?y?=", "=?utf-8?x?y?="),
        (b"=?no-such?q?=E4?=", "ä"),
        (b"=?iso-2022-jp?b?GyRCRnxLXBsoQg==?=", "日本"),
        (b"=?windows-1252?q?=93x=94?=", "“x”"),
        (b"=?iso-8859-1?q?=93x=94?=", "“x”"),
        (b"caf\xc3\xa9", "café"),
        (b"caf\xe9", "café"),
        (b"=?utf-8?q?a b?=", "a b"),
        (b"=?utf-8?b??=", ""),
        (b"", ""),
    ],
)
def test_decode_words(value, text):
    assert decode_words(value) == text


def test_the_standard_library_agrees_on_what_it_makes():
    rng = random.Random(2047)
    for _ in range(300):
        text = "".join(rng.choices("aB zäß€日= ?_", k=rng.randrange(1, 90))).strip()
        made = email.header.Header(text, "utf-8").encode()
        assert decode_words(made.encode()) == text


def test_words_come_back():
    rng = random.Random(5322)
    for _ in range(1000):
        text = "".join(rng.choices('aB zäß€日𝄞= ?_\r\n\t"(', k=rng.randrange(1, 120)))
        made = encode_words(text, 9)
        assert (
            made.isascii() and "\r" not in made.replace("\r\n ", "") and "\n" not in made.replace("\r\n ", "")
        )
        assert all(len(line) <= 76 for line in made.split("\r\n")) or made == text
        assert decode_words(made.encode()) == text or text != text.strip(" \t")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b'; a=b; C="d e"', {"a": "b", "c": "d e"}),
        (b"; filename*=utf-8'en'a%C3%A4", {"filename": "aä"}),
        (b'; f*0="a"; f*1=b; f*2*=%20c', {"f": "ab c"}),
        (b"; f*0*=iso-8859-1''%E4; f*1=x; f*3=lost", {"f": "äx"}),
        (b"; f*1=x; f*0=y", {"f": "yx"}),
        (b"; f=plain; f*=utf-8''better", {"f": "better"}),
        (b'; f="=?utf-8?q?=C3=A4?="', {"f": "ä"}),
        (b"; f=a; f=b", {"f": "a"}),
        (b"; f*x=a; f*9999=b; g=c", {"g": "c"}),
        (b"; f*=%ZZ", {"f": "%ZZ"}),
        (b"; f*0*=no-such''%E4", {"f": "ä"}),
        (b' junk; a="unclosed', {"a": "unclosed"}),
        (b"", {}),
    ],
)
def test_parameters(value, found):
    assert decode_parameters(value) == found


def test_types_and_dispositions():
    assert content_type(b" Text/HTML (c) ; Charset=UTF-8") == ("text", "html", {"charset": "UTF-8"})
    assert content_type(b"nonsense") == ("text", "plain", {})
    assert disposition(b' Attachment;\r\n filename="a b"') == ("attachment", {"filename": "a b"})
    assert disposition(b"") == ("", {})


def test_parameters_come_back():
    rng = random.Random(2231)
    for _ in range(1000):
        text = "".join(rng.choices("aB zäß€日=;\"\\%'*", k=rng.randrange(120)))
        pieces = encode_parameter("filename", text)
        assert all(len(piece) <= 75 and "\r" not in piece and "\n" not in piece for piece in pieces)
        assert decode_parameters(("; " + "; ".join(pieces)).encode()) == {"filename": text}, text
    with pytest.raises(ValueError):
        encode_parameter("a b", "c")


@pytest.mark.parametrize(
    "name",
    [
        "zip",
        "hex",
        "base64",
        "rot13",
        "idna",
        "punycode",
        "unicode_escape",
        "undefined",
        "../os",
        "x" * 50,
        "",
    ],
)
def test_what_is_no_charset(name):
    assert codec(name) is None
    assert decode(b"caf\xe9", name) == "café"


@pytest.mark.parametrize(
    ("octets", "charset", "text"),
    [
        (b"caf\xc3\xa9", "us-ascii", "café"),
        (b"\xc4\xe3\xba\xc3", "gb2312", "你好"),
        (b"\xb0\xa1", "ks_c_5601-1987", "가"),
        (b"\x82\xa0", "Shift_JIS", "あ"),
        (b"+AOQ-", "utf-7", "ä"),
        (b"\xff", "utf-8", "\ufffd"),
        (b"a\x00", "utf-16-le", "a"),
        (b"\x81", "windows-1252", "\ufffd"),
        (b"\xe4", '"iso-8859-15"', "ä"),
    ],
)
def test_charsets(octets, charset, text):
    assert decode(octets, charset) == text


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        (b"YWI=", b"ab"),
        (b"YWI", b"ab"),
        (b"YWIj\r\nYQ==", b"ab#a"),
        (b"Y W!I=", b"ab"),
        (b"YWJjZ", b"abc"),
        (b"====", b""),
        (b"", b""),
    ],
)
def test_base64(text, octets):
    assert unbase64(text) == octets
