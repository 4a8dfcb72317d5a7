//! Our vectors against those of sentence-transformers, for the default model and for tiny ones of every kind supported.

use std::path::Path;
use std::sync::LazyLock;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use vecmemo::domain::{Embedding, Truncation, TruncationDirection};
use vecmemo::engine::{self, DeviceChoice, Model, Options, Precision, Sources};

use crate::support::golden::{Fixture, cosine, data, npy_rows, texts};

fn sources() -> Sources {
    Sources { models_dir: Path::new(env!("CARGO_MANIFEST_DIR")).join("models"), revision: None }
}

fn open(name: &str) -> Model {
    open_with(name, Options { precision: Precision::F32, device: DeviceChoice::Cpu, ..Options::default() })
}

fn open_with(name: &str, options: Options) -> Model {
    engine::open(name, &sources(), &options)
        .unwrap_or_else(|error| panic!("{error}\n(scripts/fetch-model brings the default model)"))
}

fn ids(model: &Model, texts: &[&str], prompt: &str) -> Vec<Box<[u32]>> {
    let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: model.card.max_tokens };
    let tokens = model.tokenizer.tokenize(texts, prompt, truncation).unwrap();
    tokens.into_iter().map(|tokens| tokens.ids).collect()
}

/// Each text by itself.
fn alone(model: &mut Model, ids: &[Box<[u32]>]) -> Vec<Vec<f32>> {
    ids.iter().map(|ids| model.engine.embed(&[ids]).unwrap().remove(0)).collect()
}

struct Default {
    fixtures: Vec<Fixture>,
    golden: Vec<Vec<f32>>,
    ids: Vec<Box<[u32]>>,
    alone: Vec<Vec<f32>>,
}

/// The default model's vectors of all fixture texts, each computed by itself: made once for all tests.
static DEFAULT: LazyLock<Default> = LazyLock::new(|| {
    let fixtures = texts(&data("texts.jsonl"));
    let golden = npy_rows(&data("golden/all-MiniLM-L6-v2.npy"));
    let mut model = open("all-MiniLM-L6-v2");
    let ids = ids(&model, &fixtures.iter().map(|fixture| fixture.text.as_str()).collect::<Vec<_>>(), "");
    let alone = alone(&mut model, &ids);
    Default { fixtures, golden, ids, alone }
});

#[test]
fn every_text_has_the_reference_vector_in_f32() {
    let Default { fixtures, golden, alone, .. } = &*DEFAULT;
    assert!(fixtures.len() >= 300 && fixtures.len() == golden.len());
    for ((fixture, golden), vector) in fixtures.iter().zip(golden).zip(alone) {
        let cosine = cosine(golden, vector);
        assert!(cosine >= 0.999_999, "{}: {cosine}", fixture.id);
    }
}

#[test]
fn every_text_has_the_reference_vector_after_the_f16_store() {
    let Default { fixtures, golden, alone, .. } = &*DEFAULT;
    for ((fixture, golden), vector) in fixtures.iter().zip(golden).zip(alone) {
        let stored = Embedding::from_raw(vector).unwrap();
        let unit: Vec<f32> = stored.unit.iter().map(|value| value.to_f32()).collect();
        let cosine = cosine(golden, &unit);
        assert!(cosine >= 0.999_99, "{}: {cosine}", fixture.id);
        let norm = golden.iter().map(|value| value * value).sum::<f32>().sqrt();
        assert!((stored.norm - norm).abs() <= 1e-4 * norm, "{}: norm {} for {norm}", fixture.id, stored.norm);
    }
}

#[test]
fn sixteen_bit_arithmetic_stays_in_the_class_of_f32_for_every_text() {
    let Default { fixtures, golden, ids, .. } = &*DEFAULT;
    let mut model = open_with("all-MiniLM-L6-v2", Options { precision: Precision::Half, ..Options::default() });
    assert_eq!(model.card.version, open("all-MiniLM-L6-v2").card.version, "one class, one fingerprint");
    let vectors = model.engine.embed(&ids.iter().map(|ids| &**ids).collect::<Vec<_>>()).unwrap();
    for ((fixture, golden), vector) in fixtures.iter().zip(golden).zip(&vectors) {
        let cosine = cosine(golden, vector);
        assert!(cosine >= 0.9999, "{}: {cosine}", fixture.id);
    }
}

