"""Every field of a header, with values of every other kind: one sentence that names the field, and nothing else."""

import copy
import json

import pytest

from condconv.files.checkpoint_format.schema import check_header
from condconv.files.schema import SchemaError
from tests.files.checkpoint_format.samples import header

DETECTOR = {
    **{name: header()[name] for name in ("config", "optimizer", "scaler", "versions")},
    "kind": "detector",
    "categories": ["bar", "square"],
    "images": 5,
    "metrics": [{"epoch": 1, "lr": 0.1, "train_loss": 3.0, "ap": 0.25, "seconds": 2.0}],
}
DEEP = [[[[[[[[[[1]]]]]]]]]]
NEVER = [float("nan"), float("inf"), -1e400, "\x1b[2J", "x" * 10_000, [None] * 70_000, DEEP, {"": 1}, {"a": {"b": {}}}]


def whole(values):
    return {"format": 6, "digests": {"model": "0" * 64}, **copy.deepcopy(values)}


def places(value, path=()):
    """Yields the path of every value in a header."""
    if path:
        yield path
    if not (path and path[-1] in ("config", "model_options", "scaler")):
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, each in inner:
            yield from places(each, (*path, name))


def with_value(values, path, value):
    changed = whole(values)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return changed


def refusal(values):
    try:
        check_header(values)
    except SchemaError as error:
        return str(error)
    return None


KINDS = {"classifier": header(), "detector": DETECTOR}
PLACES = [(kind, path) for kind, values in KINDS.items() for path in places(whole(values))]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_right_passes(kind):
    check_header(whole(KINDS[kind]))
    check_header(json.loads(json.dumps(whole(KINDS[kind]))))


@pytest.mark.parametrize(("kind", "path"), PLACES, ids=[f"{kind}-{'.'.join(map(str, path))}" for kind, path in PLACES])
def test_values_of_other_kinds(kind, path):
    """What is taken all the same is of the same type, or a plain value where any may be."""
    right = whole(KINDS[kind])
    for name in path:
        right = right[name]
    others = [None, True, 3, -3, 0.5, 10**400, "text", "", [], [1, "a"], {}, {"a": 1}, *NEVER]
    for value in others:
        said = refusal(with_value(KINDS[kind], path, value))
        if said is not None:
            assert "\x1b" not in said
            assert len(said) < 600
            continue
        free = path[0] in ("scaler", "optimizer")
        number = (int, float)
        same = isinstance(value, type(right)) or (isinstance(right, number) and isinstance(value, number))
        assert free or same or (right is None and value in (0.5, True)), (path, value)


@pytest.mark.parametrize(("kind", "path"), PLACES, ids=[f"{kind}-{'.'.join(map(str, path))}" for kind, path in PLACES])
def test_fields_that_are_missing_or_too_many(kind, path):
    if (
        path[-1] not in (0, 1)
        and path[0] not in ("scaler", "versions", "digests", "stores")
        and "state" not in path[:-1]
    ):
        changed = whole(KINDS[kind])
        inner = changed
        for name in path[:-1]:
            inner = inner[name]
        value = inner.pop(path[-1])
        if path[-1] != "lr" or "metrics" in path:
            with pytest.raises(SchemaError):
                check_header(changed)
        inner[path[-1]] = value
        if "param_groups" not in path:
            inner["more"] = value
            with pytest.raises(SchemaError):
                check_header(changed)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("preprocessing.size", 10**9, "`preprocessing.size` must be a whole number from 1 to 2048, got 1000000000"),
        ("preprocessing.size", "abc", "`preprocessing.size` must be a whole number from 1 to 2048, got 'abc'"),
        ("preprocessing.size", None, "`preprocessing.size` must be a whole number"),
        ("preprocessing.mean", [0.1, 0.2, 0.3], "`preprocessing.mean` must be a list of 1 numbers, one per channel"),
        ("preprocessing.std", [0], "`preprocessing.std[0]` must be a number from 1e-6 to 1e6, got 0"),
        ("preprocessing.crop", 0, "`preprocessing.crop` must be a number from 0.25 to 1, got 0"),
        ("preprocessing.crop", 3e-5, "`preprocessing.crop` must be a number from 0.25 to 1, got 3e-05"),
        ("preprocessing.mean", [7e200], "a number from -1000 to 1000, got 7e+200"),
        ("preprocessing.std", [3e-320], "a number from 1e-6 to 1e6, got 3e-320"),
        ("preprocessing.interpolation", "random", "`preprocessing.interpolation` must be one of 'nearest', 'box', "),
        ("class_names", ["cat", 7], "`class_names[1]` must be a text of 1 to 4096 characters, got 7"),
        ("class_names", ["cat", "cat"], "`class_names` must be a list without repetitions"),
        ("optimizer.state", {"-1": {}}, "`optimizer.state` must be a mapping with the names that condconv writes, got"),
        ("optimizer.param_groups", [{"params": ["0"]}], "`optimizer.param_groups[0].params[0]` must be a whole number"),
        (
            "digests",
            {"other": "0" * 64},
            "`digests` must be a mapping with the names that condconv writes, got 'other'",
        ),
    ],
)
def test_messages(path, value, message):
    with pytest.raises(SchemaError) as caught:
        check_header(with_value(header(), path.split("."), value))
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_epochs_are_counted_from_one_without_gaps(kind):
    said = refusal(with_value(KINDS[kind], ("metrics", 0, "epoch"), 2))
    assert said == "`metrics[0].epoch` must be 1, as epochs are counted, got 2"
