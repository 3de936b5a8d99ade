"""The standard library as a second opinion on messages it makes itself."""

import email
import email.policy
import random
from email.message import EmailMessage

from iems.message import Structure, summarize
from iems.message.text import part_octets
from tests.corpus.imap import leaves, media, parse


def made(rng, depth=0):
    message = EmailMessage(policy=email.policy.SMTP)
    if depth == 0:
        message["From"] = "A B <a@b.example>"
        message["To"] = "c@d.example, Ä <e@f.example>"
        message["Subject"] = "subject " * rng.randrange(30)
    choice = rng.randrange(5 if depth < 4 else 2)
    if choice == 0:
        message.set_content(
            "text ä\n" * rng.randrange(5), cte=rng.choice(("8bit", "base64", "quoted-printable"))
        )
    elif choice == 1:
        message.set_content(rng.randbytes(rng.randrange(300)), "image", "png", filename="Bild ä.png")
    elif choice == 2:
        message.set_content(made(rng, 0) if depth < 3 else EmailMessage(policy=email.policy.SMTP))
    else:
        message["Content-Type"] = f"multipart/{rng.choice(('mixed', 'alternative'))}"
        for _ in range(rng.randrange(1, 4)):
            message.attach(made(rng, depth + 1))
    return message


def walk(message, number=""):
    """(part number, part) as IMAP numbers them."""
    if message.is_multipart() and message.get_content_maintype() == "multipart":
        for place, part in enumerate(message.iter_parts(), 1):
            yield from walk(part, f"{number}.{place}" if number else str(place))
        return
    number = number or "1"
    yield number, message
    if message.get_content_type() == "message/rfc822":
        inner = message.get_content()
        yield from walk(inner, number if inner.get_content_maintype() == "multipart" else number + ".1")


def test_structure_and_content_agree():
    rng = random.Random(822)
    for _ in range(150):
        raw = made(rng).as_bytes()
        theirs = list(walk(email.message_from_bytes(raw, policy=email.policy.SMTP)))
        structure = Structure.parse(raw)
        ours = list(leaves(parse(summarize(raw)[1])))
        assert [(n, m.get_content_type()) for n, m in theirs] == [(n, media(p)) for n, p in ours]
        for number, part in theirs:
            if part.get_content_type() != "message/rfc822":
                assert part_octets(raw, structure.part(number)) == part.get_payload(decode=True), raw