#[test]
fn eight_bit_arithmetic_is_a_class_of_its_own_and_keeps_to_0_995() {
    let Default { golden, ids, .. } = &*DEFAULT;
    let mut model = open_with("all-MiniLM-L6-v2", Options { precision: Precision::Int8, ..Options::default() });
    assert_ne!(model.card.version, open("all-MiniLM-L6-v2").card.version);
    assert_eq!(model.card.precision, "int8");
    let vectors = model.engine.embed(&ids.iter().map(|ids| &**ids).collect::<Vec<_>>()).unwrap();
    let cosines: Vec<f64> = golden.iter().zip(&vectors).map(|(golden, vector)| cosine(golden, vector)).collect();
    let (least, mean) =
        (cosines.iter().copied().fold(1.0, f64::min), cosines.iter().sum::<f64>() / cosines.len() as f64);
    assert!(mean >= 0.999 && least >= 0.995, "least {least}, mean {mean}");
}

/// Bit for bit, in every arithmetic: any batch, any number of threads, any size of block.
#[test]
fn a_texts_vector_does_not_depend_on_the_batch_it_rides_in() {
    let Default { fixtures, ids, .. } = &*DEFAULT;
    // Every length and kind of text, not every text.
    let picked: Vec<usize> = (0..ids.len()).step_by(5).collect();
    let mut by_length = picked.clone();
    by_length.sort_by_key(|&index| ids[index].len());
    for precision in [Precision::F32, Precision::Half, Precision::Int8] {
        let options = |threads, chunk_tokens| Options {
            precision,
            device: DeviceChoice::Cpu,
            threads: Some(threads),
            chunk_tokens: Some(chunk_tokens),
            ..Options::default()
        };
        let mut one = open_with("all-MiniLM-L6-v2", options(1, 96));
        let alone = alone(&mut one, &picked.iter().map(|&index| ids[index].clone()).collect::<Vec<_>>());
        let alone = |index: usize| &alone[picked.iter().position(|&picked| picked == index).unwrap()];
        for (order, batch_texts, threads, chunk_tokens) in
            [(&picked, 7, 2, 96), (&picked, 64, 3, 17), (&by_length, 32, 1, 400), (&by_length, 368, 2, 192)]
        {
            let mut model = open_with("all-MiniLM-L6-v2", options(threads, chunk_tokens));
            for batch in order.chunks(batch_texts) {
                let vectors = model.engine.embed(&batch.iter().map(|&index| &*ids[index]).collect::<Vec<_>>()).unwrap();
                for (&index, vector) in batch.iter().zip(&vectors) {
                    let same = alone(index).iter().zip(vector).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(
                        same,
                        "{precision:?}: {} in a batch of {batch_texts}, {threads} threads",
                        fixtures[index].id
                    );
                }
            }
        }
    }
}

#[test]
fn texts_are_counted_before_they_are_cut() {
    let Default { fixtures, ids, .. } = &*DEFAULT;
    let model = open("all-MiniLM-L6-v2");
    let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: 256 };
    for (fixture, ids) in fixtures.iter().zip(ids) {
        let tokens = &model.tokenizer.tokenize(&[&fixture.text], "", truncation).unwrap()[0];
        assert_eq!(tokens.count_before_truncation, fixture.tokens, "{}", fixture.id);
        assert_eq!(ids.len(), fixture.tokens.min(256), "{}", fixture.id);
        assert_eq!(tokens.truncated(), fixture.tokens > 256, "{}", fixture.id);
    }
}

/// The tokenizers library's own truncation gives the same ids, from either end; a text long enough to be tokenised in
/// pieces included.
#[test]
fn cutting_gives_the_ids_that_the_tokenizers_library_gives() {
    let model = open("all-MiniLM-L6-v2");
    let file = sources().models_dir.join("all-MiniLM-L6-v2/tokenizer.json");
    let long: String = (0..40_000).map(|n| format!("wörd-{n}, [MASK] 漢字{} ", n % 77)).collect();
    let words = "x".repeat(200_000) + " " + &"y!".repeat(100_000);
    let fixtures = texts(&data("texts.jsonl"));
    let cases: Vec<&str> =
        fixtures.iter().map(|fixture| fixture.text.as_str()).chain([long.as_str(), words.as_str()]).collect();
    for (direction, own) in [
        (TruncationDirection::Right, tokenizers::TruncationDirection::Right),
        (TruncationDirection::Left, tokenizers::TruncationDirection::Left),
    ] {
        let mut reference = tokenizers::Tokenizer::from_file(&file).unwrap();
        let params =
            tokenizers::TruncationParams { max_length: 256, direction: own, ..std::default::Default::default() };
        reference.with_padding(None).with_truncation(Some(params)).unwrap();
        let tokens = model.tokenizer.tokenize(&cases, "", Truncation { direction, max_tokens: 256 }).unwrap();
        for (text, tokens) in cases.iter().zip(tokens) {
            let expected = reference.encode_fast(*text, true).unwrap();
            assert_eq!(&*tokens.ids, expected.get_ids(), "{:.40}", text);
        }
    }
    let mut whole = tokenizers::Tokenizer::from_file(&file).unwrap();
    whole.with_padding(None).with_truncation(None).unwrap();
    for text in [&long, &words] {
        let expected = whole.encode_fast(text.as_str(), true).unwrap().len();
        let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: 256 };
        assert_eq!(model.tokenizer.tokenize(&[text], "", truncation).unwrap()[0].count_before_truncation, expected);
    }
}

