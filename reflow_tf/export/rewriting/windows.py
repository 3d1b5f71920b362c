"""Where the windows of a convolution lie along one axis, and where they lie in the mirror.

A window of k pixels (k counts the gaps of a dilated kernel) starts at every s-th pixel from -a on: window i covers
pixels i*s - a to i*s - a + k - 1 of n, and there are m of them. What lies outside of 0 to n - 1 reads zeros. The last
window ends at (m - 1)*s - a + k - 1, so it reads a' = (m - 1)*s + k - n - a zeros after the last pixel; a negative a'
is the number of pixels that no window sees.

Mirrored, pixel x becomes n - 1 - x, the windows come in reverse order, the kernel is reversed, and a and a' change
places. So a convolution with padding a before computes the mirror image of what one with padding a' before and the
reversed kernel computes from the mirror image. TensorFlow's SAME at stride 2 on an even size has a = p - 1 and a' = p
with p = (k - 1)/2: there, and only there, it takes the mirror to make the padding p.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of a convolution or pooling along one axis.

    Attributes:
        size: n, pixels of the axis, padding not counted.
        kernel: k, from the first to the last pixel of a window.
        stride: s.
        before: a, zeros before the first pixel.
        count: m, windows.
    """

    size: int
    kernel: int
    stride: int
    before: int
    count: int

    @property
    def after(self) -> int:
        """a': zeros that the last window reads after the last pixel; negative: pixels that no window sees."""
        return (self.count - 1) * self.stride + self.kernel - self.size - self.before

    @property
    def symmetric_padding(self) -> int:
        """The padding p = (k - 1)/2 of an odd kernel."""
        return (self.kernel - 1) // 2

    def mirror(self) -> "Windows":
        """The same windows, seen from the other end of the axis."""
        return dataclasses.replace(self, before=self.after)

    def is_symmetric(self) -> bool:
        """Whether padding p on either side of an odd kernel gives these very windows."""
        padding = self.symmetric_padding
        count = (self.size + 2 * padding - self.kernel) // self.stride + 1
        return self.kernel % 2 == 1 and self.before == padding and count == self.count


def same(size: int, kernel: int, stride: int) -> Windows:
    """TensorFlow's SAME: as many windows as strides begin, the odd zero of the padding at the end."""
    count = -(-size // stride)
    padding = max((count - 1) * stride + kernel - size, 0)
    return Windows(size, kernel, stride, padding // 2, count)


def explicit(size: int, kernel: int, stride: int, before: int, after: int) -> Windows:
    """Zeros added before and after, then only whole windows (VALID)."""
    return Windows(size, kernel, stride, before, (before + size + after - kernel) // stride + 1)
