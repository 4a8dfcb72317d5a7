//! What operators and their tools read.

use hyper::StatusCode;
use serde_json::{Value, json};
use vecmemo::http;

use super::Bench;

#[tokio::test]
async fn every_series_exists_from_the_first_scrape_and_its_name_follows_the_conventions() {
    let bench = Bench::new();
    let got = bench.get("/metrics").await;
    assert!(got.header("content-type").starts_with("application/openmetrics-text"));
    let first = String::from_utf8(got.body).unwrap();
    bench.post("/embed", r#"{"inputs": ["a", "a b"]}"#).await;
    bench.post("/embed", "{").await;
    bench.get("/nowhere").await;
    let second = String::from_utf8(bench.get("/metrics").await.body).unwrap();
    let series = |text: &str| -> Vec<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.filter_map(|line| line.rsplit_once(' ')).map(|(name, _)| name.to_owned()).collect()
    };
    assert_eq!(series(&first), series(&second));
    for name in [
        r#"vecmemo_http_requests_total{route="/embed",status="5xx"}"#,
        r#"vecmemo_http_request_duration_seconds_count{route="/v1/embeddings"}"#,
        "vecmemo_http_requests_in_flight",
        "vecmemo_http_connections",
        "vecmemo_http_request_body_bytes_total",
        "vecmemo_http_answer_memory_bytes",
        "vecmemo_http_waiting_memory_bytes",
        r#"vecmemo_items_total{status="computed"}"#,
        "vecmemo_cache_enabled",
        "vecmemo_refreshed_total",
        "vecmemo_refresh_failures_total",
        "vecmemo_stale_items_total",
        r#"vecmemo_queue_texts{lane="query"}"#,
        r#"vecmemo_queue_tokens{lane="ingest"}"#,
        r#"vecmemo_queue_seconds_count{lane="warm-up"}"#,
        r#"vecmemo_lane_tokens_total{lane="warm-up"}"#,
        r#"vecmemo_lane_engine_seconds_total{lane="ingest"}"#,
        r#"vecmemo_queue_refused_texts_total{lane="query"}"#,
        "vecmemo_queue_promoted_texts_total",
        "vecmemo_store_live_bytes",
        "vecmemo_store_dead_bytes",
        "vecmemo_store_pinned",
        "vecmemo_store_removed_total",
        "vecmemo_store_replaced_total",
        "vecmemo_store_torn_reads_total",
        "vecmemo_store_scrubbed_total",
        "vecmemo_store_scrub_passes_total",
    ] {
        assert!(series(&first).iter().any(|series| series == name), "{name} is not in {first}");
    }
    assert!(series(&first).iter().all(|name| name.starts_with("vecmemo_") || name == "# EOF"), "{first}");
    assert!(second.contains("vecmemo_http_requests_total{route=\"/embed\",status=\"2xx\"} 1"));
    assert!(second.contains("vecmemo_http_requests_total{route=\"/embed\",status=\"4xx\"} 1"));
    assert!(second.contains("vecmemo_http_requests_total{route=\"unknown\",status=\"4xx\"} 1"));
    assert!(second.contains("vecmemo_http_answer_memory_bytes 0"));
}

#[tokio::test]
async fn info_names_the_model_and_the_limits_that_clients_read() {
    let bench = Bench::new();
    let info = bench.get("/info").await.json();
    assert_eq!((&info["model_id"], &info["served_model_name"]), (&json!("vecmemo/fake"), &json!("fake")));
    assert_eq!((&info["max_client_batch_size"], &info["max_input_length"]), (&json!(2048), &json!(32)));
    assert_eq!((&info["dims"], &info["dimensions"]), (&json!(16), &json!([16, 4])));
    assert_eq!(info["fingerprint"], bench.cache.card().version.to_string());
    let models = bench.get("/v1/models").await.json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("fake")));
}