#[test]
fn the_packed_encoder_agrees_with_candles_own_bert() {
    let Default { ids, alone, .. } = &*DEFAULT;
    let folder = sources().models_dir.join("all-MiniLM-L6-v2");
    let config: Config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    let vb = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu).unwrap();
    let reference = BertModel::load(vb, &config).unwrap();
    for index in [0, 5, 40, 200] {
        let input = Tensor::new(&*ids[index], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let hidden = reference.forward(&input, &input.zeros_like().unwrap(), None).unwrap();
        let pooled: Vec<f32> = hidden.squeeze(0).unwrap().mean(0).unwrap().to_vec1().unwrap();
        let cosine = cosine(&pooled, &alone[index]);
        assert!(cosine >= 0.999_999, "{index}: {cosine}");
    }
}

/// Tiny random models tell small errors apart by the largest difference: a wrong activation moves no cosine of theirs by
/// more than 1e-7, but single values by 1e-4 of the norm.
#[test]
fn every_supported_kind_of_folder_gives_its_reference_vectors() {
    let fixtures = texts(&data("models/texts.jsonl"));
    let texts: Vec<&str> = fixtures.iter().map(|fixture| fixture.text.as_str()).collect();
    for (folder, prompt_name, golden) in [
        ("tiny-mean", None, "golden.npy"),
        ("tiny-cls", None, "golden.npy"),
        ("tiny-max", None, "golden.npy"),
        ("tiny-raw-prompts", None, "golden.npy"),
        ("tiny-raw-prompts", Some("query"), "golden_query.npy"),
        ("tiny-raw-prompts", Some("document"), "golden_document.npy"),
        ("tiny-f16-prefixed", None, "golden.npy"),
    ] {
        let path = data("models").join(folder);
        let mut model = open(path.to_str().unwrap());
        let mut for_gpus = as_gpu(path.to_str().unwrap(), Precision::F32);
        let name = prompt_name.map(ToOwned::to_owned).or_else(|| model.card.default_prompt.clone());
        let prompt = name.map_or(String::new(), |name| model.card.prompts[&name].clone());
        let ids = ids(&model, &texts, &prompt);
        let vectors = alone(&mut model, &ids);
        let together = for_gpus.engine.embed(&ids.iter().map(|ids| &**ids).collect::<Vec<_>>()).unwrap();
        let golden = npy_rows(&path.join(golden));
        assert_eq!((vectors.len(), together.len()), (golden.len(), golden.len()));
        let both = vectors.iter().zip(&together).zip(&golden).zip(&fixtures);
        for (vector, golden, fixture) in
            both.flat_map(|(((a, b), golden), fixture)| [(a, golden, fixture), (b, golden, fixture)])
        {
            let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
            let scale = if model.card.normalize { 1.0 / norm } else { 1.0 };
            let size = if model.card.normalize { 1.0 } else { norm };
            let off = golden.iter().zip(vector).map(|(a, b)| (a - b * scale).abs()).fold(0.0, f32::max);
            assert!(off <= 1e-5 * size, "{folder} {prompt_name:?} {}: off by {off} of {size}", fixture.id);
        }
    }
}

