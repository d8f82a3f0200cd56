"""TLS and mTLS of both fronts: the openai package, grpcio and Python's own client against certificates made here.

usage: tls_test.py BINARY MODEL
"""
import contextlib
import http.client
import json
import pathlib
import socket
import ssl
import subprocess
import sys
import tempfile

import grpc
import openai

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "e2e")]
import cluster as e2e  # noqa: E402
from certificates import Authority  # noqa: E402
from grpc_test import Client, code_of  # noqa: E402


def make_certificates(folder):
    """ca.pem, and NAME.pem with NAME.key that it has signed, of server and client."""
    authority = Authority(folder)
    for name in ("server", "client"):
        authority.sign(f"{folder}/{name}.pem", f"{folder}/{name}.key", ["IP:127.0.0.1", "DNS:localhost"])


def context(folder, client=None):
    ctx = ssl.create_default_context(cafile=f"{folder}/ca.pem")
    if client:
        ctx.load_cert_chain(f"{folder}/{client}.pem", f"{folder}/{client}.key")
    return ctx


def credentials(folder, client=None):
    read = [pathlib.Path(folder, name).read_bytes() for name in ("ca.pem", f"{client}.key", f"{client}.pem") if client or name == "ca.pem"]
    return grpc.ssl_channel_credentials(*read)


def ask(cluster, ctx, path="/health", body=None):
    """The status and body that Python's own HTTPS client gets, or the error's class."""
    connection = http.client.HTTPSConnection(cluster.host, int(cluster.port), timeout=60, context=ctx)
    with contextlib.closing(connection):
        try:
            connection.request("POST" if body else "GET", path, body)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except OSError as error:
            return type(error), str(error)
        except http.client.HTTPException as error:
            return type(error), str(error)


def test_openai(cluster, ctx):
    client = openai.OpenAI(base_url=cluster.http_url + "/v1", api_key="none", max_retries=0,
                           http_client=openai.DefaultHttpxClient(verify=ctx))
    fields = dict(model="fables-7m", prompt="Once upon a time", max_tokens=24, temperature=0)
    whole = client.completions.create(**fields).choices[0].text
    assert whole and "".join(c.choices[0].text for c in client.completions.create(**fields, stream=True)) == whole
    client.close()


def test_grpc(cluster, channel_credentials):
    channel = grpc.secure_channel(cluster.grpc_address, channel_credentials)
    answers = Client(cluster.grpc_address, "", channel).generate(text="Once upon a time", max_tokens=8)
    assert sum(len(a.token_ids) for a in answers) == 8
    channel.close()


def test_bytes(cluster, ctx):
    """Bodies larger than a record of TLS, in both directions; several requests of one connection; a part of a request."""
    words = "the fox saw " * 100_000
    status, answer = ask(cluster, ctx, "/tokenize", json.dumps({"prompt": words}))
    assert status == 200 and answer["count"] > 300_000, (status, str(answer)[:200])
    connection = http.client.HTTPSConnection(cluster.host, int(cluster.port), timeout=60, context=ctx)
    with contextlib.closing(connection):
        for _ in range(3):
            connection.request("GET", "/health")
            assert connection.getresponse().read()
    with ctx.wrap_socket(socket.create_connection((cluster.host, int(cluster.port)), timeout=60), server_hostname="localhost") as half:
        half.sendall(b"GET /health HTTP/1.1\r\nX: ")
        assert half.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_strangers(cluster, folder):
    """Who speaks in clear, or trusts other authorities, gets nothing."""
    with socket.create_connection((cluster.host, int(cluster.port)), timeout=60) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"200" not in plain.recv(1000)
    stranger = ask(cluster, ssl.create_default_context())
    assert isinstance(stranger[0], type) and issubclass(stranger[0], ssl.SSLCertVerificationError), stranger
    old = context(folder)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert ask(cluster, old)[0] == 200


def main():
    binary, model = sys.argv[1:3]
    with tempfile.TemporaryDirectory(prefix="switchyard-tls-") as folder:
        make_certificates(folder)
        flags = ["--ssl-certfile", f"{folder}/server.pem", "--ssl-keyfile", f"{folder}/server.key"]
        with e2e.Cluster(binary, model, *flags) as cluster:
            assert cluster.http_url.startswith("https://"), cluster.http_url
            test_openai(cluster, context(folder))
            test_grpc(cluster, credentials(folder))
            test_bytes(cluster, context(folder))
            test_strangers(cluster, folder)
        with e2e.Cluster(binary, model, *flags, "--ssl-ca-certs", f"{folder}/ca.pem") as cluster:
            test_openai(cluster, context(folder, "client"))
            test_grpc(cluster, credentials(folder, "client"))
            # TLS 1.3: the client learns of the refusal when it reads, and a reset may come before the alert.
            refused = ask(cluster, context(folder))
            assert isinstance(refused[0], type) and issubclass(refused[0], (ssl.SSLError, ConnectionError)), refused
            nobody = grpc.secure_channel(cluster.grpc_address, credentials(folder))
            health = nobody.unary_unary("/grpc.health.v1.Health/Check")
            assert code_of(lambda: health(b"", timeout=60))[0] == grpc.StatusCode.UNAVAILABLE
            nobody.close()
        for bad, words in [(flags[:2], "go together"), (flags[:3] + [f"{folder}/client.key"], "TLS key"),
                           (["--ssl-ca-certs", f"{folder}/ca.pem"], "needs"), (flags[:3] + [f"{folder}/names"], "PEM")]:
            done = subprocess.run([binary, "serve", model, "--port", "0", "--grpc-port", "0", *bad], capture_output=True, text=True,
                                  timeout=120)
            assert done.returncode != 0 and words in done.stderr, (bad, done.stderr[-500:])
    print("TLS with openai", openai.__version__, "and grpcio", grpc.__version__, "passed")


if __name__ == "__main__":
    main()
