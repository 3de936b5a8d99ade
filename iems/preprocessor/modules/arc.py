"""Module `arc`: seals mail from outside that leaves again (RFC 8617), so that who gets it can see what was found here.

It needs what `authres` found when the message came in, and runs behind everything that changes content.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from iems.authres import outcome
from iems.authres.arc import seal
from iems.authres.keyring import Keyring, KeyringError
from iems.authres.mail import Mail
from iems.authres.outcome import Outcome
from iems.model import Channel, Envelope, rope_length
from iems.preprocessor.modules import Verdict, Work
from iems.preprocessor.modules.authres import NAME as AUTHRES
from iems.preprocessor.ropes import in_front

if TYPE_CHECKING:
    from iems.master.child import WorkerContext

NAME: Final = "arc"


class Seal:
    """The module."""

    name = NAME
    on_tags = False

    def __init__(self, ctx: WorkerContext) -> None:
        config = ctx.config
        self._ctx = ctx
        self._keyring = Keyring(ctx.home)
        self._domain = (config.dkim.seal_domain or config.domain or ctx.hostname).lower()
        self._authserv_id = (config.authres.authserv_id or ctx.hostname).lower()

    def wants(self, envelope: Envelope) -> bool:
        """Mail that `authres` has looked at."""
        return envelope.input_channel == Channel.SMTPD and not envelope.auth

    async def examine(self, work: Work) -> Verdict:
        """Seal for the parts that leave by SMTP."""
        leaving = [part for part in work.parts if part.channel == Channel.SMTPC]
        found: Outcome | None = work.shared.get(AUTHRES)
        if not leaving or found is None:
            return Verdict()
        try:
            signers = self._keyring.signers(self._domain)
        except KeyringError as cause:
            self._ctx.count("errors_total")
            self._ctx.log.error("an ARC key can't be used", cause)
            return Verdict()
        # One seal: RSA where there is a choice, as more hosts know it.
        signer = next((one for one in signers if one.algorithm.startswith("rsa")), signers[0] if signers else None)
        if signer is None:
            return Verdict()
        mail = Mail(rope_length(work.rope), lambda start, length: work.read(work.rope, start, length))
        envelope = work.envelope
        results = outcome.words(
            found, envelope.helo.decode("utf-8", "replace"), envelope.reverse_path.decode("utf-8", "replace")
        )
        fields = await seal(signer, mail, found.arc, self._authserv_id, results, int(time.time()))
        if not fields:
            return Verdict(note="not sealed: the chain is broken or full")
        rope = in_front(fields, work.rope)
        return Verdict(
            note=f"sealed {found.arc.instance + 1} by {signer.selector}._domainkey.{signer.domain}",
            ropes=[(part, rope) for part in leaving],
        )
