"""A spec in its canonical form, comments kept. Reading it back gives the same tree."""

from surgery.language.tree import Clause, Spec

WIDTH = 100
INDENT = "    "


def format(spec: Spec) -> str:
    """The spec as text of the language: one clause a line, a long one broken before its phrases and settings."""
    lines: list[str] = []
    for clause in spec.clauses:
        lines += [*clause.above, sentence(clause) + (f"  {clause.beside}" if clause.beside else "")]
    lines += spec.below
    return "".join(f"{line}\n" for line in lines)


def format_yaml(spec: Spec) -> str:
    """The spec as YAML; reading it back gives the same tree."""
    from surgery.language.yaml_writer import write_yaml

    return write_yaml(spec)


def sentence(clause: Clause) -> str:
    """One clause as text, without its comments."""
    whole = str(clause)
    if len(whole) <= WIDTH:
        return whole
    lines = [" ".join(map(str, (clause.verb, *clause.pieces)))]
    for tail in clause.tails:
        if len(lines[-1]) + len(str(tail)) < WIDTH or tail is clause.comparison:
            lines[-1] += f" {tail}"
        else:
            lines.append(f"{INDENT}{tail}")
    return "\n".join(lines)
