"""No test reaches a network: where a process of the tests looks up or connects to another machine, that raises.

conftest.py puts this folder on PYTHONPATH, so that every process a test starts has it too. What was tried is also
written to the file that GUARD_LOG names, because libraries catch what is raised and go on.
"""

import ipaddress
import os
import socket

_connect, _connect_ex, _lookup = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo


def _check(host: object) -> None:
    """Raises OSError where `host` is another machine."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost", socket.gethostname()):
        return
    try:
        address = ipaddress.ip_address(str(name).partition("%")[0])
        if address.is_loopback or address.is_unspecified:
            return
    except ValueError:
        pass
    if os.environ.get("GUARD_LOG"):
        with open(os.environ["GUARD_LOG"], "a") as file:
            file.write(f"{name}\n")
    raise OSError(f"a test tried to reach {name}")


def _guarded(method):
    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(address[0])
        return method(self, address)

    return connect


def _guarded_lookup(host, *arguments, **options):
    _check(host)
    return _lookup(host, *arguments, **options)


socket.socket.connect, socket.socket.connect_ex = _guarded(_connect), _guarded(_connect_ex)
socket.getaddrinfo = _guarded_lookup
