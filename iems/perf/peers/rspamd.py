"""A private rspamd (3): its Bayesian classifier alone, learnt and asked over HTTP. No DNS, no other module, no Redis."""

from __future__ import annotations

import http.client
from collections.abc import Iterable

from iems.perf.peers.private import PrivatePeer

#: Who owns the statistics; rspamd won't stay root.
OWNER, GROUP = "nobody", "nogroup"


class Rspamd(PrivatePeer):
    """One scanning process and its controller."""

    name = "rspamd"
    listeners = ("scan", "control")

    def _configure(self) -> None:
        place = self.path
        for name in ("db", "log", "run"):
            (place / name).mkdir()
            (place / name).chmod(0o777)
        # The list it brings takes half a minute to compile.
        (place / "tld.dat").write_text("com\norg\ntest\n")
        (place / "rspamd.conf").write_text(f"""\
options {{
  filters = "";
  pidfile = "{place}/run/pid";
  tempdir = "{place}/run";
  control_socket = "{place}/run/control.sock mode=0600";
  history_rows = 1;
  dns {{ nameserver = ["127.0.0.1:9"]; timeout = 0.1s; retransmits = 1; }}
  hs_cache_dir = "{place}/db";
  url_tld = "{place}/tld.dat";
}}
logging {{ type = "file"; filename = "{place}/log/rspamd.log"; level = "error"; }}
worker "normal" {{ bind_socket = "127.0.0.1:{self.port("scan")}"; count = 1; }}
worker "controller" {{ bind_socket = "127.0.0.1:{self.port("control")}"; count = 1; secure_ip = "127.0.0.1"; }}
metric {{ name = "default"; actions {{ reject = 1000; }} }}
classifier "bayes" {{
  tokenizer {{ name = "osb"; }}
  backend = "sqlite3";
  languages_enabled = false;
  cache {{ type = "sqlite3"; path = "{place}/db/learnt.sqlite"; }}
  min_tokens = 11;
  min_learns = 20;
  statfile {{ symbol = "BAYES_HAM"; path = "{place}/db/ham.sqlite"; spam = false; }}
  statfile {{ symbol = "BAYES_SPAM"; path = "{place}/db/spam.sqlite"; spam = true; }}
}}
""")

    def _start(self) -> int:
        return self._run(self._program, "-f", "-u", OWNER, "-g", GROUP, "-c", str(self.path / "rspamd.conf")).pid

    def learn(self, contents: Iterable[bytes], spam: bool) -> int:
        """Give it mail of one kind; how many it took."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port("control"), timeout=30)
        taken = 0
        try:
            for content in contents:
                connection.request("POST", "/learnspam" if spam else "/learnham", content)
                answer = connection.getresponse()
                answer.read()
                taken += answer.status in (200, 204, 208)
        finally:
            connection.close()
        return taken

    def scan(self, contents: Iterable[bytes]) -> list[bytes]:
        """What it says of each message. Raises RuntimeError if it refuses one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port("scan"), timeout=30)
        found = []
        try:
            for content in contents:
                connection.request("POST", "/checkv2", content)
                answer = connection.getresponse()
                found.append(answer.read())
                if answer.status != 200:
                    raise RuntimeError(f"rspamd answers {answer.status}: {found[-1][:200]!r}")
        finally:
            connection.close()
        return found


