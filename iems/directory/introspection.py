"""Opaque tokens: the authorization server is asked whom a token is for (RFC 7662). Answers are kept for a while, under a keyed hash of the token.

An answer that says "active" must also name the user, and whatever the settings want to see. No answer is "try later", never a no.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import http.client
import json
import os
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote_plus, urlencode

from iems.errors import DirectoryUnavailable
from iems.net.breaker import Breaker, Guard, NoAnswer
from iems.net.http import Place, post
from iems.secretfile import SecretError, read_secret

if TYPE_CHECKING:
    from iems.config import Auth

#: Answers kept, and questions under way at once.
MAX_KEPT: Final = 8192
MAX_ASKED: Final = 50


class Introspection:
    """Asks and remembers. auth: the settings. home: for files of the settings. told: hears when the server stops answering (True) or answers again."""

    def __init__(
        self,
        auth: Auth,
        home: Path,
        told: Callable[[bool, str], None] = lambda is_open, reason: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._auth = auth
        self._home = home
        self._place = Place.of(auth.oauth_introspection)
        self._guard = Guard("introspection", timeout_s=auth.oauth_timeout_s, at_once=MAX_ASKED, breaker=Breaker(told))
        self._clock = clock
        self._key = os.urandom(32)
        self._kept: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[str]] = {}
        self._context: ssl.SSLContext | None = None

    async def user(self, token: str) -> str:
        """The user a token names, "" if it is not good. Raises DirectoryUnavailable if the server can't say now."""
        tag = hmac.digest(self._key, token.encode(), "sha256")
        kept = self._kept.get(tag)
        if kept is not None:
            if kept[0] > self._clock():
                self._kept.move_to_end(tag)
                return kept[1]
            del self._kept[tag]
        task = self._asking.get(tag)
        if task is None:
            if len(self._asking) >= MAX_ASKED:
                raise DirectoryUnavailable("too many tokens at once")
            task = self._asking[tag] = asyncio.get_running_loop().create_task(self._ask(tag, token))
            task.add_done_callback(lambda done: self._asked(tag, done))
        return await asyncio.shield(task)

    def _asked(self, tag: bytes, task: asyncio.Task[str]) -> None:
        self._asking.pop(tag, None)
        if not task.cancelled():
            task.exception()  # who waited has had it; if nobody does any more, that is no fault

    def close(self) -> None:
        """Give up what is under way."""
        for task in list(self._asking.values()):
            task.cancel()

    async def _ask(self, tag: bytes, token: str) -> str:
        try:
            async with self._guard.asking(RecursionError, http.client.HTTPException, SecretError):
                claims = await self._claims(token)
        except NoAnswer as error:
            raise DirectoryUnavailable(str(error)) from None
        now_s = self._clock()
        user, until_s = self._judge(claims, now_s)
        if self._auth.oauth_cache_s:
            self._kept[tag] = until_s, user
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return user

    async def _claims(self, token: str) -> dict[str, Any]:
        """The server's answer. Raises OSError, ValueError, SecretError, http.client.HTTPException."""
        fields = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        secret = await asyncio.to_thread(self._prepare)
        client = self._auth.oauth_client_id
        if client:
            # RFC 6749 2.3.1: both are encoded as in a form before they are joined.
            pair = f"{quote_plus(client)}:{quote_plus(secret)}"
            fields["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        body = urlencode({"token": token, "token_type_hint": "access_token"}).encode()
        status, answer = await post(self._place, body, fields, self._context)
        if status != 200:
            # 401 is about us, not about the token (RFC 7662 2.3).
            raise ValueError(f"the server answers {status}")
        found = json.loads(answer)
        if not isinstance(found, dict) or not isinstance(found.get("active"), bool):
            raise ValueError("the answer has no word on whether the token is active")
        return found

    def _prepare(self) -> bytes:
        """In a thread: the secret as the file has it now, and TLS once. Raises SecretError, OSError."""
        auth = self._auth
        if self._place.tls and self._context is None:
            self._context = ssl.create_default_context(cafile=str(self._home / auth.oauth_ca_file) if auth.oauth_ca_file else None)
        return read_secret(self._home / auth.oauth_client_secret_file) if auth.oauth_client_secret_file else b""

    def _judge(self, claims: dict[str, Any], now_s: float) -> tuple[str, float]:
        """(the user, "" for none; until when that may be kept)."""
        auth = self._auth
        until_s = now_s + auth.oauth_cache_s
        exp, nbf = claims.get("exp"), claims.get("nbf")
        user = claims.get(auth.oauth_claim)
        audience = claims.get("aud")
        scopes = claims.get("scope")
        good = (
            claims["active"]
            and (exp is None or (_is_time(exp) and exp > now_s))
            and (nbf is None or (_is_time(nbf) and nbf <= now_s))
            and (not auth.oauth_issuer or claims.get("iss") == auth.oauth_issuer)
            and (not auth.oauth_audience or auth.oauth_audience in (audience if isinstance(audience, list) else [audience]))
            and (not auth.oauth_scope or (isinstance(scopes, str) and auth.oauth_scope in scopes.split()))
            and isinstance(user, str)
            and not (auth.oauth_claim == "email" and claims.get("email_verified") is False)
        )
        if not good:
            return "", until_s
        assert isinstance(user, str)
        return user, until_s if exp is None else min(until_s, exp)


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


__all__ = ["Introspection"]
