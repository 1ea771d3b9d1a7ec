"""Drawing on machines without a display."""

import ctypes
import os
import sys

import pytest

from understudy import headless


@pytest.mark.parametrize(("variables", "devices", "chosen"), [
    ({}, 1, "egl"), ({}, 0, None), ({"DISPLAY": ":0"}, 1, None), ({"MUJOCO_GL": "osmesa"}, 1, "osmesa")])
def test_without_a_display_mujoco_draws_offscreen_where_it_can(variables, devices, chosen, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "environ", dict(variables))
    monkeypatch.setattr(headless, "_egl_devices", lambda: devices)
    headless.prefer_offscreen.__wrapped__()
    assert os.environ.get("MUJOCO_GL") == chosen


def test_no_library_is_no_device(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert headless._egl_devices() == 0
