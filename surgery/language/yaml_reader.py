"""YAML to clauses: composed nodes are walked, so that every fault has its line and column.

model: zoo:digits-dit            a clause: its verb and the rest of its sentence
steps:
  - prune: tail 66%              a verb and its first words; its phrases and settings as further keys
    of: class embeddings
    scope: shared
  - prune tail 66% of class embeddings          or a whole sentence
  - prune: {share: 66%, of: class embeddings}   or all fields by name
require:                         a list at the top is one clause for each item
  - loss <= 1.02x
"""

import re

import yaml

from surgery.diagnostics import Diagnostic, Source, Span
from surgery.language.fragment import Fragment
from surgery.language.tree import PREPOSITIONS, Clause, List, Phrase, Piece, Setting, Text

KEY = re.compile(r"[^\W\d][\w-]*")
STEPS = "steps"
DEEPEST = 20
OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
Read = tuple[list[Clause], list[Diagnostic], list[tuple[int, int]]]


def read_yaml(source: Source) -> Read:
    """Clauses, faults and the places of comments of a YAML source."""
    reader = Reader(source)
    try:
        tokens = _tokens(source)
        if reader.refuse_anchors(tokens):
            return [], reader.faults, []
        root = yaml.compose(source.text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        return [], [_malformed(source, error)], []
    if root is not None and not _is_null(root):
        reader.document(root)
    return reader.clauses, reader.faults, _comments(source.text, tokens)


def _tokens(source: Source) -> list[yaml.Token]:
    """YAML's tokens; nesting deeper than any spec's is refused before it costs time or stack."""
    tokens, depth = [], 0
    for token in yaml.scan(source.text, yaml.SafeLoader):
        tokens.append(token)
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem="it is nested too deeply", problem_mark=token.start_mark)
    return tokens


