"""FTP servers that mean harm: whatever they send, there is an end to it, and nothing leads elsewhere."""

from __future__ import annotations

import ftplib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from serve_app.errors import ConfigurationError
from serve_app.imports import ftp, ftp_reading
from serve_app.imports.ftp import FtpRefused, FtpSession
from serve_app.imports.ftp_connection import FtpAddress, FtpLost
from serve_app.imports.ftp_reading import Download, Unfit

Send = Callable[[socket.socket], None]
JPEG = b"\xff\xd8\xff\xe0"


@dataclass
class HostileServer:
    """Answers as an FTP server does, but for `replies` (to a command), and sends `data` (after a command) on data connections."""

    replies: dict[str, bytes] = field(default_factory=dict)
    data: dict[str, Send] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    port: int = 0
    sessions: list[FtpSession] = field(default_factory=list)

    def start(self) -> HostileServer:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def stop(self) -> None:
        self._listener.close()
        for session in self.sessions:
            session.drop()

    def session(self, timeout_s: float = 60) -> FtpSession:
        address = FtpAddress("127.0.0.1", self.port, "anna", "secret", tls=False, timeout_s=timeout_s)
        self.sessions.append(FtpSession(address))
        return self.sessions[-1]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        usual = {
            "USER": b"331 password\r\n", "PASS": b"230 in\r\n", "FEAT": b"502 no\r\n", "PWD": b'257 "/home"\r\n',
            "CWD": b"250 ok\r\n", "TYPE": b"200 ok\r\n", "SIZE": b"502 no\r\n", "MDTM": b"502 no\r\n", "REST": b"350 ok\r\n",
            "MLST": b"502 no\r\n",
        }  # fmt: skip
        passive = socket.create_server(("127.0.0.1", 0))
        with suppress(OSError), client, passive, client.makefile("rb") as lines:
            client.sendall(self.replies.get("", b"220 hello\r\n"))
            for raw in lines:
                command = raw.decode("latin-1").strip()
                self.commands.append(command)
                verb = command.partition(" ")[0]
                if verb in self.replies:
                    client.sendall(self.replies[verb])
                elif verb == "PASV":
                    port = passive.getsockname()[1]
                    # Another machine's address: it must not be gone to.
                    client.sendall(f"227 ok (10,255,255,1,{port >> 8},{port & 255})\r\n".encode())
                elif verb in self.data:
                    client.sendall(b"150 here\r\n")
                    conn, _ = passive.accept()
                    with suppress(OSError), conn:
                        self.data[verb](conn)
                    client.sendall(b"226 done\r\n")
                else:
                    client.sendall(usual.get(verb, b"502 no\r\n"))


@pytest.fixture
def server() -> Iterator[HostileServer]:
    made = HostileServer().start()
    yield made
    made.stop()


def endless(piece: bytes) -> Send:
    def send(conn: socket.socket) -> None:
        while True:
            conn.sendall(piece)

    return send


def lines(*names: str) -> Send:
    return lambda conn: conn.sendall("".join(f"type=file;size=4; {name}\r\n" for name in names).encode("latin-1"))


def test_the_data_connection_goes_to_the_server_itself(server: HostileServer) -> None:
    server.data["MLSD"] = lines("a.jpg")
    (entry,) = server.session().listing("/home").entries
    assert entry.name == "a.jpg"


def test_a_reply_without_end(server: HostileServer) -> None:
    server.replies["FEAT"] = b"211-so\r\n" + b" x\r\n" * 100_000
    begun = time.monotonic()
    with pytest.raises(FtpLost, match="no end"):
        server.session().listing("/")
    assert time.monotonic() - begun < 30


def test_a_line_without_end(server: HostileServer) -> None:
    server.replies["PWD"] = b"2" * 1_000_000
    with pytest.raises(FtpLost):
        server.session().start_folder()


@pytest.mark.parametrize("piece", [b"type=file; x" * 10_000, b"x"])
def test_a_listing_that_is_one_line(server: HostileServer, piece: bytes) -> None:
    server.data["MLSD"] = endless(piece)
    with pytest.raises(FtpLost, match="no end"):
        server.session().listing("/")


def test_a_listing_without_end(server: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ftp, "MAX_ENTRIES", 5000)
    server.data["MLSD"] = endless(b"type=file;size=4; x\r\n" * 1000)
    session = server.session()
    found = session.listing("/")
    assert found.cut and len(found.entries) == 5000
    server.data["MLSD"] = lines("a")
    assert len(session.listing("/").entries) == 1


