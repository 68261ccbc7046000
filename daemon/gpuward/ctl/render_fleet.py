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
    """What applying does to each worker that does not just go on as it is defined; then how many do."""
    touched = [change for change in changes if change["action"] != "keep"]
    told = [change for change in changes if change["action"] != "keep" or {*change["keys"]} - {"workers"}]
    if told:
        rows = [
            (change["worker"], change["action"], ",".join(change["keys"]) or "-", change["reason"]) for change in told
        ]
        screen.table(Table(("WORKER", "ACTION", "KEYS", "REASON"), rows, optional=("KEYS",)))
    kept = len(changes) - len(touched)
    screen.line(f"{counted(len(touched), 'worker')} to change, {kept} kept as {'it is' if kept == 1 else 'they are'}")


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
