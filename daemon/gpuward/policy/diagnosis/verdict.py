"""Why a run ended, from how it ended and what it printed. Pure: the lines are handed in, whoever reads them.

The exit code alone tells nothing: vLLM exits 0 when its engine was killed, and 1 for most other things (#48966).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from gpuward.policy.diagnosis.causes import Cause, Signature
from gpuward.policy.diagnosis.gpu_evidence import (
    EVIDENCE_LINES_MAX,
    NOTHING_KNOWN,
    SIGKILL,
    XIDS_SHOWN,
    LastMoments,
    Wanting,
    XidHeard,
)
from gpuward.policy.diagnosis.gpu_signatures import GPU_SIGNATURES
from gpuward.policy.diagnosis.log_findings import Findings, Hit, clip
from gpuward.policy.diagnosis.machine_signatures import LESS_HOST_MEMORY
from gpuward.policy.diagnosis.signatures import SIGNATURES
from gpuward.policy.gpus.memory import bytes_of
from gpuward.policy.reasons import Ending

MEMORY_CAUSES: Final = frozenset(
    {
        Cause.GPU_OOM_STARTUP,
        Cause.GPU_OOM_RUNTIME,
        Cause.KV_CACHE_TOO_SMALL,
        Cause.GPU_BUSY,
        Cause.PROFILING_RACE,
    }
)
"""Causes of which the memory of the run's GPUs before the end tells more."""

SHELL_SIGNAL_BASE: Final = 128
"""A shell reports the death of its child by signal N as exit code 128 + N."""

USAGE_EXIT_CODE: Final = 2
"""Of argparse and most programs; alone it proves nothing."""

FAILED_EXIT_CODE: Final = 1
"""Of Python, and of vLLM where a start fails with an exception."""

LOG_PREFIX: Final = re.compile(
    r"^(?:\([^)]{0,80}\) )?(?:[A-Z]{1,8} [\d-]{1,10} [\d:]{1,15} \[[^\]]{0,200}\] )?\s{0,80}"
)
"""What vLLM puts before a message: process, level, time, place."""

CHILD_SIGNAL: Final = re.compile(r"exit code: -(?P<signal>\d{1,2})\b")
"""How vLLM tells by which signal a process of its engine ended."""

NOT_BY_US: Final = ", and not by gpuward"

OF_THE_POOL: Final = frozenset({"exec", "cwd", "launch"})
"""Kinds of failed starts that only another configuration mends; the others are of the host, and may pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """How a run ended, without its output.

    ``oom_kills``: kills by the kernel for want of memory during the run, on the whole host, or of the run's own
    processes where ``oom_proven``. ``commanded``: somebody asked for this end. ``phase``: the last one that was proved.
    ``keeper_lost``: the keeper wrote no end record, so code and signal are not known; ``unwritten``: it could not.
    ``start_timed_out``: it was
    stopped because it was not ready in time; ``unready``: what was missing then. ``hung``: it was killed because it
    made no progress; what was seen. ``swept``: processes of it were left when its main process had ended, and were
    killed. ``ending``: why the daemon was ending it, None where it was not.
    """

    code: int | None
    signal: int | None
    oom_kills: int = 0
    oom_proven: bool = False
    commanded: bool = False
    phase: Literal["starting", "ready"] = "starting"
    keeper_lost: bool = False
    unwritten: bool = False
    start_timed_out: bool = False
    hung: str = ""
    unready: str = ""
    swept: bool = False
    ending: Ending | None = None

    @property
    def by_sigkill(self) -> bool:
        """Whether it was killed by SIGKILL, as far as that can be known."""
        return self.keeper_lost or self.signal == SIGKILL or self.code == SHELL_SIGNAL_BASE + SIGKILL


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why a run ended.

    ``evidence``: at most 5 lines of output of at most 300 characters, the cause first. ``permanent``: a new start with
    the same configuration ends the same way. ``hint``: what would help, empty where nobody knows. ``reason``: one
    sentence with the numbers. ``offer_tokens``: the longest context that the engine says would fit.
    ``xids``: names of the GPU errors in the evidence. ``first_error``: as in `life.LastExit`.
    """

    cause: Cause
    evidence: tuple[str, ...] = ()
    permanent: bool = False
    hint: str = ""
    reason: str
    offer_tokens: int | None = None
    xids: tuple[str, ...] = ()
    wanting: Wanting | None = None
    first_error: str = ""


def classify(
    end: RunEnd, lines: Iterable[str], own: tuple[Signature, ...] = (), moments: LastMoments = NOTHING_KNOWN
) -> Verdict:
    """Return why a run ended. ``lines``: its whole output in order, read once; not read at all after a command.

    ``own``: signatures of this host, which win over those of gpuward. ``moments``: what else the host knew.
    Memory is bounded whatever comes. The first signature of the table that stands anywhere in the output wins, not the
    last line: what follows the cause (wrappers, clean-up, children that die with it) is never one.
    """
    findings = nothing_found(own)
    if not end.commanded:
        findings.read(lines)
    return judge(end, findings, moments)


