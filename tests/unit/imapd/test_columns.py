"""Columns of header values: made at once or one by one, the same."""

from hypothesis import given, settings
from hypothesis import strategies as st

from iems.imap.envelope import Envelope
from iems.imapd import columns
from iems.imapd.columns import COLUMNS, message_ids
from iems.message import summarize

SUBJECTS = st.lists(
    st.one_of(
        st.sampled_from([b"plain", b"Re: [x] Two", b"", b" ", b"NIL", b'"quoted"', b"a  b", b"* 7 FETCH (ENVELOPE (NIL NIL (",
                         b"=?utf-8?q?=C3=A4?=", b"back\\slash", b"tab\there", b'x" "y', b"caf\xc3\xa9"]),
        st.binary(max_size=30),
    ),
    max_size=6,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(SUBJECTS)
def test_subjects_at_once(subjects):
    text = b""
    for uid, subject in enumerate(subjects, 1):
        field = b"Subject: " + subject.replace(b"\n", b" ") + b"\r\n" if subject else b""
        text += b"* %d FETCH (ENVELOPE %b)\r\n" % (uid, summarize(field + b"Date: x\r\n\r\n")[0])
    wanted = [(uid, COLUMNS["SUBJECT"](Envelope(raw))) for uid, raw in columns._responses(text)]
    assert [uid for uid, _ in wanted] == list(range(1, len(subjects) + 1))
    column = columns._Column()
    if columns._plain_subjects(text, column):
        assert list(zip(column.uids, column.values, strict=True)) == wanted


def test_message_ids():
    assert message_ids(b"Message-ID: x <1@x> y\r\nReferences: <a@x>\r\n <b@x>\r\nIn-Reply-To: <c@x>\r\n\r\n") == (
        b"<1@x>",
        (b"<a@x>", b"<b@x>"),
    )
    assert message_ids(b"In-Reply-To: Joe's of <c@x> <d@x>\r\n\r\n") == (b"", (b"<c@x>",))
    assert message_ids(b"Subject: x\r\n\r\n") == (b"", ())
