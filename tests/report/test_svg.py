import pytest

from reflow_tf.report import svg


def test_element_escapes_contents_and_attributes():
    made = str(svg.element("text", "<b>&", title_='"x"', aria_label="a<b", x=1.26, y=2.0, fill=None))
    assert made == '<text title="&#34;x&#34;" aria-label="a&lt;b" x="1.3" y="2">&lt;b&gt;&amp;</text>'


def test_element_keeps_elements_inside():
    assert str(svg.element("g", svg.element("title", "a"))) == "<g><title>a</title></g>"


def test_path_leaves_gaps():
    assert 'd="M0.0 1.0L2.0 3.0M4.0 5.0"' in str(svg.path([(0, 1), (2, 3), None, (4, 5)], "c"))


def test_linear_scale():
    scale = svg.linear((0, 1), (280, 30))
    assert [scale(0), scale(0.5), scale(1)] == [280, 155, 30]
    assert svg.linear((3, 3), (0, 10))(3) == 5


def test_logarithmic_scale_takes_zero_to_its_end():
    scale = svg.logarithmic((0.001, 1), (300, 0))
    assert [scale(0.001), scale(0.01), scale(1)] == pytest.approx([300, 200, 0])
    assert scale(0) == 300
