//! `/openapi.json`: generated from the handlers and their types, then narrowed to what this service, with its model and
//! its limits, really accepts. What the document allows is accepted; every status and body it can answer is in it.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use crate::cache::Catalogue;
use crate::cache::policy::TTL_SECONDS_MAX;
use crate::domain::{Lane, ModelCard};

use super::errors::Dialect;
use super::limits::{BATCH_TEXTS_CEILING, Config, TokenInputs};
use super::shape::allowed_dims;
use super::wire::{TAG_CHARS_MAX, TAGS_MAX};
use super::{
    embed, entries, erase, events, invalidate, lookup, migrations, openai, operations, page, reload, search, switch,
    tokenize,
};

#[derive(OpenApi)]
#[openapi(
    info(title = "vecmemo", description = "An embedding cache: texts in, vectors out, each text computed once"),
    paths(
        embed::embed,
        embed::root,
        openai::embeddings,
        openai::models,
        tokenize::tokenize,
        lookup::lookup,
        search::search,
        search::similar,
        entries::entry,
        entries::remove,
        invalidate::invalidate,
        erase::erase,
        erase::erasure,
        events::events,
        reload::reload,
        switch::show,
        switch::set,
        migrations::list,
        migrations::start,
        migrations::stop,
        migrations::texts,
        migrations::alias,
        migrations::switch,
        migrations::delete,
        operations::stats,
        operations::info,
        operations::health,
        operations::ready,
        operations::metrics,
        operations::openapi,
        page::page,
        page::file
    )
)]
struct Document;

/// Writes the document for models and limits.
pub(super) fn document(catalogue: &Catalogue, config: &Config) -> Bytes {
    let models = catalogue.models();
    let cards: Vec<&ModelCard> = models.iter().map(|model| model.cache.card()).collect();
    let mut document = serde_json::to_value(Document::openapi()).expect("the document has string keys");
    let texts_max = config.batch_texts_max.min(BATCH_TEXTS_CEILING);
    let names = model_names(catalogue);
    describe_requests(&mut document["components"]["schemas"], &cards, &names, config, texts_max);
    describe_models(&mut document["paths"], &names);
    describe_errors(&mut document["components"]["schemas"]);
    describe_answers(&mut document["paths"]);
    describe_failures(&mut document["paths"]);
    describe_lanes(&mut document["paths"]);
    describe_keys(&mut document, config);
    Bytes::from(document.to_string())
}

fn one_or_many(texts_max: usize) -> Value {
    json!({ "oneOf": [
        { "type": "string" },
        { "type": "array", "items": { "type": "string" }, "minItems": 1, "maxItems": texts_max },
    ] })
}

fn choice(values: Vec<Value>) -> Value {
    let mut values = values;
    values.push(Value::Null);
    json!({ "enum": values })
}

