#!/usr/bin/env python3
"""Measure streamlite beside its peers: one machine, one run, loopback only.

    python3 .ci/bench.py [--quick] [--beside PATH] [section...]

The peers of bench-requirements.txt are installed into .ci/.bench-venv. A server of our own runs in
its own process, each client in another. All clients take their turn in every round, so that a busy
moment of the machine hits each of them, and a ratio is the median of the rounds' ratios. With
`--beside` another copy of streamlite.py, an earlier version, is measured as one more client. The
tables are Markdown. CPU is user and system time as the kernel counts it: trust it more than wall
time on a machine that does other things too. Needs Linux, Python 3.10 or newer, curl, OpenSSL 3.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import resource
import shutil
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(HERE, ".bench-venv")
PYTHON = os.path.join(VENV, "bin", "python")
REQUIREMENTS = os.path.join(HERE, "bench-requirements.txt")
ROUND_TRIP = 0.050


# ---- The streams ---------------------------------------------------------------------------------
#
# A path says what is streamed: /KIND/FRAMING/COUNT/MILLISECONDS/v1/chat/completions, COUNT tokens
# of one KIND, the given time apart. FRAMING is "chunked", "written" (chunked, one write per event)
# or "close" (the end of the connection).

WIDTH = {"text": 5, "tools": 4, "kilobyte": 1024}  # characters of one token
CHUNK = (
    '{"id":"chatcmpl-CfW3nJxqPzT6yKd8RgV1bQmS","object":"chat.completion.chunk",'
    '"created":1764000000,"model":"bench","service_tier":"default",'
    '"system_fingerprint":"fp_b1e6a2c904","choices":[{"index":0,"delta":%s,"logprobs":null,'
    '"finish_reason":%s}],"usage":null}'
)


def tokens(kind, count):
    """The JSON texts of `count` tokens, a thousand of them different."""
    delta = '{"content":"%s"}'
    if kind == "tools":
        delta = '{"tool_calls":[{"index":0,"function":{"arguments":"%s"}}]}'
    words = (str(number).rjust(WIDTH[kind], "x") for number in range(min(count, 1000)))
    block = [CHUNK % (delta % word, "null") for word in words]
    return itertools.islice(itertools.cycle(block), count)


def framed(text, framing):
    event = b"data: %b\n\n" % text.encode()
    return event if framing == "close" else b"%x\r\n%b\r\n" % (len(event), event)


async def reply(writer, connection, kind, framing, count, pause):
    start = '{"role":"assistant","content":""}'
    if kind == "tools":
        call = '{"index":0,"id":"call_1","type":"function","function":{"name":"f","arguments":""}}'
        start = '{"role":"assistant","content":null,"tool_calls":[%s]}' % call
    coding = b"Connection: close" if framing == "close" else b"Transfer-Encoding: chunked"
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%b\r\n\r\n" % coding)
    writer.write(framed(CHUNK % (start, "null"), framing))
    if kind == "clock":
        # Each token tells its connection's number and when it was sent, by the machine's clock.
        token = framed(CHUNK % ('{"content":"%06d @@@@@@@@@@@@@@"}' % connection, "null"), framing)
        for _ in range(count):
            await asyncio.sleep(pause)
            writer.write(token.replace(b"@@@@@@@@@@@@@@", b"%014.6f" % time.monotonic()))
    elif framing == "written":
        for text in tokens(kind, count):
            writer.write(framed(text, framing))
            await writer.drain()
    else:
        block = [framed(text, framing) for text in tokens(kind, min(count, 1000))]
        for sent in range(0, count, 1000):
            writer.write(b"".join(block[: count - sent]))
            await writer.drain()
    reason = '"tool_calls"' if kind == "tools" else '"stop"'
    end = framed(CHUNK % ("{}", reason), framing) + framed("[DONE]", framing)
    writer.write(end if framing == "close" else end + b"0\r\n\r\n")
    await writer.drain()


async def serve(certificate, key):
    """Serve in four ways, each at a port of its own, until standard input ends."""
    numbers = itertools.count(1)

    async def connected(reader, writer):
        connection = next(numbers)
        gone = ConnectionError, asyncio.IncompleteReadError
        with contextlib.suppress(*gone), contextlib.closing(writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head).group(1)
                await reader.readexactly(int(length))
                kind, framing, count, milliseconds = head.split()[1].decode().split("/")[1:5]
                await reply(writer, connection, kind, framing, int(count), int(milliseconds) / 1000)
                if framing == "close":
                    return

    def distant(port):
        """A relay that passes on half a round trip later; to connect costs a whole one."""

        async def relay(reader, writer):
            with contextlib.suppress(ConnectionError):
                opened = asyncio.get_running_loop().time()
                behind, ahead = await asyncio.open_connection("127.0.0.1", port)
                there, back = pump(reader, ahead, opened + ROUND_TRIP), pump(behind, writer, opened)
                await asyncio.gather(there, back)

        async def pump(reader, writer, earliest):
            loop, due, data = asyncio.get_running_loop(), 0.0, b"-"
            while data:
                data = await reader.read(65536)
                due = max(due + 1e-6, max(loop.time(), earliest) + ROUND_TRIP / 2)
                loop.call_at(due, *([writer.write, data] if data else [writer.close]))

        return relay

    async def listen(handler, context=None):
        server = await asyncio.start_server(handler, "127.0.0.1", ssl=context, backlog=2048)
        return server.sockets[0].getsockname()[1]

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    http, https = await listen(connected), await listen(connected, context)
    urls = {"http": "http://127.0.0.1:%d" % http, "https": "https://127.0.0.1:%d" % https}
    for scheme, port in ("http", http), ("https", https):
        urls[scheme + " far"] = "%s://127.0.0.1:%d" % (scheme, await listen(distant(port)))
    print(json.dumps(urls), flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, ended.set)
    await ended.wait()
    os._exit(0)  # open connections are no matter here


# ---- The clients, as their users write them ------------------------------------------------------
#
# A program is run with URL and BODY set. Its deltas() makes a request and yields each chunk's
# delta; joined(), where a program has that instead, returns the whole text.

SDK = """
from {module} import OpenAI
client = OpenAI(base_url=URL, api_key="sk-bench")
def deltas():
    with client.chat.completions.create(**BODY) as stream:
        for chunk in stream:
            yield chunk.choices[0].delta
        {after}
