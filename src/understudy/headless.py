"""Lets simulators draw on machines without a display."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache


@cache
def prefer_offscreen() -> None:
    """Sets MUJOCO_GL to "egl", so that MuJoCo draws without a display, if there is none and EGL works.

    It has no effect once MuJoCo is imported. What the user has set stays.
    """
    display_variables = {"MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if sys.platform == "linux" and not display_variables and _egl_devices() > 0:
        os.environ["MUJOCO_GL"] = "egl"


def _egl_devices() -> int:
    """Returns the number of EGL devices. A library alone is not enough: dm_control fails without a device."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return 0
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return 0
    count = ctypes.c_int(0)
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
    return count.value if query(0, None, ctypes.byref(count)) else 0
