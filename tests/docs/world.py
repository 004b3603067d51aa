"""What the guide's commands find around them: a checkout, photos, an FTP server, a former database, a service that was started by
the guide's own `kinlens up`. Nothing of it is faked; names of the guide stand for names here (`WORDS`)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import psutil
from PIL import Image

from serve_app.ports import free_port
from tests.data import package_image
from tests.docs.blocks import Block
from tests.docs.elsewhere import Fails, NotRun, Serves
from tests.storage.ftp_program import PASSWORD
from tests.storage.ftp_server import FtpServer

ROOT = Path(__file__).resolve().parents[2]
_COMMAND_S = 240
_READY_S = 240
_MARK = "==== ended"

WORDS: dict[str, str] = {
    "http://127.0.0.1:8000": "http://127.0.0.1:{port}",
    # The database of somebody's own: a second one in the embedded server.
    "postgresql://kinlens:PASSWORD@db.example.org:5432/kinlens": "{database_url}",
    # The certificate of an example's server is vouched for by an authority; here by itself. And its port is not 21.
    "nas.example.org": "127.0.0.1 --port {ftp_port} --ca-file server.pem",
    "KINLENS_FTP_PASSWORD=...": f"KINLENS_FTP_PASSWORD={PASSWORD}",
    "/srv/photos": "{folder}/srv/photos",
    "/tmp/try": "{folder}/try",
    "~/.local/share/kinlens": "{data}",
    "01a2...": "'$PERSON'",
    "5bf321f561cc": '$(curl -H "Authorization: Bearer $API_KEY" $KINLENS/api/v1/keys |'
    " tr '}' '\\n' | grep Reception | grep -o '[0-9a-f]\\{12\\}' | head -n 1)",
    # It says what it would install; the environment these tests run in stays as it is.
    "uv sync": "uv sync --dry-run",
    # The default pack's model comes with Kinlens; others do not. Nothing is left to embed then.
    "--pack buffalo_l": "--pack opencv",
}
"""What the guide writes: what is put in its place. The names in braces are fields of World."""


def _tiny(picture: bytes) -> bytes:
    """Too small to recognise anybody by."""
    with Image.open(BytesIO(picture)) as opened:
        return _png(opened.convert("RGB").resize((48, 48)))


def _cut(picture: bytes, left: int, top: int) -> bytes:
    """220 pixels square."""
    with Image.open(BytesIO(picture)) as opened:
        return _png(opened.crop((left, top, left + 220, top + 220)))


def _png(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@dataclass
class World:
    folder: Path
    port: int = field(default_factory=free_port)
    ftp: FtpServer | None = None
    service: subprocess.Popen[bytes] | None = None
    log: Path = Path("/nonexistent")

    # --- what there is -------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        self._checkout()
        portrait, group = package_image("Tom_Hanks_54745.png"), package_image("t1.jpg")
        # Six persons are in it.
        one, two, three, four, five = (
            _cut(group, left, top) for left, top in ((410, 230), (850, 20), (690, 300), (210, 100), (10, 220))
        )
        for name, data in {
            "photos/tom/1.png": portrait, "photos/tim/1.png": _tiny(portrait), "srv/photos/2020/a.jpg": group,
            "ftp/photos/b.jpg": group, "ftp/photos/notes.txt": b"no picture" * 100,
            "anna.jpg": one, "bob.jpg": two, "photo.jpg": group, "group.jpg": group, "typical.jpg": group,
            "IMG_2041.HEIC": one, "IMG_2042.JPG": two, "IMG_2043.CR3": b"raw" * 100, "a.jpg": three, "me.jpg": one,
            "one.jpg": one, "two.jpg": two, "three.jpg": three, "anna1.jpg": portrait, "anna2.jpg": one, "anna3.jpg": four,
            "anna4.jpg": five, "anna/1.jpg": three, "bob/1.jpg": two,
        }.items():  # fmt: skip
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        with sqlite3.connect(self.folder / "former.db") as database:
            database.execute("CREATE TABLE photos (id INTEGER PRIMARY KEY, file_path TEXT, tags TEXT)")
            database.execute("INSERT INTO photos VALUES (1, '/data/photos/2020/a.jpg', 'holiday,2020')")
        database.close()
        self.ftp = FtpServer(self.folder / "ftp", self.folder).start()

    def _checkout(self) -> None:
        """The files that commands of the guide read, with a remote to pull from. serve_config.yaml listens on a free port."""
        for name in ("config", "deploy", "docs", "deployments", "serve_app", "benchmarks"):
            if (ROOT / name).exists():
                (self.folder / name).symlink_to(ROOT / name)
        for name in ("pyproject.toml", "uv.lock", "README.md", "LICENSE", "compose.yaml", "Dockerfile"):
            shutil.copy(ROOT / name, self.folder)
        config = (ROOT / "serve_config.yaml").read_text(encoding="utf-8")
        changed = re.sub(r"^(  port:) 8000\b", rf"\1 {self.port}", config, flags=re.MULTILINE)
        assert changed != config
        (self.folder / "serve_config.yaml").write_text(changed, encoding="utf-8")
        git = "git -c user.name=guide -c user.email=guide@example.org -c init.defaultBranch=main"
        done = self.bash(
            f"{git} init --quiet && {git} add serve_config.yaml && {git} commit --quiet -m one && git tag v0.1.0 &&"
            " git clone --quiet --bare . origin.git && git remote add origin ./origin.git && git fetch --quiet origin &&"
            " git branch --quiet --set-upstream-to=origin/main"
        )
        assert done.returncode == 0, done.stdout

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def ftp_port(self) -> int:
        assert self.ftp is not None
        return self.ftp.port

    @property
    def database_url(self) -> str:
        """Of an empty database beside Kinlens' own."""
        postgres = self.data / "postgres"
        port = json.loads((postgres / "address").read_text())["port"]
        server = f"postgresql://postgres:{(postgres / 'password').read_text().strip()}@127.0.0.1:{port}"
        name = f"own_{time.monotonic_ns()}"
        self.python(f"import asyncio, asyncpg\nasync def main():\n c = await asyncpg.connect({server + '/postgres'!r})\n"
                    f" await c.execute('CREATE DATABASE {name}')\n await c.close()\nasyncio.run(main())")  # fmt: skip
        return f"{server}/{name}"

    def environment(self) -> dict[str, str]:
        """Kinlens on its defaults, but for where it keeps its state and its port. No setting of whoever runs the tests."""
        home = Path.home()
        found = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "COLUMNS": "200",
            "DATA_DIR": str(self.data),
            "PORT": str(self.port),
            "KINLENS": f"http://127.0.0.1:{self.port}",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
            "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(home / ".cache/uv")),
            "UV_PROJECT_ENVIRONMENT": sys.prefix,
            "PYENV_ROOT": os.environ.get("PYENV_ROOT", str(home / ".pyenv")),
        }
        kept = ("TMPDIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "PIP_INDEX_URL")
        found |= {name: os.environ[name] for name in kept if name in os.environ}
        key = self.data / "api_key"
        if key.exists():
            found["API_KEY"] = key.read_text().strip()
        return found

    # --- running -------------------------------------------------------------------------------------------------------

    def here(self, command: str) -> str:
        """With the words of the guide replaced."""
        for written, meant in WORDS.items():
            if written in command:
                for name in re.findall(r"{(\w+)}", meant):
                    meant = meant.replace(f"{{{name}}}", str(getattr(self, name)))
                command = command.replace(written, meant)
        return command

    def bash(self, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-uo", "pipefail", "-c", script]
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment() | environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=_COMMAND_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            raise AssertionError(f"not done after {_COMMAND_S} s: {script}\n{output}") from None
        return subprocess.CompletedProcess(command, process.returncode, output)

    def python(self, program: str) -> None:
        subprocess.run([sys.executable, "-c", program], check=True, timeout=_COMMAND_S)

    def run(self, blocks: Sequence[Block], special: Mapping[str, NotRun | Fails | Serves]) -> dict[str, str]:
        """One shell for all of `blocks`; the output of each command by its key. `special`: of commands that are not
        simply run, by their key, or by `HEADING: KEY` where it is there twice.
        Fails with the output of the commands that ended otherwise than they should. An answer of 400 and above is an error of
        curl's."""
        script, wanted = ['curl() { command curl --fail-with-body --silent --show-error "$@"; }'], []
        for block in blocks:
            for command in block.commands:
                how = special.get(f"{block.heading}: {command.key}", special.get(command.key))
                if isinstance(how, NotRun):
                    how.check(self, command.key)
                    continue
                fails = how if isinstance(how, Fails) else None
                wanted.append((f"{block}: {command.key}", command.key, fails))
                # An instance that must not come up would be told that the port is in use.
                prefix = f"export PORT={free_port()}; " if fails and command.key.startswith("kinlens up") else ""
                script.append(f"{prefix}{self.here(command.text)}\nprintf '\\n{_MARK} %d\\n' $?")
        if not wanted:
            return {}
        done = self.bash("\n".join(script))
        parts = re.split(rf"^{_MARK} (\d+)$", done.stdout, flags=re.MULTILINE)
        outputs, wrong = {}, []
        for number, (name, key, fails) in enumerate(wanted):
            if 2 * number + 1 >= len(parts):
                wrong.append(f"{name}: the shell ended:\n{parts[-1]}")
                break
            outputs[key], code = parts[2 * number], int(parts[2 * number + 1])
            if code != (fails.code if fails else 0):
                wrong.append(f"{name}: exit code {code}:\n{outputs[key]}")
            elif fails and fails.says not in outputs[key]:
                wrong.append(f"{name}: does not say {fails.says!r}:\n{outputs[key]}")
        assert not wrong, "\n".join(wrong)
        return outputs

    # --- the service ---------------------------------------------------------------------------------------------------

    def start(self, command: str, says: str) -> None:
        """`command` serves until it is stopped. Returns when it has said `says` and answers."""
        assert self.service is None
        self.log = self.folder / f"service-{time.monotonic_ns()}.log"
        with self.log.open("wb") as stream:
            self.service = subprocess.Popen(
                ["bash", "-c", f"{self.here(command)}"],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + _READY_S
        while (
            says not in self.log.read_text(errors="replace")
            or self.bash(f"curl -fs http://127.0.0.1:{self.port}/api/v1/ready").returncode
        ):
            alive = self.service.poll() is None
            assert alive and time.monotonic() < deadline, f"{command}: not ready:\n{self.log.read_text()[-4000:]}"
            time.sleep(0.5)

    def stop(self) -> None:
        """As Ctrl-C does, which all processes of a terminal get; what is left after two minutes is ended."""
        if self.service is None:
            return
        popen, self.service = self.service, None
        process = psutil.Process(popen.pid)
        family = [process, *process.children(recursive=True)]
        for one in family:
            # One may end meanwhile.
            with suppress(psutil.NoSuchProcess):
                if any(word in {"up", "run"} for word in one.cmdline()):
                    one.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(family, timeout=120)
        for left in alive:
            left.kill()
        popen.wait(10)

    def close(self) -> None:
        self.stop()
        if self.ftp is not None:
            self.ftp.kill()
