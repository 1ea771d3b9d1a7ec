"""The cases of benchmarks/diagnose.py: 30 faults in each of two worlds, and 30 sound runs, each in two sets.

A word with a bar has one alternative for each set: "late 4|6" is "late 4" in the set `open` and "late 6" in the set
`judged`. So the sets have the same kinds of faults, with other sizes, components, cameras and directions. In `reach`,
the target moves where chunks are long: in gusts, as in `carry`, they did no harm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

SETS = ("open", "judged")

# Codes of checks that did not exist when the list was made. A check with the same meaning may get another code.
NEW = {"averaged ways": "averaged-ways", "image never changes": "image-never-changes",
       "component treated as constant": "treated-as-constant", "chunk too long": "chunk-too-long",
       "decided at the start": "decided-at-the-start"}
AVERAGED, FROZEN, CONSTANT, LONG, DECIDED = NEW.values()


@dataclass(frozen=True)
class Case:
    """A run, where it acts, and what should be said of it.

    Args:
        world: Where the demonstrations were recorded.
        codes: The accepted codes of the first finding. None for a sound run.
        act: Where the policy acts; `world` if it is empty. None: the command gets the data alone.
        size: Steps or factor that the finding should name.
        data: Changes the demonstrations, see `CHANGES` of diagnose.py.
        run: Changes the trained run, see `RUNS` there.
        options: Of the method.
        fields: Fields of the method's codec and executor to change.
    """

    name: str
    world: str
    codes: tuple[str, ...] = ()
    act: str | None = ""
    size: float | str | None = None
    method: str = "bc"
    options: Mapping = field(default_factory=dict)
    fields: Mapping = field(default_factory=dict)
    steps: int | str = 800
    episodes: int | str = 80
    data: str = ""
    run: str = ""

    def of(self, which: str) -> Case:
        """The case in a set."""
        def chosen(text):
            return (re.sub(r"([^\s|]+)\|([^\s|]+)", rf"\{1 + SETS.index(which)}", text) if isinstance(text, str)
                    else {k: number(v) for k, v in text.items()} if isinstance(text, Mapping) else text)

        def number(value):
            return float(chosen(value)) if isinstance(value, str) else value
        return replace(self, **{k: chosen(getattr(self, k)) for k in ("name", "world", "act", "data", "run")},
                       size=number(self.size), steps=int(number(self.steps)), episodes=int(number(self.episodes)),
                       options={k: int(number(v)) for k, v in self.options.items()}, fields=chosen(self.fields))


def in_carry(name: str, fault: str, *codes: str, **options) -> Case:
    return Case(f"carry: {name}", "carry", codes, "|".join(f"carry__{f}" for f in fault.split("|")), **options)


def in_reach(name: str, fault: str, *codes: str, **options) -> Case:
    return Case(f"reach: {name}", "reach", codes, "|".join(f"reach__{f}" for f in fault.split("|")), **options)


CARRY = (
    Case("carry: actions stored 1|2 steps late", "carry", ("action-shift",), size="1|2", data="late 1|2"),
    Case("carry: actions stored 4|6 steps late", "carry", ("action-shift",), None, "4|6", data="late 4|6"),
    Case("carry: actions stored 18|12 steps late", "carry", ("action-shift",), size="18|12", data="late 18|12"),
    Case("carry: actions stored 2|4 steps early", "carry", ("action-shift",), None, "2|4", data="early 2|4"),
    in_carry("actions executed 3|7 steps late", "late_3|late_7", "latency", size="3|7"),
    in_carry("actions executed 14|11 steps late", "late_14|late_11", "latency", size="14|11"),
    in_carry("sensors 2|4 steps late", "late_sensors_2|late_sensors_4", "latency", size="2|4"),
    in_carry("sign of an action, y|x", "sign_y|sign_x", "sign-flip"),
    in_carry("sign of a sensor, y|x", "sensor_sign_y|sensor_sign_x", "sign-flip"),
    in_carry("an action has 0.4|2.0 of its effect", "scale_x|scale_y", "action-scale", size="0.4|2.0"),
    in_carry("actions exchanged, with x|gripper", "swapped_actions|swapped_grip", "component-order"),
    in_carry("sensors exchanged, y|gripper with x", "swapped_states|swapped_opening", "component-order"),
    in_carry("places exchanged, of object|x with that of goal|y", "exchanged_places|exchanged_axes", "component-order"),
    in_carry("state in milli|centi meters", "millimeters|centimeters", "observation-units", size="1000|100"),
    in_carry("offset of an action, x|y", "offset_x|down_y", "calibration-drift"),
    in_carry("half|third of the rate, told", "rate_told|rate_third_told", "rate-differs", size="0.5|0.3333"),
    in_carry("half|third of the rate, not told", "rate_untold|rate_third_untold", "action-scale", "rate-differs"),
    in_carry("stuck sensor, y|x", "stuck_y|stuck_x", "constant-sensor"),
    in_carry("motor without power, x|y", "dead_x|dead_y", "action-scale", "constant-sensor"),
    in_carry("tight limits, 0.33|0.25", "limited|very_limited", "limits-bind"),
    in_carry("starts in a corner, low|high", "elsewhere|opposite", "start-states"),
    Case("carry: goals only from a part, in x|y", "carry__half|carry__strip", ("start-states", DECIDED), "carry"),
    in_carry("noisy sensors, 0.15|0.1", "noisy|noisy_less", "novel-states", "observation-noise"),
    in_carry("velocities added|subtracted to positions", "added|subtracted", "action-convention"),
    Case("carry: 30|20 updates", "carry", ("underfit",), None, steps="30|20"),
    Case("carry: two ways averaged, chunks of 20|24", "carry__way", (AVERAGED, LONG), options={"horizon": "20|24"}),
    Case("carry: chunks of 30|40 in gusts", "carry__gust|carry__storm", (LONG,), options={"horizon": "30|40"}),
    Case("carry: gripper in a small unit, 0.004|0.002", "carry__small|carry__tiny", (CONSTANT,),
         fields={"min_scale": 0.05}),
    Case("carry: gripper stored as 0 and 1|255", "carry", ("action-scale", "action-units", "calibration-drift",
                                                           "action-convention"), data="gripper 1|255"),
    Case("carry: actions stored in percent|degrees", "carry", ("action-units",), size="100|57.3",
         data="percent|degrees"))

REACH = (
    Case("reach: actions stored 3|2 steps late", "reach", ("action-shift",), None, "3|2", data="late 3|2"),
    Case("reach: actions stored 9|12 steps late", "reach", ("action-shift",), size="9|12", data="late 9|12"),
    Case("reach: actions stored 5|3 steps early", "reach", ("action-shift",), None, "5|3", data="early 5|3"),
    in_reach("actions executed 5|8 steps late", "late_5|late_8", "latency", size="5|8"),
    in_reach("sensors and cameras 8|5 steps late", "late_sensors_8|late_sensors_5", "latency", size="8|5"),
    in_reach("cameras 6|9 steps late", "late_cameras_6|late_cameras_9", "latency", "camera-latency"),
    in_reach("cameras exchanged", "swapped_cameras", "cameras-swapped"),
    in_reach("red and blue exchanged", "bgr", "color-order"),
    in_reach("red and blue of one camera exchanged, side|top", "bgr_side|bgr_top", "color-order"),
    in_reach("frozen camera, top|side", "frozen_top|frozen_side", FROZEN),
    in_reach("black camera, top|side", "black_top|black_side", FROZEN, "camera-differs"),
    Case("reach: camera frozen in the recording, top|side", "reach__frozen_top|reach__frozen_side", (FROZEN,), "reach"),
    in_reach("larger|smaller images", "larger|smaller", "camera-size"),
    in_reach("cameras zoomed by 1.5|2", "zoomed|zoomed_more", "camera-differs"),
    in_reach("cameras upside-down|mirrored", "flipped|mirrored", "camera-differs"),
    in_reach("images with 30|45 % of the light", "dark|dim", "camera-differs"),
    in_reach("camera with another name, side|top", "renamed_camera|renamed_top", "missing-column"),
    in_reach("mirrored action, x|y", "mirror_x|mirror_y", "sign-flip"),
    in_reach("offset of an action, y|x", "offset_y|left_x", "calibration-drift"),
    in_reach("actions in another order, 2,0,1|1,2,0", "rolled_actions|rolled_back", "component-order"),
    in_reach("positions added|subtracted to positions", "added|subtracted", "action-convention"),
    in_reach("offset of a sensor, wrist|x", "height|left", "start-states", "calibration-drift"),
    Case("reach: two ways averaged, chunks of 20|24", "reach__way", (AVERAGED, LONG), options={"horizon": "20|24"}),
    Case("reach: chunks of 30|40 while the target moves", "reach__turn", (LONG,), options={"horizon": "30|40"}),
    Case("reach: targets only from a part, left|low", "reach__half|reach__strip", ("start-states", DECIDED), "reach"),
    Case("reach: 30|20 updates", "reach", ("underfit",), steps="30|20"),
    Case("reach: 4|3 demonstrations", "reach", ("overfit",), episodes="5|4"),
    Case("reach: checkpoint after 30|50 updates", "reach", ("wrong-checkpoint",), run="early 30|50"),
    Case("reach: statistics of other data, 57.3|25.4 times", "reach", ("wrong-statistics",),
         run="statistics 57.29578|25.4"),
    Case("reach: actions stored in percent|degrees", "reach", ("action-units",), size="100|57.3",
         data="percent|degrees"))


def sound(world: str, method: str, steps: int = 800, episodes: int = 80, **options) -> Case:
    name = " ".join([f"sound: {world} {method}", *(f"{k}={v}" for k, v in options.items())])
    return Case(name, world, method=method, steps=steps, episodes=episodes, options=options)


SOUND = (
    sound("carry", "bc", 1500), sound("carry", "bc", horizon=4), sound("carry", "bc-gmm"), sound("carry", "bc-bins"),
    sound("carry", "bet"), sound("carry", "interpolant-policy"), sound("carry", "shortcut-policy"),
    sound("carry", "knn"), sound("carry", "flow-policy"), sound("carry", "diffusion-bc"),
    sound("carry", "adaflow"), sound("carry", "mip"), sound("carry", "iql", 500), sound("carry", "search-bc"),
    sound("carry", "robust-bc"), sound("carry", "bc-gmm", horizon=4), sound("carry__gust", "bc"),
    sound("carry__way", "flow-policy"),
    sound("carry__small", "bc"), sound("reach", "bc"), sound("reach", "bc", horizon=4), sound("reach", "bc-gmm"),
    sound("reach", "flow-policy"), sound("reach", "bc-bins"), sound("reach", "mip"), sound("reach__gust", "bc"),
    sound("peg_insertion", "bc-gmm", 1500), sound("planar_arms", "flow-policy", 1500), sound("lane_driving", "bc"),
    sound("fork", "bet"))
KINDS = {"carry": CARRY, "reach": REACH, "sound": SOUND}


def cases_of(which: str, kind: str | None = None) -> list[Case]:
    """The cases of a set, of one kind or of all."""
    return [case.of(which) for k, cases in KINDS.items() if kind in (None, k) for case in cases]
