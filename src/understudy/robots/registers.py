"""Control tables of servos: address, size and sign of each register.

References:
    Feetech, STS3215 memory table. ROBOTIS e-Manual, control tables of the X series.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core import ConfigError


@dataclass(frozen=True)
class Register:
    """A register in the control table of a servo, in little-endian order.

    Args:
        address: Address of its first byte.
        size: Number of bytes.
        sign: How negative values are coded: not at all (0), as a two's complement (-1), or by this bit (sign and
            magnitude).
    """

    address: int
    size: int
    sign: int = 0

    def encode(self, value: int) -> bytes:
        """Encodes a value of the register as bytes."""
        value = int(value)
        most = 1 << (self.sign if self.sign > 0 else 8 * self.size + self.sign)
        if not (-most if self.sign < 0 else 1 - most if self.sign else 0) <= value < most:
            raise ConfigError(f"{value} does not fit into {self.size} bytes", where=f"register {self.address}",
                              hint="check the calibration of this joint")
        if self.sign > 0 and value < 0:
            value = -value | 1 << self.sign
        return value.to_bytes(self.size, "little", signed=self.sign < 0)

    def decode(self, data: bytes) -> int:
        """Decodes bytes to a value of the register."""
        value = int.from_bytes(data, "little", signed=self.sign < 0)
        if self.sign > 0 and value >> self.sign & 1:
            return -(value & ~(1 << self.sign))
        return value


FEETECH = {
    "Firmware_Major_Version": Register(0, 1), "Firmware_Minor_Version": Register(1, 1), "Model_Number": Register(3, 2),
    "ID": Register(5, 1), "Baud_Rate": Register(6, 1), "Return_Delay_Time": Register(7, 1),
    "Response_Status_Level": Register(8, 1), "Min_Position_Limit": Register(9, 2),
    "Max_Position_Limit": Register(11, 2), "Max_Temperature_Limit": Register(13, 1), "Max_Torque_Limit":
    Register(16, 2), "P_Coefficient": Register(21, 1), "D_Coefficient": Register(22, 1), "I_Coefficient":
    Register(23, 1), "Protection_Current": Register(28, 2), "Homing_Offset": Register(31, 2, 11),
    "Operating_Mode": Register(33, 1), "Overload_Torque": Register(36, 1), "Torque_Enable": Register(40, 1),
    "Acceleration": Register(41, 1), "Goal_Position": Register(42, 2, 15), "Goal_Time": Register(44, 2),
    "Goal_Velocity": Register(46, 2, 15), "Torque_Limit": Register(48, 2), "Lock": Register(55, 1),
    "Present_Position": Register(56, 2, 15), "Present_Velocity": Register(58, 2, 15), "Present_Load":
    Register(60, 2, 10), "Present_Voltage": Register(62, 1), "Present_Temperature": Register(63, 1),
    "Moving": Register(66, 1), "Present_Current": Register(69, 2), "Maximum_Acceleration": Register(85, 1),
}
DYNAMIXEL = {
    "Model_Number": Register(0, 2), "Firmware_Version": Register(6, 1), "ID": Register(7, 1),
    "Baud_Rate": Register(8, 1), "Return_Delay_Time": Register(9, 1), "Drive_Mode": Register(10, 1),
    "Operating_Mode": Register(11, 1), "Secondary_ID": Register(12, 1), "Homing_Offset": Register(20, 4, -1),
    "Temperature_Limit": Register(31, 1),
    "PWM_Limit": Register(36, 2), "Current_Limit": Register(38, 2), "Velocity_Limit": Register(44, 4),
    "Max_Position_Limit": Register(48, 4), "Min_Position_Limit": Register(52, 4), "Torque_Enable": Register(64, 1),
    "LED": Register(65, 1), "Status_Return_Level": Register(68, 1), "Hardware_Error_Status": Register(70, 1),
    "Position_D_Gain": Register(80, 2), "Position_I_Gain": Register(82, 2), "Position_P_Gain": Register(84, 2),
    "Bus_Watchdog": Register(98, 1, -1), "Goal_PWM": Register(100, 2, -1), "Goal_Current": Register(102, 2, -1),
    "Goal_Velocity": Register(104, 4, -1), "Profile_Acceleration": Register(108, 4), "Profile_Velocity":
    Register(112, 4), "Goal_Position": Register(116, 4, -1), "Moving": Register(122, 1), "Present_PWM":
    Register(124, 2, -1), "Present_Current": Register(126, 2, -1), "Present_Velocity": Register(128, 4, -1),
    "Present_Position": Register(132, 4, -1), "Present_Input_Voltage": Register(144, 2), "Present_Temperature":
    Register(146, 1),
}
MODEL_NUMBERS = {"sts3215": 777, "sts3250": 2825, "xl330-m077": 1190, "xl330-m288": 1200, "xl430-w250": 1060,
                 "xm430-w350": 1020, "xm540-w270": 1120, "xc430-w150": 1070}
BAUD_RATES = {"feetech": {1_000_000: 0, 500_000: 1, 250_000: 2, 128_000: 3, 115_200: 4, 57_600: 5, 38_400: 6},
              "dynamixel": {9_600: 0, 57_600: 1, 115_200: 2, 1_000_000: 3, 2_000_000: 4, 3_000_000: 5, 4_000_000: 6}}
