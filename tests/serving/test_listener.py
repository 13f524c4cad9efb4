"""Where a page is served, and under which names it is reached."""

import socket

import pytest

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.serving.listener import (
    ServingParams,
    check_serving,
    hosts_of,
    is_address,
    listening,
    warn_of_others,
)


def test_names_under_which_a_page_is_reached(monkeypatch, capsys):
    monkeypatch.setattr(socket, "gethostname", lambda: "MyBox.Example.org")
    assert hosts_of(ServingParams()) == ("127.0.0.1",)
    assert hosts_of(ServingParams(host="LabServer")) == ("labserver",)
    assert hosts_of(ServingParams(public_address="https://Labels.example.org:8443/"))[1:] == ("labels.example.org",)
    beyond_ascii = ServingParams(public_address="https://Etiketten-für-Käse.example")
    assert hosts_of(beyond_ascii)[1:] == ("xn--etiketten-fr-kse-8nb24b.example",), "as a browser asks for it"
    for host in ("0.0.0.0", "::"):
        assert hosts_of(ServingParams(host=host))[1:] == ("mybox.example.org", "mybox", "mybox.local")
    warn_of_others(ServingParams(host="LocalHost"))
    assert capsys.readouterr().out == ""


def test_addresses_and_names():
    assert all(map(is_address, ("192.168.1.5", "127.0.1.1", "[fe80::1]", "[::ffff:192.168.1.5]")))
    for name in ("", "mybox", "192.168.1.5.evil.example", "1.2.3", "::1", "[192.168.1.5]", "[fe80::1", "[fe80::1%a/b]"):
        assert not is_address(name), name


@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("inf"), 1e306, 1e9])
def test_hours_that_links_cannot_hold(hours):
    with pytest.raises(UserError, match="--expires_hours .*: must be positive and at most 876000"):
        check_serving(ServingParams(expires_hours=hours))
    check_serving(ServingParams(expires_hours=876_000))


@pytest.mark.parametrize("name", ["a..b", "ü" * 64])
def test_public_names_that_cannot_be(name):
    with pytest.raises(UserError, match=f"--public_address https://{name}: no host can be called {name}"):
        check_serving(ServingParams(public_address=f"https://{name}"))


@pytest.mark.parametrize("host", ["a..b", "ü" * 64])
def test_hosts_that_cannot_be(host):
    with pytest.raises(UserError, match="cannot listen on .* or --host"), listening(ServingParams(host=host, port=0)):
        pass
