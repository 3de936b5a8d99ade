"""The directory: who is who, and where mail goes. LMDB at HOME/directory, read in process by every role.

Reads are one short transaction each; routing answers are kept in this process until the next write anywhere
(`version`). Writes are fully synced and leave an audit line. Any fault of the database is DirectoryUnavailable: a caller
must answer "try later", never "unknown". The layout is in keys.py, the order of routing questions in resolve.py.
"""

from __future__ import annotations

import getpass
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import lmdb
import msgspec

from iems import reserve
from iems.attachment.rules import Rule
from iems.directory import (
    attachmentrules,
    autotext,
    expiry,
    headerrules,
    keys,
    passwords,
    screening,
    sharing,
    spamcontrol,
    stored,
    tagging,
)
from iems.directory.entries import (
    ACCOUNT,
    ALIAS,
    CHANNEL_PERMISSIONS,
    FORWARD,
    LOCAL_DOMAIN,
    MATRIX,
    RECIPIENT,
    SETTINGS,
    SHARED_MAILBOX,
    Account,
    Connector,
    DirectoryRefusal,
    Entry,
    Permission,
    Resolution,
    Retired,
    account_of,
)
from iems.directory.names import (
    MAX_ADDRESS_OCTETS,
    NameRefused,
    address_of,
    domain_of,
    entry_address,
    pattern_of,
    rdn,
    shown,
    split_dn,
)
from iems.directory.peers import PEER, Peers, checked
from iems.directory.relaydomains import CHECKS, RELAYED, RelayDomains
from iems.directory.resolve import resolve
from iems.directory.stored import NO_FORMS, Forms
from iems.directory.view import ROOT, Change, Policy, View
from iems.errors import DirectoryUnavailable
from iems.message.headerrules import Rule as HeaderRule
from iems.message.headerrules import Trial as HeaderRuleTrial
from iems.model import Channel

if TYPE_CHECKING:
    from iems.directory.bayeschoice import BayesChoice

MAX_CACHED = 16_384
#: Addresses and domains granted to one account.
MAX_SENDERS = 1000

_T = TypeVar("_T")