"""
ASYNC_SDK = """
from {module} import AsyncOpenAI
client = AsyncOpenAI(base_url=URL, api_key="sk-bench")
async def deltas():
    async with await client.chat.completions.create(**BODY) as stream:
        async for chunk in stream:
            yield chunk.choices[0].delta
        {after}
"""
WHOLE = """
from streamlite import OpenAI
client = OpenAI(base_url=URL, api_key="sk-bench")
def joined():
    with client.chat.completions.create(**BODY) as stream:
        return {whole}
"""
CLIENTS = {
    "streamlite": SDK.format(module="streamlite", after="stream.completion"),
    "streamlite async": ASYNC_SDK.format(module="streamlite", after="stream.completion"),
    "streamlite text()": WHOLE.format(whole='"".join(stream.text())'),
    "streamlite collect()": WHOLE.format(whole="stream.collect().choices[0].message.content"),
    "openai": SDK.format(module="openai", after=""),
    "openai async": ASYNC_SDK.format(module="openai", after=""),
    "httpx + httpx-sse": """
import json, httpx, httpx_sse
client = httpx.Client(timeout=60)
def deltas():
    with httpx_sse.connect_sse(client, "POST", URL + "/chat/completions", json=BODY) as source:
        for event in source.iter_sse():
            if event.data != "[DONE]":
                yield json.loads(event.data)["choices"][0]["delta"]
""",
    "requests + sseclient": """
import json, requests, sseclient
session = requests.Session()
def deltas():
    with session.post(URL + "/chat/completions", json=BODY, stream=True) as response:
        for event in sseclient.SSEClient(response.iter_content(None)).events():
            if event.data != "[DONE]":
                yield json.loads(event.data)["choices"][0]["delta"]
""",
    "aiohttp": """
import json, aiohttp
session = None
async def deltas():
    global session
    session = session or aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    async with session.post(URL + "/chat/completions", json=BODY) as response:
        async for line in response.content:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])["choices"][0]["delta"]
""",
    "naive urllib": """
import json, urllib.request
def deltas():
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(URL + "/chat/completions", json.dumps(BODY).encode(), headers)
    with urllib.request.urlopen(request) as response:
        for line in response:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])["choices"][0]["delta"]
""",
    # Floors: what nobody would use, but no client can be cheaper than.
    "raw socket": r"""