def nothing_found(own: tuple[Signature, ...] = ()) -> Findings:
    """Return what the output of a run is read with, which may be done while it runs; ``own`` as for `classify`."""
    return Findings((*own, *SIGNATURES))


def judge(end: RunEnd, findings: Findings, moments: LastMoments = NOTHING_KNOWN) -> Verdict:
    """Return why a run ended, as `classify` does, from what was found in its output.

    An error of a GPU is the cause only where neither a command, nor our own kill, nor the output names another.
    """
    if end.commanded:
        return _ended_on_purpose(end)
    running = end.phase == "ready" or findings.engine_ran
    named = _named_cause(end, findings, running=running)
    proven = named is not None and (named.cause is not Cause.HOST_OOM or end.oom_proven)
    xid = None if proven else moments.hardware
    if xid is None and named is None and not end.by_sigkill:
        xid = moments.fault(swept=end.swept)
    if xid is not None:
        return _with_moments(_from_xid(end, xid, findings), end, moments, by_xid=True)
    verdict = named or _crash(end, findings, running=running)
    return _with_moments(verdict, end, moments, by_xid=False)


def _ended_on_purpose(end: RunEnd) -> Verdict:
    """A person asked for it, or it follows from that: commanded; else what gpuward itself had against the run."""
    if end.ending is None:
        return Verdict(cause=Cause.COMMANDED, reason=f"stopped by command ({_how(end)})")
    causes = {"breach": Cause.MEMORY_BREACH, "spare": Cause.MOVED}
    return Verdict(cause=causes.get(end.ending.kind, Cause.COMMANDED), reason=f"{end.ending.why} ({_how(end)})")


def _named_cause(end: RunEnd, findings: Findings, *, running: bool) -> Verdict | None:
    """The cause that the daemon itself, the output or the kernel names; None where nobody names one."""
    if end.hung:
        hint = "restarts by itself; if it comes back, see the log before it and the GPU's health"
        return Verdict(
            cause=Cause.HANG, evidence=_evidence(findings), hint=hint, reason=end.hung.removeprefix("hangs: ")
        )
    hit = findings.first(running=running)
    if hit is not None and (
        hit.signature in GPU_SIGNATURES or hit.signature not in SIGNATURES or not _killed_for_memory(end, findings)
    ):
        return _from_signature(end, hit)
    if _killed_for_memory(end, findings):
        return _host_oom(end, findings)
    if end.code == USAGE_EXIT_CODE and not running and findings.usage_error:
        return Verdict(
            cause=Cause.CONFIG_ERROR,
            evidence=(findings.usage_error,),
            permanent=True,
            hint="correct the pool and apply it again",
            reason=f"its arguments were refused ({_how(end)})",
        )
    if end.start_timed_out:
        return Verdict(
            cause=Cause.START_TIMEOUT,
            evidence=_evidence(findings),
            hint="raise start-timeout-s if it only needs longer",
            reason=end.unready or "it was not ready within its start-timeout-s and was stopped",
        )
    return None


def _from_xid(end: RunEnd, xid: XidHeard, findings: Findings) -> Verdict:
    """The verdict where the driver is the only one that names a cause; its line is added by `_with_moments`."""
    if xid.hardware:
        hint = "take the GPU out of service, reset it or reboot"
        reason = f"the driver reports {xid.named}, a hardware fault ({_how(end)})"
        return Verdict(cause=Cause.GPU_HARDWARE, evidence=_evidence(findings), permanent=True, hint=hint, reason=reason)
    hint = "a new process usually helps; the same on this GPU again points to hardware"
    reason = f"the driver reports {xid.named} ({_how(end)})"
    return Verdict(cause=Cause.CUDA_FAULT, evidence=_evidence(findings), hint=hint, reason=reason)


def _with_moments(verdict: Verdict, end: RunEnd, moments: LastMoments, *, by_xid: bool) -> Verdict:
    """Add what the host knew: XIDs to the evidence, first where they are the cause; memory where it tells more."""
    memory = moments.memory
    if memory is not None and verdict.wanting is not None and not verdict.wanting.fits(memory):
        memory = None  # the program's own figures win over a sample that contradicts them
    unexplained = verdict.cause is Cause.CRASH and end.by_sigkill and memory is not None and memory.telling
    held = (memory.line,) if memory is not None and (verdict.cause in MEMORY_CAUSES or unexplained) else ()
    xids = moments.xid_lines
    room = EVIDENCE_LINES_MAX - len(xids) - len(held)
    known = verdict.evidence[:room]
    evidence = (*xids, *known, *held) if by_xid else (*known, *xids, *held)
    named = tuple(xid.named for xid in moments.xids[:XIDS_SHOWN])
    return replace(verdict, evidence=evidence, reason="; ".join((verdict.reason, *held)), xids=named)


