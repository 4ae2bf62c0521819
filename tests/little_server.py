"""A server that starts at once and answers next to nothing, as a program: what starts, waits for and ends servers is tried on it.

    python tests/little_server.py PORT [WORD ...]

It dies of the first completion. `family`: starts a child, and a grandchild in a session of its own whose parent ends, and says
their process ids. `stubborn`: does not end when it is asked to. `mute`: never answers. `broken`: leaves at once. `tells`: says
what is in the variable SERVER_KEY. `chatty`: never stops talking.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

SLEEP = "import time; time.sleep(600)"
ORPHAN = f"""import subprocess, sys
print('grandchild', subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True).pid)"""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": "little"}]}).encode()
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        print("asked for a completion, which is too much", flush=True)
        os._exit(7)


def talk() -> None:
    while True:
        print("and another thing", flush=True)


def main() -> None:
    port, *words = sys.argv[1:]
    print("starting", *words, flush=True)
    if "tells" in words:
        print(f"my key is {os.environ.get('SERVER_KEY')}.", flush=True)
    if "broken" in words:
        print("cannot find the weights", flush=True)
        sys.exit(3)
    if "stubborn" in words:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "family" in words:
        print("child", subprocess.Popen([sys.executable, "-c", SLEEP]).pid, flush=True)
        subprocess.run([sys.executable, "-c", ORPHAN], check=True)
    if "chatty" in words:
        threading.Thread(target=talk, daemon=True).start()
    if "mute" in words:
        time.sleep(600)
    server = HTTPServer(("127.0.0.1", int(port)), Handler)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
