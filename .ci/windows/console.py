#!/usr/bin/env python3
"""Ctrl-C on a real console, under a Python for Windows.

    console.py 3.13

Wine makes a Windows console of a pseudo-terminal; the keys are pressed here when a server of ours
has been asked, or when the screen shows what is waited for.  Prints "ok" or "FAIL" for each case,
and at last "N passed, N failed, 0 skipped".
"""
import fcntl
import functools
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import termios
import textwrap
import threading
import time

import wine_python

AT_ONCE = 5  # seconds, on a busy machine; what would end these waits otherwise takes 60 s or more
CTRL_C = b"\x03"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
WORD = b'data: {"choices": [{"index": 0, "delta": {"content": "Hello"}}]}\n\n'
BUSY = b"HTTP/1.1 503 Busy\r\nRetry-After: 60\r\nContent-Length: 0\r\n\r\n"
COMMAND = ["-m", "streamlite", "--base-url", "URL", "-m", "m"]
PROGRAM = """
import asyncio, sys, streamlite

async def main():
    async with streamlite.AsyncOpenAI(base_url=sys.argv[1], api_key="any", max_retries=0) as client:
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        async for chunk in stream:
            print(chunk.choices[0].delta.content, flush=True)

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""

# Each case: its name; what the server answers to each request before it falls silent; the
# arguments; what is waited for (None: the server has answered) and the keys that are pressed then;
# the exit code (None: any).
CASES = [
    ("a server that says nothing", b"", COMMAND + ["--retries", "0", "hi"], [(None, CTRL_C)], 130),
    ("a retry's wait", BUSY, COMMAND + ["hi"], [(None, CTRL_C)], 130),
    ("a stream that has begun", STREAM + WORD, COMMAND + ["--retries", "0", "hi"],
     [("Hello", CTRL_C)], 130),
    ("an answer in a chat, which goes on", STREAM + WORD, COMMAND + ["--retries", "0", "--chat"],
     [(">", b"hi\r"), ("Hello", CTRL_C), (">", b"/exit\r")], None),
    ("asyncio.run", STREAM + WORD, ["program.py", "URL"], [("Hello", CTRL_C)], 130),
]


class Console:
    """python.exe on a console of its own."""

    def __init__(self, minor, arguments, folder):
        line = wine_python.command(minor) + arguments
        environment = dict(wine_python.environment(), TERM="xterm")
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(folder)
                os.execvpe(line[0], line, environment)
            finally:
                os._exit(127)
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.shown, self.seen, self.code = b"", 0, None

    def text(self):
        """What was shown, without colours and cursor movements."""
        plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07", b"", self.shown)
        return plain.decode("utf-8", "replace")

    def look(self):
        """Read what is there, for a moment; see whether the process has ended."""
        if select.select([self.terminal], [], [], 0.02)[0]:
            try:
                self.shown += os.read(self.terminal, 65536)
            except OSError:  # the other side is closed
                time.sleep(0.02)
        if self.code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)

    def until(self, condition, seconds):
        """Whether `condition` comes to hold."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            if condition():
                return True
            if self.code is not None:
                break
        self.look()
        return bool(condition())

    def shows(self, text):
        """Whether the screen ends with it now, behind what was seen before."""
        shown = self.text().rstrip()
        if len(shown) <= self.seen or not shown.endswith(text):
            return False
        self.seen = len(shown)
        return True

    def press(self, keys):
        os.write(self.terminal, keys)

    def close(self):
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.terminal)


class Server:
    """Gives every connection the same answer, which may be none, and then says nothing more."""

    def __init__(self, answer):
        self.answer, self.answered, self.connections = answer, threading.Event(), []
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(5)
        self.url = "http://127.0.0.1:%d/v1" % self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
                self.connections.append(connection)
                request = b""
                while b'"messages"' not in request:
                    data = connection.recv(65536)
                    if not data:
                        break
                    request += data
                connection.sendall(self.answer)
            except OSError:
                return
            self.answered.set()

    def close(self):
        for sock in [self.listener] + self.connections:
            sock.close()


def attempt(minor, folder, answer, arguments, steps, code):
    """What is wrong ("" for nothing), the screen, and the seconds from the last keys to the end."""
    server = Server(answer)
    arguments = [server.url if argument == "URL" else argument for argument in arguments]
    console = Console(minor, arguments, folder)
    pressed = time.monotonic()
    try:
        for text, keys in steps:
            wanted = functools.partial(console.shows, text) if text else server.answered.is_set
            if not console.until(wanted, 60):
                return "it never came to %r" % (text or "its request"), console.text(), 0
            # The keys are to meet a wait that has begun, not the last steps to it.
            console.until(lambda: False, 0.5)
            console.press(keys)
            pressed = time.monotonic()
        if not console.until(lambda: console.code is not None, AT_ONCE):
            return "it was still running %d s after the last keys" % AT_ONCE, console.text(), 0
        seconds = time.monotonic() - pressed
        if code is not None and console.code != code:
            return "the exit code was %d" % console.code, console.text(), seconds
        return "Traceback" if "Traceback" in console.text() else "", console.text(), seconds
    finally:
        console.close()
        server.close()


def main(minor):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
    try:
        minor = wine_python.build(minor)
    except wine_python.Unavailable as reason:
        print("SKIPPED Windows Python %s: %s" % (minor, reason))
        print("0 passed, 0 failed, 1 skipped")
        sys.exit(0)
    failed = 0
    project = pathlib.Path(__file__).resolve().parent.parent.parent
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(str(project / "streamlite.py"), folder)
        pathlib.Path(folder, "program.py").write_text(PROGRAM)
        for name, *case in CASES:
            wrong, screen, seconds = attempt(minor, folder, *case)
            if wrong:
                failed += 1
                print("FAIL Ctrl-C: %s: %s" % (name, wrong))
                print(textwrap.indent(screen.strip(), "    "), flush=True)
            else:
                print("ok   Ctrl-C: %s (%.2f s)" % (name, seconds), flush=True)
    print("%d passed, %d failed, 0 skipped" % (len(CASES) - failed, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