/// Replaces what the types cannot say: alternatives, and limits that are known only now.
fn describe_requests(schemas: &mut Value, cards: &[&ModelCard], names: &[Value], config: &Config, texts_max: usize) {
    // What only some of several models have is accepted with those alone: prompts and lengths.
    let prompts: BTreeSet<&String> = cards.iter().flat_map(|card| card.prompts.keys()).collect();
    let mut dims: Vec<usize> = cards.iter().flat_map(|card| allowed_dims(card)).collect();
    dims.sort_unstable_by(|a, b| b.cmp(a));
    dims.dedup();
    let shared = [
        ("prompt_name", choice(prompts.into_iter().map(|name| json!(name)).collect())),
        ("model", choice(names.to_vec())),
        ("dimensions", choice(dims.into_iter().map(|dims| json!(dims)).collect())),
        ("namespace", json!({ "type": ["string", "null"], "pattern": "^[A-Za-z0-9._:-]*$", "maxLength": 128 })),
        ("ttl", json!({ "type": ["integer", "null"], "minimum": 1, "maximum": TTL_SECONDS_MAX })),
        (
            "tags",
            json!({
                "type": ["array", "null"],
                "maxItems": TAGS_MAX,
                "items": { "type": "string", "minLength": 1, "maxLength": TAG_CHARS_MAX },
            }),
        ),
        ("payload", json!({ "type": ["object", "string", "number", "boolean", "null"] })),
        ("tag_glob", json!({ "type": ["string", "null"], "minLength": 1, "maxLength": TAG_CHARS_MAX })),
        ("older_than", json!({ "type": ["integer", "null"], "minimum": 0, "maximum": TTL_SECONDS_MAX })),
        ("encoding_format", choice(vec![json!("float"), json!("base64")])),
    ];
    for name in [
        "EmbedRequest",
        "Parameters",
        "EmbeddingsRequest",
        "TokenizeRequest",
        "LookupRequest",
        "InvalidateRequest",
        "EraseRequest",
        "MigrationTexts",
    ] {
        let Some(properties) = schemas[name]["properties"].as_object_mut() else { continue };
        for (field, schema) in &shared {
            if let Some(property) = properties.get_mut(*field) {
                narrow(property, schema);
            }
        }
    }
    let texts = one_or_many(texts_max);
    let mut input = texts.clone();
    if config.token_inputs == TokenInputs::Own
        && let Some(alternatives) = input["oneOf"].as_array_mut()
    {
        let ids = json!({ "type": "array", "minItems": 1, "items": { "type": "integer", "minimum": 0 } });
        alternatives.push(json!({ "type": "array", "minItems": 1, "maxItems": texts_max, "items": ids }));
        alternatives.push(ids);
    }
    narrow(&mut schemas["EmbedRequest"]["properties"]["inputs"], &texts);
    narrow(&mut schemas["EmbeddingsRequest"]["properties"]["input"], &input);
    narrow(&mut schemas["TokenizeRequest"]["properties"]["inputs"], &texts);
    narrow(&mut schemas["MigrationTexts"]["properties"]["inputs"], &texts);

    let keys = json!({
        "type": "array", "minItems": 1, "maxItems": texts_max,
        "items": { "type": "string", "pattern": "^[0-9a-fA-F]{64}$", "minLength": 64, "maxLength": 64 },
    });
    let invalidate = &mut schemas["InvalidateRequest"];
    narrow(&mut invalidate["properties"]["inputs"], &texts);
    narrow(&mut invalidate["properties"]["keys"], &keys);
    if let Some(invalidate) = invalidate.as_object_mut() {
        invalidate.remove("required");
    }
    let selectors = ["keys", "inputs", "tags", "tag_glob", "namespace", "model", "older_than"];
    invalidate["anyOf"] = selectors.iter().map(|selector| json!({ "required": [selector] })).collect();

    let erase = &mut schemas["EraseRequest"];
    narrow(&mut erase["properties"]["inputs"], &texts);
    narrow(&mut erase["properties"]["keys"], &keys);
    erase["properties"]["tags"]["minItems"] = json!(1);
    // Exactly one says which; whose texts are meant is said beside them.
    if let Some(erase) = erase.as_object_mut() {
        erase.remove("required");
    }
    let others = |one: &str| {
        let others = ["keys", "inputs", "tags", "namespace"].into_iter().filter(|other| *other != one);
        let others = others.filter(|other| one != "inputs" || *other != "namespace");
        json!({ "required": [one], "not": { "anyOf": others.map(|other| json!({ "required": [other] })).collect::<Vec<_>>() } })
    };
    erase["anyOf"] = ["keys", "inputs", "tags", "namespace"].into_iter().map(others).collect();

    let lookup = &mut schemas["LookupRequest"];
    narrow(&mut lookup["properties"]["inputs"], &texts);
    narrow(&mut lookup["properties"]["keys"], &keys);
    // Either the one or the other, never both.
    if let Some(lookup) = lookup.as_object_mut() {
        lookup.remove("required");
    }
    lookup["oneOf"] = json!([{ "required": ["inputs"] }, { "required": ["keys"] }]);

    let search = &mut schemas["SearchRequest"];
    narrow(&mut search["properties"]["inputs"], &texts);
    narrow(&mut search["properties"]["keys"], &keys);
    search["properties"]["vectors"]["minItems"] = json!(1);
    search["properties"]["vectors"]["maxItems"] = json!(texts_max);
    if let Some(search) = search.as_object_mut() {
        search.remove("required");
    }
    search["oneOf"] = ["inputs", "vectors", "keys"].iter().map(|queries| json!({ "required": [queries] })).collect();

    let any = json!({ "type": ["object", "array", "string", "number", "boolean", "null"] });
    narrow(&mut schemas["EntryFacts"]["properties"]["payload"], &any);
    narrow(&mut schemas["FoundEntry"]["properties"]["payload"], &any);

    let mut root = schemas["EmbedRequest"].clone();
    let sentences = json!({
        "type": "object",
        "required": ["source_sentence", "sentences"],
        "additionalProperties": false,
        "properties": {
            "source_sentence": { "type": "string" },
            "sentences": { "type": "array", "items": { "type": "string" }, "minItems": 1, "maxItems": texts_max },
        },
    });
    if let Some(alternatives) = root["properties"]["inputs"]["oneOf"].as_array_mut() {
        alternatives.push(sentences);
    }
    schemas["RootRequest"] = root;
    let numbers = json!({ "type": "array", "items": { "type": "number" } });
    schemas["EmbeddingObject"]["properties"]["embedding"] = json!({ "oneOf": [numbers, { "type": "string" }] });
}

