"""A recorded client: sends numbered mail by SMTP and APPEND, and notes each number in a file once it is acknowledged.

client.py NOTES SMTP_PORT IMAP_PORT SECONDS. It runs under record.so, so that its notes stand in the order of all else.
"""

import imaplib
import os
import smtplib
import sys
import threading
import time


def main(notes: str, smtp_port: int, imap_port: int, seconds: float) -> None:
    fd = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    until = time.monotonic() + seconds

    def text(name: str, octets: int) -> bytes:
        return b"From: s@load.test\r\nX-Number: %b\r\n\r\n%b\r\n" % (name.encode(), b"line of text\r\n" * (octets // 14))

    def send(which: int) -> None:
        number = 0
        with smtplib.SMTP("127.0.0.1", smtp_port) as client:
            while time.monotonic() < until:
                name = f"s{which}-{number}"
                large = which == 0 and number % 10 == 9
                to = [f"a{1 + (which + number) % 3}@load.test"]
                if number % 7 == 3:
                    to.append(f"a{1 + (which + number + 1) % 3}@load.test")
                    name += "+2"
                client.sendmail("s@load.test", to, text(name, 1_200_000 if large else 900))
                os.write(fd, name.encode() + b"\n")
                number += 1
                time.sleep(0.004)

    def append() -> None:
        client = imaplib.IMAP4("127.0.0.1", imap_port)
        client.login("a1@load.test", "pw")
        number = 0
        while time.monotonic() < until:
            name = f"i-{number}"
            if client.append("Sent", "", "", text(name, 600))[0] != "OK":
                raise RuntimeError("APPEND failed")
            os.write(fd, name.encode() + b"\n")
            number += 1
            time.sleep(0.01)

    threads = [threading.Thread(target=send, args=(i,)) for i in range(3)] + [threading.Thread(target=append)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
