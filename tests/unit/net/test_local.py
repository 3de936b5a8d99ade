"""Sockets in folders with long names."""

import socket

import pytest

from iems.net.local import socket_path


@pytest.mark.parametrize("depth", [0, 3])
def test_bind_and_connect(tmp_path, depth):
    folder = tmp_path
    for _ in range(depth):
        folder = folder / ("x" * 60)
        folder.mkdir()
    path = folder / "s.sock"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        with socket_path(path) as name:
            server.bind(name)
        server.listen()
        assert path.is_socket()
        with socket_path(path) as name:
            client.connect(name)
    with pytest.raises(OSError), socket_path(folder / ("y" * 120) / "s.sock") as name, socket.socket(socket.AF_UNIX) as client:
        client.connect(name)
