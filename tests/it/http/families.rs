//! A model's own prompts, lengths and side of truncation, from its manifest to an answer, with a real (tiny) model.

use serde_json::{Value, json};
use vecmemo::engine::{self, Sources};
use vecmemo::http::Config;

use super::Bench;
use crate::support::golden::{cosine, data, npy_rows, texts};

const MANIFEST: &str = r#"
name = "nested"
source = "nobody/nested"
dims = 32
max_tokens = 96
truncation_direction = "left"
pooling = "mean"
normalize = true
matryoshka_dims = [16, 8]

[prompts]
query = "search_query: "
document = "search_document: "

[[files]]
path = "model.safetensors"

[[files]]
path = "tokenizer.json"

[[files]]
path = "config.json"
"#;

fn bench() -> Bench {
    let models = tempfile::tempdir().unwrap();
    std::fs::write(models.path().join("nested.toml"), MANIFEST).unwrap();
    std::fs::create_dir(models.path().join("nested")).unwrap();
    for file in ["model.safetensors", "tokenizer.json", "config.json"] {
        let from = data("models/family-nomic").join(file);
        std::fs::copy(from, models.path().join("nested").join(file)).unwrap();
    }
    let sources = Sources { models_dir: models.path().to_owned(), revision: None };
    Bench::with(engine::open("nested", &sources, &engine::Options::default()).unwrap(), Config::default())
}

fn row(answer: &Value) -> Vec<f32> {
    answer.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

#[tokio::test]
async fn prompts_and_shorter_lengths_of_the_manifest_give_the_reference_cut_and_of_length_one() {
    let bench = bench();
    let fixtures = texts(&data("models/texts.jsonl"));
    let short: Vec<usize> = (0..fixtures.len()).filter(|&index| fixtures[index].text.len() < 60).collect();
    assert!(short.len() >= 5);
    let inputs: Vec<&str> = short.iter().map(|&index| fixtures[index].text.as_str()).collect();
    for (prompt, golden) in
        [(None, "golden.npy"), (Some("query"), "golden_query.npy"), (Some("document"), "golden_document.npy")]
    {
        let golden = npy_rows(&data("models/family-nomic").join(golden));
        for dims in [32, 16, 8] {
            let asked = json!({ "inputs": inputs, "prompt_name": prompt, "dimensions": dims });
            let answer = bench.post("/embed", &asked.to_string()).await.json();
            for (vector, &index) in answer.as_array().unwrap().iter().map(row).zip(&short) {
                assert_eq!(vector.len(), dims);
                let cosine = cosine(&vector, &golden[index][..dims]);
                assert!(cosine >= 0.999_99, "{prompt:?} {dims} {}: {cosine}", fixtures[index].id);
                let norm = vector.iter().map(|value| value * value).sum::<f32>();
                assert!((norm - 1.0).abs() < 2e-3, "{prompt:?} {dims}: squared norm {norm}");
            }
        }
    }
    let refused = bench.post("/embed", &json!({ "inputs": inputs, "dimensions": 12 }).to_string()).await;
    assert_eq!(refused.status, 400);
}

#[tokio::test]
async fn a_long_text_is_cut_at_the_side_the_manifest_names_unless_the_request_does() {
    let bench = bench();
    let text = format!("the beginning of it {} and the very end", "package of tools for text ".repeat(80));
    let ask = async |side: Option<&str>| {
        let mut asked = json!({ "inputs": [text], "truncate": true });
        if let Some(side) = side {
            asked["truncation_direction"] = side.into();
        }
        bench.post("/embed", &asked.to_string()).await.json()
    };
    let (unsaid, left, right) = (ask(None).await, ask(Some("Left")).await, ask(Some("Right")).await);
    assert_eq!(unsaid, left);
    assert_ne!(unsaid, right);
}
