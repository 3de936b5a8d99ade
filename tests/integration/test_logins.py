"""Logins at all doors of a real server: every mechanism with the clients at hand, TLS where it belongs, guessers held back."""

import base64
import imaplib
import json
import poplib
import shutil
import smtplib
import socket
import ssl
import subprocess
import time

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from iems.directory import Directory
from iems.directory.stored import Forms
from iems.net.tls import bindings
from iems.perf.home import PrivateHome
from tests.support.introspection import Endpoint
from tests.support.scram import Client
from tests.support.waiting import until

USER, KEY = "a1@load.test", ECKey.generate_key("P-256", {"kid": "k"})
SETTINGS = {
    "auth.cram_md5": True,
    "auth.failure_delay_s": 0,
    "auth.lockout_failures": 3,
    "auth.lockout_s": 60,
    "auth.oauth_jwks": "conf/jwks.json",
    "auth.oauth_issuer": "https://login.test",
    "auth.oauth_audience": "mail",
    "smtpd.sender_login": "reject",
    "smtpd.sender_login_from": True,
    "smtpd.xclient_networks": ["127.0.0.1"],
}


@pytest.fixture(scope="module")
def endpoint():
    with Endpoint({"opaque": {"email": USER, "iss": "https://login.test", "aud": "mail"}}) as server:
        yield server


@pytest.fixture(scope="module")
def home(endpoint):
    jwks = json.dumps({"keys": [KEY.as_dict(private=False)]})
    settings = SETTINGS | {"auth.oauth_introspection": endpoint.url, "auth.oauth_timeout_s": 2.0}
    with PrivateHome(4, settings, files={"conf/jwks.json": jwks}) as home:
        directory = Directory(home.path / "directory")
        directory.set_password(USER, "pw", Forms(4096, True))
        for keyless in ("a2@load.test", "a4@load.test"):
            directory.set_password(keyless, "pw")
        directory.close()
        yield home


def trusting(version=ssl.TLSVersion.TLSv1_3):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode, context.maximum_version = False, ssl.CERT_NONE, version
    return context


def token(user=USER):
    claims = {"iss": "https://login.test", "aud": "mail", "exp": int(time.time()) + 300, "email": user}
    return jwt.encode({"alg": "ES256", "kid": "k"}, claims, KEY, algorithms=["ES256"])


def smtp(home, tls=None):
    client = smtplib.SMTP("127.0.0.1", home.port("submission"), timeout=60)
    if tls is not None:
        client.starttls(context=tls)
    client.ehlo()
    return client


def imap(home, tls=None):
    client = imaplib.IMAP4("127.0.0.1", home.port("imap"), timeout=60)
    if tls is not None:
        client.starttls(tls)
    return client


def pop3(home, tls=None):
    client = poplib.POP3("127.0.0.1", home.port("pop3"), timeout=60)
    if tls is not None:
        client.stls(tls)
    return client


def by_smtp(home, mechanism, answer, tls=None):
    with smtp(home, tls) as client:
        return client.auth(mechanism, lambda challenge=None: answer(challenge or b"", client.sock).decode("latin-1"))


def by_imap(home, mechanism, answer, tls=None):
    client = imap(home, tls)
    with client:
        return client.authenticate(mechanism, lambda challenge: answer(challenge, client.sock))


def by_pop3(home, mechanism, answer, tls=None):
    client = pop3(home, tls)
    try:
        line = client._shortcmd(f"AUTH {mechanism}")
        while line.startswith(b"+ "):
            line = client._shortcmd(base64.b64encode(answer(base64.b64decode(line[2:]), client.sock)).decode())
        return line
    finally:
        client.close()


DOORS = [by_smtp, by_imap, by_pop3]


def scram(password="pw", user=USER, binding=b"", data=b""):
    """What a SCRAM client answers; its binding is of the connection it is on."""
    made = []

    def answer(challenge, sock):
        if not made:
            found = bindings(sock) if binding and not data else {binding: data}
            made.append(Client(user, password, binding, found.get(binding, b"")))
        return made[0].answer(bytes(challenge))

    return answer


@pytest.mark.parametrize("door", DOORS)
def test_scram(home, door):
    door(home, "SCRAM-SHA-256", scram())
    with pytest.raises((smtplib.SMTPAuthenticationError, imaplib.IMAP4.error, poplib.error_proto)):
        door(home, "SCRAM-SHA-256", scram("wrong"))
    with pytest.raises((smtplib.SMTPAuthenticationError, imaplib.IMAP4.error, poplib.error_proto)):
        door(home, "SCRAM-SHA-256", scram(user="nobody@load.test"))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
@pytest.mark.parametrize("door", DOORS)
def test_scram_bound_to_the_channel(home, door, version):
    refused = (smtplib.SMTPAuthenticationError, imaplib.IMAP4.error, poplib.error_proto)
    door(home, "SCRAM-SHA-256-PLUS", scram(binding=b"tls-exporter"), trusting(version))
    with pytest.raises(refused):
        door(home, "SCRAM-SHA-256-PLUS", scram(binding=b"tls-exporter", data=b"x" * 32), trusting(version))
    # Without TLS there is nothing to bind to.
    with pytest.raises(refused):
        door(home, "SCRAM-SHA-256-PLUS", scram(binding=b"tls-exporter", data=b"x" * 32))


