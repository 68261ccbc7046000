"""Plans, changes and remarks for eyes."""

from __future__ import annotations

from gpuward.ctl.table import Table
from gpuward.ctl.text import counted, gib, gpu_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpuward.control.documents import Change, Plan, Remark
    from gpuward.ctl.screen import Screen


def draw_plan(screen: Screen, plan: Plan) -> None:
    """Which worker gets which GPUs, what to know about it, and the sum; problems are `complain_problems`."""
    if plan["ok"] and plan["workers"]:
        screen.table(_plan_table(plan, wide=screen.wide))
    for warning in plan["warnings"]:
        screen.sentence(f"warning: {remark_text(warning)}", style="yellow")
    if plan["ok"]:
        workers = counted(len(plan["workers"]), "worker")
        screen.line(f"{workers} on {plan['gpus_needed']} of {counted(plan['gpus_available'], 'GPU')}")


def complain_problems(screen: Screen, plan: Plan) -> None:
    """Say on stderr why a fleet is refused."""
    for problem in plan["problems"]:
        screen.complain(remark_text(problem))


def complain_warnings(screen: Screen, plan: Plan) -> None:
    """Say the warnings on stderr, where stdout is for machines."""
    for warning in plan["warnings"]:
        screen.complain(f"warning: {remark_text(warning)}")


def draw_changes(screen: Screen, changes: list[Change]) -> None:
    """What applying does to each worker that does not just go on as it is defined; the keys; then how many of what."""
    told = [change for change in changes if change["action"] != "keep" or {*change["keys"]} - {"workers"}]
    if told:
        screen.table(
            Table(("WORKER", "ACTION", "REASON"), [(one["worker"], one["action"], one["reason"]) for one in told])
        )
    for pool in dict.fromkeys(change["pool"] for change in changes):
        for line in dict.fromkeys(line for one in changes if one["pool"] == pool for line in _differences(one)):
            screen.sentence(line)
    screen.line(amounts(changes))


def amounts(changes: list[Change]) -> str:
    """How many workers are in for what: ``5 to start, 7 to stop, 0 unchanged``."""
    actions = [change["action"] for change in changes]
    told = [f"{actions.count(action)} to {action}" for action in dict.fromkeys(actions) if action != "keep"]
    return ", ".join([*told, f"{actions.count('keep')} unchanged"])


def _differences(change: Change) -> list[str]:
    """Keys of a worker's pool with their old and new values; those whose values are not shown stand in the reason."""
    return [
        f"pool {change['pool']}: {one['key']} {_or_unset(one['before'])} -> {_or_unset(one['after'])}"
        for one in change.get("differences", [])
        if one["before"] is not None or one["after"] is not None
    ]


def _or_unset(value: str | None) -> str:
    return "unset" if value is None else value


def remark_text(remark: Remark) -> str:
    """Return a remark as one sentence with its code."""
    return f"{remark['message']} ({remark['code']})"


def _plan_table(plan: Plan, *, wide: bool) -> Table:
    rows = [
        (
            worker["name"],
            gpu_list(worker["gpus"]),
            *((",".join(worker["gpu_uuids"]) or "-",) if wide else ()),
            f"{gib(worker['claim_bytes'])} GiB per GPU" if worker["gpus"] else "-",
        )
        for worker in plan["workers"]
    ]
    return Table(("WORKER", "GPUS", *(("UUIDS",) if wide else ()), "CLAIM"), rows)
