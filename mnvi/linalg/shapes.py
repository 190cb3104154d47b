"""Checks of shapes: of matrices, of square ones, and of those with at least as many rows as columns."""

Size = tuple[int, ...]


def matrix_shape(shape: Size, what: str) -> tuple[int, int]:
    """The last two sizes of ``shape``, or ValueError where there are not two or one is 0."""
    if len(shape) < 2 or 0 in shape[-2:]:
        raise ValueError(f"{what} needs a shape (..., n, p), got {tuple(shape)}")
    return shape[-2], shape[-1]


def is_square(shape: Size) -> bool:
    """Whether ``shape`` is (..., n, n); n may be 0."""
    return len(shape) >= 2 and shape[-1] == shape[-2]


def check_square(shape: Size, what: str) -> None:
    """Raise ValueError unless ``shape`` is (..., n, n); n may be 0."""
    if not is_square(shape):
        raise ValueError(f"{what} needs a square shape (..., n, n), got {tuple(shape)}")


def check_thin(shapes: tuple[Size, ...], what: str) -> None:
    """Raise ValueError unless ``shapes`` is one shape (..., n, p) with n ≥ p ≥ 1."""
    n, p = matrix_shape(only(shapes, what), what)
    if n < p:
        raise ValueError(f"{what} needs a shape (..., n, p) with n at least p, got {tuple(shapes[0])}")


def check_square_point(shapes: tuple[Size, ...], what: str) -> None:
    """Raise ValueError unless ``shapes`` is one shape (..., n, n) with n ≥ 1."""
    matrix_shape(only(shapes, what), what)
    check_square(shapes[0], what)


def only(shapes: tuple[Size, ...], what: str) -> Size:
    """The one shape of ``shapes``, or ValueError."""
    if len(shapes) != 1:
        raise ValueError(f"{what} needs one tensor, got {len(shapes)}")
    return shapes[0]
