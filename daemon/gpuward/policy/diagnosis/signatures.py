"""What failures look like in a worker's output. Data only; the order of `SIGNATURES` is the order in which they win.

Texts are those of vLLM 0.6 to 0.32, torch, NCCL, huggingface_hub and uvicorn; numbers behind ``#`` are issues of
vllm-project/vllm. Where two tell the same, the one with the numbers stands first.
"""

from __future__ import annotations

from typing import Final

from gpuward.policy.diagnosis.causes import Cause, Signature, signature
from gpuward.policy.diagnosis.gpu_signatures import GPU_SIGNATURES
from gpuward.policy.diagnosis.machine_signatures import DRIVER_SIGNATURES, MACHINE_SIGNATURES
from gpuward.policy.diagnosis.model_signatures import MODEL_SIGNATURES

_OTHER_PORT = "free the port, or give the pool another one"
_FIX = "correct the pool and apply it again"

_PORTS: Final = (
    signature(
        Cause.PORT_CONFLICT,
        "DistNetworkError",
        r"DistNetworkError: (?>.{0,200}?port: (?P<port>\d{1,5})).{0,200}(?:EADDRINUSE|ddress already in use)",
        "another process took internal port {port} first",
        hint="a race for a free port: the next start takes another one",
        phase="starting",
    ),
    signature(
        Cause.PORT_CONFLICT,
        "DistNetworkError",
        r"DistNetworkError: .{0,400}(?:EADDRINUSE|ddress already in use)",
        "another process took an internal port first",
        hint="a race for a free port: the next start takes another one",
        phase="starting",
    ),
    signature(
        Cause.PORT_CONFLICT,
        "ZMQError: Address already in use",
        r"ZMQError: Address already in use(?: \(addr='(?P<address>[^']{0,200})'\))?",
        "a side channel's port is taken by another process",
        hint=_OTHER_PORT,
        permanent=True,
        phase="starting",
    ),
    signature(
        Cause.PORT_CONFLICT,
        "ddress already in use",
        r"error while attempting to bind on address "
        r"\('(?P<host>[^']{0,64})', (?P<port>\d{1,5})[^)]{0,64}\): .{0,64}already in",
        "port {port} on {host} is taken by another process",
        hint=_OTHER_PORT,
        permanent=True,
        phase="starting",
    ),
    signature(
        Cause.PORT_CONFLICT,
        "ddress already in use",
        r"[Aa]ddress already in use",
        "a port that the worker wanted to listen on is taken by another process",
        hint=_OTHER_PORT,
        permanent=True,
        phase="starting",
    ),
)


def _config(literal: str, pattern: str, says: str, hint: str = _FIX, following: int = 0) -> Signature:
    return signature(
        Cause.CONFIG_ERROR, literal, pattern, says, hint=hint, permanent=True, phase="starting", following=following
    )


_CONFIG: Final = (
    _config("error: unrecognized arguments", r"arguments: (?P<what>.{1,120})", "this vLLM does not know {what}"),
    _config("error: argument ", r": error: argument (?P<what>.{1,160})", "a bad argument: {what}"),
    _config("error: the following arguments are", r"required: (?P<what>.{1,120})", "missing arguments: {what}"),
    _config(
        "greater than the derived max_model_len",
        r"max_model_len \((?P<asked>\d{1,12})\) is greater .{0,200}?\(\w{1,60}=(?P<offer>\d{1,12})",
        "max-model-len {asked} is more than the model's {offer}",
        hint="set max-model-len to {offer} or less",
    ),
    _config(
        "repo_name",
        r"form 'repo_name' or 'namespace/repo_name': '(?P<model>[^']{0,400})'",
        "there is no model at '{model}'",
        hint="the directory does not exist, so it was taken for the name of a repository; correct 'model'",
    ),
    _config("HFValidationError: ", r"HFValidationError: (?P<what>.{1,160})", "'model' names nothing: {what}"),
    _config(
        "NotFoundError: ",
        r"(?P<what>RepositoryNotFound|RevisionNotFound)Error: ",
        "the model's repository cannot be read ({what})",
        hint="check the name of the model and the access token",
    ),
    _config(
        "model identifier",
        r"(?:^|\s)(?P<model>\S{1,1000}) is not a local folder and is not a valid model identifier",
        "there is no model {model}",
        hint="correct 'model'",
    ),
    _config(
        "larger than the number of available GPUs",
        r"World size \((?P<need>\d{1,6})\) is larger than the number of available GPUs \((?P<have>\d{1,6})\)",
        "the parallel sizes ask for {need} GPUs, the worker has {have}",
        hint="gpus-per-worker must be tensor-parallel-size x pipeline-parallel-size",
    ),
    _config(
        "invalid literal for int()",
        r"invalid literal for int\(\).{0,40}'(?P<uuid>(?:GPU|MIG)-[^']{0,80})'",
        "this vLLM cannot take the UUID {uuid} in CUDA_VISIBLE_DEVICES (#20939)",
        hint='set pin = "index" in the pool',
    ),
    _config(
        "Model architectures",
        r"Model architectures (?P<model>.{1,120}?) (?:are not supported|failed to be inspected)",
        "this vLLM cannot serve the architecture {model}",
        hint="use a vLLM version that supports the model",
    ),
    _config("Value error, ", r"Value error, (?P<what>.{1,200}?)(?: \[type=|$)", "vLLM refuses a value: {what}"),
    _config(
        "validation error",
        r"ValidationError: \d{1,4} validation errors? for (?P<what>\w{0,60}(?:Config|Args))",
        "vLLM refuses the values for its {what}",
        following=2,
    ),
    _config(
        "PackageNotFoundError: ",
        r"PackageNotFoundError: (?P<what>.{1,120})",
        "the environment is not complete: {what}",
        hint="install vLLM in the environment of 'executable'",
    ),
    _config(
        "No module named",
        r"python[\d.]{0,8}: .{0,80}?No module named '?(?P<what>[\w.]{1,120})",
        "the interpreter has no module {what}",
        hint="install it in the environment of 'executable'",
    ),
    _config("can't open file", r"can't open file '(?P<what>[^']{1,400})'", "there is no program {what}"),
)

_ENGINE: Final = (
    signature(
        Cause.HANG,
        "timed out",
        r"RPC call to (?P<what>\w{1,60}) timed out",
        "the engine waited in vain for its workers: {what} timed out",
        hint="restart the whole worker (#37250)",
    ),
    signature(
        Cause.HANG,
        "No available shared memory broadcast block",
        r"No available shared memory broadcast block found in (?P<limit>\d{1,6}) seconds",
        "the engine waited in vain for its workers, {limit} s more than once",
        hint="restart the whole worker (#37250)",
        phase="ready",  # while it compiles the same line is normal, also many times
        quiet=True,
        times=2,
    ),
    signature(
        Cause.START_TIMEOUT,
        "Timed out waiting for engine core processes",
        r"Timed out waiting for engine core processes to start",
        "vLLM gave up waiting for its engine to start",
        hint="raise VLLM_ENGINE_READY_TIMEOUT_S in 'env' and start-timeout-s together",
        phase="starting",
    ),
)

SIGNATURES: Final = (
    *DRIVER_SIGNATURES,
    *GPU_SIGNATURES,
    *_PORTS,
    *MACHINE_SIGNATURES,
    *MODEL_SIGNATURES,
    *_CONFIG,
    *_ENGINE,
)
"""All of them, the first in this order wins; within one, its first line."""
