"""Declarations: a mistake names its file, its line and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from dagster_project.declarations import Declared, line_of, parse, read, validate
from dagster_project.failures import DeclarationError


class Wheel(Declared):
    size: int
    maker: str = "acme"


class Car(Declared):
    name: str
    wheels: list[Wheel] = Field(default_factory=list)
    spare: Wheel | None = None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "car.yaml"


def mistake(file: Path, text: str) -> str:
    file.write_text(text)
    with pytest.raises(DeclarationError) as caught:
        read(file, Car)
    return str(caught.value)


def test_what_is_right_is_read(file: Path) -> None:
    file.write_text("# a comment\nname: beetle\nwheels: [{size: 15}]\n---\n")
    assert read(file, Car) == Car(name="beetle", wheels=[Wheel(size=15)])


def test_an_unknown_key_is_shown_with_the_nearest_and_all_allowed(file: Path) -> None:
    message = mistake(file, "name: beetle\n\nweels: []\n")
    assert message == (
        f"{file}:3: weels: unknown key, did you mean wheels? Allowed here: name, wheels, spare"
    )


def test_an_unknown_key_deeper_down_is_shown_with_what_is_allowed_there(file: Path) -> None:
    message = mistake(file, "name: beetle\nwheels:\n  - size: 15\n  - size: 16\n    sise: 3\n")
    assert message.startswith(f"{file}:5: wheels.1.sise: unknown key, did you mean size?")
    assert message.endswith("Allowed here: size, maker")
    message = mistake(file, "name: beetle\nspare:\n  size: 1\n  colour: red\n")
    assert message == f"{file}:4: spare.colour: unknown key Allowed here: size, maker"


def test_a_missing_key_is_shown_where_it_should_be(file: Path) -> None:
    message = mistake(file, "wheels:\n  - size: 15\n  - maker: x\n")
    assert message.splitlines() == [
        f"{file}:1: name: required, but not there",
        f"{file}:3: wheels.1.size: required, but not there",
    ]


def test_a_value_of_the_wrong_type_is_shown_where_it_stands(file: Path) -> None:
    message = mistake(file, "name: beetle\nspare:\n  maker: x\n  size: big\n")
    assert message.startswith(f"{file}:4: spare.size: Input should be a valid integer")
    message = mistake(file, "name: beetle\nwheels: many\n")
    assert message.startswith(f"{file}:2: wheels: Input should be a valid list")


def test_yaml_that_does_not_parse_is_shown_with_its_line(file: Path) -> None:
    message = mistake(file, "name: beetle\nwheels: [1, 2\nspare: 3\n")
    assert message.startswith(f"{file}:3: not valid YAML: ")
    assert mistake(file, "name: beetle\n\tspare: 3\n").startswith(f"{file}:2: not valid YAML: ")


def test_a_date_that_is_none_is_not_a_crash(file: Path) -> None:
    message = mistake(file, "name: 2013-02-30\n")
    assert message.startswith(f"{file}: not valid YAML: ")
    assert "date" in message


def test_text_that_is_not_utf8_is_not_a_crash(file: Path) -> None:
    file.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(DeclarationError, match="is not UTF-8 text"):
        read(file, Car)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds 0 YAML documents, must hold one"),
        ("# nothing\n", "holds 0 YAML documents"),
        ("name: a\n---\nname: b\n", "holds 2 YAML documents"),
        ("- name: a\n", "valid dictionary"),
        ("beetle\n", "valid dictionary"),
    ],
)
def test_a_file_that_is_not_one_mapping_is_refused(file: Path, text: str, said: str) -> None:
    message = mistake(file, text)
    assert str(file) in message
    assert said in message


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(DeclarationError, match=r"car\.yaml does not exist"):
        read(file, Car)


def test_a_mistake_below_attributes_has_its_line_in_the_file(file: Path) -> None:
    file.write_text("type: a\n---\ntype: b\nattributes:\n  name: x\n  colour: red\n")
    document, node = parse(file)[1]
    assert isinstance(document, dict)
    with pytest.raises(DeclarationError, match=r"car\.yaml:6: colour: unknown key"):
        validate(file, Car, document["attributes"], node, at=("attributes",))


def test_the_line_of_what_is_not_there_is_its_parents(file: Path) -> None:
    file.write_text("a:\n  b:\n    - c: 1\n")
    node = parse(file)[0][1]
    assert line_of(node, ("a", "b", 0, "c")) == 3
    assert line_of(node, ("a", "b", 5, "c")) == 2
    assert line_of(node, ("a", "x")) == 1
    assert line_of(None, ("a",)) == 1
