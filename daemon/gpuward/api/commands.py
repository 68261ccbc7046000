"""Operations of the control protocol, one method each: who may, then what the supervisor or a view answers."""

from __future__ import annotations

import asyncio
import os
import pwd
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from gpuward import __version__
from gpuward.api.beforehand import Beforehand, foresight_document
from gpuward.api.gpu_commands import GpuCommands
from gpuward.api.leaving import Leaving
from gpuward.api.logs import events_document, log_document, lost_output
from gpuward.api.views import Document, Views, operation_document, plan_document
from gpuward.control import requests as ask
from gpuward.control.protocol import PROTOCOL_VERSION
from gpuward.control.roles import Peer, Role, Roles
from gpuward.control.server import Counters, Refusal
from gpuward.policy.fleet import step as policy
from gpuward.policy.fleet.apply import rolled_pools
from gpuward.policy.fleet.foresight import Foresight
from gpuward.policy.fleet.operations import Target, Verb
from gpuward.policy.fleet.roll import starts_anew
from gpuward.policy.placement.ports import PortsExhausted
from gpuward.policy.reasons import By
from gpuward.policy.worker.life import (
    Event,
    Goal,
    Phase,
    RestartAsked,
    StartAsked,
    StopAsked,
    Worker,
)
from gpuward.supervisor.applied_fleet import Fleets
from gpuward.supervisor.equipment import Equipment
from gpuward.supervisor.loop import Supervisor
from gpuward.supervisor.planning import Decoded, FleetText, Proposal, decoded, read_fleet_file, unreadable

READING = frozenset({"ping", "status", "plan", "diff", "operation", "logs", "events", "why"})
"""Operations that anybody who reaches the socket may ask for."""

