"""A private Postfix: it accepts and holds, relays to one host, or hands to a mail store by LMTP."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from iems.perf.home import DOMAIN
from iems.perf.peers.private import PATIENCE_S, PrivatePeer

_DAEMONS = """\
cleanup   unix  n  -  n  -     0  cleanup
qmgr      unix  n  -  n  300   1  qmgr
rewrite   unix  -  -  n  -     -  trivial-rewrite
bounce    unix  -  -  n  -     0  bounce
defer     unix  -  -  n  -     0  bounce
trace     unix  -  -  n  -     0  bounce
verify    unix  -  -  n  -     1  verify
flush     unix  n  -  n  1000? 0  flush
proxymap  unix  -  -  n  -     -  proxymap
smtp      unix  -  -  n  -     -  smtp
showq     unix  n  -  n  -     -  showq
error     unix  -  -  n  -     -  error
retry     unix  -  -  n  -     -  error
discard   unix  -  -  n  -     -  discard
lmtp      unix  -  -  n  -     -  lmtp
anvil     unix  -  -  n  -     1  anvil
scache    unix  -  -  n  -     1  scache
postlog   unix-dgram n - n -   1  postlogd
"""


class Postfix(PrivatePeer):
    """hold: what comes in stays in the hold queue. next_hop: HOST:PORT all else goes to, by `smtp` or `lmtp`."""

    name = "postfix"
    listeners = ("smtp",)

    def __init__(
        self, accounts: int, folder: Path | None, program: str, *, hold: bool = False, next_hop: tuple[str, int] | None = None
    ) -> None:
        super().__init__(accounts, folder, program)
        self._hold = hold
        self._next_hop = next_hop

    def _configure(self) -> None:
        place = self.path
        for name in ("etc", "spool", "data"):
            (place / name).mkdir()
            (place / name).chmod(0o755)  # whatever the umask
        shutil.chown(place / "data", "postfix")
        transport = "discard:"
        if self._next_hop:
            protocol, port = self._next_hop
            transport = f"smtp:[127.0.0.1]:{port}" if protocol == "smtp" else f"lmtp:inet:127.0.0.1:{port}"
        settings = {
            "compatibility_level": "3.6", "queue_directory": place / "spool", "data_directory": place / "data",
            "mail_owner": "postfix", "setgid_group": "postdrop", "maillog_file": place / "mail.log",
            "maillog_file_prefixes": place, "inet_interfaces": "127.0.0.1", "inet_protocols": "ipv4", "myhostname": DOMAIN,
            "mydestination": "", "mynetworks": "127.0.0.0/8", "alias_maps": "", "alias_database": "",
            "smtpd_recipient_restrictions": "permit_mynetworks, reject", "default_transport": transport,
            "relay_transport": transport, "smtpd_peername_lookup": "no", "smtp_dns_support_level": "disabled",
            "smtp_host_lookup": "native", "lmtp_host_lookup": "native", "smtpd_tls_security_level": "none",
            "smtp_tls_security_level": "none", "message_size_limit": "104857600", "mailbox_size_limit": "0",
            # what would slow down one busy client, which is all a measurement has
            "default_process_limit": "300", "in_flow_delay": "0", "smtpd_client_connection_count_limit": "0",
            "smtpd_client_connection_rate_limit": "0",
        }  # fmt: skip
        (place / "etc/main.cf").write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))
        listener = f"127.0.0.1:{self.port('smtp')} inet n - n - - smtpd\n"
        if self._hold:
            listener += "  -o smtpd_client_restrictions=check_client_access,static:HOLD\n"
        (place / "etc/master.cf").write_text(listener + _DAEMONS)
        for name in ("dynamicmaps.cf", "postfix-files"):
            if Path("/etc/postfix", name).exists():
                shutil.copy(Path("/etc/postfix", name), place / "etc")

    def _start(self) -> int:
        starter = self._run(self._program, "-c", str(self.path / "etc"), "start")
        if starter.wait(PATIENCE_S):
            raise RuntimeError(f"postfix did not start: {self._log()}")
        file = self.path / "spool/pid/master.pid"
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return int(file.read_text())
            except (OSError, ValueError):
                if time.monotonic() > until:
                    raise RuntimeError(f"postfix did not start: {self._log()}") from None
                time.sleep(0.02)

    def waiting(self) -> int:
        """Files in the queues that are worked on; what is on hold isn't."""
        total = 0
        for queue in ("maildrop", "incoming", "active"):
            with os.scandir(self.path / "spool" / queue) as entries:
                total += sum(1 for entry in entries if entry.is_file(follow_symlinks=False))
        return total + sum(len(files) for _, _, files in os.walk(self.path / "spool/deferred"))
