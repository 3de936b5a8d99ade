"""A DNS server on loopback for rigs: a process that answers from a table, so that no measurement asks the network."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

TTL_S = 3600


class PrivateDns:
    """Answers from records: {(name, type): [text, ...]}; any other name does not exist. To be used with `with`."""

    def __init__(self, records: dict[tuple[str, str], list[str]]) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self.port = int(self._sock.getsockname()[1])
        told = json.dumps([[name, kind, texts] for (name, kind), texts in records.items()])
        fd = self._sock.fileno()
        self._process = subprocess.Popen([sys.executable, "-m", "iems.perf.dns", str(fd), told], pass_fds=[fd])

    def __enter__(self) -> PrivateDns:
        return self

    def __exit__(self, *of: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._sock.close()


def answer(query: bytes, records: dict[tuple[str, str], list[str]]) -> bytes:
    """The reply to a query. Raises dns.exception.DNSException if it is none."""
    asked = dns.message.from_wire(query)
    reply = dns.message.make_response(asked)
    reply.flags |= dns.flags.RA
    question = asked.question[0]
    name, kind = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
    texts = records.get((name, kind))
    if texts is not None:
        reply.answer.append(dns.rrset.from_text_list(question.name, TTL_S, "IN", kind, texts))
    else:
        if not any(known == name for known, _ in records):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        soa = f"ns.load.test. hostmaster.load.test. 1 3600 600 86400 {TTL_S}"
        reply.authority.append(dns.rrset.from_text("load.test.", TTL_S, "IN", "SOA", soa))
    return reply.to_wire()


def main() -> None:
    """The process: answers what comes to a socket (its descriptor is the first argument, the records are the second)."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    records = {(name.lower(), kind): texts for name, kind, texts in json.loads(sys.argv[2])}
    while True:
        query, peer = sock.recvfrom(4096)
        try:
            sock.sendto(answer(query, records), peer)
        except Exception:
            continue  # what it can't read it can't answer


if __name__ == "__main__":
    main()