import re, socket
host, port, path = re.match(r"http://(.*?):(\d+)(/.*)", URL).groups()
def deltas():
    with socket.create_connection((host, int(port))) as connection:
        start = "POST %s/chat/completions HTTP/1.1\r\nContent-Length: 0\r\n\r\n" % path
        connection.sendall(start.encode())
        received = b""
        while b"[DONE]" not in received:
            received = connection.recv(65536)
            for text in re.findall(b'"content":"([^"]*)"', received):
                yield {"content": text.decode()}
""",
    "json.loads": """
import json
def parse(texts):
    for text in texts:
        json.loads(text)
""",
    # Parsers alone: reads of a response's body to events.
    "streamlite SSEDecoder": """
import streamlite
def parse(reads):
    decoder = streamlite.SSEDecoder()
    return sum(len(decoder.feed(data)) for data in reads)
""",
    "openai SSEDecoder": """
import openai._streaming
def parse(reads):
    return sum(1 for event in openai._streaming.SSEDecoder().iter_bytes(iter(reads)))
""",
}
CA_VARIABLES = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
PEERS = ["httpx + httpx-sse", "requests + sseclient", "aiohttp", "naive urllib"]
EVERYONE = ["streamlite", "streamlite async", "openai", "openai async"] + PEERS
ANOTHER = re.compile(r"streamlite [0-9]\S*")  # another copy, by its version
BODY = {"model": "bench", "messages": [{"role": "user", "content": "Hello"}], "stream": True}


def reader(kind, plain):
    """How a user reads a delta's text: from an object with attributes, or from a plain dict."""
    if kind == "tools" and plain:
        name = "tool_calls"
        return lambda delta: delta[name][0]["function"]["arguments"] if name in delta else None
    if kind == "tools":
        return lambda delta: delta.tool_calls[0].function.arguments if delta.tool_calls else None
    return (lambda delta: delta.get("content")) if plain else (lambda delta: delta.content)


# ---- A client's process --------------------------------------------------------------------------


class Worker:
    """Runs one client's program, in a process of its own. Each public method is a measurement."""

    def __init__(self, client):
        self._program = compile(CLIENTS[ANOTHER.sub("streamlite", client)], client, "exec")
        self._plain = not client.startswith(("streamlite", "openai"))
        self._loop = asyncio.new_event_loop()
        self._spaces = []  # the programs' namespaces: none is thrown away while the clock runs

    def _new(self, url):
        self._spaces.append({"URL": url, "BODY": BODY})
        exec(self._program, self._spaces[-1])
        return self._spaces[-1]

    def _known(self, url):
        known = [space for space in self._spaces if space["URL"] == url]
        return known[0] if known else self._new(url)

    def _each(self, space, take, kind="text"):
        """Call `take` with the text of every delta."""
        read, deltas = reader(kind, self._plain), space["deltas"]()
        if not hasattr(deltas, "__aiter__"):
            for delta in deltas:
                take(read(delta))
            return

        async def run():
            async for delta in deltas:
                take(read(delta))

        self._loop.run_until_complete(run())

    def burst(self, url, kind, count):
        """A stream as fast as it comes, its text joined: CPU in microseconds per chunk."""
        space, texts, pieces = self._known(url), list(tokens(kind, count)), []
        started = time.process_time()
        if "parse" in space:
            space["parse"](texts)
        elif "joined" in space:
            text = space["joined"]()
        else:
            self._each(space, pieces.append, kind)
            text = "".join(piece for piece in pieces if piece)
        cpu = time.process_time() - started
        assert "parse" in space or len(text) == count * WIDTH[kind], "%d characters" % len(text)
        return {"cpu": cpu / count * 1e6}

    def event(self, url, size):
        """One event of `size` bytes in reads of 1 KB: CPU in milliseconds."""
        body = b"data: " + b"x" * size + b"\n\n"
        reads = [body[start : start + 1024] for start in range(0, len(body), 1024)]
        parse, started = self._known(url)["parse"], time.process_time()
        events = parse(reads)
        assert events == 1, events
        return {"cpu": (time.process_time() - started) * 1e3}

    def first(self, url):
        """Milliseconds to the first token: a new client's first request, and its second."""
        answer, connections, space = {}, [], None
        for request in "first", "second":
            seen, started = [], time.perf_counter()
            space = space or self._new(url)
            self._each(space, lambda text: text and seen.append((time.perf_counter(), text)))
            answer[request] = (seen[0][0] - started) * 1e3
            connections.append(seen[0][1].split()[0])
        return dict(answer, new=int(connections[0] != connections[1]))

    def delay(self, url):
        """Microseconds from the server's write to the user's code."""
        delays = []

        def take(text):
            if text:
                delays.append(time.monotonic() - float(text.split()[1]))

        self._each(self._known(url), take)
        tenths = statistics.quantiles(delays[1:], n=10)
        return {"p50": tenths[4] * 1e6, "p90": tenths[8] * 1e6}

    def memory(self, url, count, keep):
        """How much the process grows over one stream, in MB."""
        sizes, kept, numbers = [], [], itertools.count()

        def take(text):
            if keep:
                kept.append(text)
            if next(numbers) % (count // 256) == 0:
                with open("/proc/self/statm") as file:
                    sizes.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)

        self._each(self._known(url), take)
        return {"start": sizes[0], "growth": max(sizes) - sizes[0]}

    def many(self, url, streams, count):
        """`streams` at once: how long, at what cost, and how late their tokens came (ms).

        A stall is how much later than asked for the loop came back to a task that sleeps (ms).
        """
        space, read = self._new(url), reader("text", self._plain)
        delays, failures, stalls = [], [], []

        async def one():
            seen = 0
            try:
                async for delta in space["deltas"]():
                    text = read(delta)
                    if text:
                        delays.append(time.monotonic() - float(text.split()[1]))
                        seen += 1
                assert seen == count, "%d tokens of %d" % (seen, count)
            except Exception as error:  # whatever it is: a failure to count
                failures.append(repr(error))

        async def tick():
            while True:
                started = time.monotonic()
                await asyncio.sleep(0.02)
                stalls.append(time.monotonic() - started - 0.02)

        async def all_at_once():
            ticker = asyncio.ensure_future(tick())
            await asyncio.gather(*[one() for _ in range(streams)])
            ticker.cancel()

        wall, cpu = time.perf_counter(), time.process_time()
        self._loop.run_until_complete(all_at_once())
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(*failures[:1], end="", file=sys.stderr)
        cuts = statistics.quantiles(delays, n=20)
        answer = {"wall": wall, "cpu": cpu, "failed": len(failures)}
        answer["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        answer.update(p50=cuts[9] * 1e3, p95=cuts[18] * 1e3, stall=max(stalls) * 1e3)
        return answer


def work(client):
    worker = Worker(client)
    for line in sys.stdin:
        question = json.loads(line)
        signal.alarm(300)  # whatever hangs is ended
        try:
            answer = getattr(worker, question.pop("task"))(**question)
        except Exception as error:  # told at the end; the other clients go on
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)
    os._exit(0)  # clients left open are no matter here


