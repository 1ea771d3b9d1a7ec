"""Adapter to highway-env (Leurent 2018): a car in traffic, on highways, at junctions, into a parking lot."""

from __future__ import annotations

import gymnasium
import highway_env  # noqa: F401  (names the environments)
from highway_env.envs.common.action import DiscreteMetaAction
from highway_env.vehicle.behavior import IDMVehicle

from ...core import unknown_name
from .. import gymnasium_adapter
from ..gymnasium_adapter import RenderableGymVector
from .external import ExpertVector

WITH_EXPERT = ("highway-", "merge-", "roundabout-")


def make(name: str, rows: int = 1, **options) -> RenderableGymVector:
    """Makes an environment of highway-env.

    Highways, merge and roundabout with DiscreteMetaAction have an expert: the driver model that moves the other cars,
    IDM along the lane and MOBIL across lanes. Its choices are translated into these actions.

    Args:
        name: "highway-v0", "merge-v0", "roundabout-v0", ...
        **options: Arguments of `gymnasium.make`. `config` is the configuration of highway-env.

    References:
        Treiber et al. (2000), Congested Traffic States in Empirical Observations and Microscopic Simulations (IDM).
        Kesting et al. (2007), General Lane-Changing Model MOBIL for Car-Following Models.
    """
    if name not in gymnasium.registry:
        ids = (i for i, s in gymnasium.registry.items() if str(s.entry_point).startswith("highway_env."))
        raise unknown_name("environment", name, ids, name, owner="highway-env")
    vec = gymnasium_adapter.vectorize(lambda: HighwaySuccess(gymnasium_adapter.build(name, **options)), rows)
    car = vec.envs[0].unwrapped
    config = car.config
    steps = config["duration"] * config["policy_frequency"] if "duration" in config else None
    metadata = {
        **gymnasium_adapter.env_metadata(vec.envs[0], name),
        "fps": config["policy_frequency"],
        "success": vec.envs[0].success_definition,
        "limit": gymnasium_adapter.env_metadata(vec.envs[0], name)["limit"] or (None if steps is None else int(steps)),
    }
    driven = name.startswith(WITH_EXPERT) and isinstance(car.action_type, DiscreteMetaAction)
    return (ExpertVector if driven else RenderableGymVector)(vec, metadata)


class HighwaySuccess(gymnasium.Wrapper):
    def __init__(self, env):
        super().__init__(env)
        self.arrives = hasattr(env.unwrapped, "has_arrived")

    @property
    def success_definition(self) -> str:
        if self._reports_success:
            return "info['is_success'] at any step"
        return "the car arrives" if self.arrives else "the episode ends without a crash, on the road"

    @property
    def _reports_success(self) -> bool:
        return hasattr(self.unwrapped, "_is_success")

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        if not self._reports_success:
            car = self.unwrapped.vehicle
            good = self.unwrapped.has_arrived(car) if self.arrives else (terminated or truncated) and car.on_road
            info = {**info, "success": bool(good and not car.crashed)}
        return obs, reward, terminated, truncated, info

    def expert_action(self) -> int:
        """Returns the action that the simulator's driver model would take in place of this car."""
        env, car = self.unwrapped, self.unwrapped.vehicle
        driver = IDMVehicle.create_from(car)
        driver.target_speed, driver.timer = car.target_speeds[-1], 2 * driver.LANE_CHANGE_DELAY  # may change lanes now
        traffic = car.road.vehicles
        car.road.vehicles = [driver if v is car else v for v in traffic]
        try:
            driver.act()
        finally:
            car.road.vehicles = traffic
        action_indexes = env.action_type.actions_indexes
        lane, driver_lane = car.target_lane_index, driver.target_lane_index
        if lane[:2] == driver_lane[:2] and lane[2] != driver_lane[2]:
            choice = "LANE_LEFT" if driver_lane[2] < lane[2] else "LANE_RIGHT"
        else:
            speed = car.speed + driver.action["acceleration"] / env.config["policy_frequency"]
            nearest = min(range(len(car.target_speeds)), key=lambda i: abs(car.target_speeds[i] - speed))
            choice = ("IDLE" if nearest == car.speed_index else "FASTER" if nearest > car.speed_index else "SLOWER")
        return action_indexes.get(choice, action_indexes["IDLE"])
