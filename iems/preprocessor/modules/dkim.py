"""Module `dkim`: signs mail of ours that leaves by SMTP. It runs last, so nothing changes what is signed.

Ours is mail of users who logged in, of our own networks, and made by this server. Mail that came from outside is never signed, whatever
its From says: a signature vouches for it.
"""

from __future__ import annotations

import ipaddress
import os
import time
from typing import TYPE_CHECKING, Final

from iems.errors import IemsError
from iems.model import Channel, Envelope, rope_length
from iems.preprocessor.modules import Verdict, Work
from iems.preprocessor.ropes import in_front

if TYPE_CHECKING:
    from iems.authres.keyring import Keyring
    from iems.authres.sign import Signer
    from iems.master.child import WorkerContext

NAME: Final = "dkim"
#: Input channels whose mail is made here.
_MADE_HERE: Final = frozenset((int(Channel.MTA), int(Channel.WEBCLIENT)))
#: Channels by which mail of our networks comes in, or starts again.
_TAKEN: Final = frozenset((int(Channel.SMTPD), int(Channel.TNEF)))
#: Domains above the one in From that are tried for a key.
MAX_ABOVE: Final = 6
#: Seconds between two looks whether there are keys at all.
LOOK_S: Final = 1.0


class Sign:
    """The module. Nothing of cryptography is imported before there is a key."""

    name = NAME
    on_tags = False

    def __init__(self, ctx: WorkerContext) -> None:
        self._ctx = ctx
        self._keyring: Keyring | None = None
        self._changed = ctx.home / "conf/dkim/changed"
        self._look_at = 0.0
        self._trusted = [ipaddress.ip_network(text, strict=False) for text in ctx.config.smtpd.trusted_networks]

    def wants(self, envelope: Envelope) -> bool:
        """Mail of ours, once there is a key."""
        return self._ours(envelope) and self._keys() is not None

    async def examine(self, work: Work) -> Verdict:
        """Sign for the parts that leave by SMTP."""
        leaving = [part for part in work.parts if part.channel == Channel.SMTPC]
        if not leaving or not self._ours(work.envelope) or (keyring := self._keys()) is None:
            return Verdict()
        from iems.authres.mail import Mail
        from iems.authres.outcome import from_domain

        mail = Mail(rope_length(work.rope), lambda start, length: work.read(work.rope, start, length))
        signers = self._signers(keyring, from_domain(mail)[1])
        if not signers:
            return Verdict()
        now_s = int(time.time())
        fields = b"".join([await signer.sign(mail, now_s) for signer in signers])
        rope = in_front(fields, work.rope)
        return Verdict(
            note=", ".join(f"signed by {signer.selector}._domainkey.{signer.domain}" for signer in signers),
            ropes=[(part, rope) for part in leaving],
        )

    def _keys(self) -> Keyring | None:
        if self._keyring is None and (now := time.monotonic()) >= self._look_at:
            self._look_at = now + LOOK_S
            if os.path.exists(self._changed):
                from iems.authres.keyring import Keyring

                self._keyring = Keyring(self._ctx.home)
        return self._keyring

    def _ours(self, envelope: Envelope) -> bool:
        if envelope.auth or envelope.input_channel in _MADE_HERE:
            return True
        if envelope.input_channel not in _TAKEN or not self._trusted:
            return False
        try:
            address = ipaddress.ip_address(envelope.client_ip)
        except ValueError:
            return False
        return any(address.version == network.version and address in network for network in self._trusted)

    def _signers(self, keyring: Keyring, domain: str) -> tuple[Signer, ...]:
        """Those of the domain in From, or of the nearest one above it that has keys: relaxed alignment takes both."""
        from iems.authres.asking import ascii_name

        try:
            name = ascii_name(domain)
            for _ in range(MAX_ABOVE):
                if "." not in name:
                    break
                found = keyring.signers(name)
                if found:
                    return found
                name = name.partition(".")[2]
        except ValueError:
            pass
        except IemsError as cause:
            # Mail goes unsigned rather than nowhere; the alarm is for whoever looks after the keys.
            self._ctx.count("errors_total")
            self._ctx.log.error("a DKIM key can't be used", cause)
        return ()
