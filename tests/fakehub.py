"""A hub of one's own on 127.0.0.1: enough of huggingface.co's answers to download a model."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(models):
    """Serve {id: folder}; yields the address, the list of file paths fetched, and a stop()."""
    fetched, down = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.answer(body=True)

        def do_HEAD(self):
            self.answer(body=False)

        def answer(self, body):
            if down.is_set():  # a connection that was kept alive
                self.close_connection = True
                return None
            path = urlparse(self.path).path.strip("/")
            for name, folder in models.items():
                files = sorted(p for p in folder.rglob("*") if p.is_file())
                names = [p.relative_to(folder).as_posix() for p in files]
                if path.startswith(f"api/models/{name}/tree"):
                    entries = [
                        {"type": "file", "path": n, "size": p.stat().st_size, "oid": digest(p)}
                        for n, p in zip(names, files, strict=True)
                    ]
                    return self.reply(json.dumps(entries).encode(), body)
                if path.startswith(f"api/models/{name}"):
                    about = {
                        "id": name,
                        "sha": COMMIT,
                        "siblings": [{"rfilename": n} for n in names],
                    }
                    return self.reply(json.dumps(about).encode(), body)
                if path.startswith(f"{name}/resolve/"):
                    wanted = path.removeprefix(f"{name}/resolve/").partition("/")[2]
                    if wanted in names:
                        if body:
                            fetched.append(wanted)
                        file = folder / wanted
                        headers = {"ETag": f'"{digest(file)}"', "X-Repo-Commit": COMMIT}
                        return self.reply(file.read_bytes(), body, headers=headers)
                    return self.reply(b"", body, 404, {"X-Error-Code": "EntryNotFound"})
            return self.reply(b"", body, 404, {"X-Error-Code": "RepoNotFound"})

        def reply(self, content, body, status=200, headers=None):
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    def digest(path):
        return hashlib.sha1(path.read_bytes()).hexdigest()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def stop():
        down.set()
        server.shutdown()
        server.server_close()

    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched, stop
    finally:
        stop()
        thread.join()