/// What a request may name a model by, fingerprints apart.
fn model_names(catalogue: &Catalogue) -> Vec<Value> {
    let aliases = catalogue.aliases().into_iter().map(|served| served.alias.to_string());
    let sources = catalogue.models().into_iter().map(|served| served.cache.card().source.clone());
    let mut names: Vec<String> = Vec::new();
    for name in aliases.chain(sources) {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names.into_iter().map(Value::from).collect()
}

/// Names the models wherever an address can.
fn describe_models(paths: &mut Value, names: &[Value]) {
    let operations = paths.as_object_mut().into_iter().flatten().filter_map(|(_, methods)| methods.as_object_mut());
    for operation in operations.flat_map(|methods| methods.values_mut()) {
        let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
        for parameter in parameters.into_iter().flatten() {
            if parameter["name"] == "model" {
                parameter["schema"] = json!({ "enum": names });
            }
        }
    }
}

/// Replaces a schema, keeping its description.
fn narrow(property: &mut Value, schema: &Value) {
    let description = property.get("description").cloned();
    *property = schema.clone();
    if let Some(description) = description {
        property["description"] = description;
    }
}

fn describe_errors(schemas: &mut Value) {
    let error = json!({
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": {
            "message": { "type": "string" },
            "type": { "type": "string" },
            "param": { "type": ["string", "null"] },
            "code": { "type": "string" },
            "missing": { "type": "array", "items": { "type": "integer" } },
        },
    });
    schemas["TeiError"] = json!({
        "type": "object",
        "required": ["error", "error_type"],
        "properties": {
            "error": { "type": "string" },
            "error_type": { "enum": ["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"] },
            "missing": { "type": "array", "items": { "type": "integer" } },
        },
    });
    schemas["OpenAiError"] = json!({ "type": "object", "required": ["error"], "properties": { "error": error } });
    schemas["Problem"] = json!({
        "type": "object",
        "required": ["type", "title", "status", "detail", "request_id", "error"],
        "properties": {
            "type": { "type": "string" },
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "detail": { "type": "string" },
            "request_id": { "type": "string" },
            "error": error,
        },
    });
}

