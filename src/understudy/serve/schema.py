"""The handshake: compares what a policy reads and plans with what a client sends. It needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

PROTOCOL = 1  # of the key "understudy" in messages
FLOATS = ("float16", "float32", "float64")
FIELDS = ("dtype", "shape", "names", "unit")  # of a column, as far as both sides give them
COMMON = ("fps", "normalization", "action_convention")


class SchemaMismatch(ValueError):
    """Raised when client and policy do not agree. The text shows both sides of every difference."""


def differences(served: Mapping, expected: Mapping) -> list[str]:
    """Lists the differences between what a policy reads and plans and what a client sends and expects.

    Only what the client gives is compared, except that the client must give every column that the policy reads. The
    policy converts between float16, float32 and float64, and it resizes images, so that these do not count as
    differences.

    Args:
        served: Schema of the policy: {"observations": {name: {"dtype", "shape", "names", "unit", "kind"}}, "action":
            {...}, "fps", "normalization", "action_convention"}.
        expected: Schema of the client, the same.

    Returns:
        One line for each difference, with both sides. Empty if they agree.
    """
    lines = []
    if (observations := expected.get("observations")) is not None:
        if not isinstance(observations, Mapping):
            return ["observations: a schema has a map from names to columns here"]
        for name, column in served["observations"].items():
            if name not in observations:
                sent = ", ".join(sorted(map(str, observations))) or "no columns"
                lines.append(f"{name}: the policy reads it, the client sends {sent}")
            else:
                lines += _column_differences(name, column, observations[name])
    if (action := expected.get("action")) is not None:
        lines += _column_differences("action", served["action"], action)
    for name in COMMON:
        if expected.get(name) is not None and served.get(name) is not None and expected[name] != served[name]:
            lines.append(f"{name}: the policy has {_as_text(served[name])}, the client {_as_text(expected[name])}")
    return lines


def check_schema(served: Mapping, expected: object) -> None:
    """Raises SchemaMismatch if a client and a policy do not agree. See `differences`."""
    if not isinstance(expected, Mapping):
        raise SchemaMismatch("a schema is a map with observations, action, fps, normalization and action_convention")
    if unknown := sorted(set(map(str, expected)) - {"observations", "action", *COMMON}):
        raise SchemaMismatch(f"a schema has no entry {unknown[0]!r}; it has observations, action, {', '.join(COMMON)}")
    if mismatches := differences(served, expected):
        raise SchemaMismatch("\n  ".join(["the client and the policy do not agree:", *mismatches]))


def _column_differences(name: str, served: Mapping, expected: object) -> Iterator[str]:
    if not isinstance(expected, Mapping):
        yield f"{name}: the policy has {_as_text(dict(served))}, the client {_as_text(expected)}"
        return
    for key in FIELDS:
        policy_entry, client_entry = served.get(key), expected.get(key)
        if client_entry is None or policy_entry is None or _same(key, policy_entry, client_entry, served.get("kind")):
            continue
        yield f"{name}, {key}: the policy has {_as_text(policy_entry)}, the client {_as_text(client_entry)}"


def _same(key: str, policy_entry, client_entry, kind) -> bool:
    if key in ("shape", "names"):
        if not isinstance(client_entry, (list, tuple)):
            return False
        if key == "shape" and kind == "image" and len(policy_entry) == len(client_entry) == 3:
            return policy_entry[2] == client_entry[2]
        return list(policy_entry) == list(client_entry)
    return policy_entry == client_entry or (policy_entry in FLOATS and client_entry in FLOATS)


def _as_text(value: object) -> str:
    text = str(tuple(value) if isinstance(value, list) else value)
    return text if len(text) <= 200 else text[:200] + " ..."