#[tokio::test]
async fn health_and_readiness_are_told_apart() {
    let bench = Bench::new();
    assert_eq!((bench.get("/health").await.status, bench.get("/ready").await.status), (StatusCode::OK, StatusCode::OK));
    bench.cache.drain().await.unwrap();
    assert_eq!(bench.get("/health").await.status, StatusCode::OK);
    assert_eq!(bench.get("/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn stats_count_entries_and_hits() {
    let bench = Bench::new();
    for _ in 0..2 {
        bench.post("/embed", r#"{"inputs": ["a", "b"]}"#).await;
    }
    let stats = bench.get("/stats").await.json();
    assert_eq!((&stats["items"]["hit"], &stats["items"]["computed"]), (&json!(2), &json!(2)));
    assert_eq!((&stats["store"]["entries"], &stats["hit_rate"]), (&json!(2), &json!(0.5)));
    assert_eq!(stats["http"]["answer_memory_bytes"], 0);
    assert_eq!(stats["http"]["waiting_memory_bytes"], 0);
}

#[tokio::test]
async fn stats_tell_how_long_answers_from_the_cache_and_others_took_in_the_last_minute() {
    let bench = Bench::new();
    let latency = bench.get("/stats").await.json()["http"]["latency"].clone();
    let none = json!({ "requests": 0, "p50_ms": null, "p99_ms": null });
    assert_eq!(latency, json!({ "seconds": 60, "hits": none, "misses": none }));
    for inputs in [r#"["a"]"#, r#"["a"]"#, r#"["a", "b"]"#, r#"["a", "b"]"#, r#"["b"]"#] {
        bench.post("/embed", &format!(r#"{{"inputs": {inputs}}}"#)).await;
    }
    // Neither a refusal nor what answers no vectors counts.
    bench.post("/embed", "{").await;
    bench.post("/lookup", r#"{"inputs": ["a"]}"#).await;
    let latency = bench.get("/stats").await.json()["http"]["latency"].clone();
    assert_eq!((&latency["hits"]["requests"], &latency["misses"]["requests"]), (&json!(3), &json!(2)));
    for kind in ["hits", "misses"] {
        let of = |quantile: &str| latency[kind][quantile].as_f64().unwrap();
        assert!(0.0 < of("p50_ms") && of("p50_ms") <= of("p99_ms"), "{latency}");
    }
}

#[tokio::test]
async fn stats_name_namespaces_and_tags_only_when_asked() {
    let bench = Bench::new();
    assert!(bench.get("/stats").await.json().get("census").is_none());
    bench.post("/embed", r#"{"inputs": ["a", "b"], "tags": ["<b>", "x"], "namespace": "n"}"#).await;
    bench.post("/embed", r#"{"inputs": ["c"], "tags": ["x"]}"#).await;
    let census = bench.get("/stats?census=true").await.json()["census"].clone();
    let share = |name: &str, entries: u64| json!({ "name": name, "entries": entries });
    let expected = json!({
        "looked_at": 3, "exact": true,
        "namespaces": [share("n", 2), share("", 1)],
        "tags": [share("x", 3), share("<b>", 2)],
    });
    assert_eq!(census, expected);
    assert_eq!(bench.get("/stats?census=maybe").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn stats_tell_what_is_saved_where_a_price_is_known() {
    let plain = Bench::new();
    plain.post("/embed", r#"{"inputs": ["a"]}"#).await;
    assert!(plain.get("/stats").await.json().get("money").is_none());
    let price = http::Price { per_million_tokens: 2.5, currency: "EUR".to_owned() };
    let bench = Bench::with(super::model(), http::Config { price: Some(price), ..http::Config::default() });
    for _ in 0..3 {
        bench.post("/embed", r#"{"inputs": ["a text"]}"#).await;
    }
    let stats = bench.get("/stats").await.json();
    let money = &stats["money"];
    assert_eq!((&money["currency"], &money["per_million_tokens"]), (&json!("EUR"), &json!(2.5)));
    let (saved, spent) = (money["saved"].as_f64().unwrap(), money["spent"].as_f64().unwrap());
    assert!(spent > 0.0 && (saved - 2.0 * spent).abs() < 1e-12, "{money}");
    assert!((saved - stats["tokens_saved"].as_f64().unwrap() * 2.5e-6).abs() < 1e-12, "{stats}");
}

#[tokio::test]
async fn the_description_has_every_route_and_the_served_models_limits() {
    let description = Bench::new().get("/openapi.json").await.json();
    for (method, path) in [
        ("post", "/embed"),
        ("post", "/"),
        ("get", "/"),
        ("get", "/page/{file}"),
        ("post", "/v1/embeddings"),
        ("get", "/v1/models"),
        ("post", "/tokenize"),
        ("post", "/lookup"),
        ("get", "/entries/{key}"),
        ("delete", "/entries/{key}"),
        ("post", "/invalidate"),
        ("get", "/admin/cache"),
        ("put", "/admin/cache"),
        ("get", "/admin/migrations"),
        ("post", "/admin/migrations"),
        ("delete", "/admin/migrations/{alias}"),
        ("post", "/admin/migrations/{alias}/texts"),
        ("put", "/admin/aliases/{alias}"),
        ("delete", "/admin/models/{model}"),
        ("get", "/stats"),
        ("get", "/info"),
        ("get", "/health"),
        ("get", "/ready"),
        ("get", "/metrics"),
        ("get", "/openapi.json"),
    ] {
        assert!(description["paths"][path][method]["responses"]["200"].is_object(), "{method} {path}");
    }
    let schemas = &description["components"]["schemas"];
    let embed = &schemas["EmbedRequest"]["properties"];
    for path in ["/embed", "/", "/v1/embeddings"] {
        let parameters = description["paths"][path]["post"]["parameters"].as_array().unwrap();
        let priority = parameters.iter().find(|parameter| parameter["name"] == "x-priority").unwrap();
        assert_eq!(priority["schema"]["enum"], json!(["query", "ingest", "warm-up"]));
    }
    assert_eq!(embed["prompt_name"]["enum"], json!(["query", null]));
    assert_eq!(embed["dimensions"]["enum"], json!([16, 4, null]));
    assert_eq!(embed["model"]["enum"], json!(["fake", "vecmemo/fake", null]));
    assert_eq!(embed["inputs"]["oneOf"][1]["maxItems"], 2048);
    assert_eq!(schemas["EmbedRequest"]["additionalProperties"], json!(false));
    every_reference_leads_somewhere(&description, &description);
}

fn every_reference_leads_somewhere(whole: &Value, part: &Value) {
    match part {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                assert!(whole.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
            }
            fields.values().for_each(|value| every_reference_leads_somewhere(whole, value));
        }
        Value::Array(values) => values.iter().for_each(|value| every_reference_leads_somewhere(whole, value)),
        _ => {}
    }
}