class Reader:
    """Collects the clauses and faults of one document."""

    def __init__(self, source: Source):
        self.source = source
        self.clauses: list[Clause] = []
        self.faults: list[Diagnostic] = []

    def refuse_anchors(self, tokens: list) -> bool:
        for token in tokens:
            if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
                self.fault(
                    "S111", "a spec has no anchors, aliases or tags", self.span(token), help="write the value out"
                )
        return bool(self.faults)

    def document(self, root: yaml.Node) -> None:
        if isinstance(root, yaml.SequenceNode):
            return self.steps(root)
        if not isinstance(root, yaml.MappingNode):
            help = "begin with `model: …` and `steps:`, or write the spec as plain text in a `.surgery` file"
            return self.fault("S111", "a YAML spec is a mapping or a list of steps", self.span(root), help=help)
        for key, value in self.pairs(root):
            if key.value != STEPS:
                self.top(key, value)
            elif isinstance(value, yaml.SequenceNode):
                self.steps(value)
            elif not _is_null(value):
                self.fault("S111", "`steps` is a list", self.span(value), help="begin each step with `- `")

    def top(self, key: yaml.ScalarNode, value: yaml.Node) -> None:
        if not isinstance(value, yaml.SequenceNode):
            return self.clause(key, value, [])
        for item in value.value:
            self.clause(key, item, [], within=item)

    def steps(self, node: yaml.SequenceNode) -> None:
        for item in node.value:
            if isinstance(item, yaml.ScalarNode) and not _is_null(item):
                fragment = Fragment(self.source)
                fragment.add_node(item)
                self.sentence(fragment, item)
            elif isinstance(item, yaml.MappingNode) and item.value:
                (verb, value), *rest = self.pairs(item) or [(None, None)]
                if verb is not None:
                    self.clause(verb, value, rest, within=item)
            else:
                self.fault("S111", "a step is a sentence or a mapping", self.span(item))

    def clause(self, verb, value, rest: list, within: yaml.Node | None = None) -> None:
        fragment = Fragment(self.source)
        fragment.add(verb.value, self.span(verb), verb.start_mark.index)
        if isinstance(value, yaml.MappingNode):
            rest = [*self.pairs(value), *rest]
        elif isinstance(value, yaml.SequenceNode):
            return self.fault("S111", f"`{verb.value}` takes a sentence or a mapping here", self.span(value))
        elif not _is_null(value):
            fragment.add_node(value)
        self.sentence(fragment, within or value, None if within else verb, rest)

    def sentence(self, fragment: Fragment, node: yaml.Node, verb=None, rest: list = ()) -> None:
        clauses, faults = fragment.clauses()
        self.faults += faults
        if faults:
            return
        if len(clauses) != 1:
            return self.fault(
                "S111", "a step is one clause", self.span(node), help="write the next one as its own step"
            )
        known = len(self.faults)
        tails = [self.tail(key, value) for key, value in rest]
        if len(self.faults) > known:
            return
        clause = clauses[0]
        start = (verb or node).start_mark.index
        self.clauses.append(
            Clause(
                clause.verb,
                clause.pieces,
                (*clause.phrases, *(phrase for phrases, _ in tails for phrase in phrases)),
                clause.comparison,
                (*clause.settings, *(setting for _, settings in tails for setting in settings)),
                span=Span(self.source, start, max(start + 1, _end(node))),
            )
        )

    def tail(self, key: yaml.ScalarNode, value: yaml.Node) -> tuple[tuple[Phrase, ...], tuple[Setting, ...]]:
        """The phrases or the setting that one key of a step says."""
        span = Span(self.source, key.start_mark.index, value.end_mark.index)
        if key.value not in PREPOSITIONS:
            piece = self.value(value)
            return (), (Setting(key.value, piece, span=span),) if piece else ()
        if isinstance(value, yaml.SequenceNode):
            piece = self.value(value)
            return ((Phrase(key.value, (piece,), span=span),) if piece else ()), ()
        if not isinstance(value, yaml.ScalarNode):
            self.fault("S111", f"`{key.value}` takes a word, a phrase or a list", self.span(value))
            return (), ()
        fragment = Fragment(self.source)
        fragment.add("x", None, None)
        fragment.add(key.value, self.span(key), key.start_mark.index)
        fragment.add_node(value)
        clauses, faults = fragment.clauses()
        self.faults += faults
        if faults or len(clauses) != 1:
            return (), ()
        return clauses[0].phrases, clauses[0].settings

    def value(self, node: yaml.Node) -> Piece | None:
        """One piece; a scalar that reads as several words is a string."""
        if isinstance(node, yaml.SequenceNode):
            items = [self.value(item) for item in node.value]
            if any(isinstance(item, List) for item in items):
                self.fault("S111", "a list holds no lists", self.span(node))
            return List(tuple(item for item in items if item and not isinstance(item, List)), span=self.span(node))
        if not isinstance(node, yaml.ScalarNode):
            self.fault("S111", "a value is a word, a quantity, a string or a list", self.span(node))
            return None
        fragment = Fragment(self.source)
        fragment.add("x", None, None)
        fragment.add_node(node)
        clauses, faults = fragment.clauses()
        alone = len(clauses) == 1 and len(clauses[0].pieces) == 1 and not clauses[0].tails
        if not alone or {fault.code for fault in faults} - {"S112"}:
            return Text(node.value, span=self.span(node))
        self.faults += faults
        return clauses[0].pieces[0]

    def pairs(self, node: yaml.MappingNode) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
        """Keys and values; keys that are no words or come twice are faults."""
        seen: dict[str, Span] = {}
        kept = []
        for key, value in node.value:
            span = self.span(key)
            if not isinstance(key, yaml.ScalarNode) or not KEY.fullmatch(key.value):
                self.fault("S111", "a key is a single word", span)
            elif key.value in seen:
                self.fault("S106", f"`{key.value}` is given twice", span, notes=(f"first at {seen[key.value].place}",))
            else:
                seen[key.value] = span
                kept.append((key, value))
        return kept

    def span(self, node) -> Span:
        return Span(self.source, node.start_mark.index, max(node.start_mark.index + 1, node.end_mark.index))

    def fault(self, code: str, message: str, span: Span, help: str = "", notes: tuple[str, ...] = ()) -> None:
        self.faults.append(Diagnostic(code, message, span, notes=notes, help=help))


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in ("", "~", "null")


def _end(node: yaml.Node) -> int:
    """Where a node's own text ends; a block's mark lies behind the comments that follow it."""
    if node.value and isinstance(node, yaml.SequenceNode) and not node.flow_style:
        return _end(node.value[-1])
    if node.value and isinstance(node, yaml.MappingNode) and not node.flow_style:
        key, value = node.value[-1]
        return max(key.end_mark.index, _end(value))
    return node.end_mark.index


def _comments(text: str, tokens: list) -> list[tuple[int, int]]:
    """Comments are what lies between YAML's tokens."""
    found, reached = [], 0
    for token in [*tokens, None]:
        start = token.start_mark.index if token else len(text)
        for match in re.finditer(r"#[^\n]*", text[reached:start]):
            found.append((reached + match.start(), reached + match.end()))
        reached = max(reached, token.end_mark.index if token else 0)
    return found


def _malformed(source: Source, error: yaml.YAMLError) -> Diagnostic:
    mark = getattr(error, "problem_mark", None)
    index = mark.index if mark else getattr(error, "position", 0)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
    help = "indent with spaces" if "\\t" in problem else ""
    notes = (str(error.context),) if getattr(error, "context", None) else ()
    return Diagnostic("S110", f"malformed YAML: {problem}", Span(source, index, index + 1), notes=notes, help=help)