ADMINISTERING = frozenset({"apply", "reload", "detach", "reexec"})
"""Operations that can run a new program, or end the daemon; a roll with a file is one too. All others operate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Others:
    """Who answers what is neither of workers nor of fleets; ``counters``: of the control socket."""

    gpus: GpuCommands
    leaving: Leaving
    counters: Counters


class Commands:
    """Answers requests; runs on the loop's thread."""

    def __init__(
        self, equipment: Equipment, supervisor: Supervisor, fleets: Fleets, views: Views, others: Others
    ) -> None:
        self._equipment = equipment
        self._roles = Roles(equipment.settings.control.group, equipment.settings.control.admins)
        self._supervisor = supervisor
        self._fleets = fleets
        self._views = views
        self._gpus = others.gpus
        self._leaving = others.leaving
        self._counters = others.counters
        self._beforehand = Beforehand(equipment, supervisor)
        self.open = False
        """Whether commands are taken; before, the daemon is still looking at what an earlier one left."""

    async def dispatch(self, request: ask.Request, peer: Peer) -> Document:
        """Answer one request, or raise Refusal."""
        if request.op not in READING:
            self._authorise(request, peer)
            return await self._answer(request, peer)
        try:
            return await self._answer(request, peer)
        except Refusal:
            raise
        except Exception as error:  # who only looks must not be able to end the daemon
            self._supervisor.journal.log.exception("internal-error", op=request.op)
            raise Refusal("failed", f"cannot {request.op}: internal error: {type(error).__name__}: {error}") from error

    async def _answer(self, request: ask.Request, peer: Peer) -> Document:
        by = _person(peer)
        match request.args:
            case ask.FileArgs() as args:
                return self._plan_or_apply(args, await _decoded(args), by)
            case ask.DiffArgs() | ask.ReloadArgs() as args:
                return await self._diff(args) if isinstance(args, ask.DiffArgs) else self.reload(args, by=by)
            case ask.TargetArgs() as args:
                return self._targets(request.op, args, by)
            case ask.ScaleArgs() as args:
                return self._scale(args, by)
            case ask.RollArgs() as args:
                return self._roll(args, await _decoded(args.file) if args.file is not None else None, by)
            case ask.OperationArgs() as args:
                return await self._operation(args)
            case ask.LogsArgs() as args:
                worker = self._worker(args.worker)
                logs = self._equipment.log_path(worker.name, worker.run).parent
                lost = partial(lost_output, self._equipment.runs, self._equipment.records, worker.name)
                return await asyncio.to_thread(log_document, logs, worker, args, lost)
            case ask.EventsArgs() as args:
                return self._events(args)
            case ask.GpuArgs() | ask.InventoryArgs() | ask.SimArgs() as args:
                return await self._gpus.answer(args, by)
            case ask.WhyArgs() as args:
                worker = self._worker(args.worker)
                return self._views.why(worker, self._equipment.records.history(worker.name))
            case _ if request.op in {"detach", "reexec"}:
                return await self._leaving.answer(request.op, by)
            case _:
                return self._plain(request.op)

    def _plain(self, op: str) -> Document:
        if op == "status":
            status = self._views.status()
            status["daemon"]["control"] = self._counters.document()
            return status
        pong = {"pong": True, "pid": os.getpid(), "version": __version__, "protocol": PROTOCOL_VERSION}
        return {**pong, "epoch": self._supervisor.journal.epoch, "open": self.open}

    def _authorise(self, request: ask.Request, peer: Peer) -> None:
        with_file = isinstance(request.args, ask.RollArgs) and request.args.file is not None
        wanted = Role.ADMIN if request.op in ADMINISTERING or with_file else Role.OPERATOR
        if peer.role < wanted:
            what = f"{request.op} with a file" if with_file else request.op
            message = f"not permitted: {what} needs {self._roles.who(wanted)}; you are {peer.name}"
            raise Refusal("not-permitted", message)
        if not self.open:
            raise Refusal("busy", f"cannot {request.op} yet: the daemon is still taking over what runs; try again")
        self._supervisor.journal.log.info("command", op=request.op, user=peer.name, uid=peer.uid, pid=peer.pid)

    def _worker(self, name: str) -> Worker:
        worker = self._supervisor.state.workers.get(name)
        if worker is None:
            raise Refusal("no-such-worker", f"there is no worker {name!r}; {self._known()}")
        return worker

    def _known(self) -> str:
        names = list(self._supervisor.state.workers)
        shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        return f"there are {shown}" if names else "no fleet is applied yet"

    def _pools(self) -> list[str]:
        """Names of the applied pools, those without workers too."""
        stored = self._fleets.stored
        return [pool.name for pool in stored.fleet.pools] if stored is not None else []

    def _plan_or_apply(self, args: ask.FileArgs, file: Decoded, by: By | None) -> Document:
        if isinstance(args, ask.ApplyArgs):
            return self._apply(args, file, by)
        return plan_document(self._fleets.propose(file, prune=args.prune).plan)

    async def _diff(self, args: ask.DiffArgs) -> Document:
        """What applying a file would change; for the file of the start also what ``status`` says of it."""
        if args.text is not None:
            file = ask.FileArgs(text=args.text, name=args.name, directory=args.directory)
            return self._foreseen(self._fleets.propose(await _decoded(file), prune=args.prune))
        start_file = await asyncio.to_thread(decoded, self._start_file("compare"))
        document = self._foreseen(self._fleets.propose(start_file, prune=True))
        return {**document, **self._views.fleet(), "file": str(self._fleets.start_file)}

    def _apply(self, args: ask.ApplyArgs, file: Decoded, by: By | None) -> Document:
        expected = args.expected_revision
        if expected is not None and expected != self._fleets.revision:
            message = (
                f"cannot apply {args.name}: the applied revision is {self._fleets.revision}, "
                f"not {expected} as when it was compared; look at the difference again"
            )
            raise Refusal("revision-changed", message)
        return self._applied(self._fleets.propose(file, prune=args.prune), "apply", by, force=args.force)

    def reload(self, args: ask.ReloadArgs | None = None, *, by: By | None) -> Document:
        """Apply the file that the daemon was started with; what it does not name any more goes."""
        args = args or ask.ReloadArgs()
        proposal = self._fleets.propose(decoded(self._start_file("reload")), prune=True)
        return self._foreseen(proposal) if args.dry_run else self._applied(proposal, "reload", by, force=args.force)

    def _start_file(self, verb: Literal["reload", "compare"]) -> FleetText:
        path = self._fleets.start_file
        if path is None:
            instead = "gpuctl apply FILE" if verb == "reload" else "gpuctl diff FILE"
            raise Refusal("refused", f"cannot {verb}: the daemon was started without --fleet; use {instead}")
        try:
            return read_fleet_file(path)
        except (OSError, ValueError) as error:
            raise Refusal("bad-file", f"cannot read {path}: {unreadable(error)}") from None

    def _scale(self, args: ask.ScaleArgs, by: By | None) -> Document:
        try:
            proposal = self._fleets.propose_scale(args.pool, args.workers)
        except KeyError:
            pools = ", ".join(self._pools())
            known = f"there are {pools}" if pools else "no fleet is applied yet"
            raise Refusal("no-such-worker", f"there is no pool {args.pool!r}; {known}") from None
        return self._foreseen(proposal) if args.dry_run else self._applied(proposal, "scale", by, force=args.force)

    def _foreseen(self, proposal: Proposal) -> Document:
        """What applying would do and stop; nothing is done."""
        foresight = foresight_document(self._beforehand.of_proposal(proposal))
        return {**self._views.proposal(proposal), "foresight": foresight}

    def _applied(self, proposal: Proposal, verb: Verb, by: By | None, *, force: bool) -> Document:
        document = self._views.proposal(proposal)
        if not proposal.plan.ok:
            raise _nothing_applied(proposal, document)
        if not force:
            self._beforehand.check_proposal(proposal)
        state = self._supervisor.state
        before = state.workers
        rolling: tuple[str, ...] = ()
        if proposal.fleet is not None:
            rolling = rolled_pools(state, proposal.fleet.pools, proposal.plan, proposal.changes)
        document["changed"] = not self._fleets.changes_nothing(proposal)
        document["revision"] = self._save_or_refuse(lambda: self._fleets.apply(proposal, force=force, by=by))
        targets = [self._target_after_apply(name, before.get(name)) for name in self._touched(proposal)]
        if not targets and not document["changed"]:  # says what is being rolled to: its end is waited for
            rolling = tuple(state.rolls)
            targets = [
                Target(name=name, down=False, ready_in_run=run)
                for roll in state.rolls.values()
                for name, run in roll.all_turns(state.workers).items()
            ]
        document["operation"] = self._supervisor.operations.begin(verb, targets, rolling).id if targets else None
        self._supervisor.operations.look(self._supervisor.state)
        return document

    def _save_or_refuse(self, apply: Callable[[], int]) -> int:
        try:
            return apply()
        except OSError as error:
            raise Refusal("failed", f"nothing was applied: the fleet cannot be saved: {error.strerror}") from None
        except PortsExhausted as error:
            raise Refusal("refused", f"nothing was applied: {error}") from None

    def _touched(self, proposal: Proposal) -> list[str]:
        workers = self._supervisor.state.workers
        changed = [change.worker for change in proposal.changes if change.action != "keep"]
        return [
            name for name in changed if name not in workers or workers[name].goal is Goal.UP or workers[name].removed
        ]

    def _target_after_apply(self, name: str, before: Worker | None) -> Target:
        now = self._supervisor.state.workers.get(name)
        if now is None or now.removed:
            return Target(name=name, down=True)
        has_started = now.phase is Phase.STARTING and (before is None or now.run > before.run)
        return Target(name=name, down=False, ready_in_run=now.run if has_started else now.run + 1)

    def _targets(self, op: str, args: ask.TargetArgs, by: By | None) -> Document:
        if op == "reset":
            return self._reset(args, by)
        workers = self._of_the_fleet(op, args, self._resolve(args))
        if args.dry_run:
            return self._stops(self._beforehand.of_workers(op, workers), workers)
        if op == "restart" and not args.force:
            self._beforehand.check_workers(workers)
        events: dict[str, Callable[[], Event]] = {
            "start": lambda: StartAsked(by),
            "stop": lambda: StopAsked(by=by),
            "restart": lambda: RestartAsked("restart by command", by=by),
        }
        verb: Literal["start", "stop", "restart"] = op  # type: ignore[assignment]  # dispatch knows only these
        targets = [_target(verb, worker) for worker in workers]
        operation = self._supervisor.operations.begin(verb, targets)
        asked = [(worker.name, events[op]()) for worker in workers]
        self._supervisor.command(lambda state, now_s: policy.step(state, asked, now_s))
        self._supervisor.operations.look(self._supervisor.state)
        unsaved = self._supervisor.unsaved_goals(worker.name for worker in workers)
        if unsaved:
            raise Refusal("failed", f"{op} is under way, but {'; '.join(unsaved)}")
        return {"operation": operation.id, "workers": [worker.name for worker in workers]}

    def _roll(self, args: ask.RollArgs, file: Decoded | None, by: By | None) -> Document:
        """Restart a pool one worker after the other, with what a file says of it where there is one."""
        workers = [worker for worker in self._resolve(ask.TargetArgs(targets=(args.pool,))) if worker.goal is Goal.UP]
        pool = self._supervisor.state.pools.get(args.pool)
        if pool is None or not workers:
            raise Refusal("refused", f"cannot roll {args.pool!r}: no pool of this name has workers that are wanted up")
        rolling = self._supervisor.state.rolls.get(pool.name)
        if rolling is not None:
            at = ", ".join(rolling.under_way) or "its beginning"
            why = f"its roll is at {at}, {len(rolling.left)} to come; apply a fleet to end it"
            raise Refusal("refused", f"cannot roll {pool.name!r} twice at once: {why}")
        if args.dry_run:
            return self._stops(self._beforehand.of_workers("roll", workers, (pool.name,)), workers)
        begun = policy.begin_roll(self._supervisor.state, pool).rolls[pool.name]
        proposal = self._fleets.propose_roll(pool.name, file) if file is not None else None
        if proposal is not None and not proposal.plan.ok:
            raise _nothing_applied(proposal, self._views.proposal(proposal))
        new = proposal.fleet.pool(pool.name) if proposal is not None and proposal.fleet is not None else pool
        if not args.force:
            self._beforehand.check_workers(workers, {pool.name: new})
        if proposal is not None:
            self._save_or_refuse(lambda: self._fleets.roll(pool.name, proposal, force=args.force, by=by))
        else:
            change = partial(policy.begin_roll, pool=pool, force=args.force, by=by)
            self._supervisor.command(lambda state, now_s: policy.settle(change(state), now_s))
        targets = [
            replace(_target("restart", worker), ready_in_run=worker.run)
            if proposal is None and starts_anew(begun, worker)
            else _target("restart", worker)
            for worker in workers
        ]
        operation = self._supervisor.operations.begin("roll", targets, (pool.name,))
        self._supervisor.operations.look(self._supervisor.state)
        return {"operation": operation.id, "workers": [worker.name for worker in workers]}

    def _stops(self, foresight: Foresight, workers: Iterable[Worker]) -> Document:
        return {"workers": [worker.name for worker in workers], "foresight": foresight_document(foresight)}

    def _reset(self, args: ask.TargetArgs, by: By | None) -> Document:
        """Undo ladders; what has none is left alone."""
        workers = [worker for worker in self._resolve(args) if worker.steps]
        if args.dry_run:
            return self._stops(self._beforehand.of_workers("restart", workers), workers)
        if not args.force:
            self._beforehand.check_workers(workers)
        targets = [_target("restart", worker) for worker in workers if worker.goal is Goal.UP]
        operation = self._supervisor.operations.begin("reset", targets)
        names = [worker.name for worker in workers]
        self._supervisor.command(lambda state, now_s: policy.reset(state, names, now_s, by))
        self._supervisor.operations.look(self._supervisor.state)
        return {"operation": operation.id, "workers": names}

    def _resolve(self, args: ask.TargetArgs) -> tuple[Worker, ...]:
        state = self._supervisor.state
        if state.halting:
            raise Refusal("shutting-down", "the daemon is stopping its workers and takes no commands")
        if args.all:
            return tuple(worker for worker in state.workers.values() if not worker.removed)
        if not args.targets:
            raise Refusal("bad-request", "name a worker or a pool, or say --all")
        found: dict[str, Worker] = {}
        for target in args.targets:
            members = state.members(target) if target not in state.workers else (state.workers[target],)
            if not members and target in self._pools():
                raise Refusal("refused", f"pool {target!r} has no workers; gpuctl scale {target}=1 gives it one")
            if not members:
                raise Refusal("no-such-worker", f"there is no worker or pool {target!r}; {self._known()}")
            found.update((worker.name, worker) for worker in members)
        return tuple(found.values())

    def _of_the_fleet(self, op: str, args: ask.TargetArgs, workers: tuple[Worker, ...]) -> tuple[Worker, ...]:
        """Who leaves the fleet can be stopped, and is stopped with all; only the fleet brings it back."""
        if op == "stop":
            every = self._supervisor.state.workers.values() if args.all else workers
            return tuple(one for one in every if not one.removed or one.alive or not args.all)
        leaving = [one.name for one in workers if one.removed]
        if leaving and (len(leaving) == len(workers) or not {*leaving}.isdisjoint(args.targets)):
            why = f"{', '.join(leaving)} left the fleet and is being stopped"
            raise Refusal("refused", f"cannot {op}: {why}; gpuctl scale or gpuctl apply takes it back")
        return tuple(one for one in workers if not one.removed)

    def _events(self, args: ask.EventsArgs) -> Document:
        """Who has left the fleet is known as long as there are events of theirs."""
        document = events_document(self._supervisor.journal, args)
        known = {None, *self._supervisor.state.workers, *self._pools()}
        if not document["events"] and args.since is None and args.worker not in known:
            raise Refusal("no-such-worker", f"nothing is known of a worker {args.worker!r}; {self._known()}")
        return document

    async def _operation(self, args: ask.OperationArgs) -> Document:
        until_s = time.monotonic() + args.wait_s
        operations = self._supervisor.operations
        while True:
            operation = operations.by_id.get(args.id)
            if operation is None and not self.open:
                raise Refusal(
                    "busy", f"{args.id} is not known yet: the daemon is still taking over what runs; try again"
                )
            if operation is None:
                raise Refusal("no-such-operation", f"there is no operation {args.id!r} (any more)")
            left_s = until_s - time.monotonic()
            if operation.version > args.seen or operation.state != "running" or left_s <= 0:
                return operation_document(operation)
            try:
                async with asyncio.timeout(left_s):
                    await operations.changed.wait()
            except TimeoutError:
                continue


def _nothing_applied(proposal: Proposal, document: Document) -> Refusal:
    code = "bad-file" if proposal.fleet is None else "refused"
    problems = "; ".join(problem.message for problem in proposal.plan.problems)
    return Refusal(code, f"nothing was applied: {problems}", document)


async def _decoded(args: ask.FileArgs) -> Decoded:
    """Decode a file beside the loop, which goes on answering."""
    source = FleetText(text=args.text, name=args.name, directory=args.directory)
    return await asyncio.to_thread(decoded, source)


def _target(verb: Literal["start", "stop", "restart"], worker: Worker) -> Target:
    if verb == "stop":
        return Target(name=worker.name, down=True)
    runs_on = worker.phase in {Phase.STARTING, Phase.READY} and verb == "start"
    return Target(name=worker.name, down=False, ready_in_run=worker.run if runs_on else worker.run + 1)


def _person(peer: Peer) -> By | None:
    """Who asks, as the kernel says; None where it does not."""
    if peer.uid is None:
        return None
    user = str(peer.uid)
    with suppress(KeyError):
        user = pwd.getpwuid(peer.uid).pw_name
    return By(uid=peer.uid, user=user, pid=peer.pid)
