"""The end of a server, reloaded weights and its process."""

import gc
import sys
import threading
import time
import weakref
from dataclasses import replace

import pytest
from fixtures.served import ANY, Slow, policy_service, state

pytest.importorskip("websockets", reason="extra serve not installed")
from understudy.commands.parts import served  # noqa: E402
from understudy.commands.parts.served import changed_checkpoint, served_client  # noqa: E402
from understudy.commands.serve import ServeOptions, _newest  # noqa: E402
from understudy.core import UserError  # noqa: E402
from understudy.serve.client import Client, LinkLost, RequestRefused  # noqa: E402
from understudy.serve.pauses import reduce_pauses  # noqa: E402
from understudy.serve.server import BackgroundServer  # noqa: E402


def test_replies_that_are_being_computed_are_sent_before_the_server_ends():
    service = policy_service()
    Slow(service, 0.4)
    with BackgroundServer(service) as server:
        clients, replies = [Client(server.url) for _ in range(3)], []
        idle = Client(server.url)
        threads = [threading.Thread(target=lambda c=c: replies.append(c.infer(state(1)))) for c in clients]
        [thread.start() for thread in threads]
        time.sleep(0.15)
        server.stop()
        [thread.join() for thread in threads]
    assert len(replies) == 3 and all(r["actions"].shape == (8, 2) for r in replies)
    with pytest.raises(LinkLost, match="1001|lost"):
        idle.infer(state(0))
    with pytest.raises(LinkLost, match="no connection"):
        Client(server.url, timeout=1)


def test_a_server_ends_after_the_plans_that_nobody_waits_for():
    """A thread that is inside PyTorch when Python ends would abort the process."""
    service = policy_service()
    Slow(service, 0.4)
    with (BackgroundServer(service) as server, Client(server.url) as client,
          pytest.raises(RequestRefused, match="DeadlinePassed")):
        client.infer(state(0), deadline=0.05)
    assert "inference" not in [thread.name for thread in threading.enumerate()]


def test_a_client_notices_another_checkpoint():
    service, new = policy_service(), policy_service()
    with BackgroundServer(service) as server, Client(server.url) as client:
        client.infer(state(0))
        assert changed_checkpoint(server.url) is None and changed_checkpoint("runs/a") is None
        new.served = replace(new.served, checkpoint="def")
        service.replace_policy(new)
        client.infer(state(0)), client.infer(state(0))
        assert client.checkpoints == ["abc", "def"]
        served_client(server.url).infer(state(0))
        assert changed_checkpoint(server.url) == f"{server.url} changed its checkpoint meanwhile: abc, then def"
        served_client(server.url).close()
    served._connect.cache_clear()


def test_weights_are_read_again_only_if_they_have_changed(tmp_path, monkeypatch):
    """--watch asks every second."""
    read = []
    monkeypatch.setattr("understudy.commands.serve.weights_digest", lambda path: read.append(path) or str(len(read)))
    (tmp_path / "policy.json").write_text("{}")
    (tmp_path / "weights.safetensors").write_bytes(b"first")
    o = ServeOptions(run=tmp_path)
    assert _newest(o) == _newest(o) == "1"
    (tmp_path / "weights.safetensors").write_bytes(b"second")
    assert _newest(o) == _newest(o) == "2" and read == [tmp_path, tmp_path]


def test_a_reply_names_the_checkpoint_that_planned_it():
    """Also if it was replaced while the plan was computed. A fallback names none."""
    service, new = policy_service(), policy_service()
    new.served = replace(new.served, checkpoint="def")
    Slow(service, 0.3)
    with BackgroundServer(service, replace(ANY, fallback="hold")) as server, Client(server.url) as client:
        threading.Timer(0.15, service.replace_policy, [new]).start()
        assert client.infer(state(0))["understudy"]["checkpoint"] == "abc"
        assert client.infer(state(0))["understudy"]["checkpoint"] == "def"
        Slow(service, 0.3)
        reply = client.infer(state(0), deadline=0.05)
        assert reply["fallback"] == "hold" and "checkpoint" not in reply["understudy"]


def test_a_port_that_is_taken_is_an_error():
    with BackgroundServer(policy_service()) as server, pytest.raises(UserError, match="cannot listen there"):
        BackgroundServer(policy_service(), replace(ANY, port=server.server.port)).__enter__()


def test_a_process_that_serves_is_not_searched_by_the_garbage_collector():
    """What exists is left alone, and what is made later is still collected."""
    interval, threshold, existing = sys.getswitchinterval(), gc.get_threshold(), [[]]
    try:
        reduce_pauses()
        before = gc.get_stats()[2]["collections"]
        for _ in range(3 * threshold[0] * threshold[1]):
            cycle = [[]]
            cycle.append(cycle)
        assert gc.get_stats()[2]["collections"] > before, "cycles that were made later are collected by themselves"
        assert not any(x is existing for x in gc.get_objects()) and sys.getswitchinterval() < interval
        later = [[]]
        later.append(later)
        there = weakref.ref(later_class := type("Made", (), {})())
        later_class.itself = later_class
        del later_class
        assert any(x is later for x in gc.get_objects())
        gc.collect()
        assert there() is None
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)
        sys.setswitchinterval(interval)
