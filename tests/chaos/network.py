"""Network namespaces for the workers, on one bridge with the router: partitions and slow links that the processes cannot
see coming. Needs root. Standard library and iproute2 only."""
import contextlib
import os
import subprocess
import time


def ip(*args):
    subprocess.run(["ip", *args], check=True, capture_output=True)


class Network:
    """Worker i has a namespace with eth0 = 10.77.N.(i + 2); the router stays outside, at 10.77.N.1."""

    def __init__(self, workers):
        self.name = f"sy{os.getpid() % 10000}"
        self.subnet = f"10.77.{os.getpid() % 250}"
        self.router_host = f"{self.subnet}.1"
        self.workers = workers
        self.bridge = f"{self.name}b"
        try:
            self.make()
        except BaseException:
            self.remove()
            raise

    def make(self):
        ip("link", "add", "name", self.bridge, "type", "bridge")
        ip("addr", "add", f"{self.router_host}/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        for i in range(self.workers):
            ip("netns", "add", self.namespace(i))
            ip("link", "add", self.port(i), "type", "veth", "peer", "name", "eth0", "netns", self.namespace(i))
            ip("link", "set", self.port(i), "master", self.bridge, "up")
            for device in ("eth0", "lo"):
                ip("-n", self.namespace(i), "link", "set", device, "up")
            ip("-n", self.namespace(i), "addr", "add", f"{self.host(i)}/24", "dev", "eth0")
        time.sleep(1)  # the bridge's ports come up

    def namespace(self, i):
        return f"{self.name}w{i}"

    def port(self, i):
        return f"{self.name}v{i}"

    def host(self, i):
        return f"{self.subnet}.{i + 2}"

    def command(self, i):
        """What runs a command there."""
        return ["ip", "netns", "exec", self.namespace(i)]

    def cut(self, i):
        """Nothing goes in or out, and nobody is told."""
        ip("link", "set", self.port(i), "nomaster")

    def part(self, i):
        """Ports that are parted reach the router, but not each other."""
        subprocess.run(["bridge", "link", "set", "dev", self.port(i), "isolated", "on"], check=True)

    def slow(self, i):
        """1 Mbit/s for what goes to the worker."""
        subprocess.run(["tc", "qdisc", "replace", "dev", self.port(i), "root", "tbf", "rate", "1mbit", "burst", "16kb",
                        "latency", "400ms"], check=True)

    def heal(self, i):
        ip("link", "set", self.port(i), "master", self.bridge)
        subprocess.run(["bridge", "link", "set", "dev", self.port(i), "isolated", "off"], check=True)
        subprocess.run(["tc", "qdisc", "del", "dev", self.port(i), "root"], capture_output=True, check=False)

    def remove(self):
        for i in range(self.workers):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", self.namespace(i))
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", self.bridge)
