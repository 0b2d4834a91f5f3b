"""What labels say about two items: how similar they are, and whether they are relevant."""

from torch import Tensor
from torch.nn.functional import normalize


def label_similarity(labels: Tensor, others: Tensor) -> Tensor:
    """Cosine of multi-hot label vectors: 1 for equal sets, 0 for sets that share nothing.

    Args:
        labels: (n, classes), 0 or 1, any number type; at least one class in each row.
        others: (m, classes), likewise.

    Returns:
        float32 (n, m), in [0, 1].
    """
    return (normalize(labels.float()) @ normalize(others.float()).T).clamp_(0, 1)


def relevance(labels: Tensor, others: Tensor) -> Tensor:
    """Whether two items share at least one class, which is what an evaluation calls relevant.

    Args:
        labels: (n, classes), 0 or 1, any number type.
        others: (m, classes), likewise.

    Returns:
        bool (n, m).
    """
    return labels.float() @ others.float().T > 0.5
