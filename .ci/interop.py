"""streamlite beside real parts: llama.cpp's server, nginx, tinyproxy, other clients, a browser.

    .ci/.venv/bin/python .ci/interop.py [SECTION ...]

A section is a function below; it starts what it needs on free ports.  A part that is not installed makes its section
"skipped".  The last line is "N passed, N failed, N skipped".

All of it runs in namespaces of its own, where there is nothing but a loopback interface: no byte can leave the
machine, a hosts file of our own can name a host that is not loopback, and whatever was started ends with this program.
"""
import asyncio
import base64
import collections
import contextlib
import gc
import importlib
import io
import json
import logging
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
import warnings
from unittest import mock

CI = pathlib.Path(__file__).resolve().parent
TOP = CI.parent
sys.path.insert(0, str(TOP))
import streamlite  # noqa: E402

SECRET = "never-shown"
KEY = "sk-" + SECRET
HOST, ADDRESS = "llm.example.test", "192.0.2.1"  # this machine under a name and an address that are not loopback
COMMAND = [sys.executable, "-m", "streamlite"]
HELLO = [{"role": "user", "content": "Say hello."}]

COUNTS = collections.Counter()
SHOWN = []  # what a person could see: errors in every form, output of commands
LOG = io.StringIO()  # and all that was logged


class Missing(Exception):
    """A part that a section needs is not installed."""


# ---- checks ----------------------------------------------------------------------------------------------------------

def check(what, seen, wanted=True):
    """Count and print one check: what is seen is what is wanted."""
    tell(what, seen == wanted, seen, wanted)


def check_says(what, seen, *parts):
    """Check that a message or an output says all of this, in whatever case."""
    tell(what, all(part.lower() in str(seen).lower() for part in parts), seen, parts)


def tell(what, ok, seen, wanted):
    COUNTS["passed" if ok else "failed"] += 1
    print("%s %s" % ("ok  " if ok else "FAIL", what))
    if not ok:
        print("       wanted: %r\n       seen:   %r" % (wanted, seen))


def skip(what, missing):
    COUNTS["skipped"] += 1
    print("SKIPPED %s: %s" % (what, missing))


def outcome(function, *arguments, **options):
    """Call, and return what the call returned or the error that it raised."""
    try:
        return function(*arguments, **options)
    except Exception as error:
        SHOWN.extend([str(error), repr(error), repr(vars(error)), traceback.format_exc()])
        return error


def until(condition, seconds=10.0):
    """Wait for a condition that only asking can tell; return whether it came."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


# ---- starting things -------------------------------------------------------------------------------------------------

def package(name):
    """Import a package that .ci/requirements.txt lists."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Missing("%s (%s)" % (name, error)) from error


@contextlib.contextmanager
def part(name):
    """A part of a section that may be skipped alone."""
    try:
        yield
    except Missing as missing:
        skip(name, "missing: %s" % missing)


def need(*names):
    """Check that these programs are installed."""
    for name in names:
        if not shutil.which(name):
            raise Missing(name)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def listens(port, host="127.0.0.1"):
    with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
        return True
    return False


@contextlib.contextmanager
def program(*command, port, log, env=None):
    """A server in a process of its own, from when it accepts connections on `port` to the end of the section."""
    with open(log, "wb") as output:
        process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=subprocess.STDOUT, env=env, start_new_session=True)
    try:
        if not until(lambda: listens(port) or process.poll() is not None, 30) or process.poll() is not None:
            raise RuntimeError("%s did not start: %s" % (command[0], log.read_text()))
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def environment(**values):
    """Set environment variables for a while."""
    return mock.patch.dict(os.environ, {name: str(value) for name, value in values.items()})


def run(*command, cwd=TOP, stdin="", **env):
    """Run a command to its end."""
    done = subprocess.run([str(part) for part in command], cwd=str(cwd), input=stdin, timeout=60, encoding="utf-8",
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ, **env))
    SHOWN.extend([done.stdout, done.stderr])
    return done