def test_a_server_that_says_nothing(server: HostileServer) -> None:
    server.data["MLSD"] = lambda conn: time.sleep(60)
    with pytest.raises(FtpLost):
        server.session(timeout_s=0.3).listing("/")


def test_a_server_that_drips(server: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ftp, "_SLOW_AFTER_S", 0.3)

    def drip(conn: socket.socket) -> None:
        for _ in range(1200):
            conn.sendall(JPEG)
            time.sleep(0.05)

    server.data["RETR"] = drip
    begun = time.monotonic()
    with pytest.raises(FtpLost, match="slowly"):
        list(server.session().retrieve("/a.jpg", 0))
    assert time.monotonic() - begun < 30


def test_a_file_without_end(server: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ftp_reading, "MAX_FILE_BYTES", 1 << 20)
    server.data["RETR"] = endless(JPEG * 1000)
    with pytest.raises(Unfit) as error:
        Download("/a.jpg", "a.jpg").run(server.session())
    assert error.value.code == "image_too_large"


def test_a_file_larger_than_it_is_said_to_be(server: HostileServer) -> None:
    server.replies["SIZE"] = b"213 10000\r\n"
    server.data["RETR"] = endless(JPEG * 1000)
    with pytest.raises(Unfit) as error:
        Download("/a.jpg", "a.jpg").run(server.session())
    assert error.value.code == "corrupted"


def test_a_video_is_left_after_its_first_bytes(server: HostileServer) -> None:
    sent = 0

    def video(conn: socket.socket) -> None:
        nonlocal sent
        conn.sendall(b"\x00\x00\x00\x14ftypisom" + b"x" * 8000)
        while True:
            conn.sendall(b"x" * 65_536)
            sent += 65_536

    server.data["RETR"] = video
    with pytest.raises(Unfit) as error:
        Download("/a.mp4", "a.mp4").run(server.session())
    assert error.value.harmless and sent < 32 << 20


def test_a_path_cannot_carry_a_command(server: HostileServer) -> None:
    session = server.session()
    for path in ("/a\r\nDELE /b", "/a\nDELE /b", "/\rx"):
        with pytest.raises((FtpRefused, FtpLost, ValueError)):
            session.listing(path)
        with pytest.raises((FtpRefused, FtpLost, ValueError)):
            session.facts(path)
    assert not any(command.startswith(("DELE", "x")) for command in server.commands)


def test_a_password_is_sent_to_no_server_that_wants_no_tls(server: HostileServer) -> None:
    session = FtpSession(FtpAddress("127.0.0.1", server.port, "anna", "secret", timeout_s=60))
    with pytest.raises(ConfigurationError, match="--plain"):
        session.listing("/")
    assert not any(command.startswith(("USER", "PASS")) for command in server.commands)


def test_what_comes_before_tls_is_forgotten(server: HostileServer) -> None:
    # A man in the middle answers ahead of time; and there is no TLS after it.
    server.replies["AUTH"] = b"234 go\r\n230 you are in\r\n257 ok\r\n"
    session = FtpSession(FtpAddress("127.0.0.1", server.port, "anna", "secret", timeout_s=1))
    with pytest.raises((FtpLost, ConfigurationError)):
        session.listing("/")
    assert not any(command.startswith(("USER", "PASS")) for command in server.commands)


def test_abort_ends_what_another_thread_waits_for(server: HostileServer) -> None:
    asked = threading.Event()

    def say_nothing(conn: socket.socket) -> None:
        asked.set()
        time.sleep(90)

    def abort() -> None:
        asked.wait(60)
        session.abort()

    server.data["MLSD"] = say_nothing
    session = server.session(timeout_s=60)
    threading.Thread(target=abort, daemon=True).start()
    begun = time.monotonic()
    with pytest.raises(FtpLost):
        session.listing("/")
    assert time.monotonic() - begun < 30
    with pytest.raises(FtpLost):
        session.listing("/")


@pytest.mark.parametrize("step", ["connect", "ntransfercmd"])
def test_abort_ends_what_is_just_being_opened(server: HostileServer, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """It comes when there is a connection that the session does not have yet."""
    server.data["MLSD"] = lambda conn: time.sleep(90)
    session = server.session(timeout_s=60)
    real = getattr(ftplib.FTP, step)

    def opened(ftp: ftplib.FTP, *arguments: object, **options: object) -> object:
        made = real(ftp, *arguments, **options)
        session.abort()
        return made

    monkeypatch.setattr(ftplib.FTP, step, opened)
    with pytest.raises(FtpLost, match="broken off"):
        session.listing("/")