# A command's cost is taken by a process smaller than any of them: a child's peak memory begins at
# its parent's.
LAUNCHER = """
import os, sys, time
streams = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
           (os.POSIX_SPAWN_OPEN, 1, sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)]
for line in sys.stdin:
    command, more = eval(line)["command"]
    env = dict(os.environ, **more)
    started = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, env, file_actions=streams)
    _, status, usage = os.wait4(pid, 0)
    wall, cpu = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
    answer = wall * 1e3, cpu * 1e3, usage.ru_maxrss / 1000, os.path.getsize(sys.argv[1]), status
    print('{"wall": %r, "cpu": %r, "rss": %r, "printed": %d, "error": %d}' % answer, flush=True)
"""


# ---- Measuring -----------------------------------------------------------------------------------


class Child:
    """A process that answers a line of JSON with a line of JSON."""

    def __init__(self, command, env):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "universal_newlines": True}
        self._process = subprocess.Popen(command, env=env, **pipes)

    def answer(self):
        line = self._process.stdout.readline()
        if not line:
            return {"error": "the process ended with %d" % self._process.wait()}
        return json.loads(line)

    def ask(self, **question):
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(question), file=self._process.stdin, flush=True)
        return self.answer()

    def close(self):
        with self._process, contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


class Results(dict):
    """Each client's answers, round by round."""

    def median(self, client, key):
        return statistics.median(answer[key] for answer in self[client]) if client in self else None

    def ratio(self, client, other, key):
        if client not in self or other not in self:
            return None
        pairs = [(mine[key], theirs[key]) for mine, theirs in zip(self[client], self[other])]
        return statistics.median(mine / theirs if theirs else 1 for mine, theirs in pairs)