/// One tiny model of every family but BERT: each text by itself, in one batch with all others, and in batches of three.
#[test]
fn every_family_gives_its_reference_vectors_alone_and_in_any_batch() {
    let fixtures = texts(&data("models/texts.jsonl"));
    let texts: Vec<&str> = fixtures.iter().map(|fixture| fixture.text.as_str()).collect();
    for (folder, prompt_name, golden) in [
        ("family-xlm-roberta", None, "golden.npy"),
        ("family-xlm-roberta", Some("query"), "golden_query.npy"),
        ("family-xlm-roberta", Some("document"), "golden_document.npy"),
        ("family-roberta", None, "golden.npy"),
        ("family-distilbert", None, "golden.npy"),
        ("family-mpnet", None, "golden.npy"),
        ("family-nomic", None, "golden.npy"),
        ("family-nomic", Some("query"), "golden_query.npy"),
        ("family-nomic", Some("document"), "golden_document.npy"),
        ("family-modernbert", None, "golden.npy"),
        ("family-jina", None, "golden.npy"),
        ("family-qwen3", None, "golden.npy"),
        ("family-qwen3", Some("query"), "golden_query.npy"),
        ("family-qwen3", Some("document"), "golden.npy"),
    ] {
        let path = data("models").join(folder);
        let mut model = open(path.to_str().unwrap());
        assert_eq!(model.card.max_tokens, 96, "{folder}");
        let prompt = prompt_name.map_or(String::new(), |name| model.card.prompts[name].clone());
        let ids = ids(&model, &texts, &prompt);
        assert!(ids.iter().any(|ids| ids.len() == 96), "{folder}: no text is long enough to be cut");
        let vectors = alone(&mut model, &ids);
        let golden = npy_rows(&path.join(golden));
        assert_eq!(vectors.len(), golden.len());
        for ((fixture, golden), vector) in fixtures.iter().zip(&golden).zip(&vectors) {
            let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
            let (scale, size) = if model.card.normalize { (1.0 / norm, 1.0) } else { (1.0, norm) };
            let off = golden.iter().zip(vector).map(|(a, b)| (a - b * scale).abs()).fold(0.0, f32::max);
            let cosine = cosine(golden, vector);
            assert!(
                cosine >= 0.999_999 && off <= 1e-5 * size,
                "{folder} {prompt_name:?} {}: cosine {cosine}, off by {off} of {size}",
                fixture.id
            );
        }
        let computed_singly =
            !["family-xlm-roberta", "family-roberta", "family-distilbert", "family-mpnet"].contains(&folder);
        for batch_texts in [3, texts.len()] {
            let batches = ids
                .chunks(batch_texts)
                .flat_map(|batch| model.engine.embed(&batch.iter().map(|ids| &**ids).collect::<Vec<_>>()).unwrap());
            for ((vector, batched), fixture) in vectors.iter().zip(batches).zip(&fixtures) {
                assert!(cosine(vector, &batched) >= 0.999_999, "{folder} {} in batches of {batch_texts}", fixture.id);
                assert!(!computed_singly || *vector == batched, "{folder} {} in batches of {batch_texts}", fixture.id);
            }
        }
    }
}

/// What a GPU would compute, on the processor: padded, in one call.
fn as_gpu(name: &str, precision: Precision) -> Model {
    let options = engine::Options { device: DeviceChoice::CpuAsGpu, precision, ..engine::Options::default() };
    engine::open(name, &sources(), &options).unwrap()
}

/// On every `step`th text of the fixture, all in one call: candle's tensors are slow on a processor.
fn least_cosine_as_gpu(precision: Precision, step: usize) -> f64 {
    let Default { golden, ids, .. } = &*DEFAULT;
    let mut model = as_gpu("all-MiniLM-L6-v2", precision);
    let picked: Vec<usize> = (0..ids.len()).step_by(step).collect();
    let vectors = model.engine.embed(&picked.iter().map(|&index| &*ids[index]).collect::<Vec<_>>()).unwrap();
    let cosines = picked.iter().zip(&vectors).map(|(&index, vector)| cosine(&golden[index], vector));
    cosines.fold(1.0, f64::min)
}

#[test]
fn the_encoder_for_gpus_gives_the_reference_vectors_in_f32() {
    let least = least_cosine_as_gpu(Precision::F32, 7);
    assert!(least >= 0.999_999, "{least}");
}

#[test]
fn the_encoder_for_gpus_stays_in_the_class_of_f32_in_f16() {
    let least = least_cosine_as_gpu(Precision::Half, 30);
    assert!(least >= 0.9999, "{least}");
}

#[test]
fn padding_has_no_part_in_a_vector() {
    let path = data("models/tiny-mean");
    let mut model = as_gpu(path.to_str().unwrap(), Precision::F32);
    let texts: Vec<Vec<u32>> = (1..60).map(|length| (0..length).map(|at| 5 + at % 90).collect()).collect();
    let together = model.engine.embed(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
    for (text, together) in texts.iter().zip(&together) {
        let alone = model.engine.embed(&[text]).unwrap().remove(0);
        let norm = alone.iter().map(|value| value * value).sum::<f32>().sqrt();
        let off = alone.iter().zip(together).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off <= 1e-6 * norm, "{} tokens: off by {off} of {norm}", text.len());
    }
}

