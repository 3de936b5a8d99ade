"""Who is turned away at the door, and what is noted of those who come in: bans, DNS-BL zones, sender checks.

`screen.Screen` is what handlers and worker ask; `bans` matches, `dnsbl` and `sender` ask DNS, `verdicts` is what they answer.
"""

from iems.smtpd.screen.screen import Screen, Screening
from iems.smtpd.screen.verdicts import Findings, Refusal

__all__ = ["Findings", "Refusal", "Screen", "Screening"]
