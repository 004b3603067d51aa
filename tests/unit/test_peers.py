"""Whose address a request comes from: nobody but a trusted proxy is believed."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.api.peers import EDGE_HEADER, Peers, whole_site

TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
TOKEN = "0123456789abcdef"


def asked(peers: Peers, peer: str | None, *headers: tuple[str, str]) -> str | None:
    found = peers.client(
        {
            "type": "http",
            "client": None if peer is None else (peer, 40000),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        }
    )
    return None if found is None else str(found)


@pytest.mark.parametrize("name", ["x-forwarded-for", "forwarded"])
@pytest.mark.parametrize("value", ["1.2.3.4", "for=1.2.3.4", "10.0.0.1, 10.0.0.2", 'for="[::1]"', "", ",,,", "\xff"])
def test_who_is_not_trusted_is_who_asks(name: str, value: str) -> None:
    for peers in (Peers(), Peers(TRUSTED), Peers(TRUSTED, "forwarded"), Peers((), edge_token=TOKEN)):
        assert asked(peers, "198.51.100.7", (name, value)) == "198.51.100.7"


@pytest.mark.parametrize(
    ("header", "values", "expected"),
    [
        ("x-forwarded-for", ["203.0.113.9"], "203.0.113.9"),
        # What a client wrote itself stands before what the proxy saw.
        ("x-forwarded-for", ["6.6.6.6, 203.0.113.9"], "203.0.113.9"),
        ("x-forwarded-for", ["6.6.6.6, 203.0.113.9, 10.1.2.3"], "203.0.113.9"),
        ("x-forwarded-for", ["6.6.6.6", "203.0.113.9,10.1.2.3"], "203.0.113.9"),
        ("x-forwarded-for", ["10.9.9.9, 10.1.2.3"], "10.9.9.9"),
        ("x-forwarded-for", ["203.0.113.9:4711"], "203.0.113.9"),
        ("x-forwarded-for", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("x-forwarded-for", ["2001:db8::1"], "2001:db8::1"),
        ("x-forwarded-for", ["::ffff:203.0.113.9"], "203.0.113.9"),
        ("x-forwarded-for", ["6.6.6.6, unknown"], "10.0.0.1"),
        ("x-forwarded-for", ["6.6.6.6,"], "10.0.0.1"),
        ("x-forwarded-for", ["for=203.0.113.9"], "10.0.0.1"),
        ("x-forwarded-for", [], "10.0.0.1"),
        ("forwarded", ["for=6.6.6.6, for=203.0.113.9;proto=https"], "203.0.113.9"),
        ("forwarded", ['proto=https;For="[2001:db8::1]:4711"'], "2001:db8::1"),
        ("forwarded", ["for=6.6.6.6, for=_hidden"], "10.0.0.1"),
        ("forwarded", ["203.0.113.9"], "10.0.0.1"),
        # What a client wrote into a field that the proxy quotes is no hop.
        ("forwarded", ['for=203.0.113.9;host="a,for=6.6.6.6;x=y"'], "203.0.113.9"),
        ("forwarded", ['host="a;for=6.6.6.6;";for=203.0.113.9'], "203.0.113.9"),
        ("forwarded", [r'host="a\";for=6.6.6.6;\"";for=203.0.113.9'], "203.0.113.9"),
        ("forwarded", ['for=203.0.113.9;host="a,for=6.6.6.6'], "10.0.0.1"),
        ("forwarded", ["for=6.6.6.6", "for=203.0.113.9 , for=10.1.2.3"], "203.0.113.9"),
    ],
)
def test_of_a_trusted_proxy_the_last_stranger_counts(header: str, values: list[str], expected: str) -> None:
    peers = Peers(TRUSTED, "forwarded" if header == "forwarded" else "x-forwarded-for")
    assert asked(peers, "10.0.0.1", *((header, value) for value in values)) == expected
    # The other header is a client's own.
    other = ("forwarded", "for=6.6.6.6") if header == "x-forwarded-for" else ("x-forwarded-for", "6.6.6.6")
    assert asked(peers, "10.0.0.1", *((header, value) for value in values), other) == expected


def test_only_who_has_the_token_says_who_asked_the_edge() -> None:
    peers = Peers(TRUSTED, edge_token=TOKEN)
    assert asked(peers, "127.0.0.1", (EDGE_HEADER, f"{TOKEN} 203.0.113.9")) == "203.0.113.9"
    assert asked(peers, "127.0.0.1", (EDGE_HEADER, f"{TOKEN} 10.0.0.1"), ("x-forwarded-for", "6.6.6.6, 8.8.8.8")) == "8.8.8.8"
    for told in ("6.6.6.6", " 6.6.6.6", f"{TOKEN[:-1]} 6.6.6.6", f"{TOKEN}\xff 6.6.6.6"):
        assert asked(peers, "203.0.113.9", (EDGE_HEADER, told)) == "203.0.113.9"
    # Without a token of ours there is none that fits.
    assert asked(Peers(), "203.0.113.9", (EDGE_HEADER, " 6.6.6.6")) == "203.0.113.9"
    assert asked(peers, None) is None


def test_a_site_is_an_address_or_a_prefix() -> None:
    assert whole_site(ip_address("203.0.113.9")) == "203.0.113.9"
    assert whole_site(ip_address("2001:db8:1:2:3::4")) == "2001:db8:1:2::/64"


def test_a_long_chain_is_not_followed_for_ever() -> None:
    chain = ", ".join(["6.6.6.6", *["10.0.0.1"] * 5000])
    assert asked(Peers(TRUSTED), "10.0.0.2", ("x-forwarded-for", chain)) == "10.0.0.1"


@given(st.text(st.characters(max_codepoint=255), max_size=200), st.sampled_from(["x-forwarded-for", "forwarded", EDGE_HEADER]))
def test_whatever_a_header_says_it_raises_nothing(value: str, name: str) -> None:
    for peers in (Peers(TRUSTED, edge_token=TOKEN), Peers(TRUSTED, "forwarded")):
        assert asked(peers, "10.0.0.1", (name, value)) is not None
        assert asked(peers, "203.0.113.9", (name, value)) == "203.0.113.9"
