#!/usr/bin/env python3
"""Minutes of a randomly faulty server against threads and tasks: is every answer right?

    python3 .ci/soak.py [--minutes 10] [--threads 8] [--tasks 200] [--seed 0] [--module PATH]

The server, a process of its own, resets, stalls, sends garbage, 429s and 503s, half answers, slow
bytes, gzip, whole JSON and pages, and closes or litters connections behind an answer.  The threads
share clients, and so do the tasks; each asks, reads to the end, stops half-way, closes from
elsewhere, is cancelled, or forgets its stream, at random.

What an answer must be follows from the question's number, so a wrong, mixed, doubled or holed
answer is noticed: a whole one must be equal to it, and what came before an error, a cancellation or
a close must be its beginning.  Any exception that is not ours is a fault, and so is a call that
takes much longer than its limits.

Ten times, or as often as every 30 s, all pause, and what the process holds is counted: descriptors,
threads, memory.  The last line says whether it stayed flat; exit code 0: it did, and no answer was
wrong.  Loopback only; bounded in time, and in answers by --most.  Linux; Python 3.8 or newer.
"""

import argparse
import asyncio
import collections
import gc
import importlib.util
import json
import logging
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import zlib

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
READ = 1.0  # seconds that a client waits for the next event
DEADLINE = 8.0  # seconds that a whole call may take
LATE = 10.0  # seconds beyond its deadline after which a call hangs
WORDS = "one two three vier fünf sechs sept huit neuf 十 百 千 🎉 \n \\ \" data: [DONE] { }"
WORDS = WORDS.split(" ")


# ---- The answers: what both sides know -----------------------------------------------------------


def answer_of(number):
    """The pieces of the answer to a question.  The text begins with the question's number and ends
    with its own checksum."""
    r = random.Random(number)
    pieces = ["%d|" % number]
    pieces += [r.choice(WORDS) + " " for _ in range(r.choice((0, 1, 3, 10, 40, 200)))]
    pieces.append("|%08x" % zlib.crc32("".join(pieces).encode()))
    return pieces


def is_tool_call(number):
    return number % 5 == 0


# ---- The server ----------------------------------------------------------------------------------

FAULTS = {
    "none": 40,
    "none, slowly": 4,
    "reset": 8,
    "cut": 6,
    "clean but half": 5,
    "stall": 3,
    "garbage": 6,
    "error event": 4,
    "429": 5,
    "503": 4,
    "page": 2,
    "bad head": 3,
    "no answer": 3,
    "closed behind it": 6,
    "littered behind it": 4,
    "whole JSON": 4,
    "silence behind it": 2,
}