class Bench:
    """The server, the launcher, a process for each client asked so far; and the goals.

    beside: what another copy of the module is called, "streamlite" and its version; "" without one
    """

    def __init__(self, folder, quick, path=None):
        self.quick, self.goals, self._workers = quick, [], {}
        bundle, *certificate = make_certificates(folder)
        unwanted = re.compile("(?i)PYTHON|.*_PROXY$")
        self.env = {name: os.environ[name] for name in os.environ if not unwanted.match(name)}
        self.env.update(dict.fromkeys(CA_VARIABLES, bundle), PYTHONPATH=os.path.dirname(HERE))
        self.beside, self._beside_env = "", {}
        if path:
            copy = os.path.join(folder, "streamlite.py")
            shutil.copy(path, copy)
            with open(copy, encoding="utf-8") as file:
                version = re.search('(?m)^__version__ = "(.*)"', file.read()).group(1)
            self.beside, self._beside_env = "streamlite " + version, {"PYTHONPATH": folder}
        self._server = Child([sys.executable, __file__, "--serve", *certificate], self.env)
        self.urls = self._server.answer()
        output = os.path.join(folder, "output")
        self._launcher = Child([sys.executable, "-I", "-S", "-c", LAUNCHER, output], self.env)

    def close(self):
        for child in [*self._workers.values(), self._launcher, self._server]:
            child.close()

    def _env(self, client):
        """What the client's environment has beside the others': where its streamlite is found."""
        return self._beside_env if ANOTHER.search(client) else {}

    def run(self, *command, client=""):
        """The cost of a command, from its start to its end."""
        return self._launcher.ask(command=[command, self._env(client)])

    def ask(self, client, task, scheme="http", path="-/-/0/0", fresh=False, **question):
        """Have the client's process, a new one if `fresh`, measure a task."""
        if fresh and client in self._workers:
            self._workers.pop(client).close()
        if client not in self._workers:
            env = dict(self.env, **self._env(client))
            self._workers[client] = Child([PYTHON, __file__, "--work", client], env)
        url = "%s/%s/v1" % (self.urls[scheme], path)
        return self._workers[client].ask(task=task, url=url, **question)

    def curl(self, scheme, path, *options):
        url = "%s/%s/v1/chat/completions" % (self.urls[scheme], path)
        return ["curl", "-sNf", "-d", json.dumps(BODY), *options, url]

    def rounds(self, clients, ask, quick, full, warm=True):
        """Ask every client in turn, `quick` or `full` times; a first round only warms them.

        One that fails is left out. The other copy is asked for all that streamlite is asked for.
        """
        results = Results()
        for client in clients:
            results[client] = []
            if self.beside and "streamlite" in client:
                results[client.replace("streamlite", self.beside)] = []
        for number in range(-1 if warm else 0, quick if self.quick else full):
            for client in list(results):
                answer = ask(client)
                if answer.get("error"):
                    print("%s failed: %s" % (client, answer["error"]), file=sys.stderr)
                    del results[client]
                elif number >= 0:
                    results[client].append(answer)
        return results

    def goal(self, measure, results, key, unit, base, times=None, most=None, client="streamlite"):
        """Note whether the client takes at most so many `times` what `base` takes, or at `most` so
        many units; and how many times what the other copy takes."""
        mine, ratio = results.median(client, key), results.ratio(client, base, key)
        met = mine is not None and (mine <= most if times is None else ratio <= times)
        sdk = show(results.median(client.replace("streamlite", "openai"), key), unit)
        other = "%s: %s" % (base, show(results.median(base, key), unit))
        reach = show(most, unit) if times is None else "%g ×" % times
        row = [measure, show(mine, unit), sdk, other, ratio, reach, "yes" if met else "no"]
        if self.beside:
            earlier = client.replace("streamlite", self.beside)
            row += [show(results.median(earlier, key), unit), results.ratio(client, earlier, key)]
        self.goals.append(row)


def show(value, unit=""):
    if value is None:
        return "–"
    return ("{:,.0f}" if abs(value) >= 100 else "{:.3g}").format(value) + (unit and " " + unit)


def table(heads, rows):
    print("| %s |" % " | ".join(heads))
    print("| %s |" % " | ".join(["---"] + ["---:"] * (len(heads) - 1)))
    for row in rows:
        print("| %s |" % " | ".join(cell if isinstance(cell, str) else show(cell) for cell in row))
    print(flush=True)


def compare(results, columns, key, base):
    """A row for each client: the medians of the columns (their heads by key), and the ratio of one
    of them to the base's."""
    rows = [[client] + [results.median(client, column) for column in columns] for client in results]
    heads = ["", *columns.values(), "%s, times %s" % (columns[key], base)]
    table(heads, [row + [results.ratio(row[0], base, key)] for row in rows])


