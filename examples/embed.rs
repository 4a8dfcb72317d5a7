//! The cache in a program of your own: `cargo run --example embed -- "a text" "another"`.

use std::io::Write;
use std::path::Path;

use vecmemo::{batch, cache, engine, store};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let texts: Vec<_> = std::env::args().skip(1).map(Into::into).collect();
    let model = engine::open("all-MiniLM-L6-v2", &engine::Sources::default(), &engine::Options::default())?;
    let config = store::Config::default();
    let store = store::Store::open(Path::new("data"), &model.card.version, model.card.dims, &config)?;
    let cache = cache::Cache::new(store, batch::Embedder::start(model, batch::Config::default()));

    let answer = cache.embed(cache::Request::new(cache::Inputs::Texts(&texts))).await?;
    for (index, item) in answer.items.iter().enumerate() {
        let start: Vec<f32> = answer.unit(index).iter().take(3).map(|value| value.to_f32()).collect();
        writeln!(std::io::stdout(), "{} {:<8} {start:?} …", item.key, item.status.as_str())?;
    }
    Ok(cache.drain().await?)
}
