"""Fixtures that several files of this folder use."""

import pytest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CALIBRATION", str(tmp_path / "ours"))
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path / "lerobot"))
    return tmp_path