# ---- The sections --------------------------------------------------------------------------------


def burst(bench):
    count = 4000 if bench.quick else 20000
    ways = {
        "chunked": ("http", "text", "chunked"),
        "one write per event": ("http", "text", "written"),
        "close-delimited": ("http", "text", "close"),
        "TLS": ("https", "text", "chunked"),
        "tool fragments": ("http", "tools", "chunked"),
    }
    clients = EVERYONE + ["curl", "json.loads"]
    results = {}
    for way, (scheme, kind, framing) in ways.items():

        def ask(client):
            path = "%s/%s/%%d/0" % (kind, framing)
            if client == "curl":  # ten times as many: its start should not count
                cost = bench.run(*bench.curl(scheme, path % (10 * count), "-o", os.devnull))
                return dict(cost, cpu=cost["cpu"] / count * 100)
            return bench.ask(client, "burst", scheme, path % count, kind=kind, count=count)

        results[way] = bench.rounds(clients, ask, 3, 5)
    print("CPU per chunk in a burst of %s chunks, text joined: µs" % show(count), end=" ")
    print("(times `json.loads` of the same texts)\n")
    rows = []
    for client in results["chunked"]:
        row = [client]
        for result in results.values():
            cpu, ratio = result.median(client, "cpu"), result.ratio(client, "json.loads", "cpu")
            row.append("%s (%s)" % (show(cpu), show(ratio)))
        rows.append(row)
    table(["", *ways], rows)
    for way in ways:
        times = 2.7 if way == "chunked" else 3
        bench.goal("CPU per chunk, " + way, results[way], "cpu", "µs", "json.loads", times=times)
    result, client = results["chunked"], "streamlite async"
    bench.goal("the same, async", result, "cpu", "µs", "streamlite", times=1.1, client=client)
    scheme, kind, framing = ways["chunked"]
    clients = ["streamlite text()", "streamlite collect()"]
    result = bench.rounds(clients + ["json.loads"], ask, 3, 5)
    print("The same, chunked, by `text()` and by `collect()`\n")
    compare(result, {"cpu": "µs"}, "cpu", "json.loads")
    for client in clients:
        measure = "CPU per chunk, %s" % client.split()[1]
        bench.goal(measure, result, "cpu", "µs", "json.loads", times=2.4, client=client)


def imports(bench):
    base = "urllib.request, json"

    def ask(module):
        statement = "import " + ANOTHER.sub("streamlite", module)
        mine = bench.run(PYTHON, "-c", statement, client=module)
        empty = bench.run(PYTHON, "-c", "import sys")
        cost = {key: mine[key] - empty[key] for key in ("wall", "rss", "cpu")}
        return dict(cost, error=mine["error"])

    modules = ["streamlite", "openai", "httpx", "requests", "aiohttp", base]
    results = bench.rounds(modules, ask, 5, 15)
    print("Import, over an empty Python\n")
    compare(results, {"wall": "wall ms", "rss": "memory MB", "cpu": "CPU ms"}, "cpu", base)
    bench.goal("import, CPU over an empty Python", results, "cpu", "ms", base, times=1.25)


def oneshot(bench):
    clients = ["streamlite", "python -m streamlite", "openai", *PEERS, "curl"]
    clients.remove("aiohttp")
    path = "text/chunked/200/0"

    def command(client):
        url = "%s/%s/v1" % (bench.urls[scheme], path)
        client = ANOTHER.sub("streamlite", client)
        if client == "curl":
            return bench.curl(scheme, path)
        if client == "python -m streamlite":
            return [PYTHON, "-m", "streamlite", "-m", "bench", "--base-url", url, "Hello"]
        text = "delta.content" if client in ("streamlite", "openai") else "delta.get('content')"
        program = "URL, BODY = %r, %r\n%sprint(''.join(%s or '' for delta in deltas()))"
        return [PYTHON, "-c", program % (url, BODY, CLIENTS[client], text)]

    def ask(client):
        cost = bench.run(*command(client), client=client)
        if not cost["error"] and cost["printed"] < 200 * WIDTH["text"]:
            cost["error"] = "the text is not whole"
        return cost

    for scheme, times in ("http", 1.2), ("https", 1):
        results = bench.rounds(clients, ask, 5, 15)
        print("A whole process over %s: start, import, 200 chunks, exit\n" % scheme)
        base, columns = "naive urllib", {"rss": "peak MB", "wall": "wall ms", "cpu": "CPU ms"}
        compare(results, columns, "cpu", base)
        name = "one-shot process over %s, " % scheme
        bench.goal(name + "CPU", results, "cpu", "ms", base, times=times)
        bench.goal(name + "peak memory", results, "rss", "MB", base, times=1.2)


