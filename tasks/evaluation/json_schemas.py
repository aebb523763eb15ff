"""Whether a JSON value is a JSON Schema that answers can be held to, told before anything is trained."""

from collections.abc import Iterator
from typing import Any


def schema_mistake(schema: Any) -> str:
    """What is wrong with it, as the end of a sentence that names it; empty where nothing is.

    Types, patterns and the rest are checked by the schema's own dialect (2020-12 where it names none),
    and each `$ref` must lead to a place in it: nothing is fetched.
    """
    import jsonschema

    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        return f"is no JSON Schema: {error.message} (at {error.json_path})"
    for target in _lost_references(schema):
        return f"refers to {target!r}, which is not in it. Put it under $defs"
    return ""


def _lost_references(schema: Any) -> Iterator[str]:
    import referencing
    import referencing.exceptions
    import referencing.jsonschema

    def look(resource: Any, resolver: Any) -> Iterator[str]:
        content = resource.contents
        if isinstance(content, dict) and isinstance(content.get("$ref"), str):
            try:
                resolver.lookup(content["$ref"])
            except referencing.exceptions.Unresolvable:
                yield content["$ref"]
        for inner in resource.subresources():
            yield from look(inner, resolver.in_subresource(inner))

    root = referencing.Resource.from_contents(
        schema, default_specification=referencing.jsonschema.DRAFT202012
    )
    # An empty registry: nothing is asked of the network, whatever the schema refers to.
    yield from look(root, referencing.Registry().resolver_with_root(root))