def spawn_failed(message: str, kind: str) -> Verdict:
    """Return the verdict on a run whose worker was never started; ``message`` is of the keeper or of the engine.

    ``kind``: what it was about: as the keeper says, or ``launch`` and ``pin`` where no keeper was asked.
    """
    line = (clip(message),)
    if kind == "lease":
        return Verdict(cause=Cause.GPU_BUSY, evidence=line, reason=message)
    if kind not in OF_THE_POOL:
        return Verdict(cause=Cause.CRASH, evidence=line, reason=message)
    return Verdict(
        cause=Cause.CONFIG_ERROR,
        evidence=line,
        permanent=True,
        hint="correct the pool and apply it again",
        reason=message,
    )


def _from_signature(end: RunEnd, hit: Hit) -> Verdict:
    found: Signature = hit.signature
    return Verdict(
        cause=found.cause,
        evidence=tuple(hit.lines[:EVIDENCE_LINES_MAX]),
        permanent=found.permanent,
        hint=found.hint.format(**hit.words),
        reason=f"{found.says.format(**hit.words)} ({_how(end)})",
        offer_tokens=int(hit.words["offer"]) if hit.words.get("offer", "").isdecimal() else None,
        wanting=_wanting(hit.words),
    )


def _wanting(words: Mapping[str, str]) -> Wanting | None:
    """The figures of an allocation that failed, where the output has them."""
    asked, free = bytes_of(words.get("ask", "")), bytes_of(words.get("free", ""))
    return Wanting(asked_bytes=asked, free_bytes=free) if asked is not None and free is not None else None


def _killed_for_memory(end: RunEnd, findings: Findings) -> bool:
    """Whether the kernel killed a process of this run for want of memory: it killed, and one here died without a word.

    The count of the host proves nothing alone; that of the run's own cgroup does.
    """
    if end.oom_kills <= 0 or end.oom_proven:
        return end.oom_kills > 0
    shell_saw_sigkill = end.code == SHELL_SIGNAL_BASE + SIGKILL
    return end.signal == SIGKILL or shell_saw_sigkill or bool(findings.silent_death and not findings.exception)


def _host_oom(end: RunEnd, findings: Findings) -> Verdict:
    if end.oom_proven:
        says = f"the kernel killed it for want of host memory: {end.oom_kills} oom_kill in its own cgroup"
    else:
        says = (
            f"host memory is suspected: the kernel killed {end.oom_kills} processes for want of it during this run, "
            "on a host that does not tell whose"
        )
    return Verdict(
        cause=Cause.HOST_OOM,
        evidence=_evidence(findings),
        hint=LESS_HOST_MEMORY,
        reason=f"{says} ({_how(end)})",
    )


def _crash(end: RunEnd, findings: Findings, *, running: bool) -> Verdict:
    when = "while serving" if running else "while starting"
    if end.keeper_lost:
        reason = "its keeper was killed, and the worker with it: how it ended is not known"
    elif end.unwritten:
        reason = f"it ended {when}; its keeper could not write how: no room in the run's directory nor beside its log"
    elif findings.silent_death and not findings.exception:
        died = CHILD_SIGNAL.search(findings.silent_death)
        by = f"was killed by {_signal(int(died['signal']))}" if died is not None else "died without a word"
        theirs = NOT_BY_US if died is not None else ""
        reason = f"a process of the engine {by} {when}{theirs} ({_how(end)})"
    else:
        told = f"; first error: {LOG_PREFIX.sub('', findings.exception)}" if findings.exception else ""
        reason = f"it ended by itself {when} ({_how(end)}){told}"
        if end.signal is not None:
            reason = f"it was killed by {_signal(end.signal)} {when}{NOT_BY_US}{told}"
    first_error = "" if running or end.code != FAILED_EXIT_CODE or findings.may_pass else findings.fingerprint
    return Verdict(cause=Cause.CRASH, evidence=_evidence(findings), reason=reason, first_error=first_error)


def _evidence(findings: Findings) -> tuple[str, ...]:
    """Return what tells most of an end without a signature: first exception and silent death, or the last lines."""
    telling = [line for line in (findings.exception, findings.silent_death) if line]
    return tuple(telling or findings.last_lines)[-EVIDENCE_LINES_MAX:]


def _signal(number: int) -> str:
    return f"signal {number} (SIGKILL)" if number == SIGKILL else f"signal {number}"


def _how(end: RunEnd) -> str:
    if end.signal is not None:
        return f"killed by signal {end.signal}"
    return "exit code not known" if end.code is None else f"exit code {end.code}"
