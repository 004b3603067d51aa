"""What faces the network, and what clients may not switch off, on a running instance."""

from __future__ import annotations

import socket
import time

import httpx
import psutil

from tests.serve.conftest import KEY, Served


def test_nothing_listens_on_all_addresses(served: Served) -> None:
    """HAProxy's side ports, Ray's own, the API of the replicas, the ports by which they call each other, and Postgres are on
    loopback."""
    family = [psutil.Process(served.pid), *psutil.Process(served.pid).children(recursive=True)]
    open_to_all = []
    ports = set()
    for process in family:
        try:
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN:
                    ports.add(one.laddr.port)
                    if one.laddr.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
                        open_to_all.append((process.name(), one.laddr.ip, one.laddr.port))
        except psutil.Error:
            continue
    assert served.port in ports and len(ports) > 10
    assert open_to_all == []


def test_a_client_cannot_set_its_own_time_limit(served: Served) -> None:
    """Serve would answer 408 after a millisecond, or never end the request."""
    with served.client() as client:
        for header in ("0.001", "0", "-1"):
            response = client.get("/api/v1/models", headers={"x-request-timeout-seconds": header})
            assert response.status_code == 200, header


def test_the_replicas_behind_it_do_not_heed_such_headers_either(served: Served) -> None:
    port = ingress_port(served)
    with served.client() as client:
        url = f"http://127.0.0.1:{port}/api/v1/models"
        assert client.get(url, headers={"x-request-timeout-seconds": "0.001"}).status_code == 200
        assert client.get(url, headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_nobody_says_from_which_address_he_asks(served: Served) -> None:
    """Neither through HAProxy nor beside it: all of these count for the address they come from, which a good key does not care
    about. Serve's own server would take X-Forwarded-For from whoever is on this machine, as HAProxy is."""
    beside = f"http://127.0.0.1:{ingress_port(served)}"
    with served.client() as client:
        found: list[httpx.Response] = []
        # 60 a minute, and what flows in meanwhile: a slow machine needs more.
        for number in range(400):
            if [one.status_code for one in found[-5:]].count(429) >= 4:
                break
            claims = {
                "Authorization": "Bearer kl_" + "0" * 12 + "_" + "A" * 43,
                "X-Forwarded-For": f"198.51.100.{number}",
                "Forwarded": f"for=198.51.100.{number}",
                "X-Kinlens-Peer": f"{'0' * 32} 198.51.100.{number}",
            }
            found.append(client.get(f"{beside if number % 2 else ''}/api/v1/me", headers=claims))
        assert {one.status_code for one in found} == {401, 429}
        assert [one.status_code for one in found[-5:]].count(429) >= 4
        assert found[-1].json().get("code") in ("too_many_failures", "unauthorized")
        assert client.get("/api/v1/me").status_code == 200


def test_a_client_that_leaves_is_noticed_whatever_it_says(served: Served) -> None:
    """With Serve's header that asks not to look, the place of a client that left would be held until the body's time limit."""
    port = ingress_port(served)
    for _ in range(60):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(
                b"POST /api/v1/face/verify-face HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n"
                b"x-request-disconnect-disabled: ?1\r\nContent-Type: image/jpeg\r\nContent-Length: 100000\r\n\r\nx"
            )
    deadline = time.monotonic() + 60
    with served.client() as client:
        while client.post("/api/v1/face/verify-face", content=b"x", headers={"Content-Type": "image/jpeg"}).status_code == 503:
            assert time.monotonic() < deadline, "their places are still taken"
            time.sleep(0.2)


def ingress_port(served: Served) -> int:
    (replica, *_) = served.replicas("Ingress")
    listens = [one.laddr.port for one in replica.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    # Serve takes it from these; the others of a replica are anywhere.
    (port, *_) = sorted(port for port in listens if 30_000 <= port <= 31_000)
    return int(port)