def test_what_is_offered(home):
    with smtp(home) as client:
        plain = "PLAIN LOGIN SCRAM-SHA-256 CRAM-MD5 OAUTHBEARER XOAUTH2"
        assert client.esmtp_features["auth"].split() == plain.split()
    with smtp(home, trusting()) as client:
        assert "SCRAM-SHA-256-PLUS" in client.esmtp_features["auth"].split()
    with imap(home) as client:
        assert {"AUTH=PLAIN", "AUTH=SCRAM-SHA-256", "AUTH=OAUTHBEARER"} <= set(client.capabilities)
        assert not {"AUTH=SCRAM-SHA-256-PLUS", "AUTH=LOGIN"} & set(client.capabilities)
    client = pop3(home, trusting())
    assert {"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "CRAM-MD5"} <= set(client.capa()["SASL"])
    client.close()


@pytest.mark.parametrize("door", DOORS)
def test_tokens(home, door):
    door(home, "OAUTHBEARER", lambda challenge, sock: f"n,a={USER},\x01auth=Bearer {token()}\x01\x01".encode())
    told = []

    def refused(challenge, sock):
        told.append(bytes(challenge))
        if len(told) > 1 and challenge:
            return b"\x01"
        return f"n,,\x01auth=Bearer {token('strange@load.test')}\x01\x01".encode()

    with pytest.raises((smtplib.SMTPAuthenticationError, imaplib.IMAP4.error, poplib.error_proto)):
        door(home, "OAUTHBEARER", refused)
    assert json.loads(told[-1]) == {"status": "invalid_token"}


@pytest.mark.parametrize(("door", "later"), list(zip(DOORS, ("454", "[UNAVAILABLE]", "[SYS/TEMP]"), strict=True)))
def test_tokens_that_only_their_server_can_read(home, endpoint, door, later):
    """Asked about, a yes is a login; while the server is silent a login is put off, in each protocol's words."""

    def bearer(name):
        return lambda challenge, sock: f"n,a={USER},\x01auth=Bearer {name}\x01\x01".encode()

    door(home, "OAUTHBEARER", bearer("opaque"))
    endpoint.status = 500
    try:
        with pytest.raises((smtplib.SMTPAuthenticationError, imaplib.IMAP4.error, poplib.error_proto)) as found:
            door(home, "OAUTHBEARER", bearer(f"secret-{later.strip('[]').lower()}"))
        assert later in str(found.value)
    finally:
        endpoint.status = 200
    log = (home.path / "log/mail.log").read_text()
    assert "opaque" not in log and "secret-" not in log


def curl(*arguments):
    done = subprocess.run(["curl", "-sS", "-k", "--max-time", "20", *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(home):
    doors = {scheme: f"{scheme}://127.0.0.1:{home.port(scheme)}/" for scheme in ("imap", "pop3")}
    for url in doors.values():
        for options in ("AUTH=PLAIN", "AUTH=CRAM-MD5"):
            assert curl("-u", f"{USER}:pw", "--login-options", options, url)[0] == 0, (url, options)
            assert curl("-u", f"{USER}:wrong", "--login-options", options, url)[0] == 67
        for options in ("AUTH=OAUTHBEARER", "AUTH=XOAUTH2"):
            more = ("--oauth2-bearer", token(), "--login-options", options)
            assert curl("-u", f"{USER}:", *more, url)[0] == 0, (url, options)
            assert curl("-u", "a2@load.test:", *more, url)[0] == 67
    mail = ("--mail-from", USER, "--mail-rcpt", USER, "-T", "/dev/null")
    url = f"smtp://127.0.0.1:{home.port('submission')}"
    assert curl("-u", f"{USER}:", "--oauth2-bearer", token(), "--ssl-reqd", *mail, url)[0] == 0
    # CRAM-MD5 needs a key that only passwords set since have.
    assert curl("-u", "a4@load.test:pw", "--login-options", "AUTH=CRAM-MD5", doors["imap"])[0] == 67


@pytest.mark.skipif(shutil.which("swaks") is None, reason="swaks is not installed")
def test_swaks(home):
    for mechanism in ("PLAIN", "LOGIN"):
        done = subprocess.run(
            ["swaks", "--server", "127.0.0.1", "--port", str(home.port("submission")), "--tls", "--auth", mechanism, "--auth-user", USER, "--auth-password", "pw", "--from", USER, "--to", USER],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("mbsync") is None, reason="mbsync is not installed")
@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "PLAIN", "CRAM-MD5", "*"])
def test_mbsync(home, tmp_path, mechanism):
    """Its SASL library is Cyrus', which has SCRAM of its own; `*` leaves the choice to it."""
    (tmp_path / "mail").mkdir()
    (tmp_path / "rc").write_text(f"""IMAPStore far
Host 127.0.0.1
Port {home.port("imap")}
User {USER}
Pass pw
SSLType None
AuthMechs {mechanism}

MaildirStore near
Path {tmp_path}/mail/
Inbox {tmp_path}/mail/INBOX

Channel all
Far :far:
Near :near:
Create Near
SyncState *
""")
    done = subprocess.run(["mbsync", "-c", tmp_path / "rc", "-a"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_login_with_the_password_makes_the_keys_for_scram(home):
    user = "a2@load.test"
    with pytest.raises(imaplib.IMAP4.error):
        by_imap(home, "SCRAM-SHA-256", scram(user=user))
    with imap(home) as client:
        client.login(user, "pw")
    until(lambda: by_imap(home, "SCRAM-SHA-256", scram(user=user)) or True)
    audit = [json.loads(line) for line in (home.path / "log/directory.log").read_text().splitlines()]
    assert any(record["action"] == "account keys" and "(hidden)" in str(record["new"]) for record in audit)


def attempt(home, ip, user, password):
    """A login over SMTP as from another address; the reply."""
    with socket.create_connection(("127.0.0.1", home.port("submission")), 20) as sock, sock.makefile("rwb") as file:

        def say(line):
            file.write(line + b"\r\n")
            file.flush()
            while (reply := file.readline())[3:4] == b"-":
                pass
            return reply

        file.readline()
        say(b"XCLIENT ADDR=" + ip.encode())
        say(b"EHLO c")
        assert say(b"STARTTLS").startswith(b"220")
        secure = trusting().wrap_socket(sock)
        secure.sendall(b"EHLO c\r\n")
        while not secure.recv(4096).endswith(b"HELP\r\n"):
            pass
        plain = base64.b64encode(f"\0{user}\0{password}".encode())
        secure.sendall(b"AUTH PLAIN " + plain + b"\r\n")
        return secure.recv(4096)


def test_a_guesser_is_held_back_at_all_doors_and_the_user_at_none(home):
    user, far, own = "a3@load.test", "203.0.113.5", "198.51.100.4"
    assert attempt(home, own, user, "pw").startswith(b"235")
    for number in range(3):
        assert attempt(home, far, user, f"guess{number}").startswith(b"535")
    # Whichever worker has the connection; the right password too.
    for _ in range(4):
        assert attempt(home, far, user, "pw2").startswith(b"454 4.7.0 Too many failed logins")
    assert attempt(home, far, user, "other").startswith(b"454")
    for number in range(10):
        attempt(home, own, user, f"old{number}")
    assert attempt(home, own, user, "pw").startswith(b"235")
    assert attempt(home, "192.0.2.200", user, "pw").startswith(b"235")
    log = (home.path / "log/mail.log").read_text()
    assert "login-held-back" in log and far in log
    for secret in ("guess0", "old0"):
        assert secret not in log


def test_the_sender_belongs_to_the_login(home):
    directory = Directory(home.path / "directory")
    with smtp(home) as client:
        client.login(USER, "pw")
        assert client.mail("a2@load.test")[:1] == (553,)
        assert client.mail("else@where.test")[:1] == (553,)
        directory.add_alias("sales@load.test", USER)
        directory.grant_sender(USER, "where.test")
        for sender in (USER, "a1+shop@load.test", "sales@load.test", "else@where.test"):
            assert client.mail(sender)[0] == 250, sender
            client.rset()
        client.sendmail(USER, [USER], f"From: Me <{USER}>\r\n\r\nbody\r\n")
        with pytest.raises(smtplib.SMTPDataError, match="553"):
            client.sendmail(USER, [USER], "From: Boss <a2@load.test>\r\n\r\n" + "body\r\n" * 400_000)
    directory.close()


def test_hostile_lines(home):
    for lines in (
        [b"AUTH SCRAM-SHA-256 " + base64.b64encode(b"n,,n=a,r=" + b"x" * 5000)],
        [b"AUTH SCRAM-SHA-256", base64.b64encode(b"n,,n=a,r=b"), b"!!!!"],
        [b"AUTH SCRAM-SHA-256", base64.b64encode(b"n,,n=a,r=b"), base64.b64encode(b"c=biws,r=b,p=AAAA")],
        [b"AUTH PLAIN YQBi"],
        [b"AUTH PLAIN", b"A" * 1_000_000],
        [b"AUTH XOAUTH2 " + base64.b64encode(b"user=a\x01auth=Bearer " + b"x" * 9000 + b"\x01\x01"), b"AQ=="],
    ):
        with socket.create_connection(("127.0.0.1", home.port("submission")), 20) as sock, sock.makefile("rb") as file:
            file.readline()
            sock.sendall(b"EHLO c\r\n")
            while file.readline()[3:4] == b"-":
                pass
            reply = b""
            for line in lines:
                sock.sendall(line + b"\r\n")
                reply = file.readline()
            assert reply[:3] in (b"500", b"501", b"535"), (lines[0][:40], reply)
            sock.sendall(b"NOOP\r\n")
            assert file.readline().startswith(b"250")
