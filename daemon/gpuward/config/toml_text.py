"""TOML text to plain tables, with the file's line in every complaint."""

from __future__ import annotations

import re
import tomllib

from gpuward.config.bounds import check_document, check_text
from gpuward.config.errors import ConfigError, one_line
from gpuward.config.fleet import Remark


def parse_toml(text: str, *, file: str) -> dict[str, object]:
    """Return the tables of ``text``; ConfigError (bad-syntax, duplicate-name) where it is no TOML, or too much."""
    check_text(text, file=file)
    try:
        document = tomllib.loads(text)
    except RecursionError as error:
        message = "not usable: nested too deeply; a fleet needs three levels"
        raise ConfigError(file, [Remark(code="bad-syntax", pool=None, message=message)]) from error
    except ValueError as error:
        raise ConfigError(file, [_syntax_problem(text, str(error))]) from error
    check_document(document, file=file)
    return document


def _syntax_problem(text: str, complaint: str) -> Remark:
    """Tell what stands in the line; a table or key given twice has a code of its own."""
    at = re.search(r"at line (\d+)", complaint)
    line = text.splitlines()[int(at.group(1)) - 1].strip() if at and int(at.group(1)) <= text.count("\n") + 1 else ""
    code = "duplicate-name" if re.match(r"Cannot (declare|overwrite|mutate)", complaint) else "bad-syntax"
    what = "given twice" if code == "duplicate-name" else "not TOML"
    where = f", the line is {line[:80]!r}" if line else ""
    return Remark(code=code, pool=None, message=one_line(f"{what}: {complaint}{where}"))
