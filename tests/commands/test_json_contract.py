"""Machine-readable output that other programs rely on. A change of these keys or statuses breaks them."""

import json

import pytest

from understudy import cli
from understudy.claims import probe, records
from understudy.claims.probe import Confirmation


@pytest.fixture
def call(capsys):
    def run(*args):
        status = cli.main([*map(str, args)])
        return status, json.loads(capsys.readouterr().out)
    return run


def test_the_list_of_claims_keeps_its_keys(call, monkeypatch, tmp_path):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    path = records.record_path  # one claim has not run
    monkeypatch.setattr(records, "record_path", lambda name: tmp_path / "no" if name == "diffusion-bc" else path(name))
    monkeypatch.setattr(records, "fingerprint", lambda claim, sources=None: "0" * 16)
    status, claims = call("claims", "list", "--json")
    by_name = {c["name"]: c for c in claims}
    assert status == 0 and by_name.keys() == records.all_claims().keys()
    for claim in claims:
        assert {"name", "rows", "verdict", "stale", "seconds"} <= claim.keys()
        assert claim["verdict"] in ("holds", "fails", "undecided", "not run")
        assert isinstance(claim["stale"], bool) and claim["rows"] == list(records.find_claim(claim["name"]).rows)
    missing = by_name["diffusion-bc"]
    assert (missing["verdict"], missing["stale"], missing["seconds"]) == ("not run", False, None)
    recorded = by_name["checkpoint-selection"]
    assert recorded["verdict"] == "holds" and recorded["stale"] and recorded["seconds"] > 1


@pytest.mark.parametrize("second,status", [("confirmed", 0), ("not run", 0), ("cannot run here", 0), ("due", 3)])
def test_the_check_of_claims_ends_with_3_if_one_is_due(call, monkeypatch, second, status):
    names = ["checkpoint-selection", "diffusion-bc"]
    confirmations = {names[0]: Confirmation("confirmed", seconds=1.0),
                     names[1]: Confirmation(second, "why", ("why",), 2.0)}
    monkeypatch.setattr(probe, "confirm_all", lambda names, trust_source: [confirmations[name] for name in names])
    assert call("claims", "check", *names, "--json") == (status, [
        {"name": names[0], "status": "confirmed", "detail": "", "differences": [], "seconds": 1.0},
        {"name": names[1], "status": second, "detail": "why", "differences": ["why"], "seconds": 2.0}])
    claims = {name: records.find_claim(name) for name in names}
    monkeypatch.setattr(records, "all_claims", lambda: claims)
    assert call("claims", "check", "--json")[0] == status  # without names, all
    assert call("claims", "check", names[0], "--json")[0] == 0


def test_a_plan_keeps_its_numbers_of_rollouts(call):
    """Unpaired, of each: between the normal approximation (62) and that with a continuity correction (72)."""
    status, plan = call("plan", "0.7", "0.9", "--json")
    assert status == 0 and {"paired", "unpaired"} <= plan["fixed"].keys()
    unpaired, paired = plan["fixed"]["unpaired"], plan["fixed"]["paired"]
    assert isinstance(unpaired, int) and all(isinstance(n, int) for n in paired.values())
    assert 62 <= unpaired <= 72
    assert list(paired) == ["0", "0.25", "0.5"]  # the correlation between the two on the same starts
    assert list(paired.values()) == sorted(paired.values(), reverse=True) and 30 < paired["0.5"] < paired["0"] < 80