def chunk(delta, finish_reason=None, usage=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    fields = {"id": "chatcmpl-soak", "object": "chat.completion.chunk", "created": 1}
    fields.update(model="soak", choices=[choice], usage=usage)
    return b"data: %b\n\n" % json.dumps(fields).encode()


def events_of(number):
    pieces = answer_of(number)
    if is_tool_call(number):
        call = {"index": 0, "id": "call_%d" % number, "type": "function"}
        first = dict(call, function={"name": "f", "arguments": ""})
        events = [chunk({"role": "assistant", "content": None, "tool_calls": [first]})]
        for piece in pieces:
            more = [{"index": 0, "function": {"arguments": piece}}]
            events.append(chunk({"tool_calls": more}))
        events.append(chunk({}, "tool_calls"))
    else:
        events = [chunk({"role": "assistant", "content": ""})]
        events += [chunk({"content": piece}) for piece in pieces]
        events.append(chunk({}, "stop"))
    return events + [b"data: [DONE]\n\n"]


class Gone(Exception):
    """The server ends this connection."""


class Server:
    def __init__(self, seed):
        self.r = random.Random("server %d" % seed)
        self.faults = collections.Counter()
        self.connections = 0

    async def connected(self, reader, writer):
        self.connections += 1
        writer.transport.set_write_buffer_limits(high=1 << 16)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                body = json.loads((await reader.readexactly(length)).decode())
                await self.answer(writer, int(body["messages"][0]["content"]), body["stream"])
                await writer.drain()
        except (Gone, ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def reset(self, writer):
        sock = writer.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        raise Gone

    async def answer(self, writer, number, stream):
        r = self.r
        fault = r.choices(list(FAULTS), list(FAULTS.values()))[0]
        self.faults[fault] += 1
        if r.random() < 0.1:
            await asyncio.sleep(r.random() * 0.2)
        if fault in ("429", "503"):
            self.refuse(writer, fault)
        elif fault == "page":
            writer.write(self.reply(b"200 OK", b"<html>Log in first</html>", b"text/html"))
        elif fault == "no answer":
            if r.random() < 0.3:
                await asyncio.sleep(1.5 * READ)
            self.reset(writer) if r.random() < 0.5 else self.hang_up()
        elif fault == "bad head":
            good = b"HTTP/1.1 200 OK\r\n"
            writer.write(r.choice((b"garbage\r\n\r\n", good + b"No colon\r\n\r\n", good + b"A")))
            raise Gone
        elif fault == "whole JSON" or not stream:
            writer.write(self.reply(b"200 OK", whole(number), b"application/json"))
        else:
            await self.stream(writer, events_of(number), fault)

    def hang_up(self):
        raise Gone

    def refuse(self, writer, status):
        wait = b"Retry-After-Ms: %d\r\n" % self.r.randrange(1, 100)
        body = b'{"error":{"message":"not now","type":"soak","code":null}}'
        writer.write(self.reply(status.encode() + b" No", body, b"application/json", wait))
        if self.r.random() < 0.3:
            raise Gone

    def reply(self, status, body, kind, more=b""):
        head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\n%bContent-Length: %d\r\n\r\n"
        return head % (status, kind, more, len(body)) + body

    async def stream(self, writer, events, fault):
        """An event stream in a random framing and coding, broken as the fault says."""
        r = self.r
        coding = r.choice(("", "", "", "gzip"))
        framing = r.choice(("chunked", "chunked", "chunked", "length", "close"))
        ended = len(events)
        if fault in ("reset", "cut", "clean but half", "stall", "garbage", "error event"):
            # Before the finish_reason, which makes an answer whole.
            ended = r.randrange(len(events) - 1)
        events = events[:ended]
        if fault == "error event":
            error = b'data: {"error":{"message":"it broke","code":%d}}\n\n'
            events.append(error % r.choice((400, 502)))
        elif fault == "garbage":
            garbage = b"{broken", b"\xff\xfe", b"17 {"
            events.append(b"data: %b\n\n" % r.choice(garbage))
        elif fault == "silence behind it":
            events.pop()  # neither [DONE] nor the body's end
        if r.random() < 0.2:
            events.insert(r.randrange(len(events) + 1), b": keep-alive\n\n")
        if r.random() < 0.1:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body, at = b"".join(events), 0
        if coding:
            packer = zlib.compressobj(6, zlib.DEFLATED, 31)
            packed = [packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH) for event in events]
            packed.append(packer.flush())
            cut = fault in ("reset", "cut", "stall", "silence behind it")
            body = b"".join(packed[:-1] if cut else packed)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        if coding:
            head += b"Content-Encoding: gzip\r\n"
        length = len(body)
        if fault in ("reset", "cut", "stall", "silence behind it"):
            length += 100  # more was meant to come
        lines = {"chunked": b"Transfer-Encoding: chunked", "close": b"Connection: close"}
        head += lines.get(framing, b"Content-Length: %d" % length) + b"\r\n\r\n"
        writer.write(head)
        last = b"0\r\n\r\n" if framing == "chunked" else b""
        if fault == "littered behind it" and framing == "length":
            body, last = body[:-1], body[-1:]
        slowly = fault == "none, slowly" and len(body) < 3000
        while at < len(body):
            size = 1 if slowly else r.choice((1, 20, 300, 2000, 20000))
            data, at = body[at : at + size], at + size
            if writer.is_closing():
                raise Gone  # the client has left
            writer.write(b"%x\r\n%b\r\n" % (len(data), data) if framing == "chunked" else data)
            if slowly or r.random() < 0.05:
                await writer.drain()
                await asyncio.sleep(0.001 if slowly else r.random() * 0.02)
        await self.end(writer, framing, fault, last)

    async def end(self, writer, framing, fault, last):
        r = self.r
        if fault in ("stall", "silence behind it"):
            await asyncio.sleep(3 * READ)
            raise Gone
        if fault == "garbage" and framing == "chunked" and r.random() < 0.5:
            writer.write(r.choice((b"zz\r\n", b"-5\r\n", b"\r\n\r\n", os.urandom(50))))
            raise Gone
        if fault in ("reset", "cut"):
            await writer.drain()
            await asyncio.sleep(r.random() * 0.01)
            self.reset(writer) if fault == "reset" else self.hang_up()
        if writer.is_closing():
            raise Gone
        if fault == "littered behind it" and framing != "close":
            # In one write with the end, so that who looks before the next request sees it.  A read
            # may end with the padding: the rest looks like the answer to the next question.
            await writer.drain()
            await asyncio.sleep(0.01)
            last = last.ljust(r.choice((0, 1024, 4096, 16384, 65536)), b"x")
            writer.write(last + self.reply(b"200 OK", whole(1), b"application/json"))
            await asyncio.sleep(0.2)
            raise Gone
        writer.write(last)
        if framing == "close" or fault == "closed behind it":
            await writer.drain()
            if framing != "close" and r.random() < 0.5:
                await asyncio.sleep(r.random() * 0.05)
            raise Gone


def whole(number):
    message = {"role": "assistant", "content": "".join(answer_of(number))}
    if is_tool_call(number):
        function = {"name": "f", "arguments": message["content"]}
        call = {"id": "call_%d" % number, "type": "function", "function": function}
        message.update(content=None, tool_calls=[call])
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


async def serve(seed):
    """Serve until standard input ends; then tell how often each fault was."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # clients that leave are no news
    state = Server(seed)
    server = await asyncio.start_server(state.connected, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, ended.set)
    await ended.wait()
    print(json.dumps({"connections": state.connections, "faults": state.faults}), flush=True)
    os._exit(0)  # open connections are no matter here


# ---- The clients ---------------------------------------------------------------------------------


class Wrong(Exception):
    """An answer is not what it must be."""


class Soak:
    def __init__(self, module, url, options):
        self.module, self.url, self.options = module, url, options
        self.counts = collections.Counter()
        self.faults = []  # what was wrong, in words
        self.lock = threading.Lock()
        self.go, self.stop = threading.Event(), False
        self.active = {}  # who is at work on what since when
        self.numbers = 0
        self.go.set()

    def begin(self, name):
        """The number of the next question, None at the end."""
        with self.lock:
            if self.stop or self.numbers >= self.options.most:
                return None
            self.numbers += 1
            self.active[name] = (self.numbers, time.monotonic())
            return self.numbers

    def end(self, name, outcome):
        with self.lock:
            number, since = self.active.pop(name)
            self.counts[outcome] += 1
            took = time.monotonic() - since
            if took > DEADLINE + LATE:
                self.faults.append("question %d took %.0f s: %s" % (number, took, outcome))

    def fault(self, number, error):
        with self.lock:
            words = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            self.faults.append("question %d: %s" % (number, words))

    def options_of(self, r):
        """Of one call; some have no second attempt, some hardly any time."""
        deadline = r.choice((DEADLINE, DEADLINE, 0.5))
        return {"max_retries": r.choice((0, 0, 1, 2)), "deadline": deadline}

    def question(self, number, stream=True):
        message = {"role": "user", "content": str(number)}
        return {"model": "soak", "messages": [message], "stream": stream}

    def check_whole(self, number, completion):
        if not completion.choices:
            raise Wrong("an answer without a choice")
        if self.text(completion, number) != "".join(answer_of(number)):
            raise Wrong("the answer is %r" % self.text(completion, number))
        if not completion.choices[0].finish_reason:
            raise Wrong("a whole answer without a finish_reason")

    def check_beginning(self, number, completion):
        if completion is not None and completion.choices:
            text = self.text(completion, number)
            if not "".join(answer_of(number)).startswith(text):
                raise Wrong("what came is %r" % text)

    def text(self, completion, number):
        message = completion.choices[0].message
        if not is_tool_call(number):
            return message.content or ""
        calls = message.tool_calls or []
        return "".join(call.function.arguments for call in calls)

    # -- threads --

    def work(self, name, clients):
        r = random.Random("%s %d" % (name, self.options.seed))
        while True:
            self.go.wait()
            number = self.begin(name)
            if number is None:
                return
            outcome = "a fault"
            try:
                client = r.choice(clients).with_options(**self.options_of(r))
                outcome = self.call(r, client, number)
            except self.module.OpenAIError as error:
                outcome = type(error).__name__
                try:
                    self.check_beginning(number, getattr(error, "partial", None))
                except Wrong as wrong:
                    self.fault(number, wrong)
            except Exception as error:  # whatever it is, it is a fault
                self.fault(number, error)
            finally:
                self.end(name, outcome)

    def call(self, r, client, number):
        way = r.randrange(8)
        if way == 0:
            completion = client.chat.completions.create(**self.question(number, stream=False))
            self.check_whole(number, completion)
            return "right"
        stream = client.chat.completions.create(**self.question(number))
        if way == 1:  # forgotten
            next(stream, None)
            self.check_beginning(number, stream.completion)
            return "left"
        if way == 2:  # closed from elsewhere
            timer = threading.Timer(r.random() * 0.05, stream.close)
            timer.start()
            try:
                for _ in stream:
                    pass
            finally:
                timer.join()
            self.check_whole(number, stream.completion)
            return "right"
        with stream:
            if way == 3:
                self.check_whole(number, stream.collect())
            elif way == 4 and not is_tool_call(number):
                text = "".join(stream.text())
                if text != "".join(answer_of(number)):
                    raise Wrong("text() is %r" % text)
            elif way == 5:  # stops half-way
                for _ in range(r.randrange(20)):
                    next(stream, None)
                self.check_beginning(number, stream.completion)
                return "left"
            else:
                for _ in stream:
                    pass
                self.check_whole(number, stream.completion)
        return "right"

    # -- tasks --

    async def work_async(self, name, clients):
        r = random.Random("%s %d" % (name, self.options.seed))
        await asyncio.sleep(r.random())
        while True:
            while not self.go.is_set():
                await asyncio.sleep(0.05)
            await asyncio.sleep(r.random() * self.options.tasks / 100)
            if not self.go.is_set():
                continue
            number = self.begin(name)
            if number is None:
                return
            outcome = "a fault"
            try:
                client = r.choice(clients).with_options(**self.options_of(r))
                seen = []  # the stream, so that what a cancelled call had can be looked at
                calling = self.call_async(r, client, number, seen)
                if r.random() < 0.2:
                    outcome = await self.cancelled(r, calling, number, seen)
                else:
                    outcome = await calling
            except self.module.OpenAIError as error:
                outcome = type(error).__name__
                try:
                    self.check_beginning(number, getattr(error, "partial", None))
                except Wrong as wrong:
                    self.fault(number, wrong)
            except Exception as error:  # whatever it is, it is a fault
                self.fault(number, error)
            finally:
                self.end(name, outcome)

    async def cancelled(self, r, calling, number, seen):
        task = asyncio.ensure_future(calling)
        await asyncio.wait([task], timeout=r.random() * r.choice((0.01, 0.1, 1)))
        task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            for stream in seen:
                self.check_beginning(number, stream.completion)
            return "cancelled"

    async def call_async(self, r, client, number, seen):
        way = r.randrange(8)
        if way == 0:
            whole = await client.chat.completions.create(**self.question(number, stream=False))
            self.check_whole(number, whole)
            return "right"
        stream = await client.chat.completions.create(**self.question(number))
        seen.append(stream)
        if way == 1:  # forgotten
            async for _ in stream:
                break
            self.check_beginning(number, stream.completion)
            return "left"
        if way == 2:  # closed by another task
            loop = asyncio.get_running_loop()
            closing = []

            def close():
                closing.append(asyncio.ensure_future(stream.close()))

            later = loop.call_later(r.random() * 0.05, close)
            try:
                async for _ in stream:
                    pass
            finally:
                later.cancel()
                for task in closing:
                    await task
            self.check_whole(number, stream.completion)
            await stream.close()
            return "right"
        async with stream:
            if way == 3:
                self.check_whole(number, await stream.collect())
            elif way == 4 and not is_tool_call(number):
                text = "".join([piece async for piece in stream.text()])
                if text != "".join(answer_of(number)):
                    raise Wrong("text() is %r" % text)
            elif way == 5:  # stops half-way
                wanted = r.randrange(20)
                async for _ in stream:
                    wanted -= 1
                    if wanted < 0:
                        break
                self.check_beginning(number, stream.completion)
                return "left"
            else:
                async for _ in stream:
                    pass
                self.check_whole(number, stream.completion)
        return "right"

    def run_loop(self):
        async def run():
            # Two clients, each with its own connections.
            clients = [self.client("AsyncOpenAI") for _ in range(2)]
            tasks = ["task %d" % number for number in range(self.options.tasks)]
            await asyncio.gather(*[self.work_async(name, clients) for name in tasks])
            for client in clients:
                await client.close()

        loop = asyncio.new_event_loop()
        loop.set_exception_handler(self.unheard)
        loop.run_until_complete(run())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    def unheard(self, loop, context):
        """What asyncio would only log, as a task's exception that nobody took."""
        with self.lock:
            self.faults.append("the loop was told: %s" % context)

    def client(self, kind):
        limits = {"timeout": (2.0, READ), "deadline": DEADLINE, "api_key": "sk-soak-soak"}
        return getattr(self.module, kind)(base_url=self.url, **limits)

    # -- all of it --

    def pause(self):
        """Let everybody finish what they do; say who cannot."""
        self.go.clear()
        until = time.monotonic() + DEADLINE + LATE
        while time.monotonic() < until:
            with self.lock:
                if not self.active:
                    return
            time.sleep(0.05)
        with self.lock:
            for name, (number, _) in self.active.items():
                self.faults.append("%s hangs at question %d" % (name, number))

    def run(self):
        before = held()
        clients = [self.client("OpenAI") for _ in range(2)]
        threads = [
            threading.Thread(target=self.work, args=("thread %d" % number, clients))
            for number in range(self.options.threads)
        ]
        threads.append(threading.Thread(target=self.run_loop))
        for thread in threads:
            thread.daemon = True
            thread.start()
        started, rows = time.monotonic(), []
        seconds = self.options.minutes * 60
        samples = max(10, int(seconds / 30))
        heads = "seconds", "answers", "faults", "descr.", "threads", "MB"
        print("%7s %9s %7s %8s %8s %7s" % heads)
        for sample in range(samples):
            wanted = started + seconds * (sample + 1) / samples
            while time.monotonic() < wanted and self.numbers < self.options.most:
                time.sleep(0.1)
            self.pause()
            rows.append(held())
            told = (time.monotonic() - started, self.numbers, len(self.faults)) + rows[-1]
            print("%7.0f %9d %7d %8d %8d %7.1f" % told, flush=True)
            self.go.set()
            if self.numbers >= self.options.most or len(self.faults) > 100:
                break
        self.stop = True
        for thread in threads:
            thread.join(DEADLINE + LATE)
            if thread.is_alive():
                self.faults.append("%s does not end" % thread.name)
        for client in clients:
            client.close()
        del clients
        time.sleep(1)  # threads of the library that are about to end
        after = held()
        print("%7s %9s %7s %8d %8d %7.1f  (before)" % (("", "", "") + before))
        print("%7s %9s %7s %8d %8d %7.1f  (after)" % (("", "", "") + after))
        return before, rows, after


def held():
    """What the process holds: descriptors, threads, MB of memory."""
    gc.collect()
    with open("/proc/self/statm") as file:
        memory = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), memory


