"""A dataset as DataHub's aspects: what is said of it, and what is left to the people there.

An aspect is replaced whole (UPSERT) if everything in it follows from files of this repository: a
column that is gone has to go there, too. So are properties, schema, subtype, SQL, sibling, domain,
status and lineage; an upstream that somebody draws by hand at one of our datasets does not last.

What people add to by hand is only added to (PATCH): owners and tags. What they alone write is never
sent: the editable* aspects, which hold the descriptions and the columns' tags that are edited in
DataHub and are shown before ours, glossary terms, links, and structured properties. Tags of ours on
a column are part of the schema, which nobody edits there.

A domain, a data product and a tag have one name and one description, and these are the files', but
people can change them in place. Of a domain's and a tag's properties DataHub's server takes no
patch: with the description goes what people chose beside it, the parent of a domain and the colour
of a tag. So these are told when they change (see said_once).

Nothing in an aspect tells when it was made: the same declarations give the same aspects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from dagster_project.catalog.datasets import Dataset, MadeOf
from dagster_project.identity import Urns

if TYPE_CHECKING:
    from datahub.emitter.mcp import MetadataChangeProposalWrapper
    from datahub.metadata.schema_classes import (
        MetadataChangeProposalClass,
        SchemaFieldDataTypeClass,
        SchemaMetadataClass,
        UpstreamLineageClass,
    )

    Proposal: TypeAlias = MetadataChangeProposalWrapper | MetadataChangeProposalClass

#: The tag of datasets and columns with personal data.
PERSONAL_DATA = "personal_data"
#: What a dataset's asset is called in Dagster, as the UI writes it.
ASSET = "dagster_asset"
#: The types of JSON and of Parquet that DataHub's map of SQL types does not have.
_TYPES = {
    "int64": "bigint",
    "float64": "double precision",
    "bool": "boolean",
    "date32": "date",
    "object": "jsonb",
    "string (date)": "date",
    "string (date-time)": "timestamptz",
}


def upserts(urn: str, *aspects: Any) -> Iterator[MetadataChangeProposalWrapper]:
    """Proposals to replace these aspects of an entity."""
    from datahub.emitter.mcp import MetadataChangeProposalWrapper

    for aspect in aspects:
        yield MetadataChangeProposalWrapper(entityUrn=urn, aspect=aspect)


def owned(urn: str, owner: str) -> Sequence[MetadataChangeProposalClass]:
    """The owner that domain.yaml names, beside those that people have added."""
    from datahub.metadata.schema_classes import (
        OwnerClass,
        OwnershipSourceClass,
        OwnershipSourceTypeClass,
        OwnershipTypeClass,
    )
    from datahub.specific.aspect_helpers.ownership import HasOwnershipPatch

    source = OwnershipSourceClass(type=OwnershipSourceTypeClass.SOURCE_CONTROL)
    kind = OwnershipTypeClass.TECHNICAL_OWNER
    built: Sequence[MetadataChangeProposalClass] = (
        HasOwnershipPatch(urn).add_owner(OwnerClass(owner=owner, type=kind, source=source)).build()
    )
    return built


def dataset_proposals(urns: Urns, dataset: Dataset, owner: str) -> Iterator[Proposal]:
    """All that is said of a dataset."""
    from datahub.metadata.schema_classes import (
        DataPlatformInstanceClass,
        DatasetPropertiesClass,
        DomainsClass,
        SiblingsClass,
        StatusClass,
        SubTypesClass,
        TagAssociationClass,
        ViewPropertiesClass,
    )
    from datahub.specific.aspect_helpers.tags import HasTagsPatch

    yield from upserts(
        dataset.urn,
        DatasetPropertiesClass(
            name=dataset.name,
            description=dataset.description,
            customProperties={ASSET: "/".join(dataset.asset_key), **dataset.properties},
        ),
        SubTypesClass(typeNames=[dataset.kind]),
        DomainsClass(domains=[urns.domain(dataset.domain)]),
        StatusClass(removed=False),
    )
    if dataset.columns:
        # Of those that nobody declares, another connector may tell.
        yield from upserts(dataset.urn, schema_metadata(urns, dataset))
    if dataset.source:
        platform = urns.platform_of(dataset.urn)
        instance = DataPlatformInstanceClass(platform=platform, instance=dataset.source)
        yield from upserts(dataset.urn, instance)
    if dataset.sibling:
        sibling = SiblingsClass(siblings=[dataset.sibling], primary=dataset.is_primary)
        yield from upserts(dataset.urn, sibling)
    if query := dataset.query:
        sql = ViewPropertiesClass(
            materialized=query.is_stored,
            viewLanguage="SQL",
            viewLogic=query.written,
            formattedViewLogic=query.compiled or None,
        )
        yield from upserts(dataset.urn, sql)
    if not dataset.is_from_outside:
        # Also that it is made of nothing: it may have been told otherwise before.
        yield from upserts(dataset.urn, _lineage(urns, dataset))
    yield from owned(dataset.urn, owner)
    if dataset.personal:
        tag = TagAssociationClass(tag=urns.tag(PERSONAL_DATA))
        yield from HasTagsPatch(dataset.urn).add_tag(tag).build()


def schema_metadata(urns: Urns, dataset: Dataset) -> SchemaMetadataClass:
    """The columns, with the types that they have in the dataset's own system."""
    from datahub.metadata.schema_classes import (
        GlobalTagsClass,
        OtherSchemaClass,
        SchemaFieldClass,
        SchemaMetadataClass,
        TagAssociationClass,
    )

    tags = GlobalTagsClass(tags=[TagAssociationClass(tag=urns.tag(PERSONAL_DATA))])
    return SchemaMetadataClass(
        schemaName=dataset.name,
        platform=urns.platform_of(dataset.urn),
        version=0,
        hash="",
        platformSchema=OtherSchemaClass(rawSchema=""),
        fields=[
            SchemaFieldClass(
                fieldPath=column.name,
                type=field_type(column.type),
                nativeDataType=column.type,
                description=column.description,
                nullable=column.name not in dataset.primary_key,
                isPartOfKey=column.name in dataset.primary_key,
                globalTags=tags if column.name in dataset.personal else None,
            )
            for column in dataset.columns
        ],
        primaryKeys=list(dataset.primary_key) or None,
    )


