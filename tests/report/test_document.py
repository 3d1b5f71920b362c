import copy
import json
import math

import jsonschema
import numpy as np
import pytest

from reflow_tf.report import document, frontier


def _subschemas(node, place="schema"):
    """Every schema that describes a value: properties, items, definitions."""
    if isinstance(node, dict):
        for key in ("properties", "$defs"):
            for name, child in node.get(key, {}).items():
                yield f"{place}.{name}", child
                yield from _subschemas(child, f"{place}.{name}")
        if "items" in node:
            yield f"{place}[]", node["items"]
            yield from _subschemas(node["items"], f"{place}[]")


@pytest.mark.parametrize("module, key", [(document, "schema_version"), (frontier, "version")])
def test_schema_is_a_valid_schema_of_its_draft(module, key):
    schema = module.schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)
    version = document.SCHEMA_VERSION if module is document else frontier.VERSION
    assert schema["properties"][key]["const"] == version and schema["$id"].endswith(f":{version}")


@pytest.mark.parametrize("module, least, open_ones", [(document, 100, set()), (frontier, 50, {"schema.cells[].score"})])
def test_schema_describes_every_value_and_closes_every_object(module, least, open_ones):
    places = list(_subschemas(module.schema()))
    assert len(places) > least
    for place, schema in places:
        assert len(schema.get("description", "")) >= 5, place
        if "properties" in schema:
            assert schema["additionalProperties"] is (place in open_ones), place
            assert set(schema["required"]) == set(schema["properties"]), place


def test_admits_every_kind_of_run(any_report):
    document.validate(any_report)
    assert json.loads(document.to_json(any_report)) == any_report


def _without(*keys):
    def change(report):
        for key in keys[:-1]:
            report = report[key]
        del report[keys[-1]]

    return change


def _with(value, *keys):
    def change(report):
        for key in keys[:-1]:
            report = report[key]
        report[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("accuracy"), "accuracy"),
        (_without("size_bytes", "gzip"), "gzip"),
        (_with("1", "schema_version"), "schema_version"),
        (_with("yesterday", "created"), "created"),
        (_with(1, "surprise"), "surprise"),
        (_with(1.2, "accuracy", "dense", "top1"), "1.2"),
        (_with(91.2, "accuracy", "file", "top1_interval", 1), "91.2"),
        (_with([0.1], "accuracy", "file", "top1_interval"), "top1_interval"),
        (_with(-1, "size_bytes", "file"), "size_bytes"),
        (_with(True, "file", "batch_size"), "batch_size"),
        (_with("1", "parity", "n"), "parity"),
        (_with(None, "accuracy"), "report"),
        (_with("a", "seconds", "load"), "seconds"),
        (_with((32, 3), "file", "tensors", 0, "shape"), "shape"),
        (_with(np.float32(1), "seconds", "load"), "seconds"),
    ],
)
def test_rejects_what_is_not_a_report(make_report, change, message):
    report = make_report()
    change(report)
    with pytest.raises(ValueError, match=message):
        document.validate(report)
    with pytest.raises(ValueError, match=message):
        document.to_json(report)


def test_rejects_accuracy_beside_agreement(make_report):
    report = make_report()
    report["agreement"] = make_report(labelled=False)["agreement"]
    with pytest.raises(ValueError, match="breaks its schema"):
        document.validate(report)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_rejects_numbers_that_json_lacks(make_report, number):
    report = make_report()
    report["config"]["resolved"]["seeds"] = [0.0, number]
    with pytest.raises(ValueError, match=r"report\['config'\]\['resolved'\]\['seeds'\]\[1\]"):
        document.to_json(report)


def test_text_does_not_depend_on_the_order_of_keys(make_report):
    report = make_report()
    turned = dict(reversed(copy.deepcopy(report).items()))
    turned["size_bytes"] = dict(reversed(turned["size_bytes"].items()))
    assert document.to_json(turned) == document.to_json(report)


def test_text_keeps_lists_of_numbers_on_a_line_and_strings_as_they_are(make_report):
    report = make_report()
    report["notes"] = ["[\n  1,\n  2\n]", "[ 1, 2 ]", "für ✓"]
    report["config"] = {"numbers": [1, -2.5, 1e-07], "none": [], "flags": [True, None]}
    text = document.to_json(report)
    assert '"numbers": [1, -2.5, 1e-07]' in text
    assert "für ✓" in text
    assert text.endswith("}\n")
    assert json.loads(text) == report
