"""A Serve application ends with the driver that started it, however that driver ends.

Serve keeps an application, and its GPUs, until somebody deletes it. Ray removes a placement group with the driver that
made it, on whatever machine that was; so the driver makes an empty one of the application's name, and the
application's replicas look whether it is still there.
"""

from __future__ import annotations

from typing import Any

GONE = "REMOVED"


def own(name: str) -> Any:
    """Say that this driver owns application `name`: a placement group, to be given to `disown`."""
    from ray.util import placement_group

    return placement_group([{"memory": 1}], name=name)  # a bundle may not be empty: one byte


def disown(owned: Any) -> None:
    from ray.util import remove_placement_group

    remove_placement_group(owned)


def has_owner(name: str) -> bool:
    """Whether the driver that started application `name` lives (or has not ended it yet)."""
    from ray.util import placement_group_table

    return any(row["name"] == name and row["state"] != GONE for row in placement_group_table().values())


def end_if_orphaned() -> None:
    """In a replica: delete its application when its driver is gone."""
    from ray import serve

    name = serve.get_replica_context().app_name
    if not has_owner(name):
        serve.delete(name, _blocking=False)
