"""A SCRAM-SHA-256 client written from RFC 5802 alone, for tests of ours and for imaplib, smtplib and poplib."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os


class Client:
    """One authentication. binding, data: channel binding type and its data. flag: of the GS2 header, without binding."""

    def __init__(
        self,
        login: str,
        password: str,
        binding: bytes = b"",
        data: bytes = b"",
        flag: bytes = b"n",
        authzid: str = "",
    ) -> None:
        self.password = password.encode()
        self.nonce = base64.b64encode(os.urandom(12))
        acting = b"a=" + authzid.encode() if authzid else b""
        self.header = (b"p=" + binding if binding else flag) + b"," + acting + b","
        self.data = data
        self.bare = b"n=" + login.replace("=", "=3D").replace(",", "=2C").encode() + b",r=" + self.nonce
        self.wanted = b""
        self.server_proven = False
        self.iterations = 0
        self.salt = b""

    def first(self) -> bytes:
        """The client's first message."""
        return self.header + self.bare

    def answer(self, challenge: bytes) -> bytes:
        """The answer to a challenge of the server, whichever it is."""
        if challenge == b"":
            return self.first()
        if challenge.startswith(b"v="):
            self.server_proven = base64.b64decode(challenge[2:]) == self.wanted
            assert self.server_proven
            return b""
        fields = dict(part.split(b"=", 1) for part in challenge.split(b","))
        assert fields[b"r"].startswith(self.nonce) and len(fields[b"r"]) > len(self.nonce)
        self.salt, self.iterations = base64.b64decode(fields[b"s"]), int(fields[b"i"])
        salted = hashlib.pbkdf2_hmac("sha256", self.password, self.salt, self.iterations)
        key = hmac.digest(salted, b"Client Key", "sha256")
        without = b"c=" + base64.b64encode(self.header + self.data) + b",r=" + fields[b"r"]
        signed = self.bare + b"," + challenge + b"," + without
        signature = hmac.digest(hashlib.sha256(key).digest(), signed, "sha256")
        self.wanted = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
        return without + b",p=" + base64.b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True)))
