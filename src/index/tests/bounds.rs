//! The arithmetic that answers rest on.

use super::super::codes::{Bounds, round_query, round_row, stride};
use super::super::rescore::LANES;
use super::*;

/// A vector's values: of any size, some of them large, some as good as nothing.
fn values(dims: std::ops::Range<usize>) -> impl Strategy<Value = Vec<f32>> {
    let value =
        prop_oneof![4 => -1.0f32..1.0, 1 => -1e-4f32..1e-4, 1 => Just(0.0), 1 => -30.0f32..30.0, 1 => -1e-30f32..1e-30];
    proptest::collection::vec(value, dims).prop_filter("a direction", |values| values.iter().any(|v| v.abs() > 1e-2))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn bounds_hold(mut query in values(1..300), mut row in values(300..301), scaled in any::<bool>(), longer in 0.0f32..3.0) {
        row.truncate(query.len());
        prop_assume!(row.iter().any(|value| value.abs() > 1e-2));
        query = unit(&query);
        let row = halves(&if scaled { unit(&row) } else { row });
        let mut codes = vec![0i8; stride(row.len())];
        let mut words = vec![0i16; stride(row.len())];
        let known = round_row(&row, &mut codes[..row.len()]).unwrap();
        let bounds = Bounds::new(&round_query(&query, &mut words), known.length + longer);
        let product: i32 = codes.iter().zip(&words).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
        let (lower, upper) = bounds.of(product, known.scale, known.error);
        let similarity = similarity(&query, &row);
        prop_assert!(lower <= similarity && similarity <= upper, "{lower} {similarity} {upper}");
    }

    #[test]
    fn similarity_is_as_its_definition_says_and_near_the_truth(query in values(1..600)) {
        let query = unit(&query);
        let row = halves(&query);
        let mut sums = [0.0f32; LANES];
        for (at, (query, row)) in query.iter().zip(&row).enumerate() {
            sums[at % LANES] += query * row.to_f32();
        }
        let [a, b, c, d] = [0, 1, 2, 3].map(|at| (sums[at] + sums[at + 8]) + (sums[at + 4] + sums[at + 12]));
        prop_assert_eq!(similarity(&query, &row).to_bits(), ((a + c) + (b + d)).to_bits());
        let truth: f64 = query.iter().zip(&row).map(|(&a, b)| f64::from(a) * b.to_f64()).sum();
        prop_assert!((f64::from(similarity(&query, &row)) - truth).abs() < 1e-5);
    }
}

/// The longest vectors, all of whose values are as large as can be, fill sums the most.
#[test]
fn sums_of_products_have_room() {
    for dims in [1, 2, 384, 513, 4096, 65_536] {
        let values = vec![1.0 / (dims as f32).sqrt(); dims];
        let mut words = vec![0i16; dims];
        round_query(&values, &mut words);
        let sum: i64 = words.iter().map(|&word| 127 * i64::from(word)).sum();
        assert!(sum <= i64::from(i32::MAX), "{dims}");
        assert!(words[0] >= 250, "{dims}: {} is coarse", words[0]);
    }
}

#[test]
fn rows_without_a_direction_have_no_codes() {
    for bad in [0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let row = halves(&[0.0, bad, 0.0]);
        assert_eq!(round_row(&row, &mut [0; 3]), None, "{bad}");
    }
    let least = [f16::from_bits(1), f16::ZERO];
    assert!(round_row(&least, &mut [0; 2]).is_some());
}

/// A similarity that two processors computed differently would show here: these were computed by a loop.
#[test]
fn equally_similar_is_equal_to_the_bit() {
    let row = halves(&[0.0, -0.0, 1.0]);
    assert_eq!(similarity(&[-1.0, 0.0, 0.0], &row).to_bits(), 0);
}