def not_flat(before, rows, after):
    """What grew, in words.  Idle connections are kept, sixteen for a client."""
    grown = []
    third = max(1, len(rows) // 3)
    for index, name, slack in (0, "descriptors", 24), (1, "threads", 6), (2, "memory", 5):
        early = sorted(row[index] for row in rows[1 : 1 + third] or rows)
        late = sorted(row[index] for row in rows[-third:])
        first, last = early[len(early) // 2], late[len(late) // 2]
        if last > 1.1 * first + slack:
            grown.append("%s grew from %.0f to %.0f" % (name, first, last))
        if name != "memory" and after[index] > before[index]:
            grown.append("%d %s before, %d after" % (before[index], name, after[index]))
    return grown


def main():
    parser = argparse.ArgumentParser(description="Soak streamlite in faults.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=1000000, help="answers, at the most")
    parser.add_argument("--module", default=os.path.join(TOP, "streamlite.py"))
    options = parser.parse_args()
    spec = importlib.util.spec_from_file_location("streamlite", options.module)
    module = sys.modules["streamlite"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    command = [sys.executable, os.path.abspath(__file__), "--serve", str(options.seed)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        url = "http://127.0.0.1:%d/v1" % int(server.stdout.readline())
        soak = Soak(module, url, options)
        print("streamlite %s, Python %s" % (module.__version__, sys.version.split()[0]))
        grown = not_flat(*soak.run())
    finally:
        told = server.communicate(timeout=10)[0]
    answers = json.loads(told.decode())
    faults = ", ".join("%s %d" % pair for pair in sorted(answers["faults"].items()))
    print("the server: %d connections; %s" % (answers["connections"], faults))
    outcomes = ", ".join("%s %d" % pair for pair in soak.counts.most_common())
    print("the clients: %d answers: %s" % (sum(soak.counts.values()), outcomes))
    for fault in soak.faults[:10]:
        print("FAULT " + fault)
    verdict = "; ".join(grown) or "descriptors, threads and memory flat"
    print("%d faults; %s" % (len(soak.faults), verdict))
    sys.exit(bool(soak.faults or grown))


if __name__ == "__main__":
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(serve(int(sys.argv[2])))
    else:
        main()