def first(bench):
    path = "clock/chunked/10/0"
    results = {}

    def ask(client):
        if client != "curl":
            return bench.ask(client, "first", scheme, path)
        told = "%{time_starttransfer} %{num_connects}\\n"
        twice = bench.curl(scheme, path, "-o", os.devnull, "-w", told)
        values = subprocess.check_output(twice + ["--next"] + twice[1:], env=bench.env).split()
        first, second = float(values[0]) * 1e3, float(values[2]) * 1e3
        return {"first": first, "second": second, "new": int(values[3])}

    for scheme in bench.urls:
        times = (2, 5) if "far" in scheme else (5, 15)
        results[scheme] = bench.rounds(EVERYONE + ["curl"], ask, *times)
    print("Time to the first token, process warm, ms: a new client's first request /", end=" ")
    print("its second (new connections for that)\n")
    rows = []
    for client in results["http"]:
        row = [client]
        for result in results.values():
            cell = tuple(show(result.median(client, key)) for key in ("first", "second", "new"))
            row.append("%s / %s (%s)" % cell)
        rows.append(row)
    table([""] + [scheme.replace("far", "50 ms away") for scheme in results], rows)
    bench.goal("first token, new client, TLS", results["https"], "first", "ms", "aiohttp", most=3)
    far, second = results["https far"], "first token, second request, TLS, 50 ms away"
    bench.goal(second, far, "second", "ms", "curl", most=53)
    bench.goal("new connections for that", far, "new", "", "curl", most=0)


def delay(bench):
    path = "clock/chunked/%d/5" % (60 if bench.quick else 200)
    clients = EVERYONE + ["raw socket"]
    results = bench.rounds(clients, lambda client: bench.ask(client, "delay", path=path), 3, 7)
    print("Delay per token, one each 5 ms, from the server's write to the user's code\n")
    compare(results, {"p90": "90 % µs", "p50": "median µs"}, "p50", "raw socket")
    bench.goal("delay per token, median", results, "p50", "µs", "raw socket", most=130)


def many(bench):
    columns = {"wall": "wall s", "rss": "peak MB", "failed": "failures"}
    columns.update(stall="longest stall ms", p50="median delay ms", p95="95 % delay ms")
    columns["cpu"] = "CPU s"
    for streams in 200, 1000:
        question = {"path": "clock/chunked/20/100", "streams": streams, "count": 20}

        def ask(client):
            return bench.ask(client, "many", fresh=True, **question)

        clients = ["streamlite async", "openai async", "aiohttp"]
        results = bench.rounds(clients, ask, 1, 3, warm=False)
        print("%s streams at once, 20 events over 2 s each\n" % show(streams))
        compare(results, columns, "cpu", "aiohttp")
    reach = {"wall": {"times": 1.5}, "rss": {"times": 1.2}, "failed": {"most": 0}}
    reach.update(stall={"most": 500}, p50={"times": 2}, p95={"times": 2}, cpu={"times": 2})
    for key, head in columns.items():
        name, _, unit = head.rpartition(" ") if key != "failed" else (head, "", "")
        measure, client = "1,000 streams, " + name, "streamlite async"
        bench.goal(measure, results, key, unit, "aiohttp", client=client, **reach[key])


def memory(bench):
    size = 20 if bench.quick else 200
    columns = {"start": "before", "growth": "growth", "kept": "growth, text kept by the user"}

    def ask(client):
        answer = {}
        for keep in False, True:
            # A short stream first, in a new process: its imports are no growth.
            path = "text/chunked/10/0"
            bench.ask(client, "burst", path=path, fresh=True, kind="text", count=10)
            path = "kilobyte/chunked/%d/0" % (size * 1000)
            answer[keep] = bench.ask(client, "memory", path=path, count=size * 1000, keep=keep)
        if "error" in answer[True]:
            return answer[True]
        return dict(answer[False], kept=answer[True]["growth"])

    results = bench.rounds(["streamlite", "openai"] + PEERS, ask, 1, 1, warm=False)
    print("Memory over a stream of %d MB of text, which streamlite keeps for its" % size, end=" ")
    print("`completion`: MB\n")
    compare(results, columns, "kept", "naive urllib")


