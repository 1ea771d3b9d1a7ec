"""The program of `TorqueGuard`'s process. It imports nothing of understudy, so that it starts at once.

Its standard input is a pipe that its parent holds open. The first line says what to do. If the pipe ends without a
goodbye, the parent has died, and only then this process opens the port.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time

GOODBYE = b"released"
CHECK_SECONDS = 0.1  # the parent has also died if its children still hold the pipe
OPEN_SECONDS = 3.0  # a USB adapter that was lost may come back
REPEATS, PAUSE_SECONDS = 5, 0.02  # nobody confirms the packets, and a packet of the parent may be cut off


def main() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # a terminal or a scheduler sends them, for the parent
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    from serial import Serial

    task = json.loads(sys.stdin.buffer.readline() or "null")
    if task is None:
        return
    parent = os.getppid()
    try:
        os.write(1, b"ready\n")
    except OSError:
        return  # the parent ended before it switched the torque on
    os.close(1)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(sys.stdin.buffer.read()), daemon=True)
    reader.start()
    while reader.is_alive() and os.getppid() == parent:
        reader.join(CHECK_SECONDS)
    reader.join(CHECK_SECONDS)
    if received == [GOODBYE]:
        return
    problem = _release(Serial, task["port"], task["baudrate"], bytes.fromhex(task["packet"]))
    _tell(f"its torque may still be on ({problem}). understudy robot release switches it off" if problem else
          "its torque was switched off", task["place"])


def _release(serial_type, port: str, baudrate: int, packet: bytes) -> Exception | None:
    """Sends the packet that switches the torque off. Returns the error if the port cannot be used."""
    ends = time.monotonic() + OPEN_SECONDS
    while True:
        try:
            with serial_type(port, baudrate, timeout=0, write_timeout=0.5) as line:
                for _ in range(REPEATS):
                    line.write(packet)
                    time.sleep(PAUSE_SECONDS)
                return None
        except Exception as error:  # whatever it is, the next attempt may succeed
            if time.monotonic() > ends:
                return error
            time.sleep(0.05)


def _tell(text: str, place: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be closed
        os.write(2, f"understudy: {place} was not released at the end: {text}\n".encode())


if __name__ == "__main__":
    main()
