"""Files with passwords and keys: the owner's alone, and never named by what is in them."""

from __future__ import annotations

import pytest

from iems.bsmtp.worker import SecretError, read_secret


def test_read_secret(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"p@ss w\xc3\xb6rd\r\n")
    path.chmod(0o600)
    assert read_secret(path) == b"p@ss w\xc3\xb6rd"
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(SecretError, match="owner alone") as caught:
            read_secret(path)
        assert "p@ss" not in str(caught.value)
    path.chmod(0o400)
    with pytest.raises(SecretError, match="fewer than 16"):
        read_secret(path, 16)
    path.unlink()
    with pytest.raises(SecretError, match="No such file"):
        read_secret(path)
    with pytest.raises(SecretError):
        read_secret(tmp_path)
