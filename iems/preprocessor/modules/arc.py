"""Module `arc`: seals mail from outside that leaves again (RFC 8617), so that who gets it can see what was found here.

It needs what `authres` found when the message came in, and runs behind everything that changes content. A message that starts again
inside (a forward, a list, what was unwrapped) carries that in our own Authentication-Results, which nobody outside can forge.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from iems.authres import outcome
from iems.authres.arc import Arc, seal, told
from iems.authres.header import MethodResult, claimed_id, parse
from iems.authres.keyring import Keyring, KeyringError
from iems.authres.mail import Mail
from iems.authres.outcome import Outcome
from iems.model import Channel, Envelope, rope_length
from iems.preprocessor.modules import Verdict, Work
from iems.preprocessor.modules.authres import BODY
from iems.preprocessor.modules.authres import NAME as AUTHRES
from iems.preprocessor.ropes import behind, in_front

if TYPE_CHECKING:
    from iems.master.child import WorkerContext

NAME: Final = "arc"
#: Channels by which mail from outside starts again.
_AGAIN: Final = frozenset((int(Channel.LOCALOUT), int(Channel.DLOUT), int(Channel.TNEF)))


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
        """Mail that `authres` has looked at, now or before."""
        return not envelope.auth and (envelope.input_channel == Channel.SMTPD or envelope.input_channel in _AGAIN)

    async def examine(self, work: Work) -> Verdict:
        """Seal for the parts that leave by SMTP."""
        leaving = [part for part in work.parts if part.channel == Channel.SMTPC]
        if not leaving or not self.wants(work.envelope):
            return Verdict()
        mail = Mail(rope_length(work.rope), lambda start, length: work.read(work.rope, start, length))
        known = self._known(work, mail)
        if known is None:
            return Verdict()
        chain, results = known
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
        looked_at = work.shared.get(BODY)
        if looked_at is not None and behind(work.rope, mail.body_at) == behind(looked_at[0], looked_at[1].body_at):
            mail.hashed.update(looked_at[1].hashed)  # nobody changed the body since it was checked
        fields = await seal(signer, mail, chain, self._authserv_id, results, int(time.time()))
        if not fields:
            return Verdict(note="not sealed: the chain is broken or full")
        rope = in_front(fields, work.rope)
        return Verdict(
            note=f"sealed {chain.instance + 1} by {signer.selector}._domainkey.{signer.domain}",
            ropes=[(part, rope) for part in leaving],
        )

    def _known(self, work: Work, mail: Mail) -> tuple[Arc, list[MethodResult]] | None:
        """The chain and the results as they were when the message came in; None for mail that was not looked at."""
        found: Outcome | None = work.shared.get(AUTHRES)
        envelope = work.envelope
        if found is not None:
            helo, sender = envelope.helo.decode("utf-8", "replace"), envelope.reverse_path.decode("utf-8", "replace")
            return found.arc, outcome.words(found, helo, sender)
        if envelope.input_channel not in _AGAIN:
            return None
        for name, raw in mail.fields:
            value = raw[raw.find(b":") + 1 :]
            if name == b"authentication-results" and claimed_id(value) == self._authserv_id:
                try:
                    results = list(parse(value).results)
                except ValueError:
                    return None
                word = next((one.result for one in results if one.method == "arc"), "")
                return told(mail, word), results
        return None
