"""An FTP server (pyftpdlib) as a program: serves until it is killed. Imports little, so that it is up at once.

Its faults are those of real servers, asked for by name: `no_mlsd`, `no_list`, `no_size`, `no_rest`: it lacks those commands.
`truncate`: bytes after which it says that a file is over. `corrupt`, `corrupt_once`: a bit of what it sends is another.
`ignores_rest`: it begins at the beginning all the same. `sha256`: it can compute hashes. `kill_at`: bytes of a transfer after
which the process ends itself. `drop_at`: bytes after which a transfer breaks off. `slow`: bytes a read, with a pause.
`max_cons_per_ip`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
USER, PASSWORD = "anna", "geheim-ä"


def serve(options: dict[str, Any]) -> None:
    from pyftpdlib.authorizers import DummyAuthorizer  # type: ignore[import-untyped]
    from pyftpdlib.filesystems import AbstractedFS  # type: ignore[import-untyped]
    from pyftpdlib.handlers import DTPHandler, FTPHandler, TLS_DTPHandler, TLS_FTPHandler  # type: ignore[import-untyped]
    from pyftpdlib.servers import FTPServer  # type: ignore[import-untyped]

    faults, marks = options["faults"], Path(options["marks"])
    commands = (marks / "commands").open("a", buffering=1)

    class Faulty:
        """A file as it is read for a transfer."""

        def __init__(self, stream: Any, path: str) -> None:
            self._stream, self._left = stream, None
            self.name, self.closed = stream.name, False
            self._large = Path(path).stat().st_size > 10_000
            if "truncate" in faults:
                self._left = faults["truncate"]
            self._count = 0

        def read(self, size: int) -> bytes:
            size = min(size, faults.get("slow", size))
            if self._left is not None:
                size = min(size, self._left)
                self._left -= size
            data: bytes = self._stream.read(size)
            if faults.get("slow"):
                time.sleep(0.01)
            once = marks / "corrupted"
            if data and ("corrupt" in faults or ("corrupt_once" in faults and not once.exists())):
                once.touch()
                data = data[:-1] + bytes([data[-1] ^ 1])
            self._count += len(data)
            if self._large and self._count > faults.get("kill_at", 1 << 62):
                os.kill(os.getpid(), signal.SIGKILL)
            if self._large and self._count > faults.get("drop_at", 1 << 62):
                raise OSError("the disk")
            return data

        def seek(self, *place: int) -> int:
            return 0 if "ignores_rest" in faults else int(self._stream.seek(*place))

        def close(self) -> None:
            self.closed = True
            self._stream.close()

    class Files(AbstractedFS):  # type: ignore[misc]
        def open(self, filename: str, mode: str) -> Any:
            return Faulty(super().open(filename, mode), filename)

    class Handler(TLS_FTPHandler if options["certificate"] else FTPHandler):  # type: ignore[misc]
        certfile = options["certificate"]
        tls_control_required = tls_data_required = True
        dtp_handler = TLS_DTPHandler if options["certificate"] else DTPHandler
        abstracted_fs = Files
        banner = "ready"
        use_sendfile = False

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if "sha256" in faults and self.connected:
                self._extra_feats.append("XSHA256")

        def pre_process_command(self, line: str, cmd: str, arg: str) -> None:
            if cmd != "PASS":
                commands.write(f"{cmd} {arg}\n")
            super().pre_process_command(line, cmd, arg)

        def ftp_XSHA256(self, path: str) -> None:  # noqa: N802
            self.respond(f"250 {sha256(Path(path).read_bytes()).hexdigest().upper()}")

    Handler.proto_cmds = dict(Handler.proto_cmds)
    lost = {"no_mlsd": ("MLSD", "MLST"), "no_list": ("LIST",), "no_rest": ("REST",), "no_size": ("SIZE", "MDTM")}
    for fault, gone in lost.items():
        for command in gone if fault in faults else ():
            del Handler.proto_cmds[command]
    if "sha256" in faults:
        Handler.proto_cmds["XSHA256"] = {"perm": "l", "auth": True, "arg": True, "help": "Syntax: XSHA256 <SP> path"}
    Handler.authorizer = DummyAuthorizer()
    Handler.authorizer.add_user(USER, PASSWORD, options["root"], perm="elr")
    server = FTPServer((HOST, options["port"]), Handler)
    server.max_cons_per_ip = faults.get("max_cons_per_ip", 0)
    print("ready", flush=True)
    server.serve_forever(handle_exit=False)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