class Directory:
    """The directory of one home. Open it after the fork, once per process; reads and writes may come from any thread.

    path: HOME/directory. create: make it if missing. who: named in audit lines, by default the process's user.
    audit: called with each audit record (a dict); by default a line of JSON goes to HOME/log/directory.log.
    Raises DirectoryUnavailable if there is none or it can't be read.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        create: bool = False,
        who: str = "",
        audit: Callable[[dict[str, Any]], None] | None = None,
        map_octets: int = keys.MAP_OCTETS,
    ) -> None:
        self.path = Path(path)
        self.who = who or f"cli:{_user()}"
        self._audit = audit or self._audit_line
        # What was found under `_cached_version`: resolutions by address, accounts by address or number.
        self._resolutions: OrderedDict[bytes, Resolution] = OrderedDict()
        self._accounts: OrderedDict[str | int, Account | None] = OrderedDict()
        self._cached_version = -1
        self._bayes_version, self._bayes = -1, False
        #: The version that the last look-up of this process saw; what hangs on it need not ask again while it stands.
        self.seen = -1
        self._policy = Policy()
        self._db: dict[bytes, Any] = {}
        if create:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif not (self.path / "data.mdb").exists():
            raise DirectoryUnavailable(f"there is no directory at {self.path}")
        reserve.lock_file(self.path)
        try:
            self._env = lmdb.open(
                str(self.path),
                map_size=map_octets,
                max_dbs=16,
                max_readers=keys.MAX_READERS,
                mode=0o600,
                create=create,
            )
            self._open_databases(create)
            # A killed process's reader slot would keep old pages from being used again.
            self._env.reader_check()
        except lmdb.Error as error:
            raise DirectoryUnavailable(f"the directory at {self.path} can't be opened: {error}") from error

    def _open_databases(self, create: bool) -> None:
        env = self._env
        # Each in a transaction of its own: handles opened in a read transaction do not outlive it.
        for name, several in keys.DATABASES:
            self._db[name] = env.open_db(name, create=create, dupsort=several, dupfixed=several)
        meta = self._db[b"meta"]
        with env.begin(write=create) as txn:
            found = txn.get(b"format", db=meta)
            if found is None and create:
                txn.put(b"format", keys.u64(keys.FORMAT), db=meta)
                for name in (b"version", b"policy", b"entry", b"account"):
                    txn.put(name, keys.u64(1), db=meta)
            elif found is None or keys.u64_of(found) != keys.FORMAT:
                what = "no format" if found is None else f"format {keys.u64_of(found)}"
                raise DirectoryUnavailable(
                    f"the directory at {self.path} has {what}; this version reads {keys.FORMAT}"
                )

    def close(self) -> None:
        """Give up the environment; nothing may be called afterwards."""
        self._env.close()

    # Reading.

    @contextmanager
    def _view(self) -> Iterator[View]:
        try:
            with self._env.begin() as txn:
                # Read in the same transaction as what follows: the answers kept belong to this very state.
                version = txn.get(b"policy", db=self._db[b"meta"])
                policy = self._policy
                if policy.version != version:
                    policy = self._policy = Policy(version)
                yield View(self._db, txn, policy)
        except (lmdb.Error, msgspec.DecodeError, KeyError, OSError) as error:
            raise DirectoryUnavailable(f"the directory can't be read: {error}") from error

    @property
    def version(self) -> int:
        """Grows with each write by any process; what was looked up under one version may be kept until the next."""
        try:
            with self._env.begin() as txn:
                return int.from_bytes(txn.get(b"version", b"", db=self._db[b"meta"]), "big")
        except (lmdb.Error, OSError) as error:
            raise DirectoryUnavailable(f"the directory can't be read: {error}") from error

    def resolve(self, address: bytes, explain: bool = False) -> Resolution:
        """Where mail to an address goes; see resolve.py.

        address: as in the envelope, without angle brackets. explain: with the steps that led there, never from the cache.
        If the directory can't be read, answers found before stand; else raises DirectoryUnavailable.
        """
        try:
            self._refresh()
        except DirectoryUnavailable:
            found = self._resolutions.get(address)
            if found is None or explain:
                raise
            return found
        if not explain:
            found = self._resolutions.get(address)
            if found is not None:
                return found
        kept = self._resolutions
        with self._view() as view:
            resolution = resolve(view, address, explain)
        if not explain and len(address) <= MAX_ADDRESS_OCTETS:
            _keep(kept, address, resolution)
        return resolution

    def _refresh(self) -> None:
        """Forget what was found under an older version."""
        version = self.version
        if version != self._cached_version:
            self._resolutions = OrderedDict()
            self._accounts = OrderedDict()
            self._cached_version = version
            self.seen = version

    def refresh(self) -> int:
        """Look whether anything was written since; the version. Raises DirectoryUnavailable."""
        self._refresh()
        return self.seen

    def account(self, address: str) -> Account | None:
        """The account of exactly this address (no alias, no detail), in any case of letters."""
        self._refresh()
        kept = self._accounts
        if address in kept:
            return kept[address]
        parts = address_of(address.encode("utf-8", "surrogatepass"))
        if parts is None or not parts[1]:
            return None
        with self._view() as view:
            entry = view.entry("@".join(parts))
            account = _limited(account_of(entry), view) if entry is not None and ACCOUNT in entry.classes else None
        _keep(kept, address, account)
        return account

    def account_by_number(self, number: int) -> Account | None:
        """The account of a number, or None if it is not in use any more."""
        if not 0 < number < 1 << 32:
            return None
        self._refresh()
        kept = self._accounts
        if number in kept:
            return kept[number]
        with self._view() as view:
            found = view.get(keys.account_key(number), db=self._db[b"accounts"])
            account = _limited(account_of(view.read(keys.u64_of(found))), view) if found is not None else None
        _keep(kept, number, account)
        return account

    def list_accounts(self, domain: str = "") -> list[Account]:
        """All accounts, or those of one domain, by address."""
        with self._view() as view:
            found = [account_of(entry) for _, entry in view.of_class(keys.CLASS_ACCOUNT)]
        if domain:
            found = [account for account in found if account.address.endswith("@" + domain.lower())]
        return sorted(found, key=lambda account: account.address.rpartition("@")[::-1])

    def login_address(self, login: str) -> str:
        """The address a log-in name stands for: lower case, and the domain added in a home with one domain."""
        parts = address_of(login.strip().encode("utf-8", "surrogatepass"))
        if parts is None:
            return ""
        local, domain = parts
        if not domain:
            domain = self.only_domain()
        return f"{local}@{domain}" if domain else ""

    def only_domain(self) -> str:
        """The home's local domain if it has just one, else ""."""
        with self._view() as view:
            only = view.policy.only_domain
            if only is None:
                names = []
                for _, entry in view.of_class(keys.CLASS_LOCAL_DOMAIN):
                    names.append(entry.lookup)
                    if len(names) > 1:
                        break
                only = names[0] if len(names) == 1 and not names[0].startswith("*.") else ""
                view.policy.only_domain = only
            return only

    def authenticate(self, login: str, password: str) -> Account | None:
        """The account if the password is right and it is enabled. Takes tens of milliseconds: use `Authenticator`.

        An unknown user, or a disabled one, costs the same time as a wrong password.
        """
        address = self.login_address(login)
        account = self.account(address) if address else None
        usable = account is not None and account.enabled and bool(account.password) and not account.shared
        right = passwords.verify(
            account.password if account is not None and usable else passwords.NOBODY, password
        )
        return account if usable and right else None

    # Lists of policy.

    def domains(self) -> list[str]:
        """The local domains as listed, `*.DOMAIN` included, oldest first."""
        with self._view() as view:
            return [entry.lookup for _, entry in view.of_class(keys.CLASS_LOCAL_DOMAIN)]

    def is_local(self, domain: str) -> bool:
        """Whether a domain is local (listed, or covered by a `*.` entry)."""
        name = domain_of(domain)
        if name is None:
            return False
        with self._view() as view:
            return bool(view.local_as(name))

    def aliases(self) -> list[tuple[str, list[str]]]:
        """(address, targets) of every alias, by address."""
        with self._view() as view:
            return sorted(
                (entry.lookup, entry.attributes.get("rfc822MailMember", []))
                for _, entry in view.of_class(keys.CLASS_ALIAS)
            )

    def connectors(self, address: str = "") -> list[tuple[str, Connector]]:
        """(address, connector) of one entry, or of all."""
        with self._view() as view:
            if address:
                entry = view.entry("@".join(_entry_address(address)))
                entries = [entry] if entry is not None else []
            else:
                entries = [
                    e for code in (keys.CLASS_ACCOUNT, keys.CLASS_RECIPIENT) for _, e in view.of_class(code)
                ]
            return sorted(
                (
                    (e.lookup, Connector.parse(text))
                    for e in entries
                    for text in e.attributes.get("iemsConnector", ())
                ),
                key=lambda found: (found[0], found[1].channel, found[1].identifier),
            )

    def forwards(self) -> list[tuple[str, Channel, str]]:
        """The domain forwarding table: (domain or pattern, channel, identifier)."""
        with self._view() as view:
            return sorted(
                (entry.lookup, Channel[entry.first("iemsChannel")], entry.first("iemsIdentifier"))
                for _, entry in view.of_class(keys.CLASS_FORWARD)
            )

    def relay_domains(self) -> RelayDomains:
        """The domain forwarding table as RCPT needs it; read again only after a change of policy."""
        with self._view() as view:
            return view.relay_domains

    def relays_to(self, address: bytes) -> bool:
        """Whether an address is on the list of recipients of relay domains."""
        parts = address_of(address)
        if parts is None:
            return False
        with self._view() as view:
            return view.find(keys.KIND_RELAYED, "@".join(parts)) is not None

    def relayed(self, domain: str = "") -> list[str]:
        """The listed recipients of relay domains, or those of one domain, sorted."""
        with self._view() as view:
            found = [entry.lookup for _, entry in view.of_class(keys.CLASS_RELAYED)]
        return sorted(name for name in found if not domain or name.endswith("@" + domain.lower()))

    def channel_defaults(self) -> dict[str, Channel]:
        """{"LOCAL": default local delivery channel, "INTERNET": Internet delivery channel}."""
        with self._view() as view:
            return {"LOCAL": view.default_local, "INTERNET": view.internet}

    def detail_separator(self) -> str:
        """What parts user and detail in an address; "" if there are no details."""
        with self._view() as view:
            return view.separator

    def matrices(self) -> dict[str, frozenset[tuple[int, int]]]:
        """Channel Action Matrices: module name -> cells (input channel, output channel) in which it runs."""
        with self._view() as view:
            return {entry.lookup: _cells(entry) for _, entry in view.of_class(keys.CLASS_MATRIX)}

    def autotexts(self) -> dict[int, tuple[str, str]]:
        """Input channel -> (plain text, HTML) added to its mail."""
        with self._view() as view:
            return autotext.read(view)

    def set_autotext(self, channel: str, text: str, html: str) -> None:
        """Set the texts of a channel; both empty removes them. Raises DirectoryRefusal."""
        aim = autotext.channel_of(channel)
        self._write("autotext set", lambda work: autotext.write(work, aim, text, html), policy=False)

    def attachment_rules(self) -> list[Rule]:
        """The rules about attachments, in the order they count."""
        with self._view() as view:
            return attachmentrules.rules(view)

    def add_attachment_rule(self, type: str, name: str, action: str) -> None:
        """Add a rule, last, or give one another action. Raises DirectoryRefusal."""
        rule = attachmentrules.rule_of(type, name, action)

        def change(work: Change) -> None:
            if rule.action == "tag":
                tagging.require(work)
            attachmentrules.add(work, rule)

        self._write("attachment add", change, policy=False)

    def remove_attachment_rule(self, type: str, name: str) -> None:
        """Take a rule away. Raises DirectoryRefusal."""
        rule = attachmentrules.rule_of(type, name, "ignore")
        self._write("attachment remove", lambda work: attachmentrules.remove(work, rule), policy=False)

    def header_rules(self) -> list[HeaderRule]:
        """The rules about header fields, in the order they count, drafts too."""
        with self._view() as view:
            return headerrules.rules(view)

    def add_header_rule(
        self, name: str, field: str, pattern: str, action: str, draft: bool = False, untested: bool = False
    ) -> None:
        """Add a rule, last, or change the one of this name.

        Raises DirectoryRefusal, also for a rule that keeps mail from arriving and was never tested, unless `untested`.
        """
        rule = headerrules.rule_of(name, field, pattern, action, draft)

        def change(work: Change) -> None:
            if rule.action == "tag" and not rule.draft:
                tagging.require(work)
            headerrules.add(work, rule, untested)

        self._write("headerrule add", change, policy=False)

    def note_header_rule_test(self, rule: HeaderRule, tested: HeaderRuleTrial) -> None:
        """Keep what a test of a rule has shown. Raises DirectoryRefusal."""
        self._write("headerrule test", lambda work: headerrules.note_test(work, rule, tested), policy=False)

    def remove_header_rule(self, name: str) -> None:
        """Take a rule away. Raises DirectoryRefusal."""
        self._write("headerrule remove", lambda work: headerrules.remove(work, name), policy=False)

    def tag_default(self, channel: int) -> str:
        """What becomes of tagged mail on a channel that can't act on tags: pass, discard, bounce or none."""
        return self.tag_defaults()[Channel(channel)]

    def tag_defaults(self) -> dict[Channel, str]:
        """The same for all of them."""
        with self._view() as view:
            return tagging.read(view)

    def set_tag_default(self, channel: str, default: str, config_tags: list[str]) -> None:
        """Set that default. config_tags: settings under which checks tag. Raises DirectoryRefusal."""
        self._write("tag default", lambda work: tagging.write(work, channel, default, config_tags))

    def screen_lists(self, known: int = -1) -> screening.Screening | None:
        """(state, bans, DNS-BL zones), both oldest first; None while the state is `known`."""
        with self._view() as view:
            return screening.read(view, known)

    def peers(self) -> Peers:
        """The peer-domain profiles as they are now; read again only after a change of policy."""
        with self._view() as view:
            return view.peers

    def retired(self) -> list[Retired]:
        """Deleted accounts whose mail is still to be removed from the store."""
        with self._view() as view, view.txn.cursor(self._db[b"retired"]) as cursor:
            return [
                Retired(int.from_bytes(key, "big"), *keys.unpack_retired(value))
                for key, value in cursor.iternext()
            ]

    def entry_by_dn(self, dn: str) -> Entry | None:
        """The entry of a distinguished name such as `mail=john@jade.net,dc=jade,dc=net`."""
        with self._view() as view:
            found: tuple[int, Entry] | None = None
            parent = ROOT
            for name in reversed(split_dn(dn)):
                found = view.child(parent, name)
                if found is None:
                    return None
                parent = found[0]
            return found[1] if found else None

    def dn(self, address: str) -> str:
        """The distinguished name of an address's entry, or ""."""
        with self._view() as view:
            entry = view.entry("@".join(_entry_address(address)))
            return view.dn(entry) if entry is not None else ""

    # Writing.

    def _write(self, action: str, change: Callable[[Change], _T], policy: bool = True) -> _T:
        """Run a change in one synced transaction, count the version up, leave its audit lines."""
        try:
            with self._env.begin(write=True) as txn:
                work = Change(self._db, txn)
                result = change(work)
                if work.touched:
                    work.count(b"version")
                    if policy:
                        work.count(b"policy")
        except NameRefused as refusal:
            raise DirectoryRefusal(str(refusal)) from None
        except (lmdb.Error, msgspec.DecodeError, OSError) as error:
            raise DirectoryUnavailable(f"the directory can't be written: {error}") from error
        for name, old, new in work.touched:
            self._audit(
                {
                    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "who": self.who,
                    "action": action,
                    "entry": name,
                    "old": _public(old),
                    "new": _public(new),
                }
            )
        return result

    def _audit_line(self, record: dict[str, Any]) -> None:
        folder = self.path.parent / "log"
        if not folder.is_dir():
            return
        line = msgspec.json.encode(record) + b"\n"
        try:
            fd = os.open(
                folder / "directory.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            try:
                os.write(fd, line)
            finally:
                os.close(fd)
        except OSError:
            # The change is made and durable; a full disk must not report it as failed.
            pass

    def create_account(
        self,
        address: str,
        password: str,
        *,
        quota_octets: int | None = None,
        enabled: bool = True,
        partitions: int = 1,
        hashed: str = "",
        forms: Forms = NO_FORMS,
        keys_as: Account | None = None,
    ) -> Account:
        """Make a mailbox owner with a LOCAL connector. partitions: of the store; the new number picks one.

        hashed: what `hash_password` made of the password, and keys_as: who has its keys, where many accounts get the same one.
        forms: what is kept of the password beside its hash.

        Raises DirectoryRefusal if the domain is not local, the address is taken, or the password is empty.
        """
        local, domain = _mailbox_address(address, quota_octets)
        hashed = hashed or _hashed(password)
        kept = list(keys_as.keys) if keys_as is not None else stored.stored(password, forms)
        more = {"iemsEnabled": ["TRUE" if enabled else "FALSE"], "userPassword": [f"{{ARGON2}}{hashed}"]}
        if kept:
            more[stored.ATTRIBUTE] = kept
        if quota_octets is not None:
            more["iemsQuotaOctets"] = [str(quota_octets)]
        return self._write("account create", lambda work: _enter(work, local, domain, partitions, more, []), policy=False)

    def create_shared(
        self,
        address: str,
        *,
        quota_octets: int | None = None,
        partitions: int = 1,
        members: Sequence[tuple[str, str, bool]] = (),
    ) -> Account:
        """Make a shared mailbox: an account that gets mail and nobody logs in to. All or nothing, with its members.

        members: (address, rights as `sharing.rights_of` takes them, whether it may send from the mailbox's addresses).
        Raises DirectoryRefusal as `create_account` does, and if a member is none.
        """
        local, domain = _mailbox_address(address, quota_octets)
        wanted = [(member, sharing.rights_of(rights), send_as) for member, rights, send_as in members]
        more = {"iemsEnabled": ["TRUE"]}
        if quota_octets is not None:
            more["iemsQuotaOctets"] = [str(quota_octets)]

        def change(work: Change) -> Account:
            made = _enter(work, local, domain, partitions, more, [SHARED_MAILBOX])
            for member, letters, send_as in wanted:
                sharing.join(work, made.address, member, letters, send_as)
            return account_of(work.account(made.address)[1])

        return self._write("shared create", change, policy=False)

    def set_member(self, address: str, member: str, rights: str, send_as: bool) -> sharing.Member:
        """Make an account a member of a shared mailbox, or change what it may do there. Raises DirectoryRefusal."""
        letters = sharing.rights_of(rights)
        return self._write("shared member", lambda work: sharing.join(work, address, member, letters, send_as), policy=False)

    def remove_member(self, address: str, member: str) -> sharing.Member:
        """Take a membership away; what it opened is closed from now on. Raises DirectoryRefusal."""
        return self._write("shared leave", lambda work: sharing.leave(work, address, member), policy=False)

    def delete_account(self, address: str, shared: bool = False) -> Account:
        """Remove an account; its number stays retired until the store has removed its mail. Raises DirectoryRefusal.

        shared: it has to be a shared mailbox, else it must be none.
        """

        def change(work: Change) -> Account:
            number, entry = sharing.shared_of(work, address) if shared else _of_user(work, address)
            account = account_of(entry)
            sharing.part(work, entry)
            work.remove(number, entry)
            work.txn.delete(keys.account_key(account.number), db=work.db[b"accounts"])
            work.put(
                keys.account_key(account.number), keys.retired(time.time_ns(), account.partition), "retired"
            )
            return account

        return self._write("account delete", change, policy=False)

    def forget_retired(self, number: int) -> None:
        """The store has removed the mail of a deleted account."""

        def change(work: Change) -> None:
            work.txn.delete(keys.account_key(number), db=work.db[b"retired"])

        self._write("account forget", change, policy=False)

    def set_password(self, address: str, password: str, forms: Forms = NO_FORMS) -> None:
        """Change a password; sessions under the old one go on, new ones need the new one. Raises DirectoryRefusal.

        forms: what is kept of it beside its hash; what was kept of the old one goes in any case.
        """
        values = {"userPassword": [f"{{ARGON2}}{_hashed(password)}"]}
        kept = stored.stored(password, forms)

        def change(work: Change) -> None:
            number, entry = _of_user(work, address)
            if kept or stored.ATTRIBUTE in entry.attributes:
                values[stored.ATTRIBUTE] = kept
            work.replace(number, entry, values)

        self._write("account password", change, policy=False)

    def add_keys(self, account: Account, password: str, forms: Forms) -> None:
        """Keep what is missing of a password that was just found right, unless it has been changed meanwhile.

        Takes tens of milliseconds and a flush of the disk: for a thread. Raises DirectoryUnavailable.
        """
        values = stored.stored(password, forms)

        def change(work: Change) -> None:
            found = work.find(keys.KIND_MAIL, account.address)
            if found is None or account_of(found[1]).password != account.password:
                return
            others = [
                text
                for text in found[1].attributes.get(stored.ATTRIBUTE, ())
                if stored.scheme_of(text) not in forms.schemes
            ]
            work.replace(*found, {stored.ATTRIBUTE: [*others, *values]})

        self._write("account keys", change, policy=False)

    def secret(self) -> bytes:
        """32 octets that only this home knows, made at the first call: for what must look random and be the same each time.

        Raises DirectoryUnavailable if they can be neither read nor made.
        """
        path = self.path / "secret"
        fresh = self.path / f"secret.{os.getpid()}.new"
        try:
            if not path.exists():
                fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    os.write(fd, os.urandom(32))
                    os.fsync(fd)
                finally:
                    os.close(fd)
                # Linked, not renamed: of two processes that make one at once, both use that of the first.
                with suppress(FileExistsError):
                    os.link(fresh, path)
                fresh.unlink()
            return path.read_bytes()
        except OSError as error:
            raise DirectoryUnavailable(f"{path}: {error.strerror}") from error

    def set_quota(self, address: str, quota_octets: int | None) -> None:
        """Change the quota; None is unlimited. Raises DirectoryRefusal."""
        if quota_octets is not None and not 0 < quota_octets < 1 << 63:
            raise DirectoryRefusal("a quota is a positive number of octets")
        self._set(
            address,
            "account quota",
            {"iemsQuotaOctets": [str(quota_octets)] if quota_octets is not None else []},
        )

    def domain_quotas(self) -> dict[str, int]:
        """Domain -> octets its accounts may keep together; domains without a limit are not there."""
        with self._view() as view:
            return dict(view.domain_quotas)

    def set_domain_quota(self, domain: str, quota_octets: int | None) -> None:
        """Limit what the accounts of a local domain keep together; None is unlimited. Raises DirectoryRefusal."""
        if quota_octets is not None and not 0 < quota_octets < 1 << 63:
            raise DirectoryRefusal("a quota is a positive number of octets")

        def change(work: Change) -> None:
            name = domain_of(domain)
            if name is None:
                raise DirectoryRefusal(f"{shown(domain)} is no domain: a quota is set for each domain by its name")
            found = work.find(keys.KIND_DOMAIN, name)
            if found is None or LOCAL_DOMAIN not in found[1].classes:
                raise DirectoryRefusal(f"{name} is not on the list of local domains")
            work.replace(*found, {"iemsQuotaOctets": [str(quota_octets)] if quota_octets is not None else []})

        self._write("domain quota", change)

    def set_partition(self, number: int, partition: int) -> None:
        """Name the partition that has the mail of an account, or of a deleted one; nothing if it is neither."""

        def change(work: Change) -> None:
            key = keys.account_key(number)
            found = work.get(key, db=work.db[b"accounts"])
            if found is not None:
                identity = keys.u64_of(found)
                entry = work.read(identity)
                if entry.first("iemsPartition", "0") != str(partition):
                    work.replace(identity, entry, {"iemsPartition": [str(partition)]})
                return
            gone = next((one for one in self.retired() if one.number == number), None)
            if gone is not None:
                work.put(key, keys.retired(gone.deleted_ns, partition), "retired")

        self._write("account move", change, policy=False)

    def set_enabled(self, address: str, enabled: bool) -> None:
        """Let an account log in and get mail, or not. Raises DirectoryRefusal."""
        self._set(
            address,
            "account enable" if enabled else "account disable",
            {"iemsEnabled": ["TRUE" if enabled else "FALSE"]},
        )

    def set_spam_control(
        self, address: str, change: Callable[[spamcontrol.SpamControl], spamcontrol.SpamControl]
    ) -> None:
        """Change what an account's owner wants done with tagged mail. Raises DirectoryRefusal."""

        def work_on(work: Change) -> None:
            number, entry = work.account(address)
            old = spamcontrol.read(entry.attributes) or spamcontrol.SpamControl()
            work.replace(number, entry, spamcontrol.written(change(old)))

        self._write("account spam", work_on, policy=False)

    def grant_sender(self, address: str, sender: str) -> None:
        """Let an account send from an address, a domain or `*.DOMAIN` that is not its own. Raises DirectoryRefusal."""
        name = _sender(sender)

        def change(work: Change) -> None:
            number, entry = work.account(address)
            granted = entry.attributes.get("iemsSendAs", [])
            if name in granted:
                raise DirectoryRefusal(f"{entry.lookup} may send as {name} already")
            if len(granted) >= MAX_SENDERS:
                raise DirectoryRefusal(f"{entry.lookup} has {MAX_SENDERS} senders; grant it a domain")
            work.replace(number, entry, {"iemsSendAs": [*granted, name]})

        self._write("sender grant", change, policy=False)

    def revoke_sender(self, address: str, sender: str) -> None:
        """Take back what `grant_sender` gave. Raises DirectoryRefusal."""
        name = _sender(sender)

        def change(work: Change) -> None:
            number, entry = work.account(address)
            granted = entry.attributes.get("iemsSendAs", [])
            if name not in granted:
                raise DirectoryRefusal(f"{entry.lookup} was not granted {name}")
            work.replace(number, entry, {"iemsSendAs": [text for text in granted if text != name]})

        self._write("sender revoke", change, policy=False)

    def any_bayes(self) -> bool:
        """Whether any account has a Bayesian filter; asked again only after a change."""
        version = self.version
        if version != self._bayes_version:
            self._bayes = any(account.bayes is not None for account in self.list_accounts())
            self._bayes_version = version
        return self._bayes

    def set_bayes(self, address: str, choice: BayesChoice | None) -> None:
        """Switch an account's Bayesian filter on, with what it does, or off (None). Raises DirectoryRefusal."""
        from iems.directory import bayeschoice

        self._set(address, "account bayes", bayeschoice.written(choice))

    def set_filtered(self, address: str, filtered: bool) -> None:
        """Note that an account has, or no longer has, an active script for its mail. Raises DirectoryRefusal."""
        self._set(address, "account filtered", {"iemsFiltered": ["TRUE"] if filtered else []})

    def _set(self, address: str, action: str, values: dict[str, list[str]]) -> None:
        def change(work: Change) -> None:
            number, entry = work.account(address)
            work.replace(number, entry, values)

        self._write(action, change, policy=False)

    def add_domain(self, domain: str) -> None:
        """Make a domain local; `*.abc.com` covers every sub-domain but not abc.com. Raises DirectoryRefusal."""

        def change(work: Change) -> None:
            pattern = pattern_of(domain)
            number = work.domain_entry(pattern)
            entry = work.read(number)
            if LOCAL_DOMAIN in entry.classes:
                raise DirectoryRefusal(f"{pattern} is a local domain already")
            work.remove(number, entry, audit=False)
            work.add(
                Entry(
                    entry.parent,
                    entry.rdn,
                    keys.KIND_DOMAIN,
                    pattern,
                    [*entry.classes, LOCAL_DOMAIN],
                    entry.attributes,
                ),
                number,
            )

        self._write("domain add", change)

    def remove_domain(self, domain: str, force: bool = False) -> None:
        """Take a domain off the list. Raises DirectoryRefusal if it isn't there or, unless forced, has entries still."""

        def change(work: Change) -> None:
            pattern = pattern_of(domain)
            found = work.find(keys.KIND_DOMAIN, pattern)
            if found is None or LOCAL_DOMAIN not in found[1].classes:
                raise DirectoryRefusal(f"{pattern} is not a local domain")
            number, entry = found
            if not force and any(e.kind == keys.KIND_MAIL for e in work.children(number)):
                raise DirectoryRefusal(f"{pattern} still has accounts or aliases")
            work.remove(number, entry)
            if work.has_children(number):
                classes = [name for name in entry.classes if name != LOCAL_DOMAIN]
                work.add(
                    Entry(entry.parent, entry.rdn, 0, "", classes, entry.attributes), number, audit=False
                )

        self._write("domain remove", change)

    def add_alias(self, alias: str, target: str) -> None:
        """Add a target to an alias, making it if need be. The target may be anywhere. Raises DirectoryRefusal."""
        local, domain = _entry_address(alias)

        def change(work: Change) -> None:
            name = f"{local}@{domain}"
            aim = _member(target)
            if not work.local_as(domain):
                raise DirectoryRefusal(
                    f"{domain} is not a local domain; add it first: iemsctl domain add {domain}"
                )
            if aim.lower() == name:
                raise DirectoryRefusal(f"{name} can't be an alias of itself")
            found = work.find(keys.KIND_MAIL, name)
            if found is None:
                work.add(
                    Entry(
                        work.domain_entry(domain),
                        rdn("mail", name),
                        keys.KIND_MAIL,
                        name,
                        ["top", ALIAS],
                        {"cn": [local], "mail": [name], "rfc822MailMember": [aim]},
                    )
                )
                return
            number, entry = found
            if ALIAS not in entry.classes:
                raise DirectoryRefusal(f"{name} exists already and is no alias")
            members = entry.attributes.get("rfc822MailMember", [])
            if aim.lower() in (member.lower() for member in members):
                raise DirectoryRefusal(f"{name} leads to {aim} already")
            work.replace(number, entry, {"rfc822MailMember": [*members, aim]})

        self._write("alias add", change, policy=False)

    def remove_alias(self, alias: str, target: str = "") -> None:
        """Remove an alias, or one target of it. Raises DirectoryRefusal."""

        def change(work: Change) -> None:
            name = "@".join(entry_address(alias))
            found = work.find(keys.KIND_MAIL, name)
            if found is None or ALIAS not in found[1].classes:
                raise DirectoryRefusal(f"there is no alias {name}")
            number, entry = found
            if not target:
                work.remove(number, entry)
                return
            aim = _member(target)
            members = entry.attributes.get("rfc822MailMember", [])
            kept = [member for member in members if member.lower() != aim.lower()]
            if len(kept) == len(members):
                raise DirectoryRefusal(f"{name} doesn't lead to {aim}")
            if kept:
                work.replace(number, entry, {"rfc822MailMember": kept})
            else:
                work.remove(number, entry)

        self._write("alias remove", change, policy=False)

    def add_connector(
        self, address: str, channel: str, identifier: str = "", permission: str = "send+receive"
    ) -> None:
        """Give an address a way to be reached; it needs no account. Raises DirectoryRefusal.

        channel: LOCAL SMTPC BSMTPOUT DL CCMAIL NOTES. identifier: relay host for SMTPC, mandatory for BSMTPOUT.
        """
        connector = Connector(_output(channel), _identifier(channel, identifier), Permission.of(permission))
        if connector.permission not in CHANNEL_PERMISSIONS[connector.channel]:
            allowed = " or ".join(p.text for p in CHANNEL_PERMISSIONS[connector.channel])
            raise DirectoryRefusal(f"a {connector.channel.name} connector's permission is {allowed}")
        local, domain = _entry_address(address)

        def change(work: Change) -> None:
            name = f"{local}@{domain}"
            if not work.local_as(domain):
                raise DirectoryRefusal(
                    f"{domain} is not a local domain; add it first: iemsctl domain add {domain}"
                )
            found = work.find(keys.KIND_MAIL, name)
            if found is None:
                if connector.channel is Channel.LOCAL:
                    raise DirectoryRefusal(f"{name} has no account; make it with iemsuser create {name}")
                work.add(
                    Entry(
                        work.domain_entry(domain),
                        rdn("mail", name),
                        keys.KIND_MAIL,
                        name,
                        ["top", RECIPIENT],
                        {"mail": [name], "iemsConnector": [connector.text()]},
                    )
                )
                return
            number, entry = found
            if ALIAS in entry.classes:
                raise DirectoryRefusal(f"{name} is an alias; give the connector to an address it leads to")
            if connector.channel is Channel.LOCAL and ACCOUNT not in entry.classes:
                raise DirectoryRefusal(f"{name} has no account; make it with iemsuser create {name}")
            kept = []
            for text in entry.attributes.get("iemsConnector", []):
                old = Connector.parse(text)
                if old == connector:
                    raise DirectoryRefusal(f"{name} has that connector already")
                if (old.channel, old.identifier) != (connector.channel, connector.identifier):
                    kept.append(text)
            work.replace(number, entry, {"iemsConnector": [*kept, connector.text()]})

        self._write("connector add", change, policy=False)

    def remove_connector(self, address: str, channel: str, identifier: str | None = None) -> None:
        """Remove the connectors of a channel (those with the identifier, if given). Raises DirectoryRefusal.

        An entry without account and connectors goes; an account without connectors follows the default local channel.
        """
        wanted = _output(channel)

        def change(work: Change) -> None:
            name = "@".join(entry_address(address))
            found = work.find(keys.KIND_MAIL, name)
            texts = found[1].attributes.get("iemsConnector", []) if found else []
            kept = []
            for text in texts:
                old = Connector.parse(text)
                if old.channel is not wanted or (identifier is not None and old.identifier != identifier):
                    kept.append(text)
            if found is None or len(kept) == len(texts):
                raise DirectoryRefusal(f"{name} has no such connector")
            if not kept and ACCOUNT not in found[1].classes:
                work.remove(*found)
            else:
                work.replace(*found, {"iemsConnector": kept})

        self._write("connector remove", change, policy=False)

    def set_forward(self, domain: str, channel: str, identifier: str = "", check: str = "none") -> None:
        """Send a domain's mail (or `*.DOMAIN`'s) to a channel. Raises DirectoryRefusal.

        identifier: relay host for SMTPC (else MX of the domain), mandatory for BSMTPOUT. check: how recipients are looked at
        before mail for them is taken: none, list (`add_relayed`), callahead (SMTPC only).
        """
        aim = _output(channel)
        if check not in CHECKS:
            raise DirectoryRefusal(f"check is one of {', '.join(CHECKS)}")
        if check == "callahead" and aim is not Channel.SMTPC:
            raise DirectoryRefusal("only a host that SMTPC sends to can be asked ahead")
        known = _identifier(channel, identifier)

        def change(work: Change) -> None:
            pattern = pattern_of(domain)
            attributes = {
                "associatedDomain": [pattern],
                "iemsChannel": [aim.name],
                "iemsIdentifier": [known] if known else [],
                "iemsCheck": [check] if check != "none" else [],
            }
            found = work.find(keys.KIND_FORWARD, pattern)
            if found is not None:
                work.replace(*found, attributes)
                return
            folder = work.folder("ou=forwarding")
            work.add(
                Entry(folder, rdn("cn", pattern), keys.KIND_FORWARD, pattern, ["top", FORWARD], attributes)
            )

        self._write("forward set", change)

    def add_relayed(self, addresses: list[str]) -> int:
        """Put recipients of relay domains on the list, all or none of them; how many are new. Raises DirectoryRefusal."""

        def change(work: Change) -> int:
            new = 0
            folder = work.folder("ou=relayed")
            for address in addresses:
                name = "@".join(entry_address(address))
                if work.find(keys.KIND_RELAYED, name) is None:
                    attributes = {"mail": [name]}
                    work.add(
                        Entry(folder, rdn("mail", name), keys.KIND_RELAYED, name, ["top", RELAYED], attributes)
                    )
                    new += 1
            return new

        return self._write("forward allow", change, policy=False)

    def remove_relayed(self, addresses: list[str]) -> None:
        """Take recipients off the list, all or none of them. Raises DirectoryRefusal."""

        def change(work: Change) -> None:
            for address in addresses:
                name = "@".join(entry_address(address))
                found = work.find(keys.KIND_RELAYED, name)
                if found is None:
                    raise DirectoryRefusal(f"{name} is not on the list")
                work.remove(*found)

        self._write("forward disallow", change, policy=False)

    def remove_forward(self, domain: str) -> None:
        """Take a domain off the forwarding table. Raises DirectoryRefusal."""

        def change(work: Change) -> None:
            pattern = pattern_of(domain)
            found = work.find(keys.KIND_FORWARD, pattern)
            if found is None:
                raise DirectoryRefusal(f"{pattern} is not in the forwarding table")
            work.remove(*found)

        self._write("forward remove", change)

    def set_channel_default(self, which: str, channel: str) -> None:
        """Set the default local delivery channel (which: "LOCAL") or the Internet one ("INTERNET"). Raises DirectoryRefusal."""
        aim = _output(channel)
        kind = which.upper()
        if kind == "LOCAL":
            if aim not in (Channel.LOCAL, Channel.SMTPC, Channel.CCMAIL, Channel.NOTES):
                raise DirectoryRefusal("the default local delivery channel is LOCAL, SMTPC, CCMAIL or NOTES")
            self._settings("channel default", {"iemsDefaultLocalChannel": [aim.name]})
        elif kind == "INTERNET":
            if aim not in (Channel.SMTPC, Channel.BSMTPOUT):
                raise DirectoryRefusal("the Internet delivery channel is SMTPC or BSMTPOUT")
            self._settings("channel default", {"iemsInternetChannel": [aim.name]})
        else:
            raise DirectoryRefusal(f"set LOCAL or INTERNET, not {shown(which)}")

    def set_detail_separator(self, separator: str) -> None:
        """Set what parts user and detail (`+`); "" turns details off. Raises DirectoryRefusal."""
        if separator and (
            len(separator) > 2
            or separator.isalnum()
            or not separator.isprintable()
            or set(separator) & set('@." ')
        ):
            raise DirectoryRefusal("a separator is one or two characters such as + or -")
        self._settings("detail separator", {"iemsDetailSeparator": [separator]})

    def _settings(self, action: str, values: dict[str, list[str]]) -> None:
        def change(work: Change) -> None:
            found = work.find(keys.KIND_SETTINGS, "")
            if found is None:
                work.add(
                    Entry(work.folder(""), "ou=settings", keys.KIND_SETTINGS, "", ["top", SETTINGS], values)
                )
            else:
                work.replace(*found, values)

        self._write(action, change)

    def expiry(self) -> list[expiry.Expiry]:
        """The rules of expiry, sorted; read again only after a change of policy."""
        with self._view() as view:
            return expiry.rules_of(view.settings.get(expiry.ATTRIBUTE, ()))

    def add_expiry(self, pattern: str, days: int, domain: str = "") -> None:
        """Let mail of these mailboxes go after some days, or change how many. Raises DirectoryRefusal."""
        rule = expiry.rule_of(pattern, days, domain)
        self._expiry("expire add", lambda texts: expiry.added(texts, rule))

    def remove_expiry(self, pattern: str, domain: str = "") -> None:
        """Remove a rule of expiry. Raises DirectoryRefusal."""
        self._expiry("expire remove", lambda texts: expiry.removed(texts, pattern, domain))

    def _expiry(self, action: str, change: Callable[[list[str]], list[str]]) -> None:
        def write(work: Change) -> None:
            found = work.find(keys.KIND_SETTINGS, "")
            values = {expiry.ATTRIBUTE: change(found[1].attributes.get(expiry.ATTRIBUTE, []) if found else [])}
            if found is None:
                work.add(Entry(work.folder(""), "ou=settings", keys.KIND_SETTINGS, "", ["top", SETTINGS], values))
            else:
                work.replace(*found, values)

        self._write(action, write)

    def set_matrix(self, module: str, cells: set[tuple[int, int]]) -> None:
        """Set in which cells (input channel, output channel) a module runs."""

        def change(work: Change) -> None:
            values = {"iemsCell": sorted(f"{Channel(i).name} {Channel(o).name}" for i, o in cells)}
            found = work.find(keys.KIND_MATRIX, module)
            if found is None:
                work.add(
                    Entry(
                        work.folder("ou=matrices"),
                        rdn("cn", module),
                        keys.KIND_MATRIX,
                        module,
                        ["top", MATRIX],
                        values,
                    )
                )
            else:
                work.replace(*found, values)

        self._write("matrix set", change)

    def add_ban(self, kind: str, value: str, reply: int = screening.PERMANENT) -> None:
        """Ban an address, domain, ip, range or cidr; the reply of one that is banned is changed. Raises DirectoryRefusal."""
        ban = screening.ban_of(kind, value, reply)
        self._write("ban add", lambda work: screening.add_ban(work, ban), policy=False)

    def remove_ban(self, kind: str, value: str) -> None:
        """Lift a ban. Raises DirectoryRefusal."""
        ban = screening.ban_of(kind, value)
        self._write("ban remove", lambda work: screening.remove_ban(work, ban), policy=False)

    def add_dnsbl(self, name: str, action: str, codes: str = "") -> None:
        """Ask a DNS-BL zone (action: "reject", "tag"), or change how. codes: as `127.0.0.2,127.0.0.4-11`. Raises DirectoryRefusal."""
        zone = screening.zone_of(name, action, codes)

        def change(work: Change) -> None:
            if zone.action == "tag":
                tagging.require(work)
            screening.add_zone(work, zone)

        self._write("dnsbl add", change, policy=False)

    def remove_dnsbl(self, name: str) -> None:
        """Ask a zone no more. Raises DirectoryRefusal."""
        self._write("dnsbl remove", lambda work: screening.remove_zone(work, name), policy=False)

    def set_peer(self, domain: str, **values: Any) -> None:
        """Set fields of the profile of a domain (or `*.DOMAIN`), making it if need be; see `peers.Peer`. Raises DirectoryRefusal."""
        pattern, attributes = checked(domain, values)

        def change(work: Change) -> None:
            found = work.find(keys.KIND_PEER, pattern)
            if found is not None:
                work.replace(*found, attributes)
                return
            folder = work.folder("ou=peers")
            first = {"associatedDomain": [pattern]} | attributes
            work.add(Entry(folder, rdn("cn", pattern), keys.KIND_PEER, pattern, ["top", PEER], first))

        self._write("peer set", change)

    def remove_peer(self, domain: str) -> None:
        """Remove the profile of a domain. Raises DirectoryRefusal."""
        pattern, _ = checked(domain, {})

        def change(work: Change) -> None:
            found = work.find(keys.KIND_PEER, pattern)
            if found is None:
                raise DirectoryRefusal(f"{pattern} has no profile")
            work.remove(*found)

        self._write("peer remove", change)


def _keep(kept: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    """Remember, within MAX_CACHED: the oldest goes (of a plain dict the first key takes the longer to find the more were taken out before it)."""
    if len(kept) >= MAX_CACHED:
        # Another thread may have made room at the same moment.
        with suppress(KeyError):
            kept.popitem(last=False)
    kept[key] = value


def _user() -> str:
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _entry_address(address: str) -> tuple[str, str]:
    try:
        return entry_address(address)
    except NameRefused as refusal:
        raise DirectoryRefusal(str(refusal)) from None


def _mailbox_address(address: str, quota_octets: int | None) -> tuple[str, str]:
    """(local part, domain) of an account to be made. Raises DirectoryRefusal."""
    local, domain = _entry_address(address)
    if "/" in local:
        raise DirectoryRefusal(f"an account's address has no '/': {shown(address)}")
    if quota_octets is not None and not 0 < quota_octets < 1 << 63:
        raise DirectoryRefusal("a quota is a positive number of octets")
    return local, domain


def _enter(
    work: Change, local: str, domain: str, partitions: int, more: dict[str, list[str]], classes: list[str]
) -> Account:
    """Write the entry of a new account with a LOCAL connector. more: further attributes. Raises DirectoryRefusal."""
    name = f"{local}@{domain}"
    if not work.local_as(domain):
        raise DirectoryRefusal(f"{domain} is not a local domain; add it first: iemsctl domain add {domain}")
    found = work.find(keys.KIND_MAIL, name)
    connectors = [Connector(Channel.LOCAL).text()]
    if found is not None:
        if RECIPIENT not in found[1].classes:
            raise DirectoryRefusal(f"{name} exists already")
        connectors = found[1].attributes.get("iemsConnector", [])
        connectors = sorted({*connectors, Connector(Channel.LOCAL).text()})
        work.remove(*found)
    number = work.next(b"account")
    if number >= 1 << 32:
        raise DirectoryRefusal("all account numbers are used up")
    attributes = {
        "mail": [name],
        "uid": [local],
        "iemsAccountNumber": [str(number)],
        "iemsPartition": [str(number % partitions)],
        "iemsConnector": connectors,
    } | more
    entry = Entry(
        work.domain_entry(domain),
        rdn("mail", name),
        keys.KIND_MAIL,
        name,
        ["top", "inetOrgPerson", ACCOUNT, *classes],
        attributes,
    )
    identity = work.add(entry)
    work.put(keys.account_key(number), keys.u64(identity), "accounts")
    return account_of(entry)


def _of_user(work: Change, address: str) -> tuple[int, Entry]:
    """(id, entry) of an account that somebody logs in to. Raises DirectoryRefusal."""
    found = work.account(address)
    if SHARED_MAILBOX in found[1].classes:
        raise DirectoryRefusal(f"{found[1].lookup} is a shared mailbox: see iemsctl shared")
    return found


def _sender(text: str) -> str:
    """What may be granted, in normal form: an address, a domain or `*.DOMAIN`."""
    if "@" in text:
        return "@".join(_entry_address(text))
    try:
        return pattern_of(text)
    except NameRefused as refusal:
        raise DirectoryRefusal(str(refusal)) from None


def _member(target: str) -> str:
    """A target of an alias: the domain in normal form, the local part as written."""
    parts = address_of(target.encode("utf-8", "surrogatepass"))
    if parts is None or not parts[1]:
        raise DirectoryRefusal(f"not an address: {shown(target)}")
    return f"{target.rpartition('@')[0]}@{parts[1]}"


def _hashed(password: str) -> str:
    try:
        return passwords.hash_password(password)
    except ValueError as error:
        raise DirectoryRefusal(str(error)) from None


def _output(channel: str) -> Channel:
    try:
        found = Channel[channel.upper()]
    except KeyError:
        found = Channel.SMTPD
    if found not in CHANNEL_PERMISSIONS:
        raise DirectoryRefusal(
            f"no output channel {shown(channel)}; there are {' '.join(c.name for c in CHANNEL_PERMISSIONS)}"
        )
    return found


def _identifier(channel: str, identifier: str) -> str:
    if len(identifier) > 255 or not identifier.isprintable() or " " in identifier:
        raise DirectoryRefusal(f"not an identifier: {shown(identifier)}")
    if channel.upper() == "BSMTPOUT" and not identifier:
        raise DirectoryRefusal("BSMTPOUT needs an identifier: the address its batches go to")
    return identifier.lower() if channel.upper() == "SMTPC" else identifier


def _cells(entry: Entry) -> frozenset[tuple[int, int]]:
    found = set()
    for text in entry.attributes.get("iemsCell", ()):
        source, _, target = text.partition(" ")
        found.add((int(Channel[source]), int(Channel[target])))
    return frozenset(found)


def _public(attributes: dict[str, list[str]] | None) -> dict[str, list[str]] | None:
    """What an audit line may show: no password, not even its hash."""
    if attributes is None:
        return None
    return {
        name: ["(hidden)"] if name in ("userPassword", stored.ATTRIBUTE) and values else values
        for name, values in attributes.items()
    }


def _limited(account: Account, view: View) -> Account:
    """The account with what its domain may keep."""
    quotas = view.domain_quotas
    limit = quotas.get(account.domain) if quotas else None
    return account if limit is None else msgspec.structs.replace(account, domain_quota_octets=limit)
