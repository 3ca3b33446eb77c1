"""What a domain says of itself, and the mistakes that it can make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from dagster_project import domain
from dagster_project.domain import DataProduct, domain_folder, domain_names, duration, read_domain
from dagster_project.failures import DeclarationError
from dagster_project.identity import Table

WHOLE = """\
owner: team:post
purpose: Letters.
data_products:
  - name: Letters
    description: One row a letter.
    tables: [fct_letters]
freshness: 36h
"""


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Writes a domain's file, among domains `post` and `road` only."""
    monkeypatch.setattr(domain, "DEFS", tmp_path)
    read_domain.cache_clear()

    def declare(text: str = WHOLE, name: str = "post") -> Path:
        path = tmp_path / name / "domain.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    declare(name="road")
    yield declare
    read_domain.cache_clear()


def mistake() -> str:
    with pytest.raises(DeclarationError) as caught:
        read_domain("post")
    return str(caught.value)


def test_the_domains_of_the_checkout_are_whole() -> None:
    assert set(domain_names()) >= {"commerce", "fleet", "flights", "weather"}
    for name in domain_names():
        assert read_domain(name).data_products


def test_products_whose_names_say_the_same_are_a_mistake(declare: Callable[..., Path]) -> None:
    """They would be one in the catalog."""
    other = "  - {name: 'letters!', description: Others., tables: [fct_others]}\n"
    declare(WHOLE.replace("freshness", f"{other}freshness"))
    assert "data_products: 'Letters' and 'letters!' are too much alike" in mistake()


def test_a_product_has_a_name_that_can_be_read(declare: Callable[..., Path]) -> None:
    declare(WHOLE.replace("- name: Letters", "- name: '?!'"))
    assert "data_products.0.name: must have a letter or a digit" in mistake()


def test_a_domain_is_a_folder_with_a_domain_file(declare: Callable[..., Path]) -> None:
    path = declare()
    (path.parent.parent / "notes").mkdir()
    assert domain_names() == ("post", "road")
    assert domain_folder("post") == path.parent
    assert read_domain("post").owner == "team:post"


def test_an_unknown_domain_is_refused_with_those_there_are(declare: Callable[..., Path]) -> None:
    with pytest.raises(DeclarationError, match="no domain 'pots': known are road"):
        read_domain("pots")


@pytest.mark.parametrize(
    ("line", "mended", "said"),
    [
        ("owner: team:post", "owner: the post", "1: owner: must be an e-mail address, or team:"),
        ("freshness: 36h", "freshness: 2 days", "7: freshness: must be a number with s, m, h or d"),
        ("freshness: 36h", "freshnes: 36h", "7: freshnes: unknown key, did you mean freshness?"),
        ("    tables: [fct_letters]", "    tables: []", "6: data_products.0.tables: "),
        ("    tables: [fct_letters]", "    tables: [A-b]", "6: data_products.0.tables.0: must be"),
        ("purpose: Letters.\n", "", "1: purpose: required, but not there"),
        ("freshness: 36h", "freshness: 1d\ndepends_on: [raod]", "8: depends_on: raod: must be of"),
        ("freshness: 36h", "freshness: 1d\ndepends_on: [post]", "8: depends_on: post: must be of"),
        (
            "freshness: 36h",
            "freshness: 1d\npersonal_data: {fct_letters: name}",
            "8: personal_data.fct_letters: Input should be a valid list",
        ),
    ],
)
def test_a_mistake_is_shown_with_its_line_and_the_mend(
    declare: Callable[..., Path], line: str, mended: str, said: str
) -> None:
    assert line in WHOLE
    path = declare(WHOLE.replace(line, mended))
    assert f"{path}:{said}" in mistake()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", timedelta(minutes=90)),
        ("36h", timedelta(hours=36)),
        ("7d", timedelta(days=7)),
    ],
)
def test_a_duration_is_a_number_with_its_unit(text: str, expected: timedelta) -> None:
    assert duration(text) == expected


@pytest.mark.parametrize("text", ["", "36", "h", "-1h", "1.5h", "1w", "1h30m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 30s, 90m, 36h or 7d"):
        duration(text)


def test_tables_of_a_product_without_a_schema_are_in_the_domains_own() -> None:
    product = DataProduct(name="Register", description="Planes.", tables=["planes", "raw.planes"])
    assert product.promised("fleet") == [Table("fleet", "planes"), Table("raw", "planes")]
