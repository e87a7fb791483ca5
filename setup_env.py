"""Make .venv, the one pinned environment of the demo, the tests and JupyterLab: `make setup`.

With --browser also what the tests in a real browser need: `make test-browser`.

It does nothing when nothing changed. A note inside .venv says what the environment was made from,
and reads "unfinished" while work goes on, so that the next run makes an interrupted set-up anew.
Packages come from wherever pip is set up to look (PIP_INDEX_URL and the like).
"""

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
NOTE = VENV / "tfkit-setup.txt"
SOURCES = ("pyproject.toml", "constraints.txt", "setup_env.py")
UNFINISHED = "unfinished"

OLDEST_PYTHON = (3, 11)  # the library runs on 3.10, but numpy's pin in constraints.txt does not
# No pip upgrade: the one that Python 3.11 brings does all we need, and it cannot change under us.
INSTALL = "-m pip install --no-input --disable-pip-version-check -c constraints.txt -e .[all]"
CHROMIUM = "apt-get install -y --no-install-recommends chromium fonts-dejavu-core"
# What breaks first where a wheel does not fit the machine; -I keeps the working folder out.
IMPORTS = (
    "import av, cv2, ipykernel, matplotlib, mediapy, numpy, pytest, sklearn, torch;"
    "from diffusers import StableDiffusionPipeline"
)


def version_error(version, executable):
    """What to tell the user of a Python too old, or None."""
    if tuple(version[:2]) >= OLDEST_PYTHON:
        return None
    wanted, found = (".".join(map(str, v)) for v in (OLDEST_PYTHON, version[:3]))
    return (
        f"tfkit's environment needs Python {wanted} or newer; {executable} is {found}.\n"
        "Name another one: make setup PYTHON=/path/to/python3"
    )


def fingerprint(root, version):
    """What an environment is made from: line 1 its place and Python, line 2 a hash of SOURCES."""
    contents = hashlib.sha256()
    for name in SOURCES:
        contents.update((root / name).read_bytes() + b"\0")
    return f"{root} python {version[0]}.{version[1]}\n{contents.hexdigest()}"


def plan(note, wanted, healthy):
    """'keep', 'update' or 'remake' the environment whose note (None: made by hand) this is."""
    if not healthy or note == UNFINISHED:
        return "remake"
    if note is None:
        return "update"
    if note.partition("\n")[0] != wanted.partition("\n")[0]:
        return "remake"  # moved, or of another Python: its scripts point into the void
    return "keep" if note == wanted else "update"


def explain(complaints):
    """The likely reason why pip failed, from what it wrote to stderr."""
    if re.search(r"ConnectionError|Connect(ion)? ?Timeout|Read ?Timeout|NameRes|Proxy", complaints):
        return (
            "pip could not reach its package index. Is there a network? Behind a proxy or with\n"
            "a mirror of your own, set HTTPS_PROXY or PIP_INDEX_URL. Then run it again."
        )
    if "No matching distribution" in complaints:
        return "The index has none for this Python. Another: make setup PYTHON=/path/to/python3"
    return "pip says why above."


def runs(version):
    """Whether .venv is an environment of this Python that starts and has a pip."""
    check = "import pip, sys; print(sys.prefix != sys.base_prefix, *sys.version_info[:2])"
    try:
        found = subprocess.run([PYTHON, "-c", check], capture_output=True, text=True).stdout
    except OSError:
        return False
    return found.split() == ["True", str(version[0]), str(version[1])]


def create():
    """A fresh .venv, marked unfinished from its first moment on."""
    if importlib.util.find_spec("ensurepip") is None:
        sys.exit(f"{sys.executable} cannot make environments; on Debian: apt install python3-venv")
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    elif VENV.exists():
        shutil.rmtree(VENV)
    VENV.mkdir()
    NOTE.write_text(UNFINISHED)
    venv.EnvBuilder(with_pip=True, symlinks=True).create(VENV)


def install(lock):
    """Let pip install what is missing; its return code and its complaints, printed as they come."""
    NOTE.write_text(UNFINISHED)
    # Should this script be killed, pip keeps the lock until it is gone too.
    options = {"cwd": ROOT, "stderr": subprocess.PIPE, "pass_fds": [lock.fileno()]}
    complaints = []
    with subprocess.Popen([PYTHON, *INSTALL.split()], errors="replace", **options) as pip:
        for line in pip.stderr:
            sys.stderr.write(line)
            complaints.append(line)
    return pip.returncode, "".join(complaints)


def add_browser():
    """Playwright in .venv, and Debian's chromium, where they are missing."""
    if subprocess.run([PYTHON, "-c", "import playwright"], capture_output=True).returncode:
        command = INSTALL.replace("[all]", "[browser]")
        if subprocess.run([PYTHON, *command.split()], cwd=ROOT).returncode:
            sys.exit("\nSet-up failed. pip says why above.")
    if shutil.which("chromium"):
        return
    if os.geteuid() or not shutil.which("apt-get"):
        sys.exit(f"The browser tests need chromium on the PATH. On Debian, as root:\n  {CHROMIUM}")
    for command in ("apt-get update", CHROMIUM):
        if subprocess.run(command.split()).returncode:
            sys.exit(f"\nSet-up failed: {command}")


def main():
    error = version_error(sys.version_info, sys.executable)
    if error:
        sys.exit(error)
    with open(__file__) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another set-up is at work here: waiting for it.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = fingerprint(ROOT, sys.version_info)
        note = NOTE.read_text() if NOTE.exists() else None
        healthy = os.access(PYTHON, os.X_OK) if note == wanted else runs(sys.version_info)
        todo = plan(note, wanted, healthy)
        if todo == "keep":
            return
        print(f"{'Making' if todo == 'remake' else 'Updating'} {VENV} (some minutes)", flush=True)
        if todo == "remake":
            create()
        failed, complaints = install(lock)
        if failed:
            if todo == "update":  # pip changes nothing before all is downloaded: it still works
                NOTE.write_text(note) if note else NOTE.unlink()
            sys.exit(f"\nSet-up failed. {explain(complaints)}")
        check = subprocess.run([PYTHON, "-I", "-c", IMPORTS], capture_output=True, text=True)
        if check.returncode:
            sys.exit(f"{check.stderr}\nSet-up failed: what was installed does not import.")
        NOTE.write_text(wanted)
        print("The environment is ready.", flush=True)


if __name__ == "__main__":
    try:
        main()
        if "--browser" in sys.argv[1:]:
            add_browser()
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The next run makes the environment anew.")