#[test]
fn a_token_that_the_network_does_not_know_never_reaches_a_gpu() {
    let mut model = as_gpu(data("models/tiny-mean").to_str().unwrap(), Precision::F32);
    for (wrong, expected) in [(vec![], "no tokens"), (vec![4_000_000], "token 4000000"), (vec![1; 5000], "5000 tokens")]
    {
        let error = model.engine.embed(&[&[1, 2], &wrong]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_gpu_that_is_not_there_is_named_with_the_reason() {
    let name = data("models/tiny-mean");
    let open = |device, precision| {
        let options = engine::Options { device, precision, ..engine::Options::default() };
        engine::open(name.to_str().unwrap(), &sources(), &options)
    };
    if !cfg!(feature = "cuda") {
        let error = open(DeviceChoice::Cuda, Precision::Auto).err().unwrap().to_string();
        assert!(error.contains("NVIDIA") && error.contains("feature `cuda`"), "{error}");
    }
    let error = open(DeviceChoice::Cuda, Precision::Int8).err().unwrap().to_string();
    assert!(error.contains("8-bit"), "{error}");
    assert!(open(DeviceChoice::Auto, Precision::F32).is_ok());
}

#[test]
fn models_that_differ_in_any_file_have_different_versions() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        let to = folder.path().join(name);
        std::fs::create_dir_all(to.join("1_Pooling")).unwrap();
        for file in walk(&data("models/tiny-mean")) {
            let relative = file.strip_prefix(data("models/tiny-mean")).unwrap();
            std::fs::create_dir_all(to.join(relative).parent().unwrap()).unwrap();
            std::fs::copy(&file, to.join(relative)).unwrap();
        }
        to
    };
    let version = |folder: &Path| open(folder.to_str().unwrap()).card.version;
    let (same, weights, tokenizer, pooling) = (copy("same"), copy("weights"), copy("tokenizer"), copy("pooling"));
    let mut bytes = std::fs::read(weights.join("model.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(weights.join("model.safetensors"), bytes).unwrap();
    let text = std::fs::read_to_string(tokenizer.join("tokenizer.json")).unwrap();
    std::fs::write(tokenizer.join("tokenizer.json"), text + "\n").unwrap();
    let text = std::fs::read_to_string(pooling.join("1_Pooling/config.json")).unwrap();
    std::fs::write(pooling.join("1_Pooling/config.json"), text.replace("\"mean\"", "\"cls\"")).unwrap();
    let original = version(&data("models/tiny-mean"));
    assert_eq!(version(&same), original);
    let mut versions = vec![original, version(&weights), version(&tokenizer), version(&pooling)];
    versions.dedup();
    assert_eq!(versions.len(), 4);
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn hostile_model_folders_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let with = |file: &str, content: &[u8]| {
        let to = folder.path().join("model");
        let _ = std::fs::remove_dir_all(&to);
        std::fs::create_dir_all(&to).unwrap();
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            std::fs::copy(data("models/tiny-mean").join(name), to.join(name)).unwrap();
        }
        std::fs::write(to.join(file), content).unwrap();
        match engine::open(to.to_str().unwrap(), &sources(), &engine::Options::default()) {
            Ok(_) => panic!("{file} was accepted"),
            Err(error) => error.to_string(),
        }
    };
    let config = std::fs::read_to_string(data("models/tiny-mean/config.json")).unwrap();
    let changed = |key: &str, value: serde_json::Value| {
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config[key] = value;
        config.to_string()
    };
    assert!(with("config.json", b"{").contains("config.json"));
    assert!(with("tokenizer.json", b"{}").contains("tokenizer.json"));
    assert!(with("model.safetensors", b"").contains("model.safetensors"));
    assert!(with("model.safetensors", &[0xff; 64]).contains("model.safetensors"));
    assert!(with("config.json", changed("model_type", "t5".into()).as_bytes()).contains("t5"));
    assert!(with("config.json", changed("num_attention_heads", 0.into()).as_bytes()).contains("heads"));
    assert!(with("config.json", changed("num_attention_heads", 5.into()).as_bytes()).contains("heads"));
    assert!(
        with("config.json", changed("vocab_size", 1_000_000_000_000_u64.into()).as_bytes())
            .contains("model.safetensors")
    );
    assert!(
        with("config.json", changed("num_hidden_layers", 1_000_000.into()).as_bytes()).contains("model.safetensors")
    );
    assert!(with("config.json", changed("hidden_size", 1_000_000_000_u64.into()).as_bytes()).contains("dims"));
}