/// Formats other than JSON, and answers that have two shapes.
fn describe_answers(paths: &mut Value) {
    let vectors = json!({
        "type": "array",
        "items": { "type": "array", "items": { "type": "number", "format": "float" } },
    });
    let binary = json!({ "schema": { "type": "string", "format": "binary" } });
    let detailed = json!({ "$ref": "#/components/schemas/DetailedAnswer" });
    let numbers = json!({ "type": "array", "items": { "type": "number", "format": "float" } });
    for (path, other) in [("/embed", detailed.clone()), ("/", json!({ "oneOf": [numbers, detailed] }))] {
        let content = &mut paths[path]["post"]["responses"]["200"]["content"];
        let mut alternatives = vec![vectors.clone()];
        alternatives.extend(other["oneOf"].as_array().cloned().unwrap_or_else(|| vec![other]));
        content["application/json"]["schema"] = json!({ "anyOf": alternatives });
    }
    paths["/"]["post"]["requestBody"]["content"]["application/json"]["schema"] =
        json!({ "$ref": "#/components/schemas/RootRequest" });
    for path in ["/embed", "/", "/lookup"] {
        let content = &mut paths[path]["post"]["responses"]["200"]["content"];
        for name in ["application/x-npy", "application/octet-stream"] {
            content[name] = binary.clone();
        }
    }
    paths["/page/{file}"]["get"]["parameters"][0]["schema"] = json!({ "enum": page::file_names() });
    for method in ["get", "delete"] {
        paths["/entries/{key}"][method]["parameters"][0]["schema"] =
            json!({ "type": "string", "pattern": "^[0-9a-fA-F]{64}$", "minLength": 64, "maxLength": 64 });
    }
    paths["/erasures/{id}"]["get"]["parameters"][0]["schema"] =
        json!({ "type": "string", "pattern": "^[0-9A-Za-z-]+$", "minLength": 1, "maxLength": 80 });
}

/// What each operation answers when it does not do what was asked, by dialect.
fn describe_failures(paths: &mut Value) {
    const WORK: &[u16] = &[400, 401, 403, 404, 406, 408, 413, 415, 422, 424, 429, 500, 503, 504];
    const READ: &[u16] = &[400, 401, 403, 404, 500, 503, 504];
    let timeout = json!({
        "name": "x-request-timeout", "in": "header", "required": false,
        "description": "Seconds the client is willing to wait",
        "schema": { "type": "number", "minimum": 1, "maximum": 3600 },
    });
    let Some(paths) = paths.as_object_mut() else { return };
    for (path, methods) in paths {
        let (content_type, schema) = match dialect_of(path) {
            Dialect::Tei => ("application/json", "TeiError"),
            Dialect::OpenAi => ("application/json", "OpenAiError"),
            Dialect::Own => ("application/problem+json", "Problem"),
        };
        for (method, operation) in methods.as_object_mut().into_iter().flatten() {
            let has_body = matches!(method.as_str(), "post" | "put");
            let conflict: &[u16] = if path.starts_with("/admin/") { &[409] } else { &[] };
            for &status in if has_body { WORK } else { READ }.iter().chain(conflict) {
                let mut content = Map::new();
                let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
                content.insert(content_type.to_owned(), json!({ "schema": schema }));
                let reason = hyper::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
                operation["responses"][status.to_string()] =
                    json!({ "description": reason.unwrap_or_default(), "content": content });
            }
            if has_body {
                match operation["parameters"].as_array_mut() {
                    Some(parameters) => parameters.push(timeout.clone()),
                    None => operation["parameters"] = json!([timeout]),
                }
            }
        }
    }
}

/// How a key is sent, and that each route but the open ones needs one, if there are keys.
fn describe_keys(document: &mut Value, config: &Config) {
    document["components"]["securitySchemes"] = json!({
        "bearer": { "type": "http", "scheme": "bearer" },
        "key": { "type": "apiKey", "in": "header", "name": "x-api-key" },
    });
    if !config.access.is_open() {
        document["security"] = json!([{ "bearer": [] }, { "key": [] }]);
        for path in ["/health", "/ready"] {
            document["paths"][path]["get"]["security"] = json!([]);
        }
    }
}

/// The lane, of the routes that have something computed.
fn describe_lanes(paths: &mut Value) {
    let priority = json!({
        "name": "x-priority", "in": "header", "required": false,
        "description": "How urgent it is; one input is a query, several are ingested, if not given",
        "schema": { "enum": Lane::ALL.map(Lane::as_str) },
    });
    for path in ["/embed", "/", "/v1/embeddings"] {
        if let Some(parameters) = paths[path]["post"]["parameters"].as_array_mut() {
            parameters.push(priority.clone());
        }
    }
}

fn dialect_of(path: &str) -> Dialect {
    match super::route::Route::ALL.into_iter().find(|route| route.path() == path) {
        Some(route) => route.dialect(path),
        None => Dialect::Own,
    }
}