def growth(bench):
    clients = ["streamlite"] + ([] if bench.quick else ["openai"]) + ["json.loads"]
    rows = []
    for count in 2**14, 2**16, 2**18:
        question = {"path": "tools/chunked/%d/0" % count, "kind": "tools", "count": count}
        results = bench.rounds(clients, lambda client: bench.ask(client, "burst", **question), 1, 1)
        ratio = results.ratio("streamlite", "json.loads", "cpu")
        cells = [results.median(client, "cpu") for client in results]
        rows.append(["%d KB" % (count / 256), *cells, ratio])
    print("Tool arguments in 4-byte fragments, accumulated: µs of CPU per fragment", end=" ")
    print("(flat is linear)\n")
    table(["", *results, "streamlite, times json.loads"], rows)
    measure = "1 MB of tool arguments in 4-byte fragments"
    bench.goal(measure, results, "cpu", "µs", "json.loads", times=2.5)
    parsers, rows = ["streamlite SSEDecoder", "openai SSEDecoder"], []
    for kilobytes in 625, 2500, 10000:
        size = kilobytes * 1000
        results = bench.rounds(parsers, lambda parser: bench.ask(parser, "event", size=size), 1, 3)
        cells = [results.median(parser, "cpu") for parser in results]
        rows.append(["%g MB" % (kilobytes / 1000), *cells])
    print("One event in reads of 1 KB, the parser alone: ms of CPU", end=" ")
    print("(linear is four times per row)\n")
    table(["", *results], rows)


SECTIONS = {
    "burst": burst,
    "import": imports,
    "oneshot": oneshot,
    "first": first,
    "delay": delay,
    "many": many,
    "memory": memory,
    "growth": growth,
}


# ---- The command ---------------------------------------------------------------------------------


def install_peers():
    with open(REQUIREMENTS) as file:
        wanted = file.read()
    stamp = os.path.join(VENV, "installed.txt")
    if not os.path.exists(stamp) or open(stamp).read() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
        pip = [PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", REQUIREMENTS], check=True)
        with open(stamp, "w") as file:
            file.write(wanted)
    return re.findall(r"(?m)^([\w-]+)==(.*)", wanted)


def make_certificates(folder):
    """A throw-away authority, added to the public ones as an installation would, and its
    certificate for 127.0.0.1."""
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
    authority = (
        "-subj /CN=bench -addext basicConstraints=critical,CA:TRUE "
        "-addext keyUsage=critical,keyCertSign "
    )
    server = (
        "-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 "
        "-addext basicConstraints=CA:FALSE "
    )
    for command in (
        make + authority + "-keyout ca.key -out ca.pem",
        make + server + "-CA ca.pem -CAkey ca.key -keyout server.key -out server.pem",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, stderr=subprocess.DEVNULL)
    names = "bundle.pem", "ca.pem", "server.pem", "server.key"
    files = {name: os.path.join(folder, name) for name in names}
    public = subprocess.check_output([PYTHON, "-m", "certifi"], universal_newlines=True).strip()
    with open(files["bundle.pem"], "w") as bundle:
        for name in public, files["ca.pem"]:
            with open(name) as file:
                bundle.write(file.read())
    return files["bundle.pem"], files["server.pem"], files["server.key"]


def main():
    parser = argparse.ArgumentParser(description="Measure streamlite beside its peers.")
    parser.add_argument("--quick", action="store_true", help="shorter streams and fewer rounds")
    parser.add_argument("--beside", metavar="PATH", help="another streamlite.py to measure as well")
    parser.add_argument("section", nargs="*", help="of " + ", ".join(SECTIONS))
    options = parser.parse_args()
    if not set(options.section) <= set(SECTIONS):
        parser.error("the sections are " + ", ".join(SECTIONS))
    peers = ", ".join(map(" ".join, install_peers()))
    print("Python %s, %d cores; %s\n" % (sys.version.split()[0], os.cpu_count(), peers))
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.closing(Bench(folder, options.quick, options.beside)) as bench:
            for name in options.section or SECTIONS:
                print("### %s\n" % name.capitalize(), flush=True)
                SECTIONS[name](bench)
            print("### Goals\n")
            heads = ["", "streamlite", "openai", "floor or peer", "times that", "goal", "met"]
            table(heads + ([bench.beside, "times that"] if bench.beside else []), bench.goals)


if __name__ == "__main__":
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(serve(*sys.argv[2:]))
    elif sys.argv[1:2] == ["--work"]:
        work(sys.argv[2])
    else:
        main()
