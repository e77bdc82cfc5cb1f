"""The API's description: the tables' files and what stands below /api/v1, not the pages."""

import copy
from typing import Any

from fastapi import FastAPI

from app.recipes import RECIPES

FILES = (".json", ".csv", ".jsonl")


def describe_api(app: FastAPI) -> dict[str, Any]:
    """OpenAPI 3.1 of the API, with the recipes of every kind as the launch's body."""
    whole = copy.deepcopy(app.openapi())
    paths = {
        path: ways for path, ways in whole["paths"].items() if path.startswith("/api/") or path.endswith(FILES)
    }  # fmt: skip
    schemas = whole.setdefault("components", {}).setdefault("schemas", {})
    one_of = []
    for kind, recipe in RECIPES.items():
        schema = recipe.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schema["properties"] = {"kind": {"const": kind}, **schema["properties"]}
        schema["required"] = ["kind", *schema.get("required", [])]
        schemas[recipe.__name__] = schema
        one_of.append({"$ref": f"#/components/schemas/{recipe.__name__}"})
    launch = paths["/api/v1/p/{project}/runs"]["post"]
    launch["requestBody"] = {"required": True, "content": {"application/json": {"schema": {"oneOf": one_of}}}}
    whole["paths"] = paths
    whole["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    whole["security"] = [{"token": []}]
    return whole
