"""What the shapes of arguments must be."""

Size = tuple[int, ...]


def matrix_shape(shape: Size, what: str) -> tuple[int, int]:
    """The last two sizes of ``shape``, or ValueError where there are not two or one is 0."""
    if len(shape) < 2 or 0 in shape[-2:]:
        raise ValueError(f"{what} needs a shape (..., n, p), got {tuple(shape)}")
    return shape[-2], shape[-1]


def check_thin(shapes: tuple[Size, ...], what: str) -> None:
    """Raise ValueError unless ``shapes`` is one shape (..., n, p) with n ≥ p."""
    if len(shapes) != 1:
        raise ValueError(f"{what} needs one tensor, got {len(shapes)}")
    n, p = matrix_shape(shapes[0], what)
    if n < p:
        raise ValueError(f"{what} needs a shape (..., n, p) with n at least p, got {tuple(shapes[0])}")
