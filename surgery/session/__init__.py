"""From Python: inspect, plan, compile, apply, analyze. Ties the rooms together; only the command line sits above."""

from surgery.session.operate import analyze, apply, compile
from surgery.session.prepare import Prepared, inspect, plan, prepare
from surgery.session.result import Result

__all__ = ["Prepared", "Result", "analyze", "apply", "compile", "inspect", "plan", "prepare"]