def field_type(native: str) -> SchemaFieldDataTypeClass:
    """DataHub's word for a type of PostgreSQL, of Parquet or of JSON."""
    from datahub.ingestion.source.sql.sql_types import resolve_sql_type
    from datahub.metadata.schema_classes import (
        NullTypeClass,
        SchemaFieldDataTypeClass,
        StringTypeClass,
    )

    found = resolve_sql_type(_TYPES.get(native, native), "postgres")
    if found is None and native.startswith("string"):
        found = StringTypeClass()
    return SchemaFieldDataTypeClass(type=found or NullTypeClass())


def _lineage(urns: Urns, dataset: Dataset) -> UpstreamLineageClass:
    from datahub.metadata.schema_classes import (
        DatasetLineageTypeClass,
        UpstreamClass,
        UpstreamLineageClass,
    )

    kind = DatasetLineageTypeClass.COPY if dataset.is_copy else DatasetLineageTypeClass.TRANSFORMED
    return UpstreamLineageClass(
        upstreams=[UpstreamClass(dataset=urn, type=kind) for urn in dataset.upstreams],
        fineGrainedLineages=list(_columns(urns, dataset.urn, dataset.made_of)) or None,
    )


def _columns(urns: Urns, urn: str, made_of: MadeOf) -> Iterator[Any]:
    from datahub.metadata.schema_classes import (
        FineGrainedLineageClass,
        FineGrainedLineageDownstreamTypeClass,
        FineGrainedLineageUpstreamTypeClass,
    )

    for column, origins in made_of.items():
        if origins:
            yield FineGrainedLineageClass(
                upstreamType=FineGrainedLineageUpstreamTypeClass.FIELD_SET,
                downstreamType=FineGrainedLineageDownstreamTypeClass.FIELD,
                upstreams=[urns.column(*origin) for origin in origins],
                downstreams=[urns.column(urn, column)],
            )