def fetch(url, **options):
    """A URL's body, also an error's."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, **options), timeout=20) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        return error.read()


def client(base_url, **options):
    return streamlite.OpenAI(**{"base_url": base_url, "api_key": KEY, "timeout": 20, "max_retries": 0, **options})


def ask(base_url, **options):
    """Stream the answer to one question; return its text."""
    with client(base_url, **options) as openai:
        stream = openai.chat.completions.create(model="demo", messages=HELLO, stream=True)
        return stream.collect().choices[0].message.content


# ---- llama.cpp -------------------------------------------------------------------------------------------------------

LLAMA = """
import sys, threading, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.hostnames, p.port, p.api_keys = sys.argv[1], ["127.0.0.1"], int(sys.argv[2]), [sys.argv[3]]
p.model_alias, p.n_parallel, p.cpuparams.n_threads, p.use_jinja, p.warmup = {"tiny-stream"}, 2, 1, True, False
server = xllamacpp.Server(p)
threading.Event().wait()
"""
LLAMA_TOOLS = [  # in the very words that the tiny model was trained on
    {"type": "function", "function": {
        "name": "get_weather", "description": "Get the weather of a city", "parameters": {
            "type": "object", "properties": {
                "city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
            "required": ["city"]}}},
    {"type": "function", "function": {
        "name": "get_time", "description": "Get the current time",
        "parameters": {"type": "object", "properties": {}}}}]


def llama_cpp(use, folder):
    """llama.cpp's own server, with a model that has learnt a few answers by heart."""
    package("xllamacpp")
    port, log = free_port(), folder / "llama.log"
    use(program(sys.executable, "-c", LLAMA, CI / "tiny-stream.gguf", port, KEY, port=port, log=log))
    base_url = "http://127.0.0.1:%d/v1" % port
    until(lambda: b"ok" in fetch("http://127.0.0.1:%d/health" % port))  # the model has been loaded
    openai = use(client(base_url))

    def create(question, **fields):
        return openai.chat.completions.create(model="tiny-stream", temperature=0, stream=True,
                                              messages=[{"role": "user", "content": question}], **fields)

    with create("Say hello.", stream_options={"include_usage": True}) as stream:
        pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
        text = "".join(filter(None, pieces))
        check("text", text, "Hello! How can I help you today?")
        check("text in more than one piece", len(list(filter(None, pieces))) > 3)
        check("the accumulated text", stream.completion.choices[0].message.content, text)
        check("finish reason", stream.completion.choices[0].finish_reason, "stop")
        usage = stream.completion.usage
        check("usage", usage.prompt_tokens > 0 and usage.completion_tokens > 3
              and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens)
        check("time to first token", 0 < stream.time_to_first_token <= stream.elapsed)
    with create("Write some unicode.") as stream:
        check("unicode", "".join(stream.text()),
              "naïve café — 日本語のテキスト 👋🏽 👨‍👩‍👧 Здравствуй שלום 𝄞 end")
    whole = openai.chat.completions.create(model="tiny-stream", messages=HELLO, temperature=0)
    check("a whole reply", whole.choices[0].message.content, "Hello! How can I help you today?")

    message = create("Weather in Paris and Tokyo?", tools=LLAMA_TOOLS).collect().choices[0].message
    functions = [call.function for call in message.tool_calls]
    check("two tool calls", [(function.name, function.parsed_arguments["city"]) for function in functions],
          [("get_weather", "Paris"), ("get_weather", "Tokyo")])
    check("tool calls have ids of their own", len({call.id for call in message.tool_calls} - {None, ""}), 2)
    conversation = [{"role": "user", "content": "Weather in Paris and Tokyo?"}, message]
    conversation += [{"role": "tool", "tool_call_id": call.id, "content": "18 C, sunny"} for call in message.tool_calls]
    answer = openai.chat.completions.create(model="tiny-stream", messages=conversation, max_tokens=20, stream=True)
    check("a collected message goes back", bool(answer.collect().choices[0].message.content))

    check("the model list", [model.id for model in openai.models.list()], ["tiny-stream"])
    error = outcome(ask, base_url, api_key="sk-wrong")
    check("a wrong key", type(error), streamlite.AuthenticationError)
    check_says("a wrong key, in the server's words", error, "Invalid API Key")
    check("the wrong key is not shown", "sk-wrong" in repr(SHOWN), False)

    with create("Count to 40.", ignore_eos=True, max_tokens=2000) as stream:
        next(iter(stream))
    check("leaving the stream stops the generation", until(lambda: "cancel task" in log.read_text()))
    check("the client goes on after that", "".join(create("Say hello.").text()), "Hello! How can I help you today?")

    env = {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": KEY, "PYTHONIOENCODING": "utf-8"}
    done = run(*COMMAND, "-o", "temperature=0", "Say hello.", **env)
    check("the command", (done.returncode, done.stdout, done.stderr), (0, "Hello! How can I help you today?\n", ""))
    done = run(*COMMAND, "-o", "temperature=0", "--usage", "Write some unicode.", **env)
    check_says("the command, unicode", done.stdout, "日本語のテキスト", "𝄞 end\n")
    check_says("the command, usage", done.stderr, "tokens")
    done = run(*COMMAND, "--models", **env)
    check_says("the command, model list", done.stdout, "tiny-stream")
    (folder / "tools.json").write_text(json.dumps(LLAMA_TOOLS))
    done = run(*COMMAND, "-o", "temperature=0", "-o", "tools=@%s" % (folder / "tools.json"),
               "Weather in Paris and Tokyo?", **env)
    check_says("the command, two tool calls", done.stdout, "get_weather", "Paris", "Tokyo")
    done = run(*COMMAND, "Say hello.", **dict(env, OPENAI_API_KEY="sk-wrong"))
    check("the command, a wrong key, in one line", (done.returncode, len(done.stderr.splitlines())), (1, 1))
    check("the command does not show it", "sk-wrong" in done.stderr, False)
    done = run(*COMMAND, "hi", **dict(env, OPENAI_BASE_URL="http://127.0.0.1:%d/v1" % free_port()))
    check("the command, nobody there", (done.returncode, len(done.stderr.splitlines())), (75, 1))


# ---- TLS -------------------------------------------------------------------------------------------------------------

def certificate(folder, name, names, days=30, ca="ca"):
    """A server certificate; without `names` an authority, without `ca` signed by itself."""
    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], cwd=str(folder), check=True, stderr=subprocess.DEVNULL)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", name + ".key"]
    names = "subjectAltName=" + ",".join(names) if names else ""
    if not ca:
        extension = names or "keyUsage=critical,keyCertSign,cRLSign"
        openssl("req", "-x509", *key, "-out", name + ".crt", "-days", days, "-subj", "/CN=" + name,
                *(["-addext", extension] if name != "lax" else []))
        return
    (folder / "extensions").write_text(names + "\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
    openssl("req", *key, "-out", name + ".csr", "-subj", "/CN=" + name)
    openssl("x509", "-req", "-in", name + ".csr", "-CA", ca + ".crt", "-CAkey", ca + ".key", "-CAcreateserial",
            "-days", days, "-extfile", "extensions", "-out", name + ".crt")


def certificates(folder):
    here = ["DNS:localhost", "IP:127.0.0.1", "DNS:" + HOST, "IP:" + ADDRESS]
    certificate(folder, "ca", [], ca=None)
    certificate(folder, "lax", [], ca=None)  # an authority without keyUsage, as old corporate ones are
    certificate(folder, "good", here)
    certificate(folder, "of-lax", here, ca="lax")
    certificate(folder, "expired", here, days=-1)
    certificate(folder, "wrong-host", ["DNS:elsewhere.example.test"])
    certificate(folder, "self-signed", here, ca=None)
    certificate(folder, "person", ["DNS:person"])


def nginx(folder, *servers):
    """An nginx with these server blocks, the first of which listens on loopback.  requests_seen reads its log."""
    need("nginx")
    blocks = "\n".join("server { %s }" % server for server in servers)
    temporary = " ".join("%s_temp_path %s/%s;" % (kind, folder, kind)
                         for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(textwrap.dedent("""
        daemon off; master_process off; pid %(folder)s/nginx.pid; error_log stderr;
        events { worker_connections 256; }
        http {
            log_format short '$server_port $connection $status $request_method';
            access_log %(folder)s/access.log short;
            default_type text/plain; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
            %(temporary)s
            %(blocks)s
        }""") % {"folder": folder, "temporary": temporary, "blocks": blocks})
    port = int(servers[0].split(";")[0].rpartition(":")[2].split()[0])
    return program("nginx", "-p", folder, "-c", folder / "nginx.conf", port=port, log=folder / "nginx.log")


def requests_seen(folder, port):
    """What nginx logged of one port: a list of [port, connection, status, method]."""
    lines = (folder / "access.log").read_text().splitlines()
    return [line.split() for line in lines if line.startswith("%d " % port)]


def tls_server(port, folder, upstream, name="good", more="", address="127.0.0.1"):
    """An nginx server block that speaks TLS with the certificate of this name."""
    return "listen %s:%d ssl; ssl_certificate %s.crt; ssl_certificate_key %s.key; %s location / { proxy_pass %s; }" % (
        address, port, folder / name, folder / name, more, upstream)


def origin_of(base_url):
    return "%s://%s" % urllib.parse.urlsplit(base_url)[:2]


def tls(use, folder):
    """https through a real nginx: what is trusted, what is refused, and what refusing tells."""
    need("openssl", "nginx")
    certificates(folder)
    server = use(streamlite.DemoServer(delay=0))
    demo = origin_of(server.base_url)
    names = ["good", "expired", "wrong-host", "self-signed", "old", "mutual", "of-lax"]
    ports = {name: free_port() for name in names}
    url = {name: "https://localhost:%d/v1" % port for name, port in ports.items()}
    more = {"old": "ssl_protocols TLSv1 TLSv1.1; ssl_ciphers ALL:@SECLEVEL=0;",
            "mutual": "ssl_client_certificate %s/ca.crt; ssl_verify_client on;" % folder}
    use(nginx(folder, *(tls_server(ports[name], folder, demo, name if name not in more else "good", more.get(name, ""))
                        for name in names)))
    expected = ask(demo + "/v1")
    check("the same answer without TLS", bool(expected))

    ca = folder / "ca.crt"
    (folder / "cadir").mkdir()
    shutil.copy(str(ca), str(folder / "cadir" / "ca.pem"))
    subprocess.run(["openssl", "rehash", str(folder / "cadir")], check=True)
    for name, value in [("SSL_CERT_FILE", ca), ("SSL_CERT_DIR", folder / "cadir"), ("REQUESTS_CA_BUNDLE", ca),
                        ("REQUESTS_CA_BUNDLE", folder / "cadir"), ("CURL_CA_BUNDLE", ca)]:
        with environment(**{name: value}):
            check("a private authority by %s (a %s)" % (name, "folder" if value.is_dir() else "file"),
                  outcome(ask, url["good"]), expected)
    context = ssl.create_default_context(cafile=str(ca))
    check("a private authority by ssl_context", outcome(ask, url["good"], ssl_context=context), expected)

    error = outcome(ask, url["good"])
    check("an authority that nobody named is refused", type(error), streamlite.APIConnectionError)
    check_says("that message names host, reason and remedy", error, "localhost", "certificate", "SSL_CERT_FILE")
    with environment(SSL_CERT_FILE=ca):
        for name, reason in [("expired", "expired"), ("wrong-host", "mismatch"), ("self-signed", "self")]:
            error = outcome(ask, url[name], max_retries=2)
            check("%s: refused" % name, type(error), streamlite.APIConnectionError)
            check("%s: not tried again" % name, error.attempts, 1)
            check_says("%s: the message names host and reason" % name, error, "localhost", "certificate", reason)
        # Whatever these connections brought is logged before this answer.
        check("the client goes on after that", outcome(ask, url["good"]), expected)
        for name in ("expired", "wrong-host", "self-signed"):
            check("%s: no request reached it" % name, requests_seen(folder, ports[name]), [])

        error = outcome(ask, url["old"])
        check("TLS 1.1 is refused", isinstance(error, streamlite.APIConnectionError))
        check_says("TLS 1.1: the message says so", error, "localhost", "TLS")
        permissive = ssl.create_default_context(cafile=str(ca))
        permissive.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            permissive.minimum_version = ssl.TLSVersion.TLSv1
        check("TLS 1.1 is what it spoke", outcome(ask, url["old"], ssl_context=permissive), expected)

        error = outcome(ask, url["mutual"])
        check("mutual TLS without a certificate", isinstance(error, streamlite.APIStatusError)
              and error.status_code, 400)
        check_says("mutual TLS: nginx's words", error, "certificate")
        context = ssl.create_default_context(cafile=str(ca))
        context.load_cert_chain(str(folder / "person.crt"), str(folder / "person.key"))
        check("mutual TLS", outcome(ask, url["mutual"], ssl_context=context), expected)

        before = len(requests_seen(folder, ports["good"]))
        with client(url["good"]) as openai:
            for _ in range(20):
                with openai.chat.completions.create(model="demo", messages=HELLO, stream=True) as stream:
                    assert "".join(stream.text()) == expected
        until(lambda: len(requests_seen(folder, ports["good"])) >= before + 20)
        seen = requests_seen(folder, ports["good"])[before:]
        check("20 streams, one connection", (len(seen), len({line[1] for line in seen})), (20, 1))

        check("asynchronous streams", asyncio.run(ask_three(url["good"])), [expected] * 3)
        server.delay = 0.2  # a whole answer takes six seconds
        for name, leave in ("leaving a stream", leave_stream), ("cancelling a task", cancel_task):
            leave(url["good"])
            check("%s ends it behind nginx too" % name, until(lambda: not server.active, 2))
        server.delay = 0

    env, keylog = {"OPENAI_BASE_URL": url["good"], "OPENAI_API_KEY": KEY}, folder / "keylog"
    done = run(*COMMAND, "-m", "demo", "Say hello.", SSL_CERT_FILE=str(ca), SSLKEYLOGFILE=str(keylog), **env)
    check("the command over TLS", (done.returncode, done.stdout.strip()), (0, expected.strip()))
    check("SSLKEYLOGFILE writes nothing", keylog.exists(), False)
    done = run(*COMMAND, "-m", "demo", "--cacert", ca, "Say hello.", **env)
    check("the command with --cacert", (done.returncode, done.stdout.strip()), (0, expected.strip()))
    done = run(*COMMAND, "-m", "demo", "Say hello.", SSL_CERT_FILE=str(ca), **dict(env, OPENAI_BASE_URL=url["expired"]))
    check("the command, an expired certificate", (done.returncode, len(done.stderr.splitlines())), (1, 1))

    strict = strict_python()
    if strict is None:
        skip("an old authority under Python 3.13", "no Python 3.13")
    else:
        code = textwrap.dedent("""
            import ssl, streamlite, sys
            for context in None, ssl.create_default_context(cafile=sys.argv[2]):
                client = streamlite.OpenAI(base_url=sys.argv[1], api_key="k", ssl_context=context, max_retries=0)
                try:
                    client.models.list()
                    print("trusted")
                except streamlite.APIConnectionError as error:
                    print(error)""")
        done = run(strict, "-c", code, url["of-lax"], folder / "lax.crt", SSL_CERT_FILE=str(folder / "lax.crt"))
        lines = done.stdout.splitlines() or [done.stderr]
        check("an old authority under Python 3.13: trusted", lines[0], "trusted")
        check_says("an old authority in a strict ssl_context: the remedy", lines[-1], "localhost", "VERIFY_X509_STRICT")


async def ask_three(base_url):
    """Three answers at once."""
    async with streamlite.AsyncOpenAI(base_url=base_url, api_key=KEY) as openai:
        async def answer():
            stream = await openai.chat.completions.create(model="demo", messages=HELLO, stream=True)
            return (await stream.collect()).choices[0].message.content
        return await asyncio.gather(answer(), answer(), answer())


def leave_stream(base_url):
    openai = client(base_url)
    with openai.chat.completions.create(model="demo", messages=HELLO, stream=True) as stream:
        next(stream.text())


def cancel_task(base_url):
    async def cancelled():
        begun = asyncio.Event()

        async def read():
            async with streamlite.AsyncOpenAI(base_url=base_url, api_key=KEY) as openai:
                async for _ in await openai.chat.completions.create(model="demo", messages=HELLO, stream=True):
                    begun.set()
        task = asyncio.ensure_future(read())
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
    asyncio.run(cancelled())


def strict_python():
    """A Python that has 3.13's strictness about certificates, or None."""
    candidates = [sys.executable, *map(str, pathlib.Path(os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv")))
                                       .glob("versions/*/bin/python3"))]
    for candidate in candidates:
        if subprocess.run([candidate, "-c", "import sys; sys.exit(sys.version_info < (3, 13))"],
                          stderr=subprocess.DEVNULL).returncode == 0:
            return candidate
    return None


# ---- proxies ---------------------------------------------------------------------------------------------------------

def tinyproxy(folder, port, connect_ports, user=None):
    need("tinyproxy")
    lines = ["Port %d" % port, "Listen 127.0.0.1", "Timeout 30", "LogLevel Connect", "Allow 127.0.0.1"]
    lines += ["ConnectPort %d" % allowed for allowed in connect_ports]
    lines += ["BasicAuth %s %s" % user] if user else []
    path = folder / ("tinyproxy-%d.conf" % port)
    path.write_text("\n".join(lines) + "\n")
    return program("tinyproxy", "-d", "-c", path, port=port, log=folder / ("tinyproxy-%d.log" % port))


def proxies(use, folder):
    """A real forward proxy, before a host that is this machine under a name and an address that are not loopback."""
    need("openssl", "nginx", "tinyproxy")
    if not listens_elsewhere():
        raise Missing("namespaces")
    certificates(folder)
    demo = origin_of(use(streamlite.DemoServer(delay=0)).base_url)
    plain, secure, dead, open_proxy, closed_proxy = (free_port() for _ in range(5))
    location = "location / { proxy_pass %s; }" % demo
    use(nginx(folder, "listen 127.0.0.1:%d; listen %s:%d; %s" % (plain, ADDRESS, plain, location),
              tls_server(secure, folder, demo, address=ADDRESS)))
    user = "user", SECRET
    use(tinyproxy(folder, open_proxy, [secure, dead]))
    use(tinyproxy(folder, closed_proxy, [secure, dead], user))

    def asked_of(port):
        """The requests that a proxy has logged so far."""
        lines = (folder / ("tinyproxy-%d.log" % port)).read_text().splitlines()
        return [line.partition("): ")[2] for line in lines if "Request (" in line]

    proxy = "http://127.0.0.1:%d" % open_proxy
    known = "http://%s:%s@127.0.0.1:%d" % (*user, closed_proxy)
    nobody = "http://user:%s@127.0.0.1:%d" % (SECRET, free_port())  # whoever asks this one gets no answer
    http, https = "http://%s:%d/v1" % (HOST, plain), "https://%s:%d/v1" % (HOST, secure)
    expected = ask(demo + "/v1")
    use(environment(SSL_CERT_FILE=folder / "ca.crt"))

    for name, settings in [("CONNECT", {"HTTPS_PROXY": proxy}), ("CONNECT, lower case", {"https_proxy": proxy}),
                           ("no scheme in the setting", {"HTTPS_PROXY": proxy[7:]})]:
        before = len(asked_of(open_proxy))
        with environment(**settings):
            check("%s: the answer" % name, outcome(ask, https), expected)
        check("%s: went through the proxy" % name, asked_of(open_proxy)[before:],
              ["CONNECT %s:%d HTTP/1.1" % (HOST, secure)])
    before = len(asked_of(open_proxy))
    with environment(HTTPS_PROXY=proxy), client(https) as openai:
        for _ in range(3):
            openai.chat.completions.create(model="demo", messages=HELLO, stream=True).collect()
    check("CONNECT: three streams, one tunnel", len(asked_of(open_proxy)) - before, 1)
    with environment(HTTPS_PROXY=known):
        check("CONNECT with credentials", outcome(ask, https), expected)
        check("CONNECT, asynchronous streams", asyncio.run(ask_three(https)), [expected] * 3)
    with environment(HTTP_PROXY=proxy):
        before = len(asked_of(open_proxy))
        check("plain http", outcome(ask, http), expected)
        check("plain http: went through the proxy", asked_of(open_proxy)[before:],
              ["POST http://%s:%d/v1/chat/completions HTTP/1.1" % (HOST, plain)])
    with environment(HTTP_PROXY=known):
        check("plain http with credentials", outcome(ask, http), expected)
    check("a key over plain http is warned of, once", LOG.getvalue().count("to %s over plain http" % HOST), 1)

    for name, base_url, setting in [("CONNECT", https, "HTTPS_PROXY"), ("plain http", http, "HTTP_PROXY")]:
        with environment(**{setting: "http://127.0.0.1:%d" % closed_proxy}):
            error = outcome(ask, base_url)
        check("%s, no credentials: an error of our own" % name, isinstance(error, streamlite.APIError))
        check_says("%s, no credentials: scheme and remedy" % name, error, "407", "Basic", "user:password@")
        with environment(**{setting: known.replace(SECRET, SECRET + "-wrong")}):
            error = outcome(ask, base_url)
        check("%s, wrong credentials: an error of our own" % name, isinstance(error, streamlite.APIError))
        check_says("%s, wrong credentials: the proxy's words" % name, error, "401 Unauthorized")
        with environment(**{setting: proxy}):
            error = outcome(ask, re.sub(r":\d+/", ":%d/" % dead, base_url))
        check("%s, a proxy that reaches nobody: an error of our own" % name, isinstance(error, streamlite.APIError))
        check_says("%s, a proxy that reaches nobody: its words" % name, error, "500", "Unable to connect")
        with environment(**{setting: nobody}):
            error = outcome(ask, base_url)
        check("%s, no proxy there" % name, type(error), streamlite.APIConnectionError)
        check_says("%s, no proxy there: the message names it" % name, error, "proxy", nobody.rpartition("@")[2])
        for scheme in ("socks5", "socks5h", "https"):
            with environment(**{setting: nobody.replace("http:", scheme + ":")}):
                error = outcome(ask, base_url)
            check_says("%s, %s proxy: refused by name" % (name, scheme), error, "%s: proxy" % scheme)

    with environment(HTTP_PROXY=nobody, HTTPS_PROXY=nobody):
        direct = http.replace(HOST, ADDRESS)
        for entry, base_url in [(HOST, http), (HOST, https), ("example.test", http), (".example.test", https),
                                ("%s:%d" % (HOST, plain), http), ("other.test, " + HOST, http), (ADDRESS, direct),
                                ("192.0.2.0/24", direct), ("10.0.0.0/8,192.0.2.0/24", direct), ("*", http)]:
            with environment(NO_PROXY=entry):
                check("NO_PROXY=%s: no proxy for %s" % (entry, origin_of(base_url)), outcome(ask, base_url), expected)
        for entry, base_url in [("other.test", http), ("test.example", https), ("%s:1" % HOST, http),
                                ("198.51.100.0/24", direct)]:
            with environment(NO_PROXY=entry):
                check_says("NO_PROXY=%s: the proxy for %s" % (entry, origin_of(base_url)),
                           outcome(ask, base_url), "proxy", nobody.rpartition("@")[2])
        for host in ("127.0.0.1", "localhost"):
            check("loopback is never proxied: %s" % host, outcome(ask, "http://%s:%d/v1" % (host, plain)), expected)

    env = {"OPENAI_BASE_URL": https, "OPENAI_API_KEY": KEY}
    done = run(*COMMAND, "-m", "demo", "Say hello.", HTTPS_PROXY=known, **env)
    check("the command through CONNECT", (done.returncode, done.stdout.strip()), (0, expected.strip()))
    done = run(*COMMAND, "-m", "demo", "Say hello.", HTTPS_PROXY="http://127.0.0.1:%d" % closed_proxy, **env)
    check("the command, no proxy credentials: one line", (done.returncode, len(done.stderr.splitlines())), (1, 1))
    check_says("the command, no proxy credentials: scheme", done.stderr, "407", "Basic")


def listens_elsewhere():
    """Whether the namespaces are there that give this machine a name and an address that are not loopback."""
    try:
        return socket.gethostbyname(HOST) == ADDRESS
    except OSError:
        return False


# ---- other clients, and the programs that were written for them ------------------------------------------------------

WEATHER = [{"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]
SAID = 'Two\nlines, "quotes", \U0001f44b\U0001f3fd and </script>.'

CLIENT_IN_NODE = """
import OpenAI from "openai";
const [said, tools] = JSON.parse(process.argv[1]);
const client = new OpenAI({ maxRetries: 1 });
const request = { model: "demo", messages: [{ role: "user", content: said }] };
const create = (fields) => client.chat.completions.create({ ...request, ...fields });
const facts = { text: "", pieces: 0, tool: "", usage: null };

for await (const chunk of await create({ stream: true, stream_options: { include_usage: true } })) {
  const choice = chunk.choices[0];
  if (choice?.delta?.content) { facts.text += choice.delta.content; facts.pieces += 1; }
  if (choice?.finish_reason) facts.finish_reason = choice.finish_reason;
  if (chunk.usage) facts.usage = chunk.usage.total_tokens;
}
for await (const chunk of await create({ stream: true, tools })) {
  for (const call of chunk.choices[0]?.delta?.tool_calls ?? []) {
    if (call.id) facts.tool = call.function.name + call.function.arguments;
    else facts.tool += call.function.arguments;
  }
}
const whole = await create({});
facts.whole = [whole.choices[0].message.content, whole.choices[0].finish_reason, whole.usage.total_tokens];
const called = await create({ tools });
facts.whole_tool = called.choices[0].message.tool_calls.map((call) => call.function.name + call.function.arguments);
facts.models = (await client.models.list()).data.map((model) => model.id);
facts.limited = (await create({ model: "demo-rate-limit" })).choices[0].message.content;
facts.refused = await create({ model: "no-such-model" }).then(() => null, (error) => [error.status, error.code]);
try {
  for await (const chunk of await create({ model: "demo-error", stream: true })) facts.failed = chunk.model;
} catch (error) {
  facts.failed = error instanceof OpenAI.APIError && error.message;
}
console.log(JSON.stringify(facts));
"""

STREAM_IN_NODE = """
import OpenAI from "openai";
const client = new OpenAI();
const stream = await client.chat.completions.create({
  model: "any-name", messages: [{ role: "user", content: "Explain streams" }], stream: true,
});
const parts = [];
for await (const chunk of stream) {
  const content = chunk.choices[0]?.delta?.content;
  if (content) { parts.push(content); process.stdout.write(content); }
}
console.log(`\\n${parts.join("").length} characters`);
"""


def facts_of(sdk):
    """What CLIENT_IN_NODE does, in Python: with the official SDK, or with streamlite in its place."""
    client = sdk.OpenAI(max_retries=1)

    def create(**fields):
        return client.chat.completions.create(
            **{"model": "demo", "messages": [{"role": "user", "content": SAID}], **fields})

    facts = {"text": "", "pieces": 0, "tool": "", "usage": None}
    for chunk in create(stream=True, stream_options={"include_usage": True}):
        if chunk.choices and chunk.choices[0].delta.content:
            facts["text"] += chunk.choices[0].delta.content
            facts["pieces"] += 1
        if chunk.choices and chunk.choices[0].finish_reason:
            facts["finish_reason"] = chunk.choices[0].finish_reason
        if chunk.usage:
            facts["usage"] = chunk.usage.total_tokens
    for chunk in create(stream=True, tools=WEATHER):
        for call in chunk.choices[0].delta.tool_calls or []:
            if call.id:
                facts["tool"] = call.function.name + call.function.arguments
            else:
                facts["tool"] += call.function.arguments
    whole = create()
    facts["whole"] = [whole.choices[0].message.content, whole.choices[0].finish_reason, whole.usage.total_tokens]
    calls = create(tools=WEATHER).choices[0].message.tool_calls
    facts["whole_tool"] = [call.function.name + call.function.arguments for call in calls]
    facts["models"] = [model.id for model in client.models.list().data]
    facts["limited"] = create(model="demo-rate-limit").choices[0].message.content
    error = outcome(create, model="no-such-model")
    facts["refused"] = [error.status_code, error.code]
    error = outcome(list, create(model="demo-error", stream=True))
    facts["failed"] = isinstance(error, sdk.APIError) and error.message
    return facts


def clients(use, folder):
    """DemoServer as others see it: the official SDKs in Python and JavaScript, and curl."""
    demo = use(streamlite.DemoServer(delay=0))
    use(environment(OPENAI_BASE_URL=demo.base_url, OPENAI_API_KEY=KEY))
    facts = facts_of(streamlite)
    check("streamlite: text", (facts["text"][-len(SAID):], facts["finish_reason"]), (SAID, "stop"))
    check("streamlite: text in pieces", facts["pieces"] > 20)
    check("streamlite: a tool call", facts["tool"].split("{")[0], "get_weather")
    check("streamlite: a whole reply", facts["whole"], [facts["text"], "stop", facts["usage"]])
    check("streamlite: a rate limit that passes", facts["limited"], facts["text"])
    check("streamlite: an unknown model", facts["refused"], [404, "model_not_found"])
    check("streamlite: an error in the stream", facts["failed"], "The demo model fails here.")

    with part("openai (Python)"):
        check("openai (Python) says the same", facts_of(package("openai")), facts)
    with part("openai (npm)"):
        need("node")
        if not (CI / "node_modules" / "openai").is_dir():
            raise Missing("the npm package openai")
        node = ["node", "--input-type=module", "--eval"]
        done = run(*node, CLIENT_IN_NODE, json.dumps([SAID, WEATHER]), cwd=CI)
        check("openai (npm) says the same", json.loads(done.stdout or "null") or done.stderr, facts)
        done = run(*node, STREAM_IN_NODE, cwd=CI)
        with client(demo.base_url) as openai:
            text = openai.chat.completions.create(
                model="any-name", messages=[{"role": "user", "content": "Explain streams"}]).choices[0].message.content
        check("a Node program that streams and collects", done.stdout or done.stderr,
              "%s\n%d characters\n" % (text, len(text)))
    with part("curl"):
        need("curl")
        slow = use(streamlite.DemoServer(delay=0.05))
        body = json.dumps({"model": "demo", "messages": HELLO, "stream": True})
        with subprocess.Popen(["curl", "-sN", slow.base_url + "/chat/completions", "-d", body,
                               "-H", "Content-Type: application/json"], stdout=subprocess.PIPE) as process:
            first = process.stdout.readline()
            check("curl -N: the first event comes while the server still writes", slow.active, 1)
            rest = process.stdout.read()
        events = (first + rest).decode().split("\n\n")
        check("curl -N: events, each a line of data and a blank one", all(
            event.startswith("data: ") and "\n" not in event for event in events[:-1]))
        check("curl -N: the end", events[-2:], ["data: [DONE]", ""])


PROGRAMS = {
    "stream": """
        from openai import OpenAI

        client = OpenAI()
        stream = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "Say hello."}], stream=True)
        for chunk in stream:
            delta = chunk.choices[0].delta
            if delta.content:
                print(delta.content, end="", flush=True)
        print()
        """,
    "collect": """
        from openai import OpenAI

        def collect(messages):
            parts = []
            for chunk in OpenAI().chat.completions.create(model="demo", messages=messages, stream=True):
                if not chunk.choices:
                    continue
                content = chunk.choices[0].delta.content
                if content:
                    parts.append(content)
            return "".join(parts)

        text = collect([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "List three rivers."}])
        print(text, len(text))
        """,
    "tools": """
        import json
        from openai import OpenAI

        tools = [{"type": "function", "function": {"name": "get_weather", "description": "The weather of a city",
                  "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]
        stream = OpenAI().chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "Weather in Oslo"}], tools=tools, stream=True)
        calls = {}
        for chunk in stream:
            for call in chunk.choices[0].delta.tool_calls or []:
                if call.id:
                    calls[call.index] = {"name": call.function.name, "arguments": ""}
                if call.function.arguments:
                    calls[call.index]["arguments"] += call.function.arguments
        for call in calls.values():
            print(call["name"], json.loads(call["arguments"]))
        """,
    "usage": """
        from openai import OpenAI

        stream = OpenAI().chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "Hello!"}], stream=True,
            stream_options={"include_usage": True})
        for chunk in stream:
            if chunk.usage:
                print(chunk.usage.prompt_tokens, chunk.usage.completion_tokens, chunk.usage.total_tokens)
            elif chunk.choices and chunk.choices[0].delta.content:
                print(chunk.choices[0].delta.content, end="", flush=True)
        """,
    "async": """
        import asyncio
        from openai import AsyncOpenAI

        async def say(prompt):
            stream = await AsyncOpenAI().chat.completions.create(
                model="demo", messages=[{"role": "user", "content": prompt}], stream=True)
            async for chunk in stream:
                delta = chunk.choices[0].delta
                if delta.content:
                    print(delta.content, end="", flush=True)

        asyncio.run(say("Explain async generators."))
        """,
    "errors": """
        from openai import APIError, APIStatusError, OpenAI, OpenAIError, RateLimitError

        client = OpenAI(max_retries=0)
        for model in "no-such-model", "demo-error", "demo-rate-limit", "demo":
            try:
                for chunk in client.chat.completions.create(
                        model=model, messages=[{"role": "user", "content": "Hello"}], stream=True):
                    if chunk.choices[0].delta.content:
                        print(chunk.choices[0].delta.content, end="")
                print()
            except RateLimitError as error:
                print(type(error).__name__, error.status_code, error.request_id, error.code)
            except APIStatusError as error:
                print(type(error).__name__, error.status_code, error.request_id, error.code, error.param, error.body)
            except APIError as error:
                print(type(error).__name__, error.message, error.body)
        """,
}
LOST = """
    from openai import OpenAI, APIConnectionError, APIError

    client = OpenAI()
    for attempt in range(2):
        parts = []
        try:
            for chunk in client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "Hello"}], stream=True):
                if chunk.choices[0].delta.content:
                    parts.append(chunk.choices[0].delta.content)
        except APIConnectionError:
            print("connection lost", bool(parts))
        except APIError as error:
            print("error:", error, bool(parts))
    """
WEB_PROGRAM = """
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse
    from openai import AsyncOpenAI

    app = FastAPI()
    client = AsyncOpenAI()

    async def events(prompt):
        stream = await client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": prompt}], stream=True)
        async for chunk in stream:
            delta = chunk.choices[0].delta
            if delta.content:
                yield f"data: {delta.content}\\n\\n"
        yield "data: [DONE]\\n\\n"

    @app.get("/stream")
    async def stream(prompt: str):
        return StreamingResponse(events(prompt), media_type="text/event-stream")
    """


def printed(text):
    """Run a program, and return what it prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(textwrap.dedent(text), "program", "exec"), {"__name__": "__main__"})
    return output.getvalue()


def programs(use, folder):
    """Programs written for the official SDK, with only the word `openai` replaced."""
    package("openai")
    demo = use(streamlite.DemoServer(delay=0))
    use(environment(OPENAI_BASE_URL=demo.base_url, OPENAI_API_KEY=KEY))
    for name, text in PROGRAMS.items():
        theirs, ours = (outcome(printed, text.replace("openai", word)) for word in ("openai", "streamlite"))
        check("%s: it prints the same" % name, ours, theirs)
        check("%s: it prints something" % name, bool(theirs) and isinstance(theirs, str))
    for model, line in ("demo-lost", "connection lost True"), ("demo-error", "error: The demo model fails here. True"):
        text = LOST.replace("openai", "streamlite").replace("MODEL", repr(model))
        check("%s: caught as the program expects" % model, outcome(printed, text), (line + "\n") * 2)
    with part("FastAPI"):
        package("fastapi"), package("uvicorn")
        bodies = {}
        for word in "openai", "streamlite":
            (folder / ("with_%s.py" % word)).write_text(textwrap.dedent(WEB_PROGRAM).replace("openai", word))
            bodies[word] = fetch(serve_app(use, folder, "with_%s:app" % word) + "/stream?prompt=hello").decode()
        check("FastAPI: it sends the same", bodies["streamlite"], bodies["openai"])
        check_says("FastAPI: it sends all", bodies["streamlite"], "data:  hello\n\n", "data: [DONE]")


def serve_app(use, folder, app):
    """Serve an ASGI application with uvicorn; return its address."""
    port = free_port()
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(folder), str(TOP)]))
    use(program(sys.executable, "-m", "uvicorn", "--log-level", "warning", "--port", port, app,
                port=port, log=folder / (app.split(":")[0] + ".log"), env=env))
    return "http://127.0.0.1:%d" % port


def uvloop(use, folder):
    """AsyncOpenAI under another event loop than asyncio's."""
    loop = package("uvloop").new_event_loop()
    use(contextlib.closing(loop))
    loop.set_debug(True)
    loop.slow_callback_duration = 2  # a busy machine is none of our faults
    demo = use(streamlite.DemoServer(delay=0))

    async def text(openai):
        async with await openai.chat.completions.create(model="demo", messages=HELLO, stream=True) as stream:
            return "".join([piece async for piece in stream.text()])

    async def everything():
        async with streamlite.AsyncOpenAI(base_url=demo.base_url, api_key=KEY) as openai:
            expected = ask(demo.base_url)
            check("a stream", await text(openai), expected)
            check("50 streams at once", set(await asyncio.gather(*(text(openai) for _ in range(50)))), {expected})
            whole = await openai.chat.completions.create(model="demo", messages=HELLO)
            check("a whole reply", whole.choices[0].message.content, expected)
            demo.delay = 10
            task = asyncio.ensure_future(text(openai))
            while not demo.active:
                await asyncio.sleep(0.01)
            started = time.monotonic()
            task.cancel()
            await asyncio.wait([task])
            check("a cancelled task ends at once", (task.cancelled(), time.monotonic() - started < 0.5),
                  (True, True))

    loop.run_until_complete(everything())
    complaints = re.findall("^(?:WARNING|ERROR|CRITICAL):asyncio:.*", LOG.getvalue(), re.M | re.S)
    check("nothing that asyncio complains of", complaints, [])


# ---- the README's relays ---------------------------------------------------------------------------------------------

class Browser:
    """A headless Chromium, driven by the WebDriver protocol."""

    def __init__(self, folder, port):
        self.url = "http://127.0.0.1:%d/session" % port
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                     "--disable-background-networking", "--disable-component-update", "--disable-sync",
                     "--window-size=800,600", "--user-data-dir=%s" % (folder / "profile")]
        chrome = {"binary": shutil.which("chromium"), "args": arguments}
        session = self.call("", capabilities={"alwaysMatch": {"goog:chromeOptions": chrome}})["sessionId"]
        self.url += "/" + session

    def call(self, path, method="POST", **fields):
        body = json.dumps(fields).encode() if method == "POST" else None
        reply = fetch(self.url + path, data=body, method=method, headers={"Content-Type": "application/json"})
        value = json.loads(reply.decode())["value"]
        if isinstance(value, dict) and "error" in value:
            raise RuntimeError(value["message"])
        return value

    def open(self, url):
        self.call("/url", url=url)

    def run(self, script, *arguments):
        return self.call("/execute/sync", script=script, args=list(arguments))

    def text(self):
        """What the page shows."""
        return self.run("return document.body.innerText")

    def type(self, selector, text):
        element = self.call("/element", using="css selector", value=selector)
        self.call("/element/%s/value" % list(element.values())[0], text=text)

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("/screenshot", "GET")))

    def close(self):
        self.call("", "DELETE")


def readme_program(name):
    """The Python program of the README whose first line is the comment `# name`."""
    readme = (TOP / "README.md").read_text("utf-8")
    return re.search(r"^```python\n(# %s\n.*?)^```$" % re.escape(name), readme, re.M | re.S).group(1)


def relay(use, folder):
    """The README's standard-library relay between DemoServer and a real browser."""
    need("chromium", "chromedriver")
    demo = use(streamlite.DemoServer(delay=0))
    expected = use(client(demo.base_url)).chat.completions.create(
        model="demo", messages=[{"role": "user", "content": SAID}]).choices[0].message.content
    env = dict(os.environ, PYTHONPATH=str(TOP), OPENAI_BASE_URL=demo.base_url, OPENAI_API_KEY=KEY)
    (folder / "relay.py").write_text(readme_program("relay.py"), "utf-8")

    def serve(model):
        port = free_port()
        use(program(sys.executable, folder / "relay.py", port, port=port, log=folder / ("relay-%s.log" % model),
                    env=dict(env, OPENAI_MODEL=model)))
        return "http://127.0.0.1:%d/" % port

    port = free_port()
    use(program("chromedriver", "--port=%d" % port, port=port, log=folder / "chromedriver.log"))
    browser = use(contextlib.closing(Browser(folder, port)))

    def answer():
        return browser.run("return document.getElementById('answer').textContent")

    def problem():
        return browser.run("return document.getElementById('problem').textContent")

    def submit(url):
        """Ask on a fresh page, with a text that a line of input cannot hold."""
        browser.open(url)
        browser.run("""
            const said = arguments[0], form = document.querySelector("form");
            form.addEventListener("formdata", event => event.formData.set("prompt", said));
            form.requestSubmit();""", SAID)

    url = serve("demo")
    demo.delay = 0.05
    submit(url)
    seen = []
    until(lambda: seen.append(answer()) or seen[-1] == expected)
    check("the text arrives intact", seen[-1], expected)
    check("tokens appear one after another", len(set(seen)) >= 10)
    check("each longer than the last", all(after.startswith(before) for before, after in zip(seen, seen[1:])))
    check("no problem is shown", problem(), "")
    check("the answer stays when the stream has ended", until(lambda: not demo.active) and answer(), expected)
    if "SCREENSHOT" in os.environ:
        browser.screenshot(pathlib.Path(os.environ["SCREENSHOT"]))
    browser.open(url)
    browser.type("input", "typed by hand\n")
    check("typing and Enter ask too", until(lambda: answer().endswith("You wrote: typed by hand")))

    until(lambda: not demo.active)
    demo.delay = 0.2  # the whole answer would take seven seconds
    submit(url)
    check("an answer has begun", until(answer) and demo.active, 1)
    browser.open("about:blank")
    check("leaving the page stops the upstream stream", until(lambda: not demo.active, 2))
    demo.delay = 0

    submit(serve("demo-error"))
    check("an upstream error: its words are shown", until(problem) and problem(), "The demo model fails here.")
    check("what came before it stays", bool(answer()) and expected.startswith(answer()))
    submit(serve("demo-lost"))
    check("a lost upstream connection is told", until(problem))
    check("what came before it stays too", bool(answer()) and expected.startswith(answer()))
    check("the server is not shown", str(demo.base_url[7:-3]) in browser.text(), False)
    SHOWN.append(browser.text())
    submit(serve("no-such-model"))
    check_says("an upstream refusal is told", until(problem) and problem(), "NotFoundError")
    logs = "".join(path.read_text() for path in folder.glob("relay-*.log"))
    SHOWN.append(logs)
    check("the relays had no trouble of their own", "Traceback" in logs, False)


def other_relays(use, folder):
    """The README's other relays: FastAPI by HTTP, and the one that keeps records with an official client before it."""
    import sqlite3
    demo = use(streamlite.DemoServer(delay=0))
    use(environment(OPENAI_BASE_URL=demo.base_url, OPENAI_API_KEY=KEY))
    expected = ask(demo.base_url)
    for name in "fastapi_relay", "recording_relay":
        (folder / (name + ".py")).write_text(readme_program(name + ".py"), "utf-8")

    with part("FastAPI"):
        package("fastapi"), package("uvicorn")
        url = serve_app(use, folder, "fastapi_relay:app") + "/stream?prompt=Say%20hello."
        events = streamlite.SSEDecoder().feed(fetch(url))
        check("FastAPI: the text", "".join(json.loads(event.data)["choices"][0]["delta"].get("content", "")
                                           for event in events[:-1]), expected)
        check("FastAPI: the end", events[-1].data, "[DONE]")
        demo.delay = 0.1
        with urllib.request.urlopen(url, timeout=10) as response:
            first = response.readline()
            check("FastAPI: an event comes while the server still writes", (first[:6], demo.active), (b"data: ", 1))
        check("FastAPI: a client that goes away stops the upstream stream", until(lambda: not demo.active, 2))
        demo.delay = 0

    with part("the relay that keeps records"):
        sdk, port = package("openai"), free_port()
        use(program(sys.executable, folder / "recording_relay.py", port, folder / "streams.db", port=port,
                    log=folder / "recording.log", env=dict(os.environ, PYTHONPATH=str(TOP))))
        openai = use(sdk.OpenAI(base_url="http://127.0.0.1:%d/v1" % port, max_retries=0))

        def records():
            with contextlib.closing(sqlite3.connect(str(folder / "streams.db"))) as database:
                return database.execute("SELECT text, completion_tokens, ended FROM streams").fetchall()

        def recorded(count):
            """The last of so many records."""
            until(lambda: isinstance(outcome(records), list) and len(records()) == count)
            return records()[-1]

        def create(model):
            return openai.chat.completions.create(model=model, messages=HELLO, stream=True)

        text = "".join(chunk.choices[0].delta.content or "" for chunk in create("demo") if chunk.choices)
        check("an official client streams through it", text, expected)
        whole = recorded(1)
        check("the record of a whole stream", (whole[0], whole[1] > 20), (expected, True))
        demo.delay = 0.1
        with create("demo") as stream:
            next(iter(stream))
        left = recorded(2)
        check("the record of a client that left", (expected.startswith(left[0]), left[0] != expected, left[1]),
              (True, True, None))
        check("its upstream stream has ended", until(lambda: not demo.active, 2))
        demo.delay = 0
        error = outcome(list, create("demo-error"))
        check("an error in the stream reaches the client", isinstance(error, sdk.APIError))
        broken = recorded(3)
        check("the record of a broken stream", expected.startswith(broken[0]) and broken[0] != expected)
        check("a refusal reaches the client", outcome(create, "no-such-model").status_code, 502)
        refused = recorded(4)
        check("the record of a refusal", refused[:2], (None, None))
        check("each record tells how its stream ended", len({whole[2], left[2], broken[2], refused[2]}), 4)


# ---- main ------------------------------------------------------------------------------------------------------------

SECTIONS = [llama_cpp, tls, proxies, clients, programs, uvloop, relay, other_relays]


def enter_namespaces():
    """Run this program again in namespaces of its own, where they can be made; there, set up its network."""
    if os.environ.get("INTEROP_NAMESPACES") == "try":
        os.environ["INTEROP_NAMESPACES"] = "made"
        hosts = pathlib.Path(tempfile.mkdtemp()) / "hosts"
        hosts.write_text("127.0.0.1 localhost\n::1 localhost\n%s %s\n" % (ADDRESS, HOST))
        for command in ["ip link set lo up", "ip address add %s/32 dev lo" % ADDRESS,
                        "mount --bind %s /etc/hosts" % hosts]:
            subprocess.run(command.split(), check=True)
        shutil.rmtree(str(hosts.parent))
    elif "INTEROP_NAMESPACES" not in os.environ and all(map(shutil.which, ("unshare", "ip", "mount"))):
        options = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        if subprocess.run(["unshare", *options, "true"], stderr=subprocess.DEVNULL).returncode == 0:
            os.environ["INTEROP_NAMESPACES"] = "try"
            os.execvp("unshare", ["unshare", *options, sys.executable, *sys.argv])


def main(names):
    enter_namespaces()
    for name in list(os.environ):  # the machine's own settings have no say here
        if re.match("OPENAI_|SSL_CERT_|SSLKEYLOG|(REQUESTS|CURL)_CA_|.*_PROXY$", name.upper()):
            del os.environ[name]
    logging.basicConfig(stream=LOG, level=logging.DEBUG)
    unknown = set(names) - {section.__name__ for section in SECTIONS}
    if unknown:
        sys.exit("no such section: " + ", ".join(sorted(unknown)))
    for section in SECTIONS:
        if names and section.__name__ not in names:
            continue
        started = time.monotonic()
        print("-- " + section.__name__, flush=True)
        with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            try:
                section(stack.enter_context, pathlib.Path(folder))
            except Missing as missing:
                skip("all of %s" % section.__name__, "missing: %s" % missing)
            except Exception:
                COUNTS["failed"] += 1
                print("FAIL %s ended early\n%s" % (section.__name__, traceback.format_exc()))
            stack.close()  # whatever was started ends before its folder goes
            gc.collect()   # clients that the official SDK leaves behind do not complain in another section
        print("   %.1f s" % (time.monotonic() - started), flush=True)
    shown = "\n".join(SHOWN) + LOG.getvalue()
    encoded = base64.b64encode(("user:" + SECRET).encode()).decode()
    check("no key and no password in any error, log line or output",
          [secret for secret in (SECRET, encoded) if secret in shown], [])
    print("%(passed)d passed, %(failed)d failed, %(skipped)d skipped" % collections.defaultdict(int, COUNTS))
    return bool(COUNTS["failed"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
