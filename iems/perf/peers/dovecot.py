"""A private Dovecot (2.3): IMAP, POP3 and LMTP over one mail format."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from iems.perf.home import PASSWORD
from iems.perf.peers import program
from iems.perf.peers.private import PrivatePeer

#: Who owns the mail; Dovecot won't let it be root.
OWNER = "nobody"
FORMATS = ("sdbox", "mdbox", "maildir")


def problem(given: str | None) -> str | None:
    """Why the installed Dovecot can't be run; None if it can."""
    path = program("dovecot", given)
    if path is None:
        return "not installed"
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.match(r"(\d+)\.(\d+)", text)
    if version is None or (int(version[1]), int(version[2])) != (2, 3):
        return f"version 2.3 is needed, {text.split()[0] if text.split() else 'an unknown one'} is installed"
    for part in ("imap", "pop3", "lmtp"):
        if not Path("/usr/lib/dovecot", part).exists():
            return f"has no {part} (Debian: apt install dovecot-{part}d)"
    return None


class Dovecot(PrivatePeer):
    """One of FORMATS. Everybody's password is right; who logs in or gets mail exists. sieve: a script that all mail goes through."""

    name = "dovecot"
    listeners = ("imap", "imaps", "pop3", "lmtp")

    def __init__(self, accounts: int, folder: Path | None, program: str, *, form: str = "sdbox", sieve: str = "") -> None:
        super().__init__(accounts, folder, program)
        self._form = form
        self._sieve = sieve

    def _configure(self) -> None:
        place = self.path
        for name in ("run", "home"):
            (place / name).mkdir()
        shutil.chown(place / "home", OWNER)
        group = subprocess.run(["id", "-gn", OWNER], capture_output=True, text=True, check=True).stdout.strip()
        from iems.cli.init import self_signed

        certificate, key = self_signed("localhost", ["localhost"])
        (place / "cert.pem").write_bytes(certificate)
        (place / "key.pem").write_bytes(key)
        where = "Maildir" if self._form == "maildir" else self._form
        services = "".join(
            f"service {name}-login {{\n  service_count = 0\n  process_min_avail = 2\n"
            + "".join(
                f"  inet_listener {listener} {{\n    port = {self._ports.get(listener, 0)}\n{'    ssl = yes' if listener == 'imaps' else ''}\n  }}\n"
                for listener in (name, name + "s")
            )
            + "}\n"
            for name in ("imap", "pop3")
        )
        rules = ""
        if self._sieve:
            if not Path("/usr/lib/dovecot/modules/lib90_sieve_plugin.so").exists():
                raise RuntimeError("Dovecot has no Pigeonhole (Debian: apt install dovecot-sieve)")
            (place / "all.sieve").write_text(self._sieve, "utf-8", newline="")
            # Compiled beforehand: whose mail is delivered may not write here.
            subprocess.run(["sievec", str(place / "all.sieve")], check=True, capture_output=True, env={**os.environ, "HOME": str(place)})
            (place / "all.svbin").chmod(0o644)
            rules = f"""\
protocol lmtp {{
  mail_plugins = sieve
}}
plugin {{
  sieve_before = {place}/all.sieve
  sieve = file:~/none;active=~/none.sieve
}}
lda_mailbox_autocreate = yes
sendmail_path = /bin/true
"""
        (place / "dovecot.conf").write_text(f"""\
base_dir = {place}/run
state_dir = {place}/run
log_path = {place}/dovecot.log
instance_name = {place.name}
protocols = imap pop3 lmtp
listen = 127.0.0.1
ssl = yes
ssl_cert = <{place}/cert.pem
ssl_key = <{place}/key.pem
disable_plaintext_auth = no
auth_mechanisms = plain login
auth_username_format = %n
mail_location = {self._form}:~/{where}
mail_uid = {OWNER}
mail_gid = {group}
first_valid_uid = 1
mail_max_userip_connections = 0
default_process_limit = 4000
default_client_limit = 12000
default_vsz_limit = 1G
passdb {{
  driver = static
  args = password={PASSWORD}
}}
userdb {{
  driver = static
  args = uid={OWNER} gid={group} home={place}/home/%n allow_all_users=yes
}}
service lmtp {{
  process_min_avail = 4
  process_limit = 200
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {self.port("lmtp")}
  }}
}}
service stats {{
  client_limit = 20000
}}
namespace inbox {{
  inbox = yes
}}
{services}{rules}""")

    def _start(self) -> int:
        # in the foreground, so that the pid is known and the whole tree in the group
        return self._run(self._program, "-F", "-c", str(self.path / "dovecot.conf")).pid
