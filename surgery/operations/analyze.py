"""`analyze embeddings`: look, and change nothing."""

from surgery.language import Selector
from surgery.operations.base import Phase, operation
from surgery.operations.fields import after, setting, word
from surgery.operations.kinds import whole


@operation
class Analyze:
    """Study a part of the model and report what was found.

    before   the model             after   the same model, findings in the report
    refuses  a selector that matches nothing to study
    """

    phase = Phase.ANALYZE
    what: str = word("embeddings", default="embeddings", doc="which analysis")
    target: Selector | None = after("of", default=None, doc="what to study; without it, all there is")
    samples: int | None = setting(whole(at_least=1), default=None, doc="how many samples a sampled analysis draws")
    seed: int = setting(whole(at_least=0), default=0, doc="of everything drawn at random")
