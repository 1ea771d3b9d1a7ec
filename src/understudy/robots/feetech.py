"""Driver of Feetech servos (STS3215 of the SO-100 and SO-101), through the package feetech-servo-sdk."""

from __future__ import annotations

from .base import RobotError
from .motors_bus import MotorsBus
from .registers import FEETECH

ERROR_BITS = {1: "voltage", 2: "position sensor", 4: "overheating", 8: "overcurrent", 32: "overload"}
_STOPPING_BITS = 2 | 4 | 8 | 32  # the voltage drops for a moment whenever several joints accelerate


class FeetechMotorsBus(MotorsBus):
    """Feetech servos on a serial line."""

    name, module, registers = "feetech", "scservo_sdk", FEETECH
    address_bytes, status_bytes = 1, 6

    def _packet_handler(self, sdk):
        return sdk.PacketHandler(0)  # byte order of the STS series

    def _packet(self, number, instruction, parameters):
        return [0, 0, number, len(parameters) + 2, instruction, *parameters, 0]

    def _split(self, packet):
        return packet[2], packet[4], bytes(packet[5:-1])

    def _check_error(self, number, error):
        if error & _STOPPING_BITS:
            problems = ", ".join(name for bit, name in ERROR_BITS.items() if error & bit)
            raise RobotError(f"the servo reports: {problems}", where=f"{self.port_name}, {self._motor_name(number)}",
                             hint="let it cool down or free it, then switch its power off and on")
